//! What a person looks at: how times to the first token spread, and whether a queue grew.
//!
//! In: the turns of each side. Out: plots as data. Deliberately not here: how they are drawn.

use super::Plan;
use super::figures::{Played, Sides};
use super::load::{Load, ttft_ms};
use crate::plot::{Axis, Plot, Series, Shape};

impl Sides {
    /// All plots.
    pub(crate) fn plots(&self, plan: &Plan) -> Vec<Plot> {
        let mut plots = vec![self.distribution(), self.over_time(plan)];
        plots.extend(self.played.iter().map(queue));
        plots
    }

    fn distribution(&self) -> Plot {
        let of = |played: &Played, name: &str, turns: Vec<f64>| Series {
            name: format!("{}, {name}", played.name),
            points: cumulative(&turns),
            shape: Shape::Line,
        };
        let both = |played: &Played| {
            let Played { unloaded, load, .. } = played;
            [of(played, "loaded", ttft_ms(load.turns())), of(played, "one at a time", ttft_ms(unloaded.iter()))]
        };
        Plot {
            name: "dense-ttft-distribution".to_owned(),
            title: "Time to first token, loaded and one turn at a time".to_owned(),
            x: Axis::logarithmic("time to first token [ms]"),
            y: Axis::linear("part of all turns that were as fast"),
            series: self.played.iter().flat_map(both).collect(),
        }
    }

    fn over_time(&self, plan: &Plan) -> Plot {
        let series = |played: &Played| {
            let mut points: Vec<_> =
                played.load.turns.iter().map(|turn| (turn.due_s, turn.turn.ttft_s * 1e3)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { name: played.name.clone(), points, shape: Shape::Dots }
        };
        Plot {
            name: "dense-ttft-over-time".to_owned(),
            title: format!("Time to first token at {:.0}% of capacity, by when the turn was due", plan.load * 100.0),
            x: Axis::linear("time since the load began [s]"),
            y: Axis::logarithmic("time to first token [ms]"),
            series: self.played.iter().map(series).collect(),
        }
    }
}

/// Arrivals and what waits or runs: a queue that grows is a line that rises.
fn queue(played: &Played) -> Plot {
    let line = |name: &str, points, shape| Series { name: name.to_owned(), points, shape };
    let load = &played.load;
    Plot {
        name: format!("dense-queue-{}", played.name),
        title: format!("Turns that were due and turns in progress, {}", played.name),
        x: Axis::linear("time since the load began [s]"),
        y: Axis::linear("turns"),
        series: vec![
            line(
                "due in this second",
                per_second(load, |due_s, _, second| (second..second + 1.0).contains(&due_s)),
                Shape::Bars,
            ),
            line(
                "waiting or running",
                per_second(load, |due_s, end_s, second| due_s <= second && second < end_s),
                Shape::Line,
            ),
        ],
    }
}

/// How many turns `counts` holds for, from their due time and end, in each second of the load.
fn per_second(load: &Load, counts: impl Fn(f64, f64, f64) -> bool) -> Vec<(f64, f64)> {
    let seconds = (0..load.window_s.ceil() as u32).map(f64::from);
    let count = |second| load.turns.iter().filter(|turn| counts(turn.due_s, turn.end_s, second)).count();
    seconds.map(|second| (second, count(second) as f64)).collect()
}

/// Each sample with the part of all that are not above it.
fn cumulative(samples: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    sorted.into_iter().zip(1_u32..).map(|(sample, rank)| (sample, f64::from(rank) / count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sample_is_all_of_them() {
        assert_eq!(cumulative(&[3.0, 1.0, 2.0, 2.0]), [(1.0, 0.25), (2.0, 0.5), (2.0, 0.75), (3.0, 1.0)]);
    }
}
