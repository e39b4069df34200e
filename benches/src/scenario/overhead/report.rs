//! From what was measured to what is said: rates, medians, tables and plots.
//!
//! Deliberately not here: measuring.

use serde_json::{Map, Value, json};

use super::load::{INPUT_TOKENS, Loaded, TURNS_PER_SESSION};
use super::serve::MODEL;
use super::{Journal, LOADED_TOKENS, Measured, Plan, STREAMED_TOKENS, Steps, WRITE_BYTES};
use crate::plot::{Axis, Plot, Series, Shape};
use crate::report::Outcome;
use crate::statistics::{Summary, median, percentile};
use crate::table::{Table, number};

/// Points of a curve of percentiles.
const CURVE_POINTS: u32 = 200;

/// Says everything.
pub(super) fn outcome(measured: &Measured, plan: Plan) -> Outcome {
    let loads: Vec<Rates> = measured.loads.iter().map(|(clients, rounds)| Rates::of(*clients, rounds)).collect();
    let journal = Stored::of(&measured.journal);
    Outcome {
        results: results(measured, &loads, &journal),
        model: json!({ "name": MODEL, "path": MODEL, "weights": "none: the device samples at once" }),
        settings: json!({
            "turns_one_at_a_time": plan.turns,
            "clients": plan.clients,
            "rounds": plan.rounds,
            "round_s": plan.round.as_secs_f64(),
            "input_tokens_about": INPUT_TOKENS,
            "output_tokens_streamed": STREAMED_TOKENS,
            "output_tokens_in_closed_loops": LOADED_TOKENS,
            "turns_per_session": TURNS_PER_SESSION,
            "steps_alone": plan.steps,
        }),
        tables: vec![waits(measured), rates(&loads), threads(&loads), steps(measured)],
        plots: vec![throughput(&loads), latency(measured), step_costs(measured)],
        notes: notes(measured, &journal),
    }
}

/// What many clients got, in the middle of the rounds.
struct Rates {
    clients: usize,
    tokens_per_s: Summary,
    steps_per_s: Summary,
    /// Samples of a step.
    batch: f64,
    first_token_us: (f64, f64),
    /// Transactions of the journal per second, and tokens of each.
    commits_per_s: f64,
    tokens_per_commit: f64,
    /// CPU time of a token: the runtime's, this program's.
    runtime_us_per_token: Option<f64>,
    driver_cpu_share: Option<f64>,
    /// The runtime's CPU time of a token by thread, falling.
    threads_us: Vec<(String, f64)>,
}

impl Rates {
    fn of(clients: usize, rounds: &[Loaded]) -> Self {
        let each = |figure: &dyn Fn(&Loaded) -> f64| -> Vec<f64> { rounds.iter().map(figure).collect() };
        let tokens = |loaded: &Loaded| loaded.tokens.max(1) as f64;
        let known = |figure: &dyn Fn(&Loaded) -> Option<f64>| -> Option<f64> {
            rounds.iter().map(figure).collect::<Option<Vec<f64>>>().map(|all| median(&all))
        };
        let waits: Vec<f64> = rounds.iter().flat_map(|loaded| loaded.first_token_us.iter().copied()).collect();
        let mut threads_us: Vec<(String, f64)> = Vec::new();
        for name in rounds.iter().flat_map(|loaded| loaded.runtime.threads_s.keys()) {
            if threads_us.iter().all(|(known, _)| known != name) {
                let spent = |loaded: &Loaded| loaded.runtime.threads_s.get(name).copied().unwrap_or(0.0);
                threads_us.push((name.clone(), median(&each(&|loaded| spent(loaded) * 1e6 / tokens(loaded)))));
            }
        }
        threads_us.retain(|(_, us)| *us > 0.0);
        threads_us.sort_by(|a, b| b.1.total_cmp(&a.1));
        Self {
            clients,
            tokens_per_s: Summary::of(&each(&|loaded| loaded.tokens as f64 / loaded.elapsed_s)),
            steps_per_s: Summary::of(&each(&|loaded| loaded.runtime.steps as f64 / loaded.elapsed_s)),
            batch: median(&each(&|loaded| loaded.runtime.samples as f64 / loaded.runtime.steps.max(1) as f64)),
            first_token_us: (percentile(&waits, 50.0), percentile(&waits, 99.0)),
            commits_per_s: median(&each(&|loaded| loaded.runtime.commits as f64 / loaded.elapsed_s)),
            tokens_per_commit: median(&each(&|loaded| loaded.tokens as f64 / loaded.runtime.commits.max(1) as f64)),
            runtime_us_per_token: known(&|loaded| loaded.runtime.cpu_s.map(|cpu| cpu * 1e6 / tokens(loaded))),
            driver_cpu_share: known(&Loaded::driver_cpu_share),
            threads_us,
        }
    }

