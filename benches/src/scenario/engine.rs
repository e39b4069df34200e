//! Scenario `engine`: raw device speed, as `llama-bench` gives it, beside the machine's limits and beside another engine.
//!
//! Every repetition goes through all tests in turn: the limits, then each test on our device and right after it on the other
//! engine. The runtime is not involved: no gRPC, no scheduler, no journal.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use holdfast_backend_neuron::limits::{Figure, Limits, Meter};
use holdfast_backend_neuron::{KvSize, WeightFormat};
use holdfast_model::{Model, ModelSource};
use serde_json::{Value, json};

use super::{Play, Stage};
use crate::engine::device::DeviceBench;
use crate::engine::peer::PeerEngine;
use crate::engine::settings::{CHUNK_TOKENS, Settings};
use crate::engine::test::{Kind, Measured, Test};
use crate::engine::work::Work;
use crate::model::Chosen;
use crate::options::{AllArguments, Common};
use crate::plot::{Axis, Plot, Series, Shape};
use crate::report::Outcome;
use crate::statistics::Summary;
use crate::table::{Table, number};

/// The model that is made when none is named.
const SHAPE: &str = "llama-0.3b";
/// Time that the limits get in each repetition.
const LIMITS_EFFORT: Duration = Duration::from_millis(600);
/// A batch gets histories of its own up to this much KV; beyond it they share one, and the report says so.
const KV_BYTES_MAX: f64 = (4_u64 << 30) as f64;
/// Most tests of a matrix.
const TESTS_MAX: usize = 256;

/// Raw device speed: prefill and decode at depths and batches, without the runtime, beside the machine's limits
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Tokens of each prefill test; 0 for none [default: 512; with --quick 128]
    #[arg(short = 'p', long, value_name = "TOKENS", value_delimiter = ',')]
    prompt: Vec<u32>,
    /// Tokens of each decode test; 0 for none [default: 64; with --quick 16]
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',')]
    generate: Vec<u32>,
    /// Tokens of history before each test [default: 0,4096; with --quick 0,1024]
    #[arg(short = 'd', long, value_name = "TOKENS", value_delimiter = ',')]
    depth: Vec<u32>,
    /// Sequences that decode together [default: 1,4,16; with --quick 1,4]
    #[arg(short = 'b', long, value_name = "SEQUENCES", value_delimiter = ',')]
    batch: Vec<u32>,
    /// How often every test is run [default: 5; with --quick 3]
    #[arg(short = 'r', long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repetitions: Option<u32>,
    /// Most tokens of a prefill that one step computes, as the scheduler cuts it
    #[arg(long, value_name = "TOKENS", default_value_t = CHUNK_TOKENS, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    chunk: u32,
    /// Another engine: a shell command, model included, that prints llama-bench's JSON; it is called for one test at a time, in turn
    /// with ours, with -p, -n, -d, -r and -o appended
    #[arg(long, value_name = "COMMAND")]
    peer_engine: Option<String>,
}

impl Play for Arguments {
    const NAME: &'static str = "engine";

