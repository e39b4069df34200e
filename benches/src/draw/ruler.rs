//! How an axis is divided: its range, its ticks, and what the ticks are called.
//!
//! In: the values that an axis has to show. Out: a [`Ruler`], which places values between 0 and 1. Ticks are 1, 2 or 5 times
//! a power of ten (Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990). Deliberately not here: pixels.

use crate::plot::Scale;

/// Beyond this an axis shows nothing: prefixes end at exa, and a plot of such values is a mistake.
const VALUE_MAX: f64 = 1e18;
/// A range is at least this part of its largest value, so that [`DIGITS`] tell ticks apart.
const SPAN_MIN: f64 = 1e-4;
/// Digits that count in the name of a tick.
const DIGITS: usize = 6;
/// Spaces between ticks that a linear axis comes close to.
const SPACES: f64 = 6.0;
/// An end that has a tick within this part of a step is moved there; the turns 1 to 100 stand on an axis from 0 to 100.
const STRETCH_MAX: f64 = 0.25;
/// More ticks at 1, 2 and 5 than this on a logarithmic axis, and only the powers of ten stay.
const LOG_TICKS_MAX: usize = 10;
/// More powers of ten than this, and some go too.
const DECADES_MAX: usize = 12;
/// More places than this on an axis of places, and not each is called by its name.
const PLACES_MAX: usize = 16;
/// Prefixes of the SI, by powers of a thousand.
const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// A divided axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ruler {
    division: Division,
    low: f64,
    high: f64,
    /// Values with a line and a name.
    pub(super) ticks: Vec<f64>,
    /// Values with a fine line.
    pub(super) fine: Vec<f64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Division {
    Linear,
    Logarithmic,
    /// One space of the same width for each of these values, by rising value; between them, in proportion.
    Places(Vec<f64>),
}

/// Whether an axis can show a value: finite, within reason, and above zero on a logarithmic one.
pub(super) fn shows(scale: Scale, value: f64) -> bool {
    let magnitude = value.abs();
    match scale {
        Scale::Linear => magnitude <= VALUE_MAX,
        Scale::Logarithmic => value > 0.0 && (1.0 / VALUE_MAX..=VALUE_MAX).contains(&value),
    }
}

impl Ruler {
    /// Has room for all `values`, which [`shows`] accepts. `ground`: a linear axis has zero on it, so that lengths compare, and
    /// ends on ticks.
    pub(super) fn of(scale: Scale, values: impl Iterator<Item = f64>, ground: bool) -> Self {
        let range = values.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        match (scale, range) {
            (Scale::Linear, None) => Self::linear(0.0, 1.0, 1.0),
            (Scale::Linear, Some((low, high))) if ground => Self::linear(low.min(0.0), high.max(0.0), 1.0),
            (Scale::Linear, Some((low, high))) => Self::linear(low, high, STRETCH_MAX),
            (Scale::Logarithmic, None) => Self::logarithmic(1.0, 10.0),
            (Scale::Logarithmic, Some((low, high))) => Self::logarithmic(low, high),
        }
    }

    /// Places for bars, one for each value.
    pub(super) fn of_places(values: impl Iterator<Item = f64>) -> Self {
        let mut places: Vec<f64> = values.map(|value| value + 0.0).collect(); // -0 and 0 are one place
        places.sort_by(f64::total_cmp);
        places.dedup();
        let ticks = places.iter().copied().step_by(places.len().div_ceil(PLACES_MAX).max(1)).collect();
        let high = places.len().max(1) as f64 - 0.5;
        Self { division: Division::Places(places), low: -0.5, high, ticks, fine: Vec::new() }
    }

