//! Models and the runtime, outwards.
//!
//! In: what the worker says of its models and of itself. Out: the contract's words, the default model first. Deliberately
//! not here: choosing a model.

use std::collections::BTreeSet;

use holdfast_contracts::v1;
use holdfast_types::ModelRevision;
use holdfast_worker_api::{HistoryRendering, ModelInfo, RuntimeInfo};

use super::session::effort_out;
use super::time;
use crate::names;

/// Writes models, the default one first, else in the worker's order. `build` is the runtime's.
pub(crate) fn models(models: &[ModelInfo], build: &str) -> Vec<v1::Model> {
    let (default, others): (Vec<_>, Vec<_>) = models.iter().partition(|model| model.is_default);
    default.into_iter().chain(others).map(|info| model(info, build)).collect()
}

/// Writes the revision that a session is pinned to.
pub(crate) fn revision(model: &str, revision: &ModelRevision) -> v1::ModelRevision {
    v1::ModelRevision {
        model: names::model(model),
        weights_digest: revision.weights.to_string(),
        tokenizer_digest: revision.tokenizer.to_string(),
        template_digest: revision.template.to_string(),
        numerics_class: revision.numerics_class.to_string(),
        build: revision.build.clone(),
    }
}

/// Writes the runtime.
pub(crate) fn runtime(info: &RuntimeInfo) -> v1::Runtime {
    let classes: BTreeSet<_> = info.models.iter().map(|model| model.numerics_class.to_string()).collect();
    let limits = info.limits.entries().into_iter();
    v1::Runtime {
        version: info.version.clone(),
        build: info.build.clone(),
        features: info.features.clone(),
        limits: limits.map(|(name, value)| v1::Limit { name: name.to_owned(), value }).collect(),
        models: models(&info.models, &info.build),
        numerics_classes: classes.into_iter().collect(),
        sessions_loaded: info.sessions_loaded,
        turns_in_progress: info.turns_in_progress,
        start_time: Some(time::timestamp(info.started_us)),
        draining: info.draining,
    }
}

fn model(info: &ModelInfo, build: &str) -> v1::Model {
    let (kv_blocks, kv_blocks_used) = info.kv_blocks;
    v1::Model {
        name: names::model(&info.name),
        is_default: info.is_default,
        revision: Some(v1::ModelRevision {
            model: names::model(&info.name),
            weights_digest: info.weights.to_string(),
            tokenizer_digest: info.tokenizer.to_string(),
            template_digest: info.template.to_string(),
            numerics_class: info.numerics_class.to_string(),
            build: build.to_owned(),
        }),
        architecture: info.architecture.clone(),
        parameter_count: info.parameters,
        vocab_size: info.vocab_size,
        context_limit_tokens: u64::from(info.context_limit),
        supports_tools: info.tools,
        device: info.device.clone(),
        kv_bytes_per_token: info.kv_bytes_per_token,
        kv_blocks,
        kv_blocks_used,
        marks_reasoning: info.speech.reasoning,
        reasoning_efforts: info.speech.efforts.iter().map(|effort| effort_out(Some(*effort)) as i32).collect(),
        history_rendering: match info.speech.history {
            HistoryRendering::Published => v1::HistoryRendering::Published,
            HistoryRendering::Replaced => v1::HistoryRendering::Replaced,
            HistoryRendering::Incremental => v1::HistoryRendering::Incremental,
        } as i32,
        history_differs: info.speech.history_differs.clone(),
    }
}