    fn among_all(all: &AllArguments) -> Self {
        Self {
            common: all.common.clone(),
            prompt: Vec::new(),
            generate: Vec::new(),
            depth: Vec::new(),
            batch: Vec::new(),
            repetitions: None,
            chunk: CHUNK_TOKENS,
            peer_engine: None,
        }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        let tests = self.tests()?;
        let repetitions = self.repetitions.unwrap_or(if self.common.quick { 3 } else { 5 });
        let peer = self.peer_engine.as_deref().map(PeerEngine::new);
        stage.progress.set_length((u64::from(repetitions) + 1) * tests.len() as u64);

        let chosen = Chosen::pick(stage.common, SHAPE, &stage.progress)?;
        stage.progress.set_message("loading the model");
        let model = Model::load(&ModelSource::resolve(&chosen.path)?)?;
        let mut settings = Settings::of(&stage.common.set)?.for_model(&model).device;
        let work = Work::new(model.config(), settings.weights).with_kv(settings.kv_format());
        settings.kv = KvSize::Blocks(kv_blocks(&tests, &work, settings.block_tokens));
        settings.slots = tests.iter().map(|test| test.batch).max().unwrap_or(1);
        settings.max_step_rows = self.chunk.max(settings.slots);
        let mut bench = DeviceBench::new(&model, &settings, self.chunk)?;
        drop(model);
        let mut meter = Meter::new(settings.threads)?;

        let mut all: Vec<Measured> = Vec::new();
        for test in &tests {
            stage.progress.set_message(format!("warming up {}", test.name()));
            test.warm_up(&mut bench, self.chunk)?;
            all.push(Measured {
                test: *test,
                shares_history: bench.shares_history(test.depth, test.tokens, test.batch),
                tokens_per_s: Vec::new(),
                peer_tokens_per_s: Vec::new(),
            });
            stage.progress.inc(1);
        }
        let mut peer_model = None;
        let mut limits = meter.measure(LIMITS_EFFORT);
        for repetition in 0..repetitions {
            stage.watch.probe();
            for measured in &mut all {
                let test = measured.test;
                stage.progress.set_message(format!("{} of {repetitions}: {}", repetition + 1, test.name()));
                measured.tokens_per_s.push(test.run(&mut bench)?);
                if let (Some(peer), Some(asked)) = (&peer, test.for_peer()) {
                    stage.progress.set_message(format!("{} of {repetitions}: {}, peer", repetition + 1, test.name()));
                    let figure = peer.run(asked).await.context("the peer engine")?;
                    measured.peer_tokens_per_s.push(figure.avg_ts);
                    peer_model = Some(figure.model_type);
                }
                stage.progress.inc(1);
            }
            limits = meter.measure(LIMITS_EFFORT);
        }
        stage.watch.probe();

        let peer = peer.is_some().then(|| json!({ "command": self.peer_engine, "model_type": peer_model }));
        Ok(Outcome {
            results: results(&all, &limits, &work, settings.weights, peer),
            model: chosen.describe(),
            settings: json!({
                "threads": settings.threads,
                "weights": format!("{:?}", settings.weights).to_lowercase(),
                "isa": settings.isa.name(),
                "block_tokens": settings.block_tokens,
                "prefill_chunk_tokens": self.chunk,
                "repetitions": repetitions,
            }),
            tables: tables(&all, &limits, &work, settings.weights),
            plots: plots(&all),
            notes: notes(&all, &limits, &work),
        })
    }
}

impl Arguments {
    /// The matrix: prefills at every depth, then decodes at every depth and batch.
    fn tests(&self) -> anyhow::Result<Vec<Test>> {
        let or = |given: &[u32], full: &[u32], quick: &[u32]| match given {
            [] => (if self.common.quick { quick } else { full }).to_vec(),
            given => given.to_vec(),
        };
        let depths = or(&self.depth, &[0, 4_096], &[0, 1_024]);
        let batches = or(&self.batch, &[1, 4, 16], &[1, 4]);
        let mut tests = Vec::new();
        for tokens in or(&self.prompt, &[512], &[128]) {
            tests.extend(depths.iter().map(|depth| Test { kind: Kind::Prefill, tokens, depth: *depth, batch: 1 }));
        }
        for tokens in or(&self.generate, &[64], &[16]) {
            for depth in &depths {
                tests.extend(batches.iter().map(|batch| Test {
                    kind: Kind::Decode,
                    tokens,
                    depth: *depth,
                    batch: *batch,
                }));
            }
        }
        tests.retain(|test| test.tokens > 0);
        if tests.is_empty() || tests.len() > TESTS_MAX {
            bail!("-p, -n, -d and -b make {} tests, a run has 1 to {TESTS_MAX}", tests.len());
        }
        if batches.contains(&0) {
            bail!("-b has a batch of 0 sequences");
        }
        Ok(tests)
    }
}