    fn json(&self) -> Value {
        let threads: Map<String, Value> = self.threads_us.iter().map(|(name, us)| (name.clone(), json!(us))).collect();
        json!({
            "tokens_per_s": self.tokens_per_s,
            "steps_per_s": self.steps_per_s,
            "samples_per_step": self.batch,
            "first_token_us": { "p50": self.first_token_us.0, "p99": self.first_token_us.1 },
            "commits_per_s": self.commits_per_s,
            "tokens_per_commit": self.tokens_per_commit,
            "runtime_cpu_us_per_token": self.runtime_us_per_token,
            "runtime_cpu_us_per_token_by_thread": threads,
            "driver_cpu_share": self.driver_cpu_share,
        })
    }
}

/// What a turn leaves in the journal.
struct Stored {
    /// Of a turn of [`LOADED_TOKENS`] tokens, everything.
    bytes_per_turn: f64,
    /// Of each output token alone.
    bytes_per_output_token: f64,
    /// Of a turn without its output tokens, its share of its session's row with it.
    bytes_of_turn_alone: f64,
}

impl Stored {
    /// Two journals whose turns differ in their output only: the bytes of a turn and of a token solve both.
    fn of(journal: &Journal) -> Self {
        let split = |(turns, tokens, bytes): (u64, u64, u64)| {
            let turns = turns.max(1) as f64;
            (tokens as f64 / turns, bytes.saturating_sub(journal.empty_bytes) as f64 / turns)
        };
        let ((few, short), (many, long)) = (split(journal.alone), split(journal.loaded));
        let per_token = (long - short) / (many - few);
        Self { bytes_per_turn: long, bytes_per_output_token: per_token, bytes_of_turn_alone: long - per_token * many }
    }
}

fn results(measured: &Measured, loads: &[Rates], journal: &Stored) -> Value {
    let percentiles = |samples: &[f64]| json!({ "p50": percentile(samples, 50.0), "p99": percentile(samples, 99.0), "samples": samples.len() });
    let by_clients: Map<String, Value> = loads.iter().map(|load| (load.clients.to_string(), load.json())).collect();
    let by_batch = |pick: &dyn Fn(&Steps) -> f64| -> Map<String, Value> {
        measured.steps.iter().map(|steps| (steps.sequences.to_string(), json!(pick(steps)))).collect()
    };
    let largest = loads.last();
    json!({
        "added_latency_us": percentiles(&measured.single_us),
        "added_latency_streamed_us": percentiles(&measured.streamed_us),
        "power_safe_write_us": percentiles(&measured.write_us),
        "steps_per_s": largest.map(|load| load.steps_per_s.median),
        "tokens_per_s": largest.map(|load| load.tokens_per_s.median),
        "driver_cpu_share": largest.and_then(|load| load.driver_cpu_share),
        "by_clients": by_clients,
        "journal_bytes_per_turn": journal.bytes_per_turn,
        "journal_bytes_per_output_token": journal.bytes_per_output_token,
        "journal_bytes_of_turn_without_output": journal.bytes_of_turn_alone,
        "plan_apply_min_us": by_batch(&|steps| percentile(&steps.scheduler_us, 0.0)),
        "plan_apply_us": by_batch(&|steps| median(&steps.scheduler_us)),
        "engine_poll_us": by_batch(&|steps| median(&steps.engine_us)),
    })
}

fn waits(measured: &Measured) -> Table {
    let mut table =
        Table::new("One turn at a time: what is not the device", &["from the request", "p50 [us]", "p99 [us]"]);
    for (what, samples) in [
        ("to the only token of an answer", &measured.single_us),
        ("to the first token of an answer that streams", &measured.streamed_us),
        ("(a power-safe write of a page to the same disk)", &measured.write_us),
    ] {
        table.row([what.to_owned(), number(percentile(samples, 50.0)), number(percentile(samples, 99.0))]);
    }
    table
}

