//! The ground that bad input falls on: one runtime, sessions in every state made on demand, and the look afterwards that
//! nothing stayed behind.

use std::pin::Pin;

use holdfast_client::{Client, v1};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::talk::{self, ServingStatus};
use crate::support::{Home, Runtime, SOON, until, within};

/// What a row does: every call but the last succeeds.
pub(crate) type Call = for<'a> fn(&'a Ground) -> Pin<Box<dyn Future<Output = Result<(), Status>> + 'a>>;

/// One kind of bad input and what it gets.
pub(crate) struct Row {
    pub(crate) input: &'static str,
    pub(crate) code: Code,
    pub(crate) reason: &'static str,
    pub(crate) details: &'static str,
    pub(crate) call: Call,
}

impl Row {
    pub(crate) fn expected(&self) -> (Code, &'static str, &'static str) {
        (self.code, self.reason, self.details)
    }
}

/// Writes rows: `"input" => Code, "REASON", "details", |ground| future;`
macro_rules! rows {
    ($($input:literal => $code:ident, $reason:literal, $details:literal, |$ground:ident| $call:expr;)*) => {
        &[$(
            crate::ground::Row {
                input: $input,
                code: tonic::Code::$code,
                reason: $reason,
                details: $details,
                call: |$ground| Box::pin(async move { $call.await.map(drop) }),
            },
        )*]
    };
}
pub(crate) use rows;

/// Small limits, so that meeting them is quick; the others are the defaults. The KV pool holds one context and not a block
/// more, so that a block that leaked is missed by whoever needs all of them.
const SETTINGS: &[&str] = &[
    "--set",
    "device.kv_bytes=2097152",
    "--set",
    "limits.queued_turns_per_session=2",
    "--set",
    "limits.turns_in_progress=6",
    "--set",
    "limits.sessions_per_tenant=8",
    "--set",
    "limits.items_per_session=40",
    "--set",
    "limits.turns_per_session=4",
    "--set",
    "limits.items_per_request=30",
];

/// How often a row is tried before it counts as accepted.
const TRIES: usize = 5;

/// A runtime and a client.
pub(crate) struct Ground {
    pub(crate) client: Client,
    runtime: Runtime,
    /// Removed with the ground, after the runtime has ended.
    _home: Home,
}

impl Ground {
    pub(crate) async fn new() -> Self {
        let home = Home::new();
        let runtime = home.start(SETTINGS);
        Self { client: runtime.client().await, runtime, _home: home }
    }

    pub(crate) fn address(&self) -> &str {
        &self.runtime.address
    }

    /// What a row gets. Afterwards its sessions are deleted and the runtime is looked at.
    pub(crate) async fn answer(&self, row: &Row) -> (Code, String, String) {
        let mut answer = Ok(());
        // A turn that should be in the way may have ended already on a busy machine; a row that is never refused is wrong.
        for _ in 0..TRIES {
            answer = within(row.input, SOON, (row.call)(self)).await;
            self.look(row.input).await;
            if answer.is_err() {
                break;
            }
        }
        match answer {
            Ok(()) => (Code::Ok, String::new(), String::new()),
            Err(status) => (status.code(), talk::reason(&status), details(&status)),
        }
    }

    /// Deletes all sessions, then asserts that the runtime is well and does nothing.
    pub(crate) async fn look(&self, after: &str) {
        let request = v1::ListSessionsRequest { page_size: 1000, ..Default::default() };
        let sessions = self.client.sessions().list_sessions(request).await.unwrap().into_inner().sessions;
        for session in sessions {
            talk::delete(&self.client, &session.name).await.unwrap();
        }
        assert_eq!(talk::health(&self.client).await.unwrap(), ServingStatus::Serving, "after: {after}");
        until(&format!("nothing runs after: {after}"), SOON, async || {
            (talk::runtime(&self.client).await.turns_in_progress == 0).then_some(())
        })
        .await;
        self.audit(after).await;
    }

    /// A turn that needs every block of the pool: it fails if one was lost.
    async fn audit(&self, after: &str) {
        let told = talk::runtime(&self.client).await;
        let model = &told.models[0];
        assert_eq!(u64::from(model.kv_blocks) * 16, model.context_limit_tokens, "one context and not a block more");
        let session = self.session().await;
        let request = talk::says_with(&session, &"a b ".repeat(300), talk::long(u32::MAX));
        let heard =
            talk::run_to_end(&self.client, request).await.unwrap_or_else(|status| panic!("{after}: {status:?}"));
        let ended = heard.ended().unwrap();
        assert_eq!(ended.stop_reason(), v1::StopReason::ContextFull, "after: {after}: {:?}", ended.error);
        talk::delete(&self.client, &session).await.unwrap();
    }