/// Blocks that let every test run, and more, up to [`KV_BYTES_MAX`], so that sequences need not share a history.
fn kv_blocks(tests: &[Test], work: &Work, block_tokens: u32) -> u32 {
    let block_tokens = block_tokens.max(1);
    let most = |own| {
        let needed =
            tests.iter().map(|test| DeviceBench::blocks_needed(block_tokens, test.depth, test.tokens, test.batch, own));
        needed.max().unwrap_or(1)
    };
    let affordable = KV_BYTES_MAX / (work.kv_bytes_per_token() * f64::from(block_tokens));
    most(true).min(affordable as u32).max(most(false))
}

/// Of the arithmetic that products of the weights use.
fn peak(limits: &Limits, weights: WeightFormat) -> Figure {
    match weights {
        WeightFormat::F32 | WeightFormat::Bf16 => limits.f32_gflops,
        WeightFormat::Nested => limits.int8_gops,
    }
}

fn results(all: &[Measured], limits: &Limits, work: &Work, weights: WeightFormat, peer: Option<Value>) -> Value {
    let (peak, read) = (peak(limits, weights).best, limits.read_gb_per_s.best);
    let first = |kind| all.iter().find(|measured| measured.test.kind == kind);
    let (prefill, decode) = (first(Kind::Prefill), first(Kind::Decode));
    let figure = |figure: Figure| json!({ "best": figure.best, "median": figure.median });
    let mut results = json!({
        "prefill_tokens_per_s": prefill.map(Measured::median),
        "decode_tokens_per_s": decode.map(Measured::median),
        "prefill_fraction_of_peak": prefill.map(|all| all.test.fraction_of_peak(all.median(), work, peak)),
        "decode_fraction_of_bandwidth":
            decode.and_then(|all| all.test.fraction_of_bandwidth(all.median(), work, read)),
        "peak_gops": peak,
        "read_gb_per_s": read,
        "limits": {
            "threads": limits.threads,
            "f32_gflops": figure(limits.f32_gflops),
            "int8_gops": figure(limits.int8_gops),
            "bf16_gflops": limits.bf16_gflops.map(figure),
            "read_gb_per_s": figure(limits.read_gb_per_s),
            "read_buffer_bytes": limits.read_buffer_bytes,
            "instructions": limits.instructions,
        },
        "tests": all.iter().map(|measured| measured.to_json(work, peak, read)).collect::<Vec<_>>(),
    });
    if let Some(peer) = peer {
        results["peer"] = peer;
    }
    results
}

fn tables(all: &[Measured], limits: &Limits, work: &Work, weights: WeightFormat) -> Vec<Table> {
    let (peak, read) = (peak(limits, weights).best, limits.read_gb_per_s.best);
    let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1}%", share * 100.0));
    let has_peer = all.iter().any(|measured| !measured.peer_tokens_per_s.is_empty());
    let mut columns = vec!["test", "tokens/s", "min", "max", "of peak", "of bandwidth"];
    if has_peer {
        columns.extend(["peer tokens/s", "ours / peer", "min", "max"]);
    }
    let mut tests = Table::new("Device speed: medians", &columns);
    for measured in all {
        let summary = Summary::of(&measured.tokens_per_s);
        let mut cells = vec![
            measured.test.name(),
            number(summary.median),
            number(summary.min),
            number(summary.max),
            percent(Some(measured.test.fraction_of_peak(summary.median, work, peak))),
            percent(measured.test.fraction_of_bandwidth(summary.median, work, read)),
        ];
        if has_peer {
            match measured.ratio() {
                Some(ratio) => cells.extend(
                    [Summary::of(&measured.peer_tokens_per_s).median, ratio.median, ratio.min, ratio.max].map(number),
                ),
                None => cells.extend(["-", "-", "-", "-"].map(str::to_owned)),
            }
        }
        tests.row(cells);
    }
    let mut machine = Table::new(
        &format!("The machine's limits, {} threads ({})", limits.threads, limits.instructions),
        &["limit", "best", "median"],
    );
    let figures = [
        ("f32, GFLOP/s", Some(limits.f32_gflops)),
        ("int8, GOP/s", Some(limits.int8_gops)),
        ("bf16, GFLOP/s", limits.bf16_gflops),
        ("memory reads, GB/s", Some(limits.read_gb_per_s)),
    ];
    for (name, figure) in figures {
        if let Some(figure) = figure {
            machine.row([name.to_owned(), number(figure.best), number(figure.median)]);
        }
    }
    vec![tests, machine]
}