fn rates(loads: &[Rates]) -> Table {
    let columns = [
        "clients",
        "tokens/s",
        "spread",
        "steps/s",
        "tokens/step",
        "TTFT p50 [ms]",
        "TTFT p99 [ms]",
        "commits/s",
        "runtime CPU [us/token]",
        "driver's CPU share",
    ];
    let mut table = Table::new("Closed loops", &columns);
    let percent = |share: f64| format!("{:.0}%", share * 100.0);
    for load in loads {
        table.row([
            load.clients.to_string(),
            number(load.tokens_per_s.median),
            percent(load.tokens_per_s.spread),
            number(load.steps_per_s.median),
            number(load.batch),
            number(load.first_token_us.0 / 1e3),
            number(load.first_token_us.1 / 1e3),
            number(load.commits_per_s),
            load.runtime_us_per_token.map_or("-".to_owned(), number),
            load.driver_cpu_share.map_or("-".to_owned(), percent),
        ]);
    }
    table
}

fn threads(loads: &[Rates]) -> Table {
    let mut columns = vec!["thread".to_owned()];
    columns.extend(loads.iter().map(|load| format!("{} clients", load.clients)));
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new("The runtime's CPU time by thread [us/token]", &columns);
    for (name, _) in loads.last().map(|load| load.threads_us.as_slice()).unwrap_or_default() {
        let of = |load: &Rates| load.threads_us.iter().find(|(known, _)| known == name).map_or(0.0, |(_, us)| *us);
        table.row(std::iter::once(name.clone()).chain(loads.iter().map(|load| number(of(load)))));
    }
    table
}

fn steps(measured: &Measured) -> Table {
    let columns = ["sequences", "plan + apply [us]", "fastest", "engine's poll [us]", "fastest"];
    let mut table = Table::new("A step in which all decode, by itself", &columns);
    for steps in &measured.steps {
        let (scheduler, engine) = (Summary::of(&steps.scheduler_us), Summary::of(&steps.engine_us));
        let figures = [scheduler.median, scheduler.min, engine.median, engine.min].map(number);
        table.row(std::iter::once(steps.sequences.to_string()).chain(figures));
    }
    table
}

fn throughput(loads: &[Rates]) -> Plot {
    let line = |name: &str, pick: &dyn Fn(&Rates) -> f64| Series {
        name: name.to_owned(),
        points: loads.iter().map(|load| (load.clients as f64, pick(load))).collect(),
        shape: Shape::Line,
    };
    Plot {
        name: "overhead-throughput".to_owned(),
        title: "A device that costs nothing: what reaches the clients".to_owned(),
        x: Axis::logarithmic("clients in a closed loop"),
        y: Axis::logarithmic("per second [1/s]"),
        series: vec![
            line("tokens", &|load| load.tokens_per_s.median),
            line("steps", &|load| load.steps_per_s.median),
            line("journal commits", &|load| load.commits_per_s),
        ],
    }
}

fn latency(measured: &Measured) -> Plot {
    let curve = |name: &str, samples: &[f64]| {
        let at = |point: u32| f64::from(point) * 100.0 / f64::from(CURVE_POINTS);
        let points = (0..=CURVE_POINTS).map(|point| (percentile(samples, at(point)) / 1e3, at(point)));
        Series { name: name.to_owned(), points: points.collect(), shape: Shape::Line }
    };
    Plot {
        name: "overhead-latency".to_owned(),
        title: "One turn at a time: what is not the device".to_owned(),
        x: Axis::logarithmic("from the request to the first token [ms]"),
        y: Axis::linear("turns that had it by then [%]"),
        series: vec![
            curve("answers of one token", &measured.single_us),
            curve("answers that stream", &measured.streamed_us),
            curve("(a power-safe write)", &measured.write_us),
        ],
    }
}

fn step_costs(measured: &Measured) -> Plot {
    let line = |name: &str, pick: &dyn Fn(&Steps) -> f64| Series {
        name: name.to_owned(),
        points: measured.steps.iter().map(|steps| (f64::from(steps.sequences), pick(steps))).collect(),
        shape: Shape::Line,
    };
    Plot {
        name: "overhead-step".to_owned(),
        title: "A step in which all decode, by itself".to_owned(),
        x: Axis::logarithmic("sequences"),
        y: Axis::logarithmic("time of a step [us]"),
        series: vec![
            line("scheduler: plan + apply", &|steps| median(&steps.scheduler_us)),
            line("engine: poll", &|steps| median(&steps.engine_us)),
        ],
    }
}

