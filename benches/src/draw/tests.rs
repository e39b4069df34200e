//! Plots are drawn from whatever points a scenario has, and say what they show.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::plot::{Axis, Scale, Series, Shape};

fn plot(series: Vec<Series>) -> Plot {
    Plot {
        name: "ttft".to_owned(),
        title: "First token & <b>more</b>".to_owned(),
        x: Axis::linear("turn"),
        y: Axis::logarithmic("time to first token [ms]"),
        series,
    }
}

fn series(name: &str, shape: Shape, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), points, shape }
}

/// The numbers of points of the lines in the colour of a series, the legend's (two points) aside.
fn lines(svg: &str, place: usize) -> Vec<usize> {
    let stroke = format!(r#"stroke="{}""#, colour::series(place).light());
    let drawn = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(&stroke));
    let points = drawn.map(|line| line.split_once("points=\"").unwrap().1.split('"').next().unwrap());
    points.map(|points| points.split_whitespace().count()).filter(|points| *points > 2).collect()
}

#[test]
fn an_svg_says_what_it_shows() {
    let rising = |factor: f64| (1..=50).map(|turn| (f64::from(turn), factor * f64::from(turn))).collect();
    let names = ["stateful", "stateless", "peer"];
    let all = names.iter().zip([1.0, 40.0, 5.0]).map(|(name, factor)| series(name, Shape::Line, rising(factor)));
    let svg = svg(&plot(all.collect())).unwrap();
    assert!(svg.starts_with(r#"<svg width="1000" height="600" viewBox="0 0 3000 1800""#), "{}", &svg[..100]);
    for text in [
        "First token &amp; &lt;b&gt;more&lt;/b&gt;",
        "turn",
        "time to first token [ms]",
        "stateful",
        "stateless",
        "peer",
    ] {
        assert!(svg.lines().any(|line| line == text), "{text}");
    }
    assert!(!svg.contains("<b>"));
    for (place, name) in names.iter().enumerate() {
        assert_eq!(lines(&svg, place), [50], "{name}");
    }
}

#[test]
fn what_an_axis_cannot_show_is_left_out() {
    let points =
        vec![(1.0, 10.0), (2.0, 0.0), (3.0, f64::NAN), (4.0, 20.0), (f64::INFINITY, 5.0), (6.0, -3.0), (7.0, 30.0)];
    let svg =
        svg(&plot(vec![series("all", Shape::Line, points), series("none", Shape::Line, vec![(1.0, 0.0)])])).unwrap();
    assert_eq!(lines(&svg, 0), [3]);
    assert!(svg.lines().any(|line| line == "none (no data)"));
    let numbers: Vec<f64> = svg.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(numbers, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 10.0, 20.0, 50.0], "the axes fit what is shown");
}

#[test]
fn every_shape_becomes_its_own_element() {
    let points = vec![(1.0, 10.0), (2.0, 20.0)];
    let count =
        |shape, element: &str| svg(&plot(vec![series("s", shape, points.clone())])).unwrap().matches(element).count();
    let paper = 1;
    assert_eq!(count(Shape::Dots, "<circle"), 2 + 1, "and one in the legend");
    assert_eq!(count(Shape::Bars, "<rect"), 2 + 2 + 1 + paper, "and one behind each value");
    assert_eq!(count(Shape::Intervals, "<rect"), 2 + 1 + paper);
    assert_eq!(count(Shape::Line, "<circle"), 2 + 1);
}

#[test]
fn files_have_the_plots_name_and_pngs_are_not_blank() {
    let directory = tempfile::tempdir().unwrap();
    let blue = colour::series(0).rgb();
    all(&[plot(vec![series("s", Shape::Bars, vec![(1.0, 10.0), (2.0, 20.0)])])], &directory.path().join("plots"))
        .unwrap();
    let svg = std::fs::read_to_string(directory.path().join("plots/ttft.svg")).unwrap();
    assert!(svg.ends_with("</svg>\n"));
    let bytes = std::fs::read(directory.path().join("plots/ttft.png")).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((frame.width, frame.height, frame.color_type), (1000, 600, png::ColorType::Rgb));
    let of_colour = |wanted: [u8; 3]| pixels.chunks_exact(3).filter(|pixel| **pixel == wanted).count();
    assert!(of_colour([blue.0, blue.1, blue.2]) > 20_000, "bars");
    assert!(of_colour([255; 3]) > 200_000, "paper");
    let dark = pixels.chunks_exact(3).filter(|pixel| pixel.iter().all(|part| *part < 120)).count();
    assert!(dark > 500, "letters: {dark}");
}

#[test]
fn a_directory_that_cannot_be_made_is_told_by_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = all(&[], &file.path().join("plots")).unwrap_err();
    assert!(format!("{error:#}").contains("plots cannot be made"), "{error:#}");
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(f64::MAX),
        Just(f64::MIN),
        Just(f64::MIN_POSITIVE),
        Just(0.0),
        Just(-0.0),
        Just(1e18),
        Just(-1e18),
        Just(1e-18),
        any::<f64>(),
        -1e3..1e3,
        (-20_f64..20.0).prop_map(|exponent| 10_f64.powf(exponent)),
    ]
}

fn any_series() -> impl Strategy<Value = Series> {
    let shape = prop_oneof![Just(Shape::Line), Just(Shape::Dots), Just(Shape::Bars), Just(Shape::Intervals)];
    let points = prop::collection::vec((any_value(), any_value()), 0..20);
    (".{0,20}", shape, points).prop_map(|(name, shape, points)| Series { name, points, shape })
}

fn any_axis() -> impl Strategy<Value = Axis> {
    let scale = prop_oneof![Just(Scale::Linear), Just(Scale::Logarithmic)];
    (".{0,20}", scale).prop_map(|(label, scale)| Axis { label, scale })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_points_can_be_drawn(
        title in ".{0,200}", x in any_axis(), y in any_axis(), series in prop::collection::vec(any_series(), 0..12),
    ) {
        let svg = svg(&Plot { name: "any".to_owned(), title, x, y, series }).unwrap();
        prop_assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
        // Nothing is far outside of the sheet.
        let shapes = svg.lines().filter(|line| line.starts_with("<poly"));
        let numbers = shapes.flat_map(|line| line.split_once("points=\"").unwrap().1.split([',', ' ', '"']));
        prop_assert!(numbers.filter_map(|number| number.parse::<i32>().ok()).all(|at| (0..=3000).contains(&at)));
    }

    #[test]
    fn any_value_has_a_place_and_a_name(values in prop::collection::vec(any_value(), 0..10), zero in any::<bool>()) {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let shown: Vec<f64> = values.iter().copied().filter(|value| ruler::shows(scale, *value)).collect();
            let ruler = ruler::Ruler::of(scale, shown.iter().copied(), zero);
            prop_assert!((2..=13).contains(&ruler.ticks.len()), "{:?}", ruler.ticks);
            prop_assert!(shown.iter().all(|value| (0.0..=1.0).contains(&ruler.position(*value))));
            let mut names: Vec<_> = ruler.ticks.iter().map(|tick| ruler::tick_name(*tick)).collect();
            prop_assert!(names.iter().all(|name| name.len() <= 9), "{names:?}");
            names.dedup();
            prop_assert_eq!(names.len(), ruler.ticks.len());
        }
    }
}
