//! What a scenario hands over, and what becomes of it: the terminal, a JSON file, plots.
//!
//! In: an [`Outcome`]. Out: a [`Report`], the same in every form. Deliberately not here: HTML of many reports.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use crate::file::write_whole;
use crate::machine::{Machine, Revision};
use crate::noise::Verdict;
use crate::options::Common;
use crate::plot::Plot;
use crate::table::Table;

/// Version of the JSON. Raised when a key changes its meaning or goes; a new key does not raise it.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// What a scenario found.
pub(crate) struct Outcome {
    /// The scenario's keys, as the documentation names them.
    pub(crate) results: Value,
    /// The model that was played with: `name`, `path`, and what is known of it.
    pub(crate) model: Value,
    /// Numbers that the scenario chose: turns, tokens, sessions, the runtime's settings.
    pub(crate) settings: Value,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
    /// What a reader has to know beside the figures.
    pub(crate) notes: Vec<String>,
}

/// An outcome with everything around it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) schema_version: u32,
    pub(crate) scenario: String,
    /// RFC 3339, UTC.
    pub(crate) started: String,
    pub(crate) duration_s: f64,
    pub(crate) quick: bool,
    pub(crate) seed: u64,
    pub(crate) machine: Machine,
    pub(crate) revision: Revision,
    pub(crate) noise: Verdict,
    pub(crate) model: Value,
    pub(crate) settings: Value,
    pub(crate) results: Value,
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    pub(crate) tables: Vec<Table>,
    #[serde(skip)]
    pub(crate) plots: Vec<Plot>,
}

/// When a scenario began.
pub(crate) struct Begun {
    pub(crate) scenario: &'static str,
    pub(crate) at: SystemTime,
}

impl Report {
    /// Puts everything together.
    pub(crate) fn new(begun: &Begun, common: &Common, outcome: Outcome, noise: Verdict) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            scenario: begun.scenario.to_owned(),
            started: prost_types::Timestamp::from(begun.at).to_string(),
            duration_s: begun.at.elapsed().unwrap_or_default().as_secs_f64(),
            quick: common.quick,
            seed: common.seed,
            machine: Machine::read(),
            revision: Revision::read(),
            noise,
            model: outcome.model,
            settings: outcome.settings,
            results: outcome.results,
            notes: outcome.notes,
            tables: outcome.tables,
            plots: outcome.plots,
        }
    }

    /// The tables, the notes, and first of all whether the figures can be believed.
    pub(crate) fn print(&self) {
        println!();
        for table in &self.tables {
            println!("{table}\n");
        }
        for note in &self.notes {
            println!("{note}");
        }
        println!("{}", self.noise_line());
    }

    /// One line about the neighbours.
    pub(crate) fn noise_line(&self) -> String {
        if self.noise.noisy {
            return format!("NOISY, figures are unsure: {}.", self.noise.reasons.join("; "));
        }
        let percent = |share: Option<f64>| share.map_or("unknown".to_owned(), |share| format!("{:.1}%", share * 100.0));
        format!(
            "Quiet: others used {} of all cores, the host took {}, a fixed piece of work varied by {}.",
            percent(self.noise.others_cpu_share),
            percent(self.noise.steal_share),
            percent(self.noise.probe_spread),
        )
    }

    /// Writes the JSON; whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written, with its path.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_whole(path, &serde_json::to_vec_pretty(self)?)
    }
}
