//! The model that a scenario plays with.
//!
//! In: what `--model` says, or the scenario's default shape. Out: a path that `holdfast serve` and the loader take, and that another
//! engine takes too, since what is made is a GGUF file. Deliberately not here: how models are made.

use std::path::PathBuf;

use anyhow::Context as _;
use holdfast_model_maker::{Format, MakeError, Shape, make};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::options::{Common, in_target};

/// Of models that are made: engines read it, and it is near what people run.
const FORMAT: Format = Format::GgufQ8_0;
/// Decides the weights. Not `--seed`, which is the workload's: one model serves every workload.
const WEIGHTS_SEED: u64 = 0;

/// A model to serve.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// What `holdfast serve --model` and the loader take.
    pub(crate) path: String,
    /// Of a model that was made here.
    shape: Option<&'static Shape>,
}

impl Chosen {
    /// The user's model, or a seeded random one of the scenario's shape, made once and kept.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn pick(common: &Common, shape: &str, progress: &ProgressBar) -> anyhow::Result<Self> {
        if let Some(path) = &common.model {
            return Ok(Self { path: path.clone(), shape: None });
        }
        let shape = Shape::named(shape)?;
        let cache = common.cache.clone().map_or_else(|| in_target("bench-models"), Ok)?;
        let path = std::path::absolute(cache.join(format!("{}-{FORMAT}.gguf", shape.name)))?;
        make_once(shape, path.clone(), progress).with_context(|| format!("making the model {}", path.display()))?;
        let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned();
        Ok(Self { path, shape: Some(shape) })
    }

    /// For the report.
    pub(crate) fn describe(&self) -> Value {
        match self.shape {
            None => json!({ "path": self.path }),
            Some(shape) => json!({
                "path": self.path,
                "shape": shape.name,
                "parameters": shape.parameters(),
                "format": FORMAT.name(),
                "weights_seed": WEIGHTS_SEED,
            }),
        }
    }
}

fn make_once(shape: &Shape, path: PathBuf, progress: &ProgressBar) -> Result<(), MakeError> {
    if path.is_file() {
        return Ok(());
    }
    progress.set_message(format!("making the model {}, once", shape.name));
    let made = make(shape, FORMAT, WEIGHTS_SEED, &path, &mut |done, total| {
        progress.set_length(total);
        progress.set_position(done);
    });
    progress.set_position(0);
    match made {
        // Another run was quicker, and makes the same bytes.
        Err(MakeError::Exists { .. }) => Ok(()),
        made => made,
    }
}
