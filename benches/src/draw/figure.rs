//! What a plot looks like: title, legend above the data, grid, axes, series.
//!
//! In: a plot and a canvas. Out: the painting. Series differ in colour and in the form of their marks, so that neither has to
//! carry the difference alone. Deliberately not here: pixels and file formats (`canvas`), the choice of ticks (`ruler`).

use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::HPos;

use super::canvas::{Canvas, HEIGHT, Letters, Place, WIDTH};
use super::colour::{self, AXIS, Colour, FINE_GRID, GRID, INK, PAPER, SOFT_INK};
use super::ruler::{Ruler, named, shows, tick_name};
use crate::plot::{Plot, Scale, Series, Shape};

const TITLE: Letters = Letters { size: 25.0, colour: INK, from: HPos::Left, upright: false };
const LEGEND: Letters = Letters { size: 17.0, colour: INK, from: HPos::Left, upright: false };
const X_LABEL: Letters = Letters { size: 17.0, colour: INK, from: HPos::Center, upright: false };
const Y_LABEL: Letters = Letters { size: 17.0, colour: INK, from: HPos::Center, upright: true };
const X_TICK: Letters = Letters { size: 16.0, colour: SOFT_INK, from: HPos::Center, upright: false };
const Y_TICK: Letters = Letters { size: 16.0, colour: SOFT_INK, from: HPos::Right, upright: false };
const VALUE: Letters = Letters { size: 15.0, colour: INK, from: HPos::Center, upright: false };

const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH as f64 - 28.0;
const BOTTOM: f64 = HEIGHT as f64 - 62.0;
/// However many rows a legend has, this much is left for the data.
const DATA_HEIGHT_MIN: f64 = 200.0;
const LEGEND_TOP: f64 = 68.0;
const LEGEND_ROW: f64 = 25.0;
const SWATCH: f64 = 30.0;
/// A browser's letters may be wider than ours, on which widths are measured.
const LETTERS_SLACK: f64 = 1.15;

/// Beyond this many points a line has a mark at some of them only.
const MARKS_MAX: usize = 16;
/// Beyond this many bars their values stand at the axis alone.
const VALUES_MAX: usize = 24;
/// The part of a place that bars take.
const BARS_SHARE: f64 = 0.8;
/// Room for values above the highest bar.
const BARS_HEADROOM: f64 = 1.07;

/// Paints it all.
pub(super) fn paint<DB: DrawingBackend>(plot: &Plot, canvas: &Canvas<DB>) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let painter = Painter { plot, canvas };
    canvas.text(&painter.fitting(&plot.title, TITLE, RIGHT - 24.0)?, (24.0, 38.0), TITLE)?;
    let top = painter.legend()?.min(BOTTOM - DATA_HEIGHT_MIN);
    let frame = Frame::of(plot, top);
    painter.intervals(&frame)?;
    painter.axes(&frame)?;
    let bars = painter.bars(&frame);
    for (corners, colour, _) in &bars {
        canvas.rectangle(*corners, *colour, 1.0)?;
    }
    for (place, series) in plot.series.iter().enumerate() {
        match series.shape {
            Shape::Line => painter.line(&frame, place, series)?,
            Shape::Dots => painter.dots(&frame, place, series)?,
            Shape::Bars | Shape::Intervals => {}
        }
    }
    if bars.len() <= VALUES_MAX { painter.values(&bars) } else { Ok(()) }
}

/// Its corners, its colour, and its value.
type Bar = ([Place; 2], Colour, f64);

/// Where the data is.
struct Frame {
    top: f64,
    x: Ruler,
    y: Ruler,
}

impl Frame {
    fn of(plot: &Plot, top: f64) -> Self {
        let of_x = |series| {
            drawable(plot, series).into_iter().flat_map(|(x, y)| match series.shape {
                Shape::Intervals => vec![x, y],
                _ => vec![x],
            })
        };
        let of_y = |series: &Series| {
            let headroom = if series.shape == Shape::Bars { BARS_HEADROOM } else { 1.0 };
            drawable(plot, series).into_iter().map(move |(_, y)| y * headroom)
        };
        let has_bars = plot.series.iter().any(|series| series.shape == Shape::Bars);
        let x_values = plot.series.iter().flat_map(of_x);
        let y_values = plot.series.iter().filter(|series| series.shape != Shape::Intervals).flat_map(of_y);
        Self {
            top,
            x: if has_bars { Ruler::of_places(x_values) } else { Ruler::of(plot.x.scale, x_values, false) },
            y: Ruler::of(plot.y.scale, y_values, true),
        }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.position(value) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.y.position(value) * (BOTTOM - self.top)
    }

    fn places(&self, points: &[(f64, f64)]) -> Vec<Place> {
        points.iter().map(|(x, y)| (self.x(*x), self.y(*y))).collect()
    }
}