    /// A conversation still works; then the runtime ends cleanly.
    pub(crate) async fn end(mut self) {
        let session = self.session().await;
        let request = talk::says(&session, "Where is order 7731?");
        let heard = talk::run_to_end(&self.client, request).await.unwrap();
        assert!(heard.text().contains("Tuesday"), "{}", heard.text());
        self.runtime.stop().await;
    }

    /// A new session.
    pub(crate) async fn session(&self) -> String {
        talk::open(&self.client, talk::pebble()).await
    }

    /// A session with one turn behind it; the turn's name as well.
    pub(crate) async fn talked(&self) -> (String, String) {
        let session = self.session().await;
        let heard = talk::run_to_end(&self.client, talk::says(&session, "My locker code is 4471.")).await.unwrap();
        (session, heard.turn_name().to_owned())
    }

    /// A session that waits for a tool result: session, turn, call id.
    pub(crate) async fn waiting(&self) -> (String, String, String) {
        let session = self.session().await;
        let heard = talk::run(&self.client, talk::says(&session, "Where is order 7731?")).await.unwrap();
        let calls = heard.waits().expect("Pebble asks for the tool");
        (session, heard.turn_name().to_owned(), calls[0].call_id.clone())
    }

    /// A session whose turn goes on for a while; the turn's name as well.
    pub(crate) async fn busy(&self) -> (String, String) {
        let session = self.session().await;
        let turn = talk::start(&self.client, talk::says_with(&session, "Hello", talk::long(900))).await.unwrap();
        (session, turn.name)
    }

    /// Creates a session that is refused.
    pub(crate) async fn create(&self, session: v1::Session) -> Result<(), Status> {
        let request = v1::CreateSessionRequest { session: Some(session), ..Default::default() };
        self.client.sessions().create_session(request).await.map(drop)
    }

    /// The same for a config.
    pub(crate) async fn configure(&self, config: v1::SessionConfig) -> Result<(), Status> {
        self.create(v1::Session { config: Some(config), ..Default::default() }).await
    }

    /// Runs a turn with options in a new session.
    pub(crate) async fn optioned(&self, options: v1::TurnOptions) -> Result<(), Status> {
        let session = self.session().await;
        let request = v1::RunTurnRequest { options: Some(options), ..talk::says(&session, "Hello") };
        talk::run(&self.client, request).await.map(drop)
    }

    /// Runs a turn with sampling in a new session.
    pub(crate) async fn sampled(&self, sampling: v1::Sampling) -> Result<(), Status> {
        self.optioned(v1::TurnOptions { sampling: Some(sampling), ..Default::default() }).await
    }

    /// Runs a turn with this input in a new session.
    pub(crate) async fn given(&self, input: Vec<v1::Item>) -> Result<(), Status> {
        let session = self.session().await;
        let request = v1::RunTurnRequest { session, input, ..Default::default() };
        talk::run(&self.client, request).await.map(drop)
    }

    /// Updates a session by a mask.
    pub(crate) async fn update(&self, session: v1::Session, mask: &[&str]) -> Result<(), Status> {
        let paths = mask.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = v1::UpdateSessionRequest { session: Some(session), update_mask };
        self.client.sessions().update_session(request).await.map(drop)
    }
}

/// The details of a status in one line: what a program can act on.
pub(crate) fn details(status: &Status) -> String {
    let details = status.get_error_details();
    let mut parts = Vec::new();
    if let Some(bad) = details.bad_request() {
        parts.extend(bad.field_violations.iter().map(|violation| format!("BadRequest `{}`", violation.field)));
    }
    if let Some(quota) = details.quota_failure() {
        parts.extend(quota.violations.iter().map(|violation| format!("QuotaFailure `{}`", violation.subject)));
    }
    if details.precondition_failure().is_some() {
        parts.push("PreconditionFailure".to_owned());
    }
    if let Some(resource) = details.resource_info() {
        parts.push(format!("ResourceInfo `{}`", resource.resource_type.trim_start_matches("holdfast.v1.")));
    }
    if details.retry_info().is_some() {
        parts.push("RetryInfo".to_owned());
    }
    if let Some(info) = details.error_info() {
        // Facts that the details above tell already are not named twice.
        let told = ["field", "limit", "limitName", "requested", "resource"];
        let mut keys: Vec<&str> = info.metadata.keys().map(String::as_str).filter(|key| !told.contains(key)).collect();
        keys.sort_unstable();
        if !keys.is_empty() {
            parts.push(format!("metadata `{}`", keys.join("`, `")));
        }
    }
    parts.join("; ")
}