fn notes(measured: &Measured, journal: &Stored) -> Vec<String> {
    let write = percentile(&measured.write_us, 50.0);
    vec![
        format!(
            "A turn is accepted once it is safe against a loss of power; on this disk a page takes {} us. An answer of one token \
             ends with it, so its token waits for the turn's end to be stored too.",
            number(write)
        ),
        format!(
            "The journal keeps {:.0} bytes of a turn of {LOADED_TOKENS} tokens: {:.0} for the turn and {:.0} for each token, in \
             the database file after a clean end. Reading: two runtimes whose turns differ in their output only, less an empty one.",
            journal.bytes_per_turn, journal.bytes_of_turn_alone, journal.bytes_per_output_token
        ),
        format!(
            "A power-safe write is an append of {WRITE_BYTES} bytes and a sync of its data, while nothing else runs."
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::overhead::figures::Figures;

    fn loaded(tokens: u64, elapsed_s: f64, steps: u64) -> Loaded {
        let runtime = Figures {
            steps,
            samples: tokens,
            commits: 10,
            cpu_s: Some(3.0),
            threads_s: [("journal".to_owned(), 1.0), ("engine-0".to_owned(), 2.0), ("idle".to_owned(), 0.0)].into(),
            ..Figures::default()
        };
        let first_token_us = vec![10.0, 20.0];
        Loaded { elapsed_s, turns: tokens / 64, tokens, first_token_us, runtime, driver_cpu_s: Some(1.0) }
    }

    #[test]
    fn rates_are_of_the_middle_round() {
        let rates = Rates::of(4, &[loaded(1_000, 1.0, 500), loaded(4_000, 2.0, 500), loaded(9_000, 1.0, 500)]);
        assert_eq!((rates.tokens_per_s.median, rates.tokens_per_s.max), (2_000.0, 9_000.0));
        assert_eq!((rates.steps_per_s.median, rates.batch, rates.tokens_per_commit), (500.0, 8.0, 400.0));
        assert_eq!((rates.runtime_us_per_token, rates.driver_cpu_share), (Some(750.0), Some(0.25)));
        assert_eq!(rates.threads_us, [("engine-0".to_owned(), 500.0), ("journal".to_owned(), 250.0)]);
    }

    #[test]
    fn a_turn_and_its_tokens_are_told_apart() {
        // 500 bytes of a turn and 20 of a token, after 1,000 of an empty journal.
        let journal = Journal {
            empty_bytes: 1_000,
            alone: (10, 80, 1_000 + 10 * 500 + 80 * 20),
            loaded: (5, 320, 1_000 + 5 * 500 + 320 * 20),
        };
        let stored = Stored::of(&journal);
        assert_eq!((stored.bytes_per_output_token, stored.bytes_of_turn_alone), (20.0, 500.0));
        assert_eq!(stored.bytes_per_turn, 500.0 + 64.0 * 20.0);
    }

    #[test]
    fn the_promised_keys_are_there() {
        let measured = Measured {
            single_us: vec![1.0, 2.0],
            streamed_us: vec![1.0],
            write_us: vec![3.0],
            loads: vec![(1, vec![loaded(64, 1.0, 64)]), (64, vec![loaded(6_400, 1.0, 100)])],
            journal: Journal { empty_bytes: 0, alone: (1, 1, 10), loaded: (1, 2, 15) },
            steps: vec![
                Steps { sequences: 1, scheduler_us: vec![5.0], engine_us: vec![6.0] },
                Steps { sequences: 64, scheduler_us: vec![50.0], engine_us: vec![60.0] },
            ],
        };
        let outcome = outcome(&measured, Plan::of(true));
        let number = |path: &str| outcome.results.pointer(path).and_then(Value::as_f64);
        assert_eq!(number("/added_latency_us/p50"), Some(1.0));
        assert_eq!(number("/added_latency_us/p99"), Some(2.0));
        assert_eq!(
            (number("/tokens_per_s"), number("/steps_per_s")),
            (Some(6_400.0), Some(100.0)),
            "of the most clients"
        );
        assert_eq!(number("/by_clients/1/tokens_per_s/median"), Some(64.0));
        assert_eq!(number("/plan_apply_min_us/64"), Some(50.0));
        assert_eq!((number("/plan_apply_us/64"), number("/engine_poll_us/1")), (Some(50.0), Some(6.0)));
        assert_eq!(number("/journal_bytes_per_turn"), Some(15.0));
        assert_eq!(number("/driver_cpu_share"), Some(0.25));
        let tables = outcome.tables.iter().map(ToString::to_string).collect::<String>();
        assert!(tables.contains("engine-0") && tables.contains("6400"), "{tables}");
    }
}