    /// `stretch`: at most so many steps an end is moved to be on a tick.
    fn linear(low: f64, high: f64, stretch: f64) -> Self {
        let largest = low.abs().max(high.abs());
        let (low, high) = match largest {
            _ if largest < 1.0 / VALUE_MAX => (0.0, 1.0),
            _ if high - low < largest * SPAN_MIN => (low - largest * 0.1, high + largest * 0.1),
            _ => (low, high),
        };
        let step = nice((high - low) / SPACES);
        // A value on a tick stays on it, whatever the last bit of the division says.
        let (below, above) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let low = if low / step - below <= stretch { below * step } else { low };
        let high = if above - high / step <= stretch { above * step } else { high };
        let ticks = (below as i64..=above as i64).map(|tick| tick as f64 * step);
        let ticks = ticks.filter(|tick| (low..=high).contains(tick)).collect();
        Self { division: Division::Linear, low, high, ticks, fine: Vec::new() }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (mut first, mut last) = (rung_below(low), rung_above(high));
        while last - first < 2 {
            first -= 1;
            last += i32::from(last - first < 2);
        }
        let mut ticks: Vec<f64> = (first..=last).map(rung).collect();
        if ticks.len() > LOG_TICKS_MAX {
            let powers: Vec<f64> = (first..=last).filter(|at| at.rem_euclid(3) == 0).map(rung).collect();
            ticks = powers.iter().copied().step_by(powers.len().div_ceil(DECADES_MAX)).collect();
        }
        let decades = first.div_euclid(3)..=last.div_euclid(3);
        let (low, high) = (rung(first), rung(last));
        let fine = decades.flat_map(|decade| (1..10).map(move |digit| f64::from(digit) * 10_f64.powi(decade)));
        let fine = fine.filter(|value| (low..=high).contains(value)).collect();
        Self { division: Division::Logarithmic, low, high, ticks, fine }
    }

    /// Where a value is: 0 at the low end, 1 at the high end.
    pub(super) fn position(&self, value: f64) -> f64 {
        let position = match &self.division {
            Division::Linear => (value - self.low) / (self.high - self.low),
            Division::Logarithmic if value <= 0.0 => 0.0,
            Division::Logarithmic => (value / self.low).log10() / (self.high / self.low).log10(),
            Division::Places(places) => (place(places, value) - self.low) / (self.high - self.low),
        };
        position.clamp(0.0, 1.0)
    }

    /// The width of one place, as [`Self::position`] counts; `None` on an axis without places.
    pub(super) fn place_width(&self) -> Option<f64> {
        matches!(self.division, Division::Places(_)).then(|| 1.0 / (self.high - self.low))
    }
}

/// What a value is called, with at most so many digits that count: `0.25`, `1.5k`, `2e-6`.
pub(super) fn named(value: f64, digits: usize) -> String {
    // Scientific first: its rounding decides the power of ten.
    let scientific = format!("{:.*e}", digits.saturating_sub(1), value);
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let decimals = |used: i32| (digits as i32 - 1 - used).max(0) as usize;
    match exponent {
        -3..=2 => trimmed(&format!("{value:.*}", decimals(exponent))),
        3..=20 => {
            let thousands = exponent / 3;
            let scaled = value / 1000_f64.powi(thousands);
            let prefix = PREFIXES[thousands as usize];
            format!("{}{prefix}", trimmed(&format!("{scaled:.*}", decimals(exponent % 3))))
        }
        _ => format!("{}e{exponent}", trimmed(mantissa)),
    }
}

/// A tick's name.
pub(super) fn tick_name(value: f64) -> String {
    named(value, DIGITS)
}

fn trimmed(number: &str) -> String {
    let short = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}

/// The first of 1, 2 and 5 times a power of ten that is not below `step`.
fn nice(step: f64) -> f64 {
    rung(rung_above(step))
}

/// 1, 2, 5, 10, 20, …: rung 0 is 1.
fn rung(at: i32) -> f64 {
    [1.0, 2.0, 5.0][at.rem_euclid(3) as usize] * 10_f64.powi(at.div_euclid(3))
}

/// The last rung at or below.
fn rung_below(value: f64) -> i32 {
    let mut at = value.log10().floor() as i32 * 3;
    while rung(at + 1) <= value * (1.0 + 1e-9) {
        at += 1;
    }
    at
}

/// The first rung at or above.
fn rung_above(value: f64) -> i32 {
    let below = rung_below(value);
    if rung(below) >= value * (1.0 - 1e-9) { below } else { below + 1 }
}

