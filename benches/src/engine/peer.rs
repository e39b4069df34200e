//! The same tests on another engine: any program that prints what `llama-bench -o json` prints.
//!
//! In: a command. Out: tokens per second of one test for each call. Deliberately not here: which program it is, and installing it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::process::Command;

/// Longest that one call may take.
const CALL_MAX: Duration = Duration::from_secs(1_800);
/// Bytes of a program's output that an error repeats.
const SHOWN_MAX: usize = 600;

/// A command that is called once for each test.
#[derive(Debug, Clone)]
pub(crate) struct PeerEngine {
    command: String,
}

/// One test, as `llama-bench` names its parts: a prompt of `p` tokens or `n` generated ones, behind `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerTest {
    pub(crate) p: u32,
    pub(crate) n: u32,
    pub(crate) d: u32,
}

/// What the program said of a test.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct PeerFigure {
    n_prompt: u32,
    n_gen: u32,
    #[serde(default)]
    n_depth: u32,
    /// Tokens per second.
    pub(crate) avg_ts: f64,
    /// The model, in the program's words.
    #[serde(default)]
    pub(crate) model_type: String,
}

impl PeerEngine {
    /// A command line for `sh`; it must name the model. `-p`, `-n`, `-d`, `-r 1` and `-o json` are appended for each test,
    /// except those that it has already.
    pub(crate) fn new(command: &str) -> Self {
        Self { command: command.to_owned() }
    }

    /// Runs one test once.
    ///
    /// # Errors
    /// When the program cannot be started, fails, takes too long, prints no JSON, or prints nothing of this test; with what it
    /// printed.
    pub(crate) async fn run(&self, test: PeerTest) -> anyhow::Result<PeerFigure> {
        let line = self.line(test);
        let child = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("`sh -c {line:?}` cannot be started"))?;
        let output = tokio::time::timeout(CALL_MAX, child.wait_with_output()).await;
        let output = output.with_context(|| format!("`{line}` did not end within {CALL_MAX:?}"))??;
        if !output.status.success() {
            bail!("`{line}` failed ({}): {}", output.status, end(&output.stderr));
        }
        find(&output.stdout, test).with_context(|| format!("`{line}`"))
    }

    fn line(&self, test: PeerTest) -> String {
        let PeerTest { p, n, d } = test;
        let mut line = self.command.clone();
        for (short, long, value) in [
            ("-p", "--n-prompt", p.to_string()),
            ("-n", "--n-gen", n.to_string()),
            ("-d", "--n-depth", d.to_string()),
            ("-r", "--repetitions", "1".to_owned()),
            ("-o", "--output", "json".to_owned()),
        ] {
            if !self.command.split_whitespace().any(|word| word == short || word == long) {
                line = format!("{line} {short} {value}");
            }
        }
        line
    }
}

/// The figure of one test in the program's output: a JSON array, with or without other lines around it.
fn find(stdout: &[u8], test: PeerTest) -> anyhow::Result<PeerFigure> {
    let text = String::from_utf8_lossy(stdout);
    let array = match (text.find('['), text.rfind(']')) {
        (Some(first), Some(last)) if first < last => &text[first..=last],
        _ => bail!("printed no JSON array: {}", end(stdout)),
    };
    let figures: Vec<PeerFigure> = serde_json::from_str(array)
        .with_context(|| format!("printed JSON that is not llama-bench's: {}", end(stdout)))?;
    let all = figures.len();
    let wanted = |figure: &PeerFigure| PeerTest { p: figure.n_prompt, n: figure.n_gen, d: figure.n_depth } == test;
    let figure = figures.into_iter().find(wanted).with_context(|| {
        let PeerTest { p, n, d } = test;
        format!("printed {all} tests and not the one with n_prompt {p}, n_gen {n}, n_depth {d}")
    })?;
    if !(figure.avg_ts.is_finite() && figure.avg_ts > 0.0) {
        bail!("printed {} tokens per second", figure.avg_ts);
    }
    Ok(figure)
}

/// The end of what a program printed.
fn end(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(SHOWN_MAX)..];
    match String::from_utf8_lossy(tail).trim() {
        "" => "it printed nothing".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As `llama-bench` printed it, shortened.
    const PRINTED: &str = r#"[
  {
    "build_commit": "unknown", "model_type": "llama ?B Q8_0", "n_batch": 2048, "n_ubatch": 512, "n_threads": 2,
    "n_prompt": 512, "n_gen": 0, "n_depth": 0, "test_time": "2026-11-20T10:00:00Z",
    "avg_ns": 72135640, "stddev_ns": 0, "avg_ts": 7097.74, "stddev_ts": 0.0,
    "samples_ns": [ 72135640 ], "samples_ts": [ 7097.74 ]
  },
  {
    "model_type": "llama ?B Q8_0", "n_prompt": 0, "n_gen": 64, "n_depth": 4096, "avg_ts": 18.5, "samples_ts": [ 18.5 ]
  }
]
"#;
    const PREFILL: PeerTest = PeerTest { p: 512, n: 0, d: 0 };
    const DECODE: PeerTest = PeerTest { p: 0, n: 64, d: 4096 };

    #[test]
    fn figures_are_found_by_their_test() {
        let prefill = find(PRINTED.as_bytes(), PREFILL).unwrap();
        assert_eq!((prefill.avg_ts, prefill.model_type.as_str()), (7097.74, "llama ?B Q8_0"));
        let around = format!("loading\n{PRINTED}done\n");
        assert_eq!(find(around.as_bytes(), DECODE).unwrap().avg_ts, 18.5);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let error = |printed: &str, test| format!("{:#}", find(printed.as_bytes(), test).unwrap_err());
        assert!(error("usage: llama-bench", PREFILL).contains("printed no JSON array: usage: llama-bench"));
        assert!(error("", PREFILL).contains("it printed nothing"));
        assert!(error("[1, 2]", PREFILL).contains("not llama-bench's"));
        let missing = error(PRINTED, PeerTest { p: 7, n: 0, d: 0 });
        assert!(missing.contains("printed 2 tests and not the one with n_prompt 7, n_gen 0, n_depth 0"), "{missing}");
        assert!(error(r#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 0.0}]"#, PREFILL).contains("printed 0 tokens"));
    }

    #[test]
    fn arguments_that_the_command_has_are_kept() {
        let line = |command| PeerEngine::new(command).line(DECODE);
        assert_eq!(line("llama-bench -m a.gguf"), "llama-bench -m a.gguf -p 0 -n 64 -d 4096 -r 1 -o json");
        assert_eq!(line("bench -r 3 --output json"), "bench -r 3 --output json -p 0 -n 64 -d 4096");
    }

    #[tokio::test]
    async fn a_program_is_called_and_its_failure_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("printed.json");
        std::fs::write(&file, PRINTED).unwrap();
        let peer = PeerEngine::new(&format!("cat {} #", file.display()));
        assert_eq!(peer.run(PREFILL).await.unwrap().avg_ts, 7097.74);
        let error = PeerEngine::new("echo no such model >&2; exit 3 #").run(PREFILL).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such model"), "{error}");
    }
}
