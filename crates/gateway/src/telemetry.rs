//! What is recorded of a call: one span from its arrival to its answer or the end of its stream, and one count by method
//! and reason.
//!
//! In: the method, the caller, how it ended. Out: spans under the names of `holdfast_telemetry::names`, and
//! [`Metrics`]. A call that is dropped before its end counts as `CANCELLED`: the client went
//! away. Deliberately not here: exporters, and what the worker records of a turn.

use std::sync::Arc;

use holdfast_telemetry::{Metrics, names, propagation};
use holdfast_types::{Failure, SessionId, TurnNumber};
use holdfast_worker_api::Caller;
use tracing::{Span, field::Empty};

/// A call from its arrival on. Ends once: with [`Call::end`], or as cancelled when it is dropped.
pub(crate) struct Call {
    method: &'static str,
    span: Span,
    metrics: Arc<Metrics>,
    has_ended: bool,
}

impl Call {
    /// A call of `method` (`package.Service/Method`) arrives. Its span continues the caller's trace; while traces are on,
    /// the caller goes on with this span's context, so that the worker's spans hang below it.
    pub(crate) fn begin(method: &'static str, caller: &mut Caller, metrics: Arc<Metrics>) -> Self {
        let span = tracing::info_span!(
            names::SPAN_REQUEST,
            { names::RPC_SYSTEM } = "grpc",
            { names::RPC_METHOD } = method,
            { names::TENANT } = caller.tenant.as_str(),
            { names::GEN_AI_CONVERSATION_ID } = Empty,
            { names::TURN_NUMBER } = Empty,
            { names::REASON } = Empty,
            { names::ERROR_TYPE } = Empty,
        );
        propagation::set_parent(&span, &caller.traceparent);
        let passed_on = propagation::traceparent(&span);
        if !passed_on.is_empty() {
            caller.traceparent = passed_on;
        }
        Self { method, span, metrics, has_ended: false }
    }

    /// The call's span.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The call ends, well or with a failure.
    pub(crate) fn end(&mut self, failure: Option<&Failure>) {
        self.end_as(failure.map_or("OK", |failure| failure.reason.as_str()));
    }

    /// The call ends by a word that is no reason of ours.
    pub(crate) fn end_as(&mut self, outcome: &'static str) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        self.span.record(names::REASON, outcome);
        if outcome != "OK" {
            self.span.record(names::ERROR_TYPE, outcome);
        }
        self.metrics.grpc_request(self.method, outcome);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end_as("CANCELLED");
    }
}

/// Notes in the present call's span which session it is about.
pub(crate) fn note_session(session: &SessionId) {
    Span::current().record(names::GEN_AI_CONVERSATION_ID, session.as_str());
}

/// Notes in the present call's span which turn it is about.
pub(crate) fn note_turn(turn: TurnNumber) {
    Span::current().record(names::TURN_NUMBER, turn.0);
}
