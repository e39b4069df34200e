//! The reason of an error that ends a command: one word of the closed list, so that a start that was refused is as readable to
//! a program as a call that was refused.
//!
//! In: the error as it came up. Out: its reason, where one of ours knows it. Deliberately not here: errors that name their
//! reason in their own words (settings, and what a runtime answered over gRPC).

use holdfast_backend_neuron::NeuronError;
use holdfast_backend_remote::RemoteError;
use holdfast_journal::JournalError;
use holdfast_model::ModelError;
use holdfast_telemetry::TelemetryError;
use holdfast_types::Reason;

use crate::gpus;
use crate::registry::RegistryError;

/// The reason, from whichever error in the chain has one.
pub(crate) fn of(error: &anyhow::Error) -> Option<Reason> {
    error.chain().find_map(|cause| {
        let journal = cause.downcast_ref().map(journal);
        let model = || cause.downcast_ref().map(|error: &ModelError| error.failure().reason);
        let registry = || cause.downcast_ref().map(RegistryError::reason);
        let device = || cause.downcast_ref().map(device);
        let gpu = || gpus::reason(cause);
        let remote = || cause.downcast_ref().map(remote);
        let telemetry = || cause.downcast_ref().map(|_: &TelemetryError| Reason::InvalidSetting);
        journal.or_else(registry).or_else(model).or_else(device).or_else(gpu).or_else(remote).or_else(telemetry)
    })
}

fn journal(error: &JournalError) -> Reason {
    match error {
        JournalError::InUse { .. } => Reason::DataDirInUse,
        JournalError::TooNew { .. } => Reason::SchemaTooNew,
        JournalError::Corrupt { .. } => Reason::JournalCorrupt,
        JournalError::NotFound { .. } => Reason::SessionNotFound,
        JournalError::Io(_) => Reason::JournalUnavailable,
    }
}

fn device(error: &NeuronError) -> Reason {
    match error {
        NeuronError::Setting { .. } | NeuronError::Chip(_) => Reason::InvalidSetting,
        NeuronError::Model(_) => Reason::InvalidModel,
        NeuronError::Threads(_) | NeuronError::Memory(_) => Reason::DeviceFault,
    }
}

fn remote(error: &RemoteError) -> Reason {
    match error {
        RemoteError::Unreachable { .. } | RemoteError::Changed { .. } => Reason::DeviceLost,
        RemoteError::Description { .. } | RemoteError::Thread(_) => Reason::DeviceFault,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_reason_is_found_under_the_words_around_it() {
        let owned = JournalError::InUse { path: "data".to_owned(), owner: "pid 1".to_owned() };
        let error = Err::<(), _>(owned).context("starting").expect_err("it is an error");
        assert_eq!(of(&error), Some(Reason::DataDirInUse));
        let setting = NeuronError::Setting { setting: "kv_bytes", value: "1".to_owned(), rule: String::new() };
        assert_eq!(of(&anyhow::Error::from(setting)), Some(Reason::InvalidSetting));
        assert_eq!(of(&anyhow::anyhow!("something else")), None);
    }
}
