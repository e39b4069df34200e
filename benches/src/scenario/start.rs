//! Scenario `start`: how long a runtime takes from nothing to the first token of an answer.
//!
//! In: a model. Out: times from the start of the process to its address, and to the first token, with weights that are packed anew and with
//! those that an earlier start has kept; each with our files in the page cache and with them dropped from it. The four are played in turn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, value_parser};
use serde_json::{Map, Value, json};

use super::{Play, Stage, page_cache};
use crate::model::Chosen;
use crate::options::{AllArguments, Common};
use crate::player::stateless::Stateless;
use crate::player::{Said, now};
use crate::report::Outcome;
use crate::server::{Launch, Server};
use crate::statistics::Summary;
use crate::table::{Table, number};

/// Of the model that is made when none is named.
const SHAPE: &str = "llama-22m";
const REPETITIONS: u32 = 5;
const REPETITIONS_QUICK: u32 = 3;
/// What is said: as little as a conversation begins with.
const SAID: &str = "Hello!";

/// From nothing to the first token: weights packed anew, and weights kept from an earlier start
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Starts of each kind [default: 5; with --quick 3]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
}

/// One kind of start.
struct Kind {
    name: &'static str,
    key: &'static str,
    /// Weights that were kept are read.
    kept: bool,
    /// Files are dropped from the page cache before.
    dropped: bool,
    start_ms: Vec<f64>,
    first_token_ms: Vec<f64>,
}

impl Kind {
    fn new(name: &'static str, key: &'static str, kept: bool, dropped: bool) -> Self {
        Self { name, key, kept, dropped, start_ms: Vec::new(), first_token_ms: Vec::new() }
    }
}

impl Play for Arguments {
    const NAME: &'static str = "start";

    fn among_all(all: &AllArguments) -> Self {
        Self { common: all.common.clone(), repetitions: None }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    async fn play(&self, stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        let model = Chosen::pick(&self.common, SHAPE, &stage.progress)?;
        let packings = tempfile::tempdir().context("no temporary directory for packed weights")?;
        let launch = |kept: bool| {
            let directory = packings.path().display();
            let packing = match kept {
                true => vec![format!("device.packing_dir={directory}"), "device.packing_after_ms=0".to_owned()],
                false => vec!["device.packing_bytes=0".to_owned()],
            };
            let settings: Vec<_> = ["device.weights=nested".to_owned()].into_iter().chain(packing).collect();
            Launch::serve(&self.common, &model.path, &settings)
        };
        let (anew, kept) = (launch(false)?, launch(true)?);
        let place = PathBuf::from(model.path.rsplit('=').next().unwrap_or_default());
        let files: Vec<&Path> = [place.as_path(), packings.path()].into_iter().filter(|path| path.exists()).collect();
        stage.progress.set_message("a first start, which packs the weights");
        once(&kept).await.context("the first start")?;
        let packing_bytes = size_of(packings.path())?;

        let mut kinds = vec![
            Kind::new("packed anew", "packed_anew", false, false),
            Kind::new("kept from before", "kept", true, false),
        ];
        let mut dropped_files = Some(0);
        if place.exists() {
            dropped_files = page_cache::drop_files(&files)?;
        }
        if dropped_files.is_some_and(|files| files > 0) {
            kinds.push(Kind::new("packed anew, read from disk", "packed_anew_from_disk", false, true));
            kinds.push(Kind::new("kept from before, read from disk", "kept_from_disk", true, true));
        }
        let repetitions = self.repetitions();
        stage.progress.set_length(u64::from(repetitions) * kinds.len() as u64);
        // Both files are in the page cache again.
        once(&anew).await?;
        once(&kept).await?;
        for number in 0..repetitions {
            stage.watch.probe();
            for kind in &mut kinds {
                stage.progress.set_message(format!("start {}, {}", number + 1, kind.name));
                if kind.dropped {
                    page_cache::drop_files(&files)?;
                }
                let (start, first_token) = once(if kind.kept { &kept } else { &anew }).await?;
                kind.start_ms.push(start.as_secs_f64() * 1e3);
                kind.first_token_ms.push(first_token.as_secs_f64() * 1e3);
                stage.progress.inc(1);
            }
        }
        stage.watch.probe();
        Ok(Outcome {
            results: results(&kinds, packing_bytes),
            model: model.describe(),
            settings: json!({ "repetitions": repetitions }),
            tables: vec![table(&kinds)],
            plots: Vec::new(),
            notes: notes(&kinds, packing_bytes),
        })
    }
}

impl Arguments {
    fn repetitions(&self) -> u32 {
        self.repetitions.unwrap_or(if self.common.quick { REPETITIONS_QUICK } else { REPETITIONS })
    }
}

/// Starts a runtime, asks it for one token, and stops it. From the start to its address, and to the token.
async fn once(launch: &Launch) -> anyhow::Result<(Duration, Duration)> {
    let begun = now();
    let server = Server::start(launch).await?;
    let start = begun.elapsed();
    let client = server.client().await?;
    let before = begun.elapsed();
    let answer = Stateless::new(&client).turn(&[Said::User(SAID.to_owned())], 1).await?;
    server.stop().await?;
    Ok((start, before + answer.first_token))
}

/// Bytes of the files of a directory.
fn size_of(directory: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in directory.read_dir()? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn results(kinds: &[Kind], packing_bytes: u64) -> Value {
    let mut results = Map::new();
    for kind in kinds {
        results.insert(format!("{}_start_ms", kind.key), json!(Summary::of(&kind.start_ms).median));
        results.insert(format!("{}_first_token_ms", kind.key), json!(Summary::of(&kind.first_token_ms).median));
        results.insert(format!("{}_first_token_ms_by_repetition", kind.key), json!(kind.first_token_ms));
    }
    results.insert("packing_bytes".to_owned(), json!(packing_bytes));
    Value::Object(results)
}

fn table(kinds: &[Kind]) -> Table {
    let title = "From the start of the process, milliseconds";
    let mut table = Table::new(title, &["weights", "to its address", "to the first token", "spread", "min", "max"]);
    for kind in kinds {
        let Summary { median, spread, min, max, .. } = Summary::of(&kind.first_token_ms);
        let start = Summary::of(&kind.start_ms).median;
        let spread = format!("{:.0}%", spread * 100.0);
        table.row([kind.name.to_owned(), number(start), number(median), spread, number(min), number(max)]);
    }
    table
}

fn notes(kinds: &[Kind], packing_bytes: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if packing_bytes == 0 {
        notes.push("Nothing was kept: these settings keep no weights, or those are more than may be.".to_owned());
    }
    if kinds.iter().all(|kind| !kind.dropped) {
        notes.push(
            "The model is no file here, or this system has no way to drop files from the page cache: what was read came \
             from memory."
                .to_owned(),
        );
    }
    notes
}
