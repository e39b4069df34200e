//! What is recorded of steps: one span each, below the oldest run's and linked to the others, and every preemption.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::sync::{Arc, Mutex};

use harness::{Host, config, log, run, start};
use holdfast_engine::StepObserver;
use holdfast_engine::testing::small_device;
use holdfast_telemetry::{LINKS_MAX, Metrics, RunSpans, names};
use opentelemetry::metrics::MeterProvider as _;
use tracing::Subscriber;
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Step { parent: Option<Id> },
    Link { to: Id },
}

#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Seen>>>);

impl<S: Subscriber> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == names::SPAN_STEP {
            self.0.lock().unwrap().push(Seen::Step { parent: attributes.parent().cloned() });
        }
    }

    fn on_follows_from(&self, _: &Id, to: &Id, _: Context<'_, S>) {
        self.0.lock().unwrap().push(Seen::Link { to: to.clone() });
    }
}

#[test]
fn a_step_is_below_its_oldest_run_and_linked_to_the_others() {
    let seen = Spans::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(seen.clone()), || {
        let runs = RunSpans::default();
        let spans: Vec<_> = (0..12).map(|_| tracing::info_span!("run")).collect();
        for (run, span) in (1..).zip(&spans) {
            runs.insert(run, span);
        }
        let mut host = Host::new(small_device(4, &[200], 16), config(16));
        host.engine.observe(StepObserver::new("test", &Metrics::default(), runs.clone()));
        host.complete(run(3, log(0..3), 1));
        assert_eq!(*seen.0.lock().unwrap(), [Seen::Step { parent: spans[2].id() }], "alone: no links");
        seen.0.lock().unwrap().clear();
        host.poll((1..=12).rev().filter(|id| *id != 3).map(|id| start(run(id, log(0..3), 1))).collect());
        let links = spans[1..].iter().filter(|span| span.id() != spans[2].id()).take(LINKS_MAX);
        let mut expected = vec![Seen::Step { parent: spans[0].id() }];
        expected.extend(links.map(|span| Seen::Link { to: span.id().unwrap() }));
        assert_eq!(*seen.0.lock().unwrap(), expected);
        seen.0.lock().unwrap().clear();
        host.settle();
        host.complete(run(13, log(0..4), 1));
        assert_eq!(seen.0.lock().unwrap().last(), Some(&Seen::Step { parent: None }), "of nobody's turn");
    });
}

#[test]
fn steps_and_preemptions_are_counted() {
    let registry = prometheus::Registry::new();
    let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build().unwrap();
    let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder().with_reader(reader).build();
    let metrics = Metrics::new(&provider.meter("test"));
    // Three runs that begin together and cannot all end together.
    let mut host = Host::new(small_device(4, &[14], 4), config(16));
    host.engine.observe(StepObserver::new("test", &metrics, RunSpans::default()));
    host.poll((1..=3_u32).map(|id| start(run(id.into(), log(id * 17..id * 17 + 12), 16))).collect());
    host.settle();
    let snapshot = host.engine.snapshot();
    assert!(snapshot.preemptions > 0);
    let page = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for (name, expected) in [
        ("holdfast_preemptions_total{", snapshot.preemptions),
        ("holdfast_step_duration_seconds_count{", snapshot.steps),
        ("holdfast_step_rows_sum{", snapshot.computed_rows),
    ] {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in\n{page}"));
        assert!(line.contains("holdfast_device=\"test\"") && line.ends_with(&format!(" {expected}")), "{line}");
    }
}
