//! Requests that need a grammar compiled: they step aside until it is, so that nobody else waits for it.
//!
//! In: requests before anything of them is done. Out: compilations, and the same requests again. Deliberately not here: compiling
//! ([`crate::guiding`]); refusing what cannot be compiled, which is the request's own check, as is compiling what was forgotten
//! meanwhile.

use holdfast_types::{Failure, FailureDetail, Reason, SessionConfig};

use super::message::Ticket;
use super::{Asked, Effect, Request, Slot, WorkerCore};
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

    /// What a request asked for is compiled: it goes on where it stepped aside.
    pub(super) fn compiled(&mut self, ticket: Ticket) {
        if let Some(asked) = self.compiling.remove(&ticket) {
            self.request(Asked { compiled: true, ..asked });
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