/// Speed over depth: a line for each length of a prefill, and for each batch of a decode; the peer's beside them.
fn plots(all: &[Measured]) -> Vec<Plot> {
    let mut plots = Vec::new();
    for (kind, name, title) in [
        (Kind::Prefill, "engine-prefill", "Prefill on the bare device"),
        (Kind::Decode, "engine-decode", "Decode on the bare device"),
    ] {
        let mut series: Vec<Series> = Vec::new();
        let mut add = |name: String, depth: u32, samples: &[f64]| {
            if samples.is_empty() {
                return;
            }
            let at = series.iter().position(|line| line.name == name).unwrap_or_else(|| {
                series.push(Series { name, points: Vec::new(), shape: Shape::Line });
                series.len() - 1
            });
            series[at].points.push((f64::from(depth), Summary::of(samples).median));
        };
        for measured in all.iter().filter(|measured| measured.test.kind == kind) {
            let Test { tokens, depth, batch, .. } = measured.test;
            let line = if kind == Kind::Prefill {
                format!("{tokens} tokens")
            } else {
                format!("{tokens} tokens, batch {batch}")
            };
            add(format!("{line}, peer"), depth, &measured.peer_tokens_per_s);
            add(line, depth, &measured.tokens_per_s);
        }
        for line in &mut series {
            line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        if !series.is_empty() {
            plots.push(Plot {
                name: name.to_owned(),
                title: title.to_owned(),
                x: Axis::linear("history before the test [tokens]"),
                y: Axis::linear("speed [tokens/s]"),
                series,
            });
        }
    }
    plots
}

fn notes(all: &[Measured], limits: &Limits, work: &Work) -> Vec<String> {
    let mut notes = vec![format!(
        "Fractions are of the limits' best trials; memory was read in a buffer of {} MiB.",
        limits.read_buffer_bytes >> 20
    )];
    let read = limits.read_gb_per_s.best;
    let faster = |measured: &Measured| measured.test.fraction_of_bandwidth(measured.median(), work, read) > Some(1.0);
    if all.iter().any(faster) {
        notes.push(
            "More than all of the bandwidth: the model is small enough that a cache keeps part of it between steps, or the limit \
             itself was disturbed."
                .to_owned(),
        );
    }
    if all.iter().any(|measured| measured.shares_history) {
        notes.push(
            "Sequences of a batch shared one history where one each would take too much memory: part of their KV may have come \
             from a cache."
                .to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::peer::PeerTest;
    use clap::Parser;
    use holdfast_model::random::MicroShape;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        engine: Arguments,
    }

    fn parse(line: &[&str]) -> Arguments {
        Line::try_parse_from([&["engine"], line].concat()).unwrap().engine
    }

    #[test]
    fn the_matrix_is_every_depth_and_batch() {
        let tests = parse(&["-p", "8,16", "-n", "4", "-d", "0,32", "-b", "1,2"]).tests().unwrap();
        let names: Vec<_> = tests.iter().map(|test| test.name()).collect();
        assert_eq!(
            names,
            [
                "prefill 8 at 0",
                "prefill 8 at 32",
                "prefill 16 at 0",
                "prefill 16 at 32",
                "decode 4 at 0, batch 1",
                "decode 4 at 0, batch 2",
                "decode 4 at 32, batch 1",
                "decode 4 at 32, batch 2"
            ]
        );
        assert_eq!(tests[0].for_peer(), Some(PeerTest { p: 8, n: 0, d: 0 }));
        assert_eq!(tests[6].for_peer(), Some(PeerTest { p: 0, n: 4, d: 32 }));
        assert_eq!(tests[7].for_peer(), None);
        assert!(parse(&["-p", "0"]).tests().unwrap().iter().all(|test| test.kind == Kind::Decode));
        assert!(parse(&["-p", "0", "-n", "0"]).tests().is_err());
        assert!(parse(&["-b", "0"]).tests().is_err());
        assert!(parse(&["--quick"]).tests().unwrap().len() < parse(&[]).tests().unwrap().len());
    }

    #[test]
    fn the_pool_grows_only_to_its_bound() {
        let model = MicroShape::default().build().unwrap();
        let work = Work::new(model.config(), WeightFormat::F32);
        let test = |depth| Test { kind: Kind::Decode, tokens: 16, depth, batch: 4 };
        assert_eq!(kv_blocks(&[test(0), test(160)], &work, 16), 10 + 1 + 3 * 11);
        // 256 bytes a token: 4 GiB are 2^20 blocks of 16.
        assert_eq!(kv_blocks(&[test(1 << 23)], &work, 16), 1 << 20);
        assert_eq!(kv_blocks(&[test(1 << 25)], &work, 16), (1 << 21) + 4);
    }

    #[test]
    fn results_have_the_documented_keys_and_ratios_are_pairwise() {
        let model = MicroShape::default().build().unwrap();
        let work = Work::new(model.config(), WeightFormat::F32);
        let figure = Figure { best: 2.0, median: 1.0 };
        let limits = Limits {
            threads: 1,
            f32_gflops: figure,
            int8_gops: Figure { best: 8.0, median: 7.0 },
            bf16_gflops: None,
            read_gb_per_s: figure,
            read_buffer_bytes: 1 << 20,
            instructions: "test".to_owned(),
        };
        let measured = |kind, batch, ours: &[f64], peer: &[f64]| Measured {
            test: Test { kind, tokens: 4, depth: 0, batch },
            shares_history: false,
            tokens_per_s: ours.to_vec(),
            peer_tokens_per_s: peer.to_vec(),
        };
        let all = [
            measured(Kind::Prefill, 1, &[10.0, 30.0, 20.0], &[5.0, 10.0, 10.0]),
            measured(Kind::Decode, 1, &[3.0], &[]),
            measured(Kind::Decode, 4, &[9.0], &[]),
        ];
        let results = results(&all, &limits, &work, WeightFormat::Nested, Some(json!({ "command": "x" })));
        assert_eq!(results["prefill_tokens_per_s"], 20.0);
        assert_eq!(results["decode_tokens_per_s"], 3.0);
        assert_eq!(results["peak_gops"], 8.0, "nested weights are held against int8 arithmetic");
        assert_eq!(results["read_gb_per_s"], 2.0);
        for key in ["prefill_fraction_of_peak", "decode_fraction_of_bandwidth"] {
            assert!(results[key].as_f64().unwrap() > 0.0, "{key}");
        }
        assert_eq!(results["tests"][0]["ratio"]["median"], 2.0);
        assert_eq!(results["tests"][0]["ratio"]["max"], 3.0);
        assert_eq!(results["tests"][2]["b"], 4);
        assert!(results["tests"][2].get("ratio").is_none());
        assert_eq!(plots(&all)[0].series.len(), 2);
        assert!(tables(&all, &limits, &work, WeightFormat::Nested)[0].to_string().contains("ours / peer"));
    }
}
