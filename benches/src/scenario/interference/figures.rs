//! What many repetitions say: the keys of the report, the table, the plots.
//!
//! In: the repetitions of each side. Out: medians over them with their spread, those of peers with their ratios to ours.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::repetition::Repetition;
use crate::plot::{Axis, Plot, Series, Shape};
use crate::scenario::failures::Failures;
use crate::statistics::{Summary, median, percentile};
use crate::table::{Table, number};

/// Everything that was measured of one side.
pub(crate) struct Played {
    pub(crate) name: String,
    pub(crate) repetitions: Vec<Repetition>,
    pub(crate) failures: Failures,
}

/// Gaps over all repetitions: percentiles of each, the median of those.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Gaps {
    p50: f64,
    p99: f64,
    /// Of the repetitions' 99th percentiles.
    p99_spread: f64,
    max: f64,
    samples: usize,
}

impl Gaps {
    fn of(repetitions: &[Vec<f64>]) -> Self {
        let each = |percent| -> Vec<f64> { repetitions.iter().map(|gaps| percentile(gaps, percent)).collect() };
        let p99 = Summary::of(&each(99.0));
        Self {
            p50: median(&each(50.0)),
            p99: p99.median,
            p99_spread: p99.spread,
            max: percentile(&each(100.0), 100.0),
            samples: repetitions.iter().map(Vec::len).sum(),
        }
    }
}

/// One side's keys under `results`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    itl_idle_ms: Gaps,
    itl_loaded_ms: Gaps,
    ratio: f64,
    ratio_spread: f64,
    prefill_fraction_of_solo: f64,
    prefill_fraction_spread: f64,
    solo_prefill_tokens_per_s: f64,
    loaded_prefill_tokens_per_s: f64,
    /// What was read, of both prompts together.
    prompt_tokens: f64,
    repetitions: usize,
    errors: u64,
    error_reasons: BTreeMap<String, u64>,
}

impl Figures {
    fn of(played: &Played) -> Self {
        let each = |of: fn(&Repetition) -> f64| Summary::of(&played.repetitions.iter().map(of).collect::<Vec<_>>());
        let idle: Vec<_> = played.repetitions.iter().map(|repetition| repetition.idle_ms.clone()).collect();
        let loaded: Vec<_> = played.repetitions.iter().map(Repetition::loaded_ms).collect();
        let ratio = each(Repetition::ratio);
        let fraction = each(Repetition::prefill_fraction);
        Self {
            itl_idle_ms: Gaps::of(&idle),
            itl_loaded_ms: Gaps::of(&loaded),
            ratio: ratio.median,
            ratio_spread: ratio.spread,
            prefill_fraction_of_solo: fraction.median,
            prefill_fraction_spread: fraction.spread,
            solo_prefill_tokens_per_s: each(|repetition| repetition.solo.tokens_per_s()).median,
            loaded_prefill_tokens_per_s: each(|repetition| repetition.loaded.tokens_per_s()).median,
            prompt_tokens: each(|repetition| repetition.loaded.computed_tokens as f64).median,
            repetitions: played.repetitions.len(),
            errors: played.failures.total(),
            error_reasons: played.failures.by_reason().clone(),
        }
    }

    /// Of two sides that played the same. Of gaps, less is better; of speeds, more.
    fn ratios(&self, ours: &Self) -> Value {
        json!({
            "itl_idle_p99_over_ours": self.itl_idle_ms.p99 / ours.itl_idle_ms.p99,
            "itl_loaded_p99_over_ours": self.itl_loaded_ms.p99 / ours.itl_loaded_ms.p99,
            "ratio_over_ours": self.ratio / ours.ratio,
            "prefill_fraction_over_ours": self.prefill_fraction_of_solo / ours.prefill_fraction_of_solo,
            "loaded_prefill_over_ours": self.loaded_prefill_tokens_per_s / ours.loaded_prefill_tokens_per_s,
        })
    }

