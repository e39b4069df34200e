//! Turns that failed, counted by reason.
//!
//! In: errors. Out: how many of which kind, for the report. Deliberately not here: whether they end the scenario.

use std::collections::BTreeMap;

use holdfast_client::ClientError;

/// Longest text that stands for a reason.
const REASON_CHARS_MAX: usize = 120;

/// How often what went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failures(BTreeMap<String, u64>);

impl Failures {
    /// Counts one: by the reason that the runtime gave, else by the words.
    pub(crate) fn count(&mut self, error: &anyhow::Error) {
        let given = error.downcast_ref::<ClientError>().and_then(ClientError::reason);
        let reason = given.unwrap_or_else(|| format!("{error:#}").chars().take(REASON_CHARS_MAX).collect());
        self.add(reason, 1);
    }

    /// Counts several that have no error of their own.
    pub(crate) fn add(&mut self, reason: String, count: u64) {
        if count > 0 {
            *self.0.entry(reason).or_default() += count;
        }
    }

    /// Counts all of `other` too.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(reason, count)| self.add(reason.clone(), *count));
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// By reason.
    pub(crate) fn by_reason(&self) -> &BTreeMap<String, u64> {
        &self.0
    }

    /// The most frequent reason; nothing when nothing failed.
    pub(crate) fn foremost(&self) -> Option<&str> {
        self.0.iter().max_by_key(|(_, count)| **count).map(|(reason, _)| reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_merged() {
        let mut failures = Failures::default();
        failures.count(&anyhow::anyhow!("gone"));
        failures.count(&anyhow::anyhow!("gone"));
        failures.count(&anyhow::anyhow!("x".repeat(500)));
        failures.add("late".to_owned(), 0);
        let mut all = Failures::default();
        all.add("gone".to_owned(), 1);
        all.merge(&failures);
        assert_eq!((all.total(), all.foremost(), all.by_reason().len()), (4, Some("gone"), 2));
        assert!(all.by_reason().keys().all(|reason| reason.len() <= REASON_CHARS_MAX));
    }
}
