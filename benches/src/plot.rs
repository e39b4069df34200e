//! A plot as data.
//!
//! Deliberately not here: how it is drawn.

use serde::Serialize;

/// A plot with axes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plot {
    /// Of the file, without an ending.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// An axis, from its label's words to its unit: `time to first token [ms]`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) scale: Scale,
}

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

/// Points of one colour, by rising x.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) shape: Shape,
}

/// What points are drawn as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shape {
    Line,
    Dots,
    /// Side by side with those of other series; each x of the plot becomes a place of its own, in order.
    Bars,
    /// Each point is an interval of x, `(from, to)`, shaded over the full height: when something else went on.
    Intervals,
}

impl Axis {
    /// Divided evenly.
    pub(crate) fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear }
    }

    /// Divided by powers of ten.
    pub(crate) fn logarithmic(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Logarithmic }
    }
}