    /// The lines of the table: median and spread.
    fn lines(&self) -> [(&'static str, f64, Option<f64>); 10] {
        [
            ("inter-token p50, alone [ms]", self.itl_idle_ms.p50, None),
            ("inter-token p99, alone [ms]", self.itl_idle_ms.p99, Some(self.itl_idle_ms.p99_spread)),
            ("inter-token p50, beside prompts [ms]", self.itl_loaded_ms.p50, None),
            ("inter-token p99, beside prompts [ms]", self.itl_loaded_ms.p99, Some(self.itl_loaded_ms.p99_spread)),
            ("longest gap beside prompts [ms]", self.itl_loaded_ms.max, None),
            ("p99 beside prompts over alone", self.ratio, Some(self.ratio_spread)),
            ("prompts alone [tokens/s]", self.solo_prefill_tokens_per_s, None),
            ("prompts beside the answer [tokens/s]", self.loaded_prefill_tokens_per_s, None),
            ("prompts' speed over alone", self.prefill_fraction_of_solo, Some(self.prefill_fraction_spread)),
            ("errors", self.errors as f64, None),
        ]
    }
}

/// The keys under `results`, ours first among `sides`.
pub(crate) fn results(sides: &[Played]) -> Value {
    let Some((ours, peers)) = sides.split_first() else { return Value::Null };
    let ours = Figures::of(ours);
    let mut results = fields(&ours);
    let peer = |played: &Played| {
        let figures = Figures::of(played);
        let mut fields = fields(&figures);
        fields.insert("ratios".to_owned(), figures.ratios(&ours));
        (played.name.clone(), Value::Object(fields))
    };
    let peers: Map<String, Value> = peers.iter().map(peer).collect();
    if !peers.is_empty() {
        results.insert("peers".to_owned(), Value::Object(peers));
    }
    Value::Object(results)
}

/// One pair of columns for each side.
pub(crate) fn table(sides: &[Played]) -> Table {
    let mut columns = vec![""];
    for (place, played) in sides.iter().enumerate() {
        columns.extend([played.name.as_str(), "spread"]);
        columns.extend((place > 0).then_some("ratio"));
    }
    let mut table = Table::new("An answer while two long prompts arrive", &columns);
    let figures: Vec<Figures> = sides.iter().map(Figures::of).collect();
    let Some((ours, peers)) = figures.split_first() else { return table };
    for (line, (name, value, spread)) in ours.lines().into_iter().enumerate() {
        let percent = |spread: Option<f64>| spread.map_or(String::new(), |spread| format!("{:.0}%", spread * 100.0));
        let mut cells = vec![name.to_owned(), number(value), percent(spread)];
        for peer in peers {
            let (_, theirs, spread) = peer.lines()[line];
            cells.extend([number(theirs), percent(spread), number(theirs / value)]);
        }
        table.row(cells);
    }
    table
}

/// The last repetition of each side on its time line.
pub(crate) fn plots(sides: &[Played]) -> Vec<Plot> {
    sides.iter().filter_map(|played| Some(plot(&played.name, played.repetitions.last()?))).collect()
}

fn plot(name: &str, repetition: &Repetition) -> Plot {
    let gaps: Vec<(f64, f64)> =
        repetition.gaps.iter().map(|gap| (gap.begin_s + gap.length_s, gap.length_s * 1e3)).collect();
    let prompt = |label: &str, seconds: f64| Series {
        name: label.to_owned(),
        points: vec![(0.0, seconds)],
        shape: Shape::Intervals,
    };
    let [first, second] = repetition.loaded.seconds;
    Plot {
        name: format!("interference-{name}"),
        title: format!("Gaps of an answer while two prompts are read, {name}"),
        x: Axis::linear("time since the prompts arrived [s]"),
        y: Axis::logarithmic("gap between words [ms]"),
        series: vec![
            Series { name: "gaps".to_owned(), points: gaps, shape: Shape::Dots },
            prompt("first prompt is read", first),
            prompt("second prompt is read", second),
        ],
    }
}

fn fields(figures: &Figures) -> Map<String, Value> {
    match serde_json::to_value(figures) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_summed_up_by_repetition() {
        let gaps = Gaps::of(&[vec![1.0, 2.0, 9.0], vec![1.0, 3.0, 5.0], vec![4.0, 4.0, 7.0]]);
        assert_eq!((gaps.p50, gaps.p99, gaps.max, gaps.samples), (3.0, 7.0, 9.0, 9));
        assert!(gaps.p99_spread > 0.0);
    }
}
