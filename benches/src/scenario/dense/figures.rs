//! What is told of a load: the keys of the report, the table, the notes.
//!
//! In: what was measured of each side. Out: figures, those of peers with their ratios to ours. Deliberately not here: plots.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Plan;
use super::agent::Turn;
use super::load::{self, Load};
use crate::statistics::percentile;
use crate::table::{Table, number};

/// Everything that was measured of one side.
pub(crate) struct Played {
    pub(crate) name: String,
    pub(crate) unloaded: Vec<Turn>,
    /// Turns per second.
    pub(crate) capacity: f64,
    pub(crate) load: Load,
    /// Of all sessions, midway between the load's begin and its end.
    pub(crate) context_tokens: u64,
}

/// Ours and the peers.
pub(crate) struct Sides {
    pub(crate) played: Vec<Played>,
    figures: Vec<Figures>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Percentiles {
    fn of(samples: &[f64]) -> Self {
        let at = |percent| percentile(samples, percent);
        Self { p50: at(50.0), p95: at(95.0), p99: at(99.0) }
    }
}

/// One side's keys under `results`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    reused_fraction: f64,
    history_fraction: f64,
    ttft_ms: Percentiles,
    unloaded_ttft_ms: Percentiles,
    itl_ms: Percentiles,
    output_tokens_per_s: f64,
    capacity_turns_per_s: f64,
    offered_turns_per_s: f64,
    offered_turns: usize,
    completed_turns: usize,
    late_turns: usize,
    unloaded_turns: usize,
    errors: u64,
    error_reasons: BTreeMap<String, u64>,
}

impl Figures {
    fn of(played: &Played) -> Self {
        let load = &played.load;
        let output: u64 = load.turns().map(|turn| turn.tokens.output).sum();
        Self {
            reused_fraction: load::reused_fraction(load.turns()),
            history_fraction: load::history_fraction(load.turns()),
            ttft_ms: Percentiles::of(&load::ttft_ms(load.turns())),
            unloaded_ttft_ms: Percentiles::of(&load::ttft_ms(played.unloaded.iter())),
            itl_ms: Percentiles::of(&load::itl_ms(load.turns())),
            output_tokens_per_s: output as f64 / load.busy_s,
            capacity_turns_per_s: played.capacity,
            offered_turns_per_s: load.offered as f64 / load.window_s,
            offered_turns: load.offered,
            completed_turns: load.turns.len(),
            late_turns: load.turns().filter(|turn| turn.late).count(),
            unloaded_turns: played.unloaded.len(),
            errors: load.failures.total(),
            error_reasons: load.failures.by_reason().clone(),
        }
    }

    /// Of two sides that played the same. Of times, less is better; of rates, more.
    fn ratios(&self, ours: &Self) -> Value {
        json!({
            "ttft_p50_over_ours": self.ttft_ms.p50 / ours.ttft_ms.p50,
            "ttft_p95_over_ours": self.ttft_ms.p95 / ours.ttft_ms.p95,
            "ttft_p99_over_ours": self.ttft_ms.p99 / ours.ttft_ms.p99,
            "unloaded_ttft_p95_over_ours": self.unloaded_ttft_ms.p95 / ours.unloaded_ttft_ms.p95,
            "itl_p50_over_ours": self.itl_ms.p50 / ours.itl_ms.p50,
            "itl_p99_over_ours": self.itl_ms.p99 / ours.itl_ms.p99,
            "output_tokens_per_s_over_ours": self.output_tokens_per_s / ours.output_tokens_per_s,
            "capacity_over_ours": self.capacity_turns_per_s / ours.capacity_turns_per_s,
        })
    }

    /// The lines of the table.
    fn lines(&self) -> [(&'static str, f64); 14] {
        [
            ("TTFT p50 [ms]", self.ttft_ms.p50),
            ("TTFT p95 [ms]", self.ttft_ms.p95),
            ("TTFT p99 [ms]", self.ttft_ms.p99),
            ("unloaded TTFT p50 [ms]", self.unloaded_ttft_ms.p50),
            ("unloaded TTFT p95 [ms]", self.unloaded_ttft_ms.p95),
            ("inter-token p50 [ms]", self.itl_ms.p50),
            ("inter-token p99 [ms]", self.itl_ms.p99),
            ("output [tokens/s]", self.output_tokens_per_s),
            ("capacity [turns/s]", self.capacity_turns_per_s),
            ("offered [turns/s]", self.offered_turns_per_s),
            ("input that is history", self.history_fraction),
            ("input that was reused", self.reused_fraction),
            ("turns that waited for their session's last", self.late_turns as f64),
            ("errors", self.errors as f64),
        ]
    }
}

impl Sides {
    /// Ours first.
    pub(crate) fn new(played: Vec<Played>) -> Self {
        let figures = played.iter().map(Figures::of).collect();
        Self { played, figures }
    }

    /// The keys under `results`.
    pub(crate) fn results(&self, plan: &Plan) -> Value {
        let mut results = Map::new();
        results.insert("sessions".to_owned(), json!(plan.sessions));
        results.insert("oversubscription".to_owned(), json!(self.oversubscription(plan)));
        let Some((ours, peers)) = self.figures.split_first() else { return Value::Null };
        results.extend(fields(ours));
        let names = self.played.iter().skip(1).map(|played| played.name.clone());
        let peer = |figures: &Figures| {
            let mut fields = fields(figures);
            fields.insert("ratios".to_owned(), figures.ratios(ours));
            Value::Object(fields)
        };
        let peers: Map<String, Value> = names.zip(peers.iter().map(peer)).collect();
        if !peers.is_empty() {
            results.insert("peers".to_owned(), Value::Object(peers));
        }
        Value::Object(results)
    }

    /// One column for each side.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let mut columns = vec![""];
        for (place, played) in self.played.iter().enumerate() {
            columns.push(&played.name);
            if place > 0 {
                columns.push("ratio");
            }
        }
        let mut table = Table::new("Many agents with room for a part of them", &columns);
        let Some((ours, peers)) = self.figures.split_first() else { return Vec::new() };
        for (line, (name, value)) in ours.lines().into_iter().enumerate() {
            let of_peers = peers.iter().map(|figures| figures.lines()[line].1);
            let cells = of_peers.flat_map(|peer| [number(peer), number(peer / value)]);
            table.row([name.to_owned(), number(value)].into_iter().chain(cells));
        }
        vec![table]
    }

    /// What a reader has to know beside the figures.
    pub(crate) fn notes(&self, plan: &Plan) -> Vec<String> {
        let mut notes = vec![format!(
            "{} sessions of {} turns each (median) were found at all stages of their lives; they held {:.1} times what the KV \
             pool of {} tokens has room for. The load lasted {:.0} s at {:.0}% of the capacity; times to the first token \
             count from when a turn was due.",
            plan.sessions,
            plan.habits.turns_median,
            self.oversubscription(plan),
            plan.pool_tokens,
            plan.window_s * plan.windows as f64,
            plan.load * 100.0,
        )];
        for (played, figures) in self.played.iter().zip(&self.figures) {
            let reasons = figures.error_reasons.iter();
            notes.extend(reasons.map(|(reason, count)| format!("{}: {count} turns failed: {reason}", played.name)));
        }
        notes
    }

    /// As it was under load.
    fn oversubscription(&self, plan: &Plan) -> f64 {
        let context_tokens = self.played.first().map_or(0, |ours| ours.context_tokens);
        context_tokens as f64 / plan.pool_tokens as f64
    }
}

fn fields(figures: &Figures) -> Map<String, Value> {
    match serde_json::to_value(figures) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}
