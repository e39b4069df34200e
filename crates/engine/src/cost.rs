//! What steps cost on this device: a line through the measured steps, the recent ones counting most.
//!
//! In: rows and device time of each step. Out: [`Costs`] for the scheduler. Least squares over exponentially weighted averages of
//! rows, time, rows² and rows·time: four numbers, no history. The length of contexts is not a term of its own; it changes slowly
//! and the averages follow it.

use holdfast_scheduler::Costs;

/// The weight of the newest step: about the last fifty count.
const NEWEST_WEIGHT: f64 = 0.04;
/// Before the first measurement: a guess that fits a small model on one core, so that the first step is neither empty nor endless.
const FIRST_GUESS: Costs = Costs { step_us: 0.0, row_us: 1_000.0 };

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct CostModel {
    means: Option<Means>,
}

#[derive(Debug, Clone, Copy)]
struct Means {
    rows: f64,
    time: f64,
    rows_rows: f64,
    rows_time: f64,
}

impl CostModel {
    /// A step was measured.
    pub(crate) fn observe(&mut self, rows: u32, device_time_us: u64) {
        let (rows, time) = (f64::from(rows), device_time_us as f64);
        let seen = Means { rows, time, rows_rows: rows * rows, rows_time: rows * time };
        let blend = |old: f64, new: f64| old + (new - old) * NEWEST_WEIGHT;
        self.means = Some(self.means.map_or(seen, |means| Means {
            rows: blend(means.rows, seen.rows),
            time: blend(means.time, seen.time),
            rows_rows: blend(means.rows_rows, seen.rows_rows),
            rows_time: blend(means.rows_time, seen.rows_time),
        }));
    }

    /// The line: never a negative cost, and through the mean when all steps had the same size.
    pub(crate) fn costs(&self) -> Costs {
        let Some(means) = self.means else { return FIRST_GUESS };
        let variance = means.rows_rows - means.rows * means.rows;
        let covariance = means.rows_time - means.rows * means.time;
        let whole = means.time / means.rows.max(1.0);
        let row_us = if variance > 1e-6 * means.rows_rows { (covariance / variance).clamp(0.0, whole) } else { whole };
        Costs { step_us: means.time - row_us * means.rows, row_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_followed() {
        let mut model = CostModel::default();
        assert_eq!(model.costs(), FIRST_GUESS);
        for step in 0..400_u64 {
            let rows = 1 + step % 64;
            model.observe(rows as u32, 500 + 30 * rows);
        }
        let costs = model.costs();
        assert!((costs.row_us - 30.0).abs() < 0.5 && (costs.step_us - 500.0).abs() < 10.0, "{costs:?}");
        for step in 0..400_u64 {
            let rows = 1 + step % 64;
            model.observe(rows as u32, 100 + 60 * rows);
        }
        assert!((model.costs().row_us - 60.0).abs() < 1.0, "{:?}", model.costs());
    }

    #[test]
    fn steps_of_one_size_give_a_price_per_row() {
        let mut model = CostModel::default();
        (0..10).for_each(|_| model.observe(4, 2_000));
        assert_eq!(model.costs(), Costs { step_us: 0.0, row_us: 500.0 });
        model.observe(400, 10);
        let costs = model.costs();
        assert!(costs.row_us >= 0.0 && costs.step_us >= 0.0, "{costs:?}");
    }
}
