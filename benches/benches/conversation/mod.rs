//! A session of Pebble's as its worker writes it down, for the benches of what is written and of what is told.
//!
//! In: what a user says and how many tokens are sampled. Out: the batches that the worker hands to the journal for such a turn,
//! one token a step, and the events that clients are told. Deliberately not here: a device; the sampled tokens are a text.

use std::sync::Arc;

use holdfast_journal::{Batch, Body, Durability, NewEntry, SessionMutable, TurnRequest};
use holdfast_model::{Model, ModelSource, ModelText};
use holdfast_types::{
    Event, GenerationSettings, Item, ItemNumber, ModelRevision, NumberedItem, NumericsClass, OnDisconnect, Origin,
    Precision, Principal, Role, SamplingOverrides, SessionConfig, SessionId, StopReason, TenantId, TokenId, TokenRange,
    TokenRun, ToolChoice, TurnNumber, TurnState, UnresolvedCalls, Usage,
};
use holdfast_worker::TextOfModel;
use holdfast_worker::fold::{Languages, SessionFold};
use holdfast_worker::language::{Language, Prompt};

/// A user's turn.
pub(crate) const QUESTION: &str =
    "The build fails since this morning. Read the log, find the first error and say what to change.";
/// What the model answers, again and again until enough is sampled.
const ANSWER: &str =
    "The first error is in the settings: a key is named twice, so the parser keeps the later one. Remove it. ";
const TIME_US: u64 = 1_700_000_000_000_000;

/// The text side of the built-in model.
pub(crate) fn pebble() -> Arc<ModelText> {
    Arc::clone(Model::load(&ModelSource::resolve("pebble").unwrap()).unwrap().text())
}

/// The languages of a worker that serves Pebble.
pub(crate) fn languages(text: &Arc<ModelText>) -> Languages {
    let language: Arc<dyn Language> = Arc::new(TextOfModel::new(Arc::clone(text)));
    Arc::new(move |_, _| Some(Arc::clone(&language)))
}

/// A session and what it is made of.
pub(crate) struct Conversation {
    text: Arc<ModelText>,
    fold: SessionFold,
}

impl Conversation {
    /// The session of this number, and the batch of its creation.
    pub(crate) fn begin(text: &Arc<ModelText>, number: u64) -> (Self, Batch) {
        let (weights, tokenizer, template) = text.revision();
        let config = SessionConfig {
            model: "pebble".to_owned(),
            instructions: "You are a careful engineer.".to_owned(),
            ..SessionConfig::default()
        };
        let revision =
            ModelRevision { weights, tokenizer, template, numerics_class: class(), build: "0.1.0".to_owned() };
        let body = Body::SessionCreated {
            config: Box::new(config),
            revision: Box::new(revision),
            mutable: SessionMutable::default(),
            request: None,
            pinned_date: "2026-01-01".to_owned(),
        };
        let tenant = TenantId::parse("default").unwrap();
        let session = SessionId::parse(&format!("session-{number}")).unwrap();
        let created = entry(&tenant, &session, body);
        let fold = SessionFold::begin(&created, languages(text)).unwrap();
        let batch = Batch { entries: vec![created], head: Some(fold.head()), durability: Durability::Power };
        (Self { text: Arc::clone(text), fold }, batch)
    }

    /// One turn in which `sampled` tokens are sampled, the stop token among them: its batches and its events.
    pub(crate) fn turn(&mut self, sampled: usize) -> (Vec<Batch>, Vec<Event>) {
        let turn = TurnNumber(self.fold.turns().len() as u32 + 1);
        let mut events = Vec::new();
        let mut batches = vec![self.write(self.opening(turn), Durability::Power, &mut events)];
        let mut bodies = Vec::new();
        for token in self.answer(sampled) {
            if !bodies.is_empty() {
                batches.push(self.write(std::mem::take(&mut bodies), Durability::Process, &mut events));
            }
            bodies.push(Body::Sampled { turn, generation: 0, run: run(Origin::Sampled, vec![token]) });
        }
        let (stop_reason, usage) = (StopReason::EndTurn, Box::new(usage(sampled as u64)));
        bodies.push(Body::GenerationEnded { turn, generation: 0, stop_reason, usage });
        let (state, stop_reason) = (TurnState::Completed, Some(stop_reason));
        bodies.push(Body::TurnEnded { turn, state, stop_reason, failure: None });
        batches.push(self.write(bodies, Durability::Power, &mut events));
        (batches, events)
    }

    /// Whose session.
    pub(crate) fn session(&self) -> &SessionId {
        self.fold.session()
    }

    /// Accepted, started, and its input rendered.
    fn opening(&self, turn: TurnNumber) -> Vec<Body> {
        let item = Item::message(Role::User, QUESTION);
        let prompt = Prompt::of(self.fold.config(), self.fold.pinned_date());
        let language = self.fold.language().unwrap();
        let ids = language.render(&prompt, self.fold.end(), std::slice::from_ref(&item), true).unwrap();
        let tokens = TokenRange { start: self.fold.tokens(), end: self.fold.tokens() + ids.len() as u32 };
        let number = ItemNumber(self.fold.items().len() as u32 + 1);
        let request = TurnRequest {
            request: None,
            input: vec![item.clone()],
            continue_last: false,
            discard_partial: false,
            unresolved_calls: UnresolvedCalls::Reject,
            settings: settings(),
            allowed_tools: None,
            tool_choice: ToolChoice::Auto,
            single_call: false,
            constraint: None,
            deadline_us: None,
            on_disconnect: OnDisconnect::Continue,
        };
        vec![
            Body::TurnAccepted { turn, request: Box::new(request) },
            Body::TurnStarted { turn },
            Body::ItemsAppended {
                turn: Some(turn),
                items: vec![NumberedItem { number, turn: Some(turn), tokens, item }],
                runs: vec![run(Origin::Rendered, ids)],
                request: None,
            },
        ]
    }

    fn answer(&self, sampled: usize) -> Vec<TokenId> {
        let words = self.text.encode(ANSWER);
        let stop = self.text.stop_tokens()[0];
        words.into_iter().cycle().take(sampled - 1).chain([stop]).collect()
    }

    /// One batch of the worker's, folded as it is written.
    fn write(&mut self, bodies: Vec<Body>, durability: Durability, events: &mut Vec<Event>) -> Batch {
        let changes_row = bodies.iter().any(|body| !matches!(body, Body::Sampled { .. }));
        let entries: Vec<NewEntry> =
            bodies.into_iter().map(|body| entry(self.fold.tenant(), self.fold.session(), body)).collect();
        for entry in &entries {
            self.fold.apply(entry, events).unwrap();
        }
        Batch { entries, head: changes_row.then(|| self.fold.head()), durability }
    }
}

fn entry(tenant: &TenantId, session: &SessionId, body: Body) -> NewEntry {
    NewEntry {
        tenant: tenant.clone(),
        session: session.clone(),
        time_us: TIME_US,
        principal: Principal::default(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        body,
    }
}

fn run(origin: Origin, ids: Vec<TokenId>) -> TokenRun {
    TokenRun { origin, precision: Precision::Native, numerics_class: class(), ids, logprobs: Vec::new() }
}

fn class() -> NumericsClass {
    NumericsClass::new("neuron/f32/r1")
}

fn settings() -> GenerationSettings {
    SamplingOverrides::default().resolve(7, 4_096)
}

fn usage(output_tokens: u64) -> Usage {
    Usage { input_tokens: 4_096, computed_tokens: 64, output_tokens, duration_us: 1_000_000, ..Usage::default() }
}