/// The points that the axes can show; of intervals both numbers are on the x axis, the lesser first.
fn drawable(plot: &Plot, series: &Series) -> Vec<(f64, f64)> {
    let points = series.points.iter().copied();
    match series.shape {
        Shape::Intervals => points
            .filter(|(from, to)| shows(plot.x.scale, *from) && shows(plot.x.scale, *to))
            .map(|(from, to)| (from.min(to), from.max(to)))
            .collect(),
        _ => points.filter(|(x, y)| shows(plot.x.scale, *x) && shows(plot.y.scale, *y)).collect(),
    }
}

struct Painter<'a, DB: DrawingBackend> {
    plot: &'a Plot,
    canvas: &'a Canvas<DB>,
}

impl<DB: DrawingBackend> Painter<'_, DB>
where
    DB::ErrorType: 'static,
{
    /// Names beside what they look like, in rows. Returns where the data may begin.
    fn legend(&self) -> anyhow::Result<f64> {
        let (mut x, mut y) = (24.0, LEGEND_TOP);
        for (place, series) in self.plot.series.iter().enumerate() {
            let empty = if drawable(self.plot, series).is_empty() { " (no data)" } else { "" };
            let name = self.fitting(&format!("{}{empty}", series.name), LEGEND, RIGHT - 24.0 - SWATCH)?;
            let width = SWATCH + 8.0 + self.canvas.width(&name, LEGEND)? * LETTERS_SLACK;
            if x + width > RIGHT && x > 24.0 {
                (x, y) = (24.0, y + LEGEND_ROW);
            }
            self.swatch((x, y - 5.0), place, series.shape)?;
            self.canvas.text(&name, (x + SWATCH + 8.0, y), LEGEND)?;
            x += width + 22.0;
        }
        Ok(if self.plot.series.is_empty() { LEGEND_TOP } else { y + 24.0 })
    }

    fn swatch(&self, (x, y): Place, place: usize, shape: Shape) -> anyhow::Result<()> {
        let (colour, middle) = (colour::series(place), (x + SWATCH / 2.0, y));
        match shape {
            Shape::Line => {
                self.canvas.line(&[(x, y), (x + SWATCH, y)], colour, 2.5)?;
                self.mark(middle, place, 5.0, 1.0)
            }
            Shape::Dots => self.mark(middle, place, 5.0, 1.0),
            Shape::Bars => self.canvas.rectangle([(x + 8.0, y - 7.0), (x + SWATCH - 8.0, y + 7.0)], colour, 1.0),
            Shape::Intervals => self.interval([(x, y - 8.0), (x + SWATCH, y + 8.0)], colour),
        }
    }

    /// Grid, ticks with their names, and the words along both axes.
    fn axes(&self, frame: &Frame) -> anyhow::Result<()> {
        let up = |value: &f64| [(frame.x(*value), frame.top), (frame.x(*value), BOTTOM)];
        let across = |value: &f64| [(LEFT, frame.y(*value)), (RIGHT, frame.y(*value))];
        let mut fine = frame.x.fine.iter().map(up).chain(frame.y.fine.iter().map(across));
        fine.try_for_each(|line| self.canvas.line(&line, FINE_GRID, 1.0))?;
        let upright: &[f64] = if frame.x.place_width().is_some() { &[] } else { &frame.x.ticks };
        let mut grid = upright.iter().map(up).chain(frame.y.ticks.iter().map(across));
        grid.try_for_each(|line| self.canvas.line(&line, GRID, 1.0))?;
        self.canvas.line(&[(LEFT, frame.top), (LEFT, BOTTOM), (RIGHT, BOTTOM)], AXIS, 1.2)?;
        for tick in &frame.x.ticks {
            self.canvas.line(&[(frame.x(*tick), BOTTOM), (frame.x(*tick), BOTTOM + 5.0)], AXIS, 1.2)?;
            self.canvas.text(&tick_name(*tick), (frame.x(*tick), BOTTOM + 21.0), X_TICK)?;
        }
        for tick in &frame.y.ticks {
            self.canvas.line(&[(LEFT - 5.0, frame.y(*tick)), (LEFT, frame.y(*tick))], AXIS, 1.2)?;
            self.canvas.text(&tick_name(*tick), (LEFT - 9.0, frame.y(*tick) + 5.0), Y_TICK)?;
        }
        let x_label = self.fitting(&self.plot.x.label, X_LABEL, RIGHT - LEFT)?;
        self.canvas.text(&x_label, ((LEFT + RIGHT) / 2.0, BOTTOM + 47.0), X_LABEL)?;
        let y_label = self.fitting(&self.plot.y.label, LEGEND, BOTTOM - frame.top)?;
        self.canvas.text(&y_label, (26.0, (frame.top + BOTTOM) / 2.0), Y_LABEL)
    }

    fn line(&self, frame: &Frame, place: usize, series: &Series) -> anyhow::Result<()> {
        let places = frame.places(&drawable(self.plot, series));
        if places.is_empty() {
            return Ok(());
        }
        self.canvas.line(&places, colour::series(place), 2.5)?;
        // Marks of lines that lie on each other stand beside each other.
        let step = places.len().div_ceil(MARKS_MAX);
        let first = place * step / self.plot.series.len();
        places.iter().skip(first).step_by(step).try_for_each(|at| self.mark(*at, place, 5.0, 1.0))
    }

    fn dots(&self, frame: &Frame, place: usize, series: &Series) -> anyhow::Result<()> {
        let mut places = frame.places(&drawable(self.plot, series));
        // Dots that fall on one pixel one after the other are one dot.
        places.dedup_by_key(|(x, y)| (x.round() as i32, y.round() as i32));
        places.iter().try_for_each(|at| self.mark(*at, place, 3.5, 0.75))
    }

    /// Those of one place side by side.
    fn bars(&self, frame: &Frame) -> Vec<Bar> {
        let series = || self.plot.series.iter().enumerate().filter(|(_, series)| series.shape == Shape::Bars);
        let room = frame.x.place_width().unwrap_or(0.0) * (RIGHT - LEFT) * BARS_SHARE;
        let width = room / series().count().max(1) as f64;
        let gap = (width * 0.06).min(3.0);
        let ground = if self.plot.y.scale == Scale::Linear { frame.y(0.0) } else { BOTTOM };
        let of = |(beside, (place, series))| {
            let left = move |x| frame.x(x) - room / 2.0 + beside as f64 * width;
            let points = drawable(self.plot, series).into_iter();
            points.map(move |(x, y)| {
                ([(left(x) + gap, frame.y(y)), (left(x) + width - gap, ground)], colour::series(place), y)
            })
        };
        series().enumerate().flat_map(of).collect()
    }

    /// Above each bar its value, on paper of its own where a line passes.
    fn values(&self, bars: &[Bar]) -> anyhow::Result<()> {
        for ([(left, top), (right, bottom)], _, value) in bars {
            let (middle, above, name) = ((left + right) / 2.0, top.min(*bottom) - 6.0, named(*value, 3));
            let half = self.canvas.width(&name, VALUE)? / 2.0 + 1.0;
            self.canvas.rectangle([(middle - half, above - 12.0), (middle + half, above + 2.0)], PAPER, 0.8)?;
            self.canvas.text(&name, (middle, above), VALUE)?;
        }
        Ok(())
    }

    fn intervals(&self, frame: &Frame) -> anyhow::Result<()> {
        for (place, series) in
            self.plot.series.iter().enumerate().filter(|(_, series)| series.shape == Shape::Intervals)
        {
            for (from, to) in drawable(self.plot, series) {
                let (from, to) = (frame.x(from), frame.x(to));
                self.interval([(from, frame.top), (to.max(from + 1.0), BOTTOM)], colour::series(place))?;
            }
        }
        Ok(())
    }

    fn interval(&self, corners: [Place; 2], colour: Colour) -> anyhow::Result<()> {
        let [(left, top), (right, bottom)] = corners;
        self.canvas.rectangle(corners, colour, 0.16)?;
        self.canvas.line(&[(left, top), (left, bottom)], colour, 1.0)?;
        self.canvas.line(&[(right, top), (right, bottom)], colour, 1.0)
    }

    /// A mark in the colour and the form of a series.
    fn mark(&self, (x, y): Place, place: usize, size: f64, opacity: f64) -> anyhow::Result<()> {
        let colour = colour::series(place);
        let around = |corners: &[Place]| {
            let corners: Vec<_> = corners.iter().map(|(dx, dy)| (x + dx * size, y + dy * size)).collect();
            self.canvas.polygon(&corners, colour, opacity)
        };
        match place % 5 {
            0 => self.canvas.circle((x, y), size, colour, opacity),
            1 => around(&[(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)]),
            2 => around(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            3 => around(&[(0.0, -1.35), (1.1, 0.0), (0.0, 1.35), (-1.1, 0.0)]),
            _ => around(&[(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)]),
        }
    }

    /// The text, shortened where it is wider than its room.
    fn fitting(&self, text: &str, letters: Letters, room: f64) -> anyhow::Result<String> {
        let width = self.canvas.width(text, letters)? * LETTERS_SLACK;
        if width <= room {
            return Ok(text.to_owned());
        }
        let kept = (text.chars().count() as f64 * room / width) as usize;
        Ok(text.chars().take(kept.saturating_sub(1)).chain(['…']).collect())
    }
}
