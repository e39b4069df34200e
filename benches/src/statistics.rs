//! Medians and what lies around them.
//!
//! In: samples. Out: order statistics by the nearest rank, which are values that were measured. Deliberately not here: means; one
//! interruption by a neighbour moves a mean and leaves a median.

use serde::Serialize;

/// What a set of samples is summed up by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Distance of the quartiles, over the median; 0 for one sample.
    pub(crate) spread: f64,
    pub(crate) samples: usize,
}

impl Summary {
    /// Sums `samples` up; NaN everywhere when there are none.
    pub(crate) fn of(samples: &[f64]) -> Self {
        let median = percentile(samples, 50.0);
        let quartiles = percentile(samples, 75.0) - percentile(samples, 25.0);
        Self {
            median,
            min: percentile(samples, 0.0),
            max: percentile(samples, 100.0),
            spread: if median == 0.0 { 0.0 } else { quartiles / median },
            samples: samples.len(),
        }
    }
}

/// The median.
pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 50.0)
}

/// The smallest sample that `percent` of all are not above (nearest rank); NaN without samples.
pub(crate) fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// `a / b` pair by pair: samples that were taken in turn share what the machine did meanwhile.
pub(crate) fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_values_that_were_measured() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&samples), 3.0);
        assert_eq!(percentile(&samples, 0.0), 1.0);
        assert_eq!(percentile(&samples, 99.0), 5.0);
        assert_eq!(percentile(&samples, 20.0), 1.0);
        assert_eq!(percentile(&samples, 20.1), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_summary_tells_the_spread() {
        let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!((summary.median, summary.min, summary.max, summary.samples), (2.0, 1.0, 4.0, 4));
        assert_eq!(summary.spread, 1.0);
        assert_eq!(Summary::of(&[7.0]).spread, 0.0);
        assert_eq!(ratios(&[4.0, 9.0], &[2.0, 3.0]), [2.0, 3.0]);
    }
}
