//! Requests and generations that need a grammar compiled: they step aside until it is, so that nobody else waits for it.
//!
//! In: requests before anything of them is done, and generations before their run. Out: compilations, and the same again. A request's
//! grammar is compiled before it is accepted; a generation finds it there, unless it goes on after a restart or others have taken
//! its place meanwhile. Deliberately not here: compiling ([`crate::guiding`]); refusing what cannot be compiled, which is the
//! request's own check, as is compiling what is missing again the moment after.

use holdfast_types::{Failure, FailureDetail, Reason, SessionConfig, TurnNumber};

use super::message::Ticket;
use super::session::Session;
use super::{Asked, Effect, Request, Shared, Slot, WorkerCore};
use crate::guiding::{Compilation, Rules};
use crate::language::Prompt;

impl WorkerCore {
    /// Gives a request back if it needs nothing compiled; else it comes again when that is done.
    pub(super) fn compile_first(&mut self, slot: Option<Slot>, asked: Asked) -> Option<Asked> {
        let work = if asked.compiled { None } else { self.missing(slot, &asked.request) };
        let Some(work) = work else { return Some(asked) };
        let limit = self.shared.settings.requests_waiting;
        if self.compiling.len() < limit {
            let ticket = Ticket(self.shared.next());
            self.compiling.insert(ticket, asked);
            self.shared.effects.push(Effect::Compile { ticket, work });
        } else {
            let message = format!("{limit} requests wait for their constraints to be compiled; retry");
            let failure = Failure::new(Reason::QueueFull, message).with(FailureDetail::RetryAfter { ms: 100 });
            self.shared.reply(asked.id, Err(failure));
        }
        None
    }

    /// What a request or a generation asked for is compiled: it goes on where it stepped aside.
    pub(super) fn compiled(&mut self, ticket: Ticket) {
        if let Some(asked) = self.compiling.remove(&ticket) {
            return self.request(Asked { compiled: true, ..asked });
        }
        let slot = self.shared.tickets.remove(&ticket);
        if let Some(session) = slot.and_then(|slot| self.slots.get_mut(&slot)) {
            session.compiled(&mut self.shared);
        }
    }

    /// What is to be compiled for a request, as far as it can be told before it is checked.
    fn missing(&self, slot: Option<Slot>, request: &Request) -> Option<Compilation> {
        let session = slot.and_then(|slot| self.slots.get(&slot));
        match (session, request) {
            (Some(session), Request::StartTurn(turn)) => {
                let rules = Rules {
                    allowed_tools: turn.allowed_tools.as_deref(),
                    tool_choice: &turn.tool_choice,
                    single_call: turn.single_call,
                    constraint: turn.constraint.as_ref(),
                };
                let fold = session.fold();
                let prompt = Prompt::of(fold.config(), fold.pinned_date());
                let model = self.shared.model(&fold.config().model).ok()?;
                self.shared.guides[model].missing(&*self.shared.models[model].language, &prompt, Some(rules), &[])
            }
            (None, Request::CreateSession(create)) => self.missing_of(&create.config, None),
            (None, Request::CountTokens(count)) if count.session.is_none() => self.missing_of(&count.config, None),
            (None, Request::Generate(generate)) => {
                let rules = Rules {
                    allowed_tools: generate.allowed_tools.as_deref(),
                    tool_choice: &generate.tool_choice,
                    single_call: generate.single_call,
                    constraint: generate.constraint.as_ref(),
                };
                self.missing_of(&generate.config, Some(rules))
            }
            _ => None,
        }
    }

    fn missing_of(&self, config: &SessionConfig, rules: Option<Rules<'_>>) -> Option<Compilation> {
        let model = self.shared.model(&config.model).ok()?;
        let prompt = Prompt::of(config, "");
        self.shared.guides[model].missing(&*self.shared.models[model].language, &prompt, rules, &config.tools)
    }
}

impl Session {
    /// Has a generation wait for its grammar.
    pub(super) fn compile(&mut self, shared: &mut Shared, generation: (TurnNumber, u32), work: Compilation) {
        let ticket = Ticket(shared.next());
        shared.tickets.insert(ticket, self.slot());
        self.compiling = Some(generation);
        shared.effects.push(Effect::Compile { ticket, work });
    }

    /// The generation that waited begins, or whatever is due in its place.
    fn compiled(&mut self, shared: &mut Shared) {
        let generation = self.compiling.take();
        self.begin_generation(shared, generation);
    }
}
