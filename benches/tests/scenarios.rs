//! Every scenario, played small by the real driver against a real runtime: it ends by itself, and its JSON, its plots and its page hold
//! what the documentation names. No figure is judged here: how fast a test machine is says nothing.
//!
//! Needs the `holdfast` binary beside the driver's, which `cargo test --workspace` builds; with a selection of tests, choose one of the
//! `holdfast` package too, or the binary may be an old one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use holdfast_model_maker::{Format, Shape, make};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with a micro model, where one scenario leaves its files.
struct Stage {
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("micro.gguf");
        make(Shape::named("micro").unwrap(), Format::GgufQ8_0, 1, &model, &mut |_, _| {}).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn model(&self) -> String {
        self.path("micro.gguf").to_str().unwrap().to_owned()
    }

    fn play(&self, scenario: &str, options: &[&str]) -> Output {
        let mut driver = Command::new(env!("CARGO_BIN_EXE_holdfast-bench"));
        // The key of a peer is the driver's: the runtime would take it for a setting that it does not know.
        driver.env("HOLDFAST_PEER_KEY", "a key");
        driver.args([scenario, "--quick", "--json"]).arg(self.path("out.json"));
        driver.arg("--plots").arg(self.path("plots")).args(options).output().unwrap()
    }

    /// Plays to the end, and gives the report.
    fn report(&self, scenario: &str, options: &[&str]) -> Value {
        let output = self.play(scenario, options);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        assert!(printed.contains("Quiet: ") != printed.contains("NOISY, "), "one word about the neighbours: {printed}");
        let report: Value = serde_json::from_slice(&std::fs::read(self.path("out.json")).unwrap()).unwrap();
        assert_eq!(report["schema_version"], 1);
        assert_eq!(report["scenario"], scenario);
        for key in ["started", "duration_s", "machine", "revision", "noise", "model", "settings", "results", "notes"] {
            assert!(!report[key].is_null(), "{key}");
        }
        assert_eq!(plots(&self.path("plots"), "svg"), plots(&self.path("plots"), "png"));
        report
    }
}

/// How many files of a kind there are; at least one.
fn plots(directory: &Path, ending: &str) -> usize {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let count = files.filter(|path| path.extension().is_some_and(|found| found == ending)).count();
    assert!(count > 0, "no {ending} in {}", directory.display());
    count
}

/// Every key is there with a number, a list of numbers or a truth value behind it.
fn hold(results: &Value, keys: &[&str]) {
    for key in keys {
        let value = key.split('.').fold(results, |value, part| &value[part]);
        let all = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
        assert!(!all.is_empty() && all.iter().all(|value| value.is_number() || value.is_boolean()), "{key}: {value}");
    }
}

#[test]
fn turns() {
    let stage = Stage::new();
    let report = stage.report("turns", &["--model", &stage.model(), "--turns", "4", "--answer-tokens", "4"]);
    let results = &report["results"];
    hold(
        results,
        &[
            "stateful.computed_tokens",
            "stateless.computed_tokens",
            "stateful.ttft_ms",
            "stateless.ttft_ms",
            "stateful.total_s",
            "stateless.total_s",
            "speedup_total",
            "speedup_ttft_last",
            "ttft_over_engine",
        ],
    );
    assert_eq!(results["stateful"]["ttft_ms"].as_array().unwrap().len(), 4);
    let computed = |player: &str| results[player]["computed_tokens"].as_u64().unwrap();
    assert!(computed("stateful") < computed("stateless"), "{results}");
}

#[test]
fn dense() {
    let stage = Stage::new();
    let few = ["--sessions", "3", "--turns-median", "12", "--load-s", "2"];
    let short = ["--opening-tokens", "40", "--turn-tokens", "8", "--answer-tokens", "4"];
    let report = stage.report("dense", &[["--model", &stage.model()].as_slice(), &few, &short].concat());
    let keys = [
        "sessions",
        "oversubscription",
        "reused_fraction",
        "ttft_ms.p50",
        "ttft_ms.p95",
        "ttft_ms.p99",
        "unloaded_ttft_ms.p95",
        "itl_ms.p50",
        "itl_ms.p99",
        "output_tokens_per_s",
        "errors",
    ];
    hold(&report["results"], &keys);
    assert_eq!(report["results"]["errors"], 0, "{}", report["results"]["error_reasons"]);
}

#[test]
fn resume() {
    let stage = Stage::new();
    let report = stage.report("resume", &["--model", &stage.model(), "--tokens", "300", "--repetitions", "1"]);
    hold(&report["results"], &["cold_ttft_ms", "restored_ttft_ms", "speedup", "lost_events", "identical"]);
    assert_eq!(report["results"]["lost_events"], 0);
    assert_eq!(report["results"]["identical"], true);
}

#[test]
fn interference() {
    let stage = Stage::new();
    let small = ["--prompt-tokens", "300", "--answer-tokens", "32", "--repetitions", "1"];
    let report = stage.report("interference", &[["--model", &stage.model()].as_slice(), &small].concat());
    hold(&report["results"], &["itl_idle_ms.p99", "itl_loaded_ms.p99", "ratio", "prefill_fraction_of_solo"]);
}

#[test]
fn engine() {
    let stage = Stage::new();
    let small = ["-p", "16", "-n", "4", "-d", "0,64", "-b", "1,2", "-r", "1"];
    let report = stage.report("engine", &[["--model", &stage.model()].as_slice(), &small].concat());
    let keys = [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "prefill_fraction_of_peak",
        "decode_fraction_of_bandwidth",
        "peak_gops",
        "read_gb_per_s",
    ];
    hold(&report["results"], &keys);
    assert_eq!(report["results"]["tests"].as_array().unwrap().len(), 2 + 4);
}

#[test]
fn overhead() {
    let stage = Stage::new();
    let report = stage.report("overhead", &[]);
    let keys = [
        "steps_per_s",
        "tokens_per_s",
        "added_latency_us.p50",
        "added_latency_us.p99",
        "journal_bytes_per_turn",
        "plan_apply_us.1",
        "plan_apply_us.64",
        "plan_apply_us.1024",
        "driver_cpu_share",
    ];
    hold(&report["results"], &keys);
}

#[test]
fn what_cannot_be_played_is_refused_with_the_next_step() {
    let stage = Stage::new();
    let model = stage.model();
    let cases: [(&str, &[&str], &str); 5] = [
        ("turns", &["--model", "no-such-model"], "no-such-model"),
        ("turns", &["--binary", "/nowhere/holdfast", "--model", &model], "cargo build --release"),
        ("turns", &["--model", &model, "--peer", "p=http://127.0.0.1:1"], "peer p"),
        ("dense", &["--model", &model, "--set", "device.kv_bytes=1"], "device.kv_bytes"),
        ("engine", &["--model", &model, "-p", "16", "-n", "0", "-r", "1", "--peer-engine", "false"], "false"),
    ];
    for (scenario, options, said) in cases {
        let output = stage.play(scenario, options);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(said), "{scenario} {options:?}: {error}");
        assert!(!stage.path("out.json").exists(), "a report of a scenario that failed");
    }
}
