//! What spans need beyond `tracing`: those of the runs that are under way, so that a step, on an engine's thread, finds the
//! generations it computes for; and attributes that are lists.
//!
//! In: from the worker, a span when it hands a run to an engine, and the run's end. Out: to engines, the spans of a step's runs.
//! Deliberately not here: the spans' names and attributes (their owners').

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opentelemetry::{Array, StringValue, Value};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Most runs, beside the oldest, that a step is linked to: a trace stays readable however large the batch.
pub const LINKS_MAX: usize = 8;

/// Spans by run. Clones share the same ones. Holds as many as there are runs, and nothing while traces are off.
#[derive(Debug, Clone, Default)]
pub struct RunSpans(Arc<Mutex<BTreeMap<u64, Span>>>);

impl RunSpans {
    /// A run begins, whose work `span` stands for. Disabled spans are not kept.
    pub fn insert(&self, run: u64, span: &Span) {
        if !span.is_disabled() {
            self.lock().insert(run, span.clone());
        }
    }

    /// A run ended.
    pub fn remove(&self, run: u64) {
        // Dropped outside of the lock: closing a span runs the subscriber.
        let removed = self.lock().remove(&run);
        drop(removed);
    }

    /// The spans of those among `runs` that have one, the oldest run's first; at most one more than [`LINKS_MAX`].
    pub fn of(&self, runs: impl Iterator<Item = u64>) -> Vec<Span> {
        let mut runs: Vec<u64> = runs.collect();
        runs.sort_unstable();
        let spans = self.lock();
        runs.iter().filter_map(|run| spans.get(run).cloned()).take(LINKS_MAX + 1).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Span>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets an attribute of `span` that is a list of words, which `tracing` has no type for. Does nothing while traces are off.
pub fn set_words(span: &Span, name: &'static str, words: &[&'static str]) {
    let words: Vec<StringValue> = words.iter().map(|word| StringValue::from(*word)).collect();
    span.set_attribute(name, Value::Array(Array::String(words)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_run_comes_first_and_the_rest_is_bounded() {
        let spans = RunSpans::default();
        spans.insert(1, &Span::none());
        assert!(spans.of([1].into_iter()).is_empty(), "disabled spans are not kept");
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            let made: Vec<Span> = (0..20).map(|_| tracing::info_span!("run")).collect();
            for (run, span) in made.iter().enumerate() {
                spans.insert(run as u64, span);
            }
            let found = spans.of((3..20).rev());
            assert_eq!(found.len(), LINKS_MAX + 1);
            assert_eq!(found[0].id(), made[3].id());
            spans.remove(3);
            assert_eq!(spans.of([3, 7].into_iter()).len(), 1);
        });
    }
}