fn place(places: &[f64], value: f64) -> f64 {
    let after = places.partition_point(|place| *place < value);
    match (after.checked_sub(1).map(|before| places[before]), places.get(after)) {
        (Some(before), Some(next)) => after as f64 - (next - value) / (next - before),
        (None, _) => 0.0,
        (Some(_), None) => after as f64 - 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ruler: &Ruler) -> Vec<String> {
        ruler.ticks.iter().map(|tick| tick_name(*tick)).collect()
    }

    #[test]
    fn numbers_have_short_names() {
        let values = [0.0, -0.0, 0.1 + 0.2, 1.0, 999.9996, 1500.0, 1e6, -2e9, 3e-7, 0.001, 0.0009, 1e18];
        let expected = ["0", "0", "0.3", "1", "1k", "1.5k", "1M", "-2G", "3e-7", "0.001", "9e-4", "1E"];
        assert_eq!(values.map(tick_name), expected);
        assert_eq!([1234.0, 99.96, 0.1234, 7.0].map(|value| named(value, 3)), ["1.23k", "100", "0.123", "7"]);
    }

    #[test]
    fn a_linear_axis_ends_on_ticks_that_are_near() {
        let ruler = Ruler::of(Scale::Linear, [1.0, 100.0].into_iter(), false);
        assert_eq!(names(&ruler), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!([0.0, 50.0, 100.0].map(|value| ruler.position(value)), [0.0, 0.5, 1.0]);
        let seconds = Ruler::of(Scale::Linear, [0.02, 60.01].into_iter(), false);
        assert_eq!((names(&seconds).last().map(String::as_str), seconds.position(60.01)), (Some("60"), 1.0));
        let shares = Ruler::of(Scale::Linear, [0.3, 1.0].into_iter(), true);
        assert_eq!(names(&shares), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn a_logarithmic_axis_has_few_ticks_that_people_know() {
        let ruler = Ruler::of(Scale::Logarithmic, [9.0, 4000.0].into_iter(), false);
        assert_eq!(names(&ruler), ["5", "10", "20", "50", "100", "200", "500", "1k", "2k", "5k"]);
        let wide = Ruler::of(Scale::Logarithmic, [1.0, 90_000.0].into_iter(), false);
        assert_eq!(names(&wide), ["1", "10", "100", "1k", "10k", "100k"]);
        assert!((wide.position(1000.0) - 0.6).abs() < 1e-12);
        assert!(wide.fine.contains(&30.0));
        assert_eq!(wide.position(0.0), 0.0);
    }

    #[test]
    fn one_value_and_none_make_an_axis() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            for values in [vec![], vec![7.0], vec![7.0, 7.0 + 1e-12]] {
                let ruler = Ruler::of(scale, values.iter().copied(), false);
                assert!(ruler.ticks.len() >= 3, "{ruler:?}");
                assert!(values.iter().all(|value| (0.05..0.95).contains(&ruler.position(*value))), "{ruler:?}");
            }
        }
    }

    #[test]
    fn places_are_evenly_spaced() {
        let ruler = Ruler::of_places([8.0, 1.0, 4.0, 2.0, 4.0].into_iter());
        assert_eq!(names(&ruler), ["1", "2", "4", "8"]);
        assert_eq!([1.0, 2.0, 4.0, 8.0].map(|value| ruler.position(value)), [0.125, 0.375, 0.625, 0.875]);
        assert_eq!(ruler.position(3.0), 0.5);
        assert_eq!(ruler.place_width(), Some(0.25));
    }

    #[test]
    fn what_no_axis_can_show() {
        assert!([f64::NAN, f64::INFINITY, 1e300].iter().all(|value| !shows(Scale::Linear, *value)));
        assert!([0.0, -1.0, 1e-300, f64::NAN].iter().all(|value| !shows(Scale::Logarithmic, *value)));
        assert!(shows(Scale::Linear, -3.0) && shows(Scale::Logarithmic, 0.001));
    }
}
