//! A session and its engine: runs that begin, report and end.
//!
//! In: what an engine reports. Out: runs, sampled entries, ends of generations. A generation's last tokens and its end are
//! written in one batch. Deliberately not here: what starts a turn ([`super::turn`]).

use holdfast_engine::{Command, Effect as EngineEffect, FinishReason, Run, RunId, SampleRequest};
use holdfast_journal::{Body, Durability};
use holdfast_kv::ChainDomain;
use holdfast_types::{EventKind, Failure, Origin, SampledToken, StopReason, TokenRun, TurnNumber, TurnState, Usage};

use super::session::Session;
use super::turn::ended_state;
use super::{Effect, Shared};
use crate::guiding::Rules;
use crate::language::{LogEnd, Prompt};

/// The run of a session.
pub(super) struct ActiveRun {
    pub(super) id: RunId,
    /// It samples nothing.
    prefill: bool,
    /// Its last token is the context's last.
    fills_context: bool,
    /// Why the turn ends although the model goes on.
    ending: Option<StopReason>,
    /// It stops for a shutdown and goes on after the next start.
    paused: bool,
    cancel_sent: bool,
}

/// The run that an effect is about.
pub(super) fn run_of(effect: &EngineEffect) -> RunId {
    match effect {
        EngineEffect::Progress { run, .. }
        | EngineEffect::Sampled { run, .. }
        | EngineEffect::Finished { run, .. }
        | EngineEffect::Failed { run, .. } => *run,
    }
}

impl Session {
    /// What a session that was just loaded goes on with.
    pub(super) fn resume(&mut self, shared: &mut Shared) {
        self.advance(shared);
    }

    /// Runs the next generation of the turn that runs, unless it runs already or waits for its grammar.
    pub(super) fn run_generation(&mut self, shared: &mut Shared) {
        if self.compiling.is_none() {
            self.begin_generation(shared, None);
        }
    }

    /// `compiled` is a generation whose grammar has just been compiled: it does not wait for it a second time.
    pub(super) fn begin_generation(&mut self, shared: &mut Shared, compiled: Option<(TurnNumber, u32)>) {
        if shared.draining || self.is_broken() || self.fold.is_deleted() {
            return;
        }
        let Some(progress) = self.fold.current() else { return };
        let Some(turn) = self.fold.turn(progress.number).filter(|turn| turn.state == TurnState::Running) else {
            return;
        };
        if let Some(run) = &self.run {
            if run.prefill {
                // What it computed stays; the rest is the generation's.
                self.cancel_run(shared);
            }
            return;
        }
        let (number, request, created_us) = (progress.number, progress.request.clone(), turn.created_us);
        let device = match shared.check_revision(&self.fold) {
            Ok((device, false)) => device,
            Ok((device, true)) => {
                // It was interrupted, and the device that it goes on with computes in another class.
                let (author, change) = (self.author(number), self.numerics_change(shared, device));
                self.write(shared, &author, vec![change]);
                self.flush(shared, Durability::Process);
                device
            }
            Err(failure) => return self.fail_turn(shared, failure),
        };
        let Some(progress) = self.fold.current() else { return };
        let model = &shared.models[device];
        let sampled = progress.generation_sampled();
        if progress.stopped() || (sampled > 0 && self.fold.end() == LogEnd::Sampled) {
            return self.conclude(shared, FinishReason::StopToken, false, None, Usage::default());
        }
        let left = request.settings.max_output_tokens.saturating_sub(progress.sampled.len() as u32);
        let room = model.info.context_limit.saturating_sub(self.fold.tokens());
        if left == 0 || room == 0 {
            return self.conclude(shared, FinishReason::MaxTokens, left > 0, None, Usage::default());
        }
        let said: Vec<_> = self.fold.said().iter().map(|token| token.id).collect();
        let rules = Rules::of(&request, progress.generation);
        let prompt = Prompt::of(self.fold.config(), self.fold.pinned_date());
        let (guides, path) = (&shared.guides[device], "options.");
        let generation = (progress.number, progress.generation);
        let guide = if compiled == Some(generation) {
            guides.guide(&*model.language, &prompt, rules, &said, path).map(Ok)
        } else {
            guides.guide_if_compiled(&*model.language, &prompt, rules, &said, path)
        };
        let guide = match guide {
            Ok(Ok(guide)) => guide,
            Ok(Err(work)) => return self.compile(shared, generation, work),
            Err(failure) => return self.fail_turn(shared, failure),
        };
        let sample = SampleRequest {
            params: request.settings.sampling.clone(),
            seed: request.settings.seed,
            max_tokens: left.min(room),
            stop_tokens: model.language.stop_tokens().to_vec(),
            precision: model.precision,
            guide,
            sampled_before: progress.sampled.clone(),
        };
        let accepted_us = if progress.generation == 0 { created_us } else { shared.now };
        tracing::debug!(session = %self.fold.session(), turn = number.0, tokens = self.fold.tokens(), "a generation begins");
        self.send_run(shared, device, Some(sample), accepted_us, room <= left);
    }

    /// The entry that says that tokens are computed in the device's class from now on.
    pub(super) fn numerics_change(&mut self, shared: &Shared, device: usize) -> Body {
        self.prefilled = 0;
        let from = self.fold.revision().numerics_class.clone();
        Body::NumericsChanged { from, to: shared.models[device].info.numerics_class.clone() }
    }

    /// Computes the KV of what was appended, in the background.
    pub(super) fn run_prefill(&mut self, shared: &mut Shared) {
        if shared.draining || self.run.is_some() || self.fold.tokens() < 2 {
            return;
        }
        if let Ok((device, false)) = shared.check_revision(&self.fold) {
            self.send_run(shared, device, None, shared.now, false);
        }
    }

    fn send_run(
        &mut self,
        shared: &mut Shared,
        device: usize,
        sample: Option<SampleRequest>,
        accepted_us: u64,
        fills_context: bool,
    ) {
        self.renew_sequence(shared);
        let id = RunId(shared.next());
        shared.runs.insert(id, self.slot());
        let prefill = sample.is_none();
        // A generation that was interrupted is accounted for as if it had not been: by what it began with.
        let interrupted = self.fold.current().filter(|progress| !prefill && progress.generation_sampled() > 0);
        let (resumed, known) = match interrupted {
            Some(progress) => (progress.generation_sampled(), progress.computed_before.min(self.fold.computed())),
            None => (0, self.fold.computed().max(self.prefilled)),
        };
        let run = Run {
            run: id,
            sequence: self.sequence,
            log: self.fold.log().to_vec(),
            computed_before: known.min(self.fold.tokens()),
            domain: ChainDomain::single(shared.session_domain(&self.fold)),
            flow: self.slot().0,
            accepted_us,
            transient: self.is_completion(),
            resumed,
            sample,
        };
        self.run = Some(ActiveRun { id, prefill, fills_context, ending: None, paused: false, cancel_sent: false });
        shared.effects.push(Effect::Engine { device, command: Command::Run(Box::new(run)) });
    }

    fn cancel_run(&mut self, shared: &mut Shared) {
        if let (Some(run), Some(device)) = (&mut self.run, self.device)
            && !std::mem::replace(&mut run.cancel_sent, true)
        {
            shared.effects.push(Effect::Engine { device, command: Command::Cancel { run: run.id } });
        }
    }

    /// Brings the run to a step boundary; its turn goes on after the next start.
    pub(super) fn pause(&mut self, shared: &mut Shared) {
        if self.is_completion() {
            return self.end_generation_early(shared, StopReason::Cancelled);
        }
        if let Some(run) = &mut self.run {
            run.paused = true;
        }
        self.cancel_run(shared);
    }

    /// Ends the running generation, and the turn with it, within one step.
    pub(super) fn end_generation_early(&mut self, shared: &mut Shared, reason: StopReason) {
        match &mut self.run {
            Some(run) if !run.prefill => {
                run.ending.get_or_insert(reason);
                self.cancel_run(shared);
            }
            _ => {
                if self.fold.current().is_some() {
                    self.conclude(shared, FinishReason::Cancelled, false, Some(reason), Usage::default());
                }
            }
        }
    }

    /// What the engine reports of this session's run, in order.
    pub(super) fn engine(&mut self, shared: &mut Shared, effects: Vec<EngineEffect>) {
        let mut sampled = Vec::new();
        let mut end = None;
        for effect in effects {
            if self.run.as_ref().is_none_or(|run| run.id != run_of(&effect)) {
                continue;
            }
            match effect {
                EngineEffect::Progress { done, total, .. } => self.progress(shared, done, total),
                EngineEffect::Sampled { tokens, .. } => sampled.extend(tokens),
                EngineEffect::Finished { reason, usage, .. } => end = Some(Ok((reason, *usage))),
                EngineEffect::Failed { failure, .. } => end = Some(Err(failure)),
            }
        }
        self.sampled(shared, sampled);
        let Some(end) = end else {
            if self.fold.current().is_some_and(|progress| progress.stopped()) {
                // The tokens wait for the end of the generation: one batch.
                return self.cancel_run(shared);
            }
            return self.flush(shared, Durability::Process);
        };
        let Some(run) = self.run.take() else { return };
        shared.runs.remove(&run.id);
        if run.prefill {
            if let Ok((_, usage)) = &end {
                let there = usage.cached.total() + usage.computed_tokens + usage.recomputed_tokens;
                self.prefilled = self.prefilled.max(there.min(u64::from(self.fold.tokens())) as u32);
            }
            return self.run_generation(shared);
        }
        match end {
            Ok((FinishReason::Cancelled, _)) if run.paused && run.ending.is_none() && !self.is_stopped() => {
                self.flush(shared, Durability::Power);
            }
            Ok((reason, usage)) => self.conclude(shared, reason, run.fills_context, run.ending, usage),
            // It had what it was to have: the failure came between its stop string and the cancellation.
            Err(_) if self.is_stopped() => {
                self.conclude(shared, FinishReason::StopToken, false, None, Usage::default());
            }
            Err(failure) => self.fail_turn(shared, failure),
        }
    }

    fn is_stopped(&self) -> bool {
        self.fold.current().is_some_and(|progress| progress.stopped())
    }

    fn progress(&mut self, shared: &mut Shared, done: u32, total: u32) {
        let sampling = self.run.as_ref().is_some_and(|run| !run.prefill);
        if let Some(turn) = self.fold.current().map(|progress| progress.number).filter(|_| sampling) {
            self.show_ephemeral(shared, turn, EventKind::PrefillProgress { done, total });
        }
    }

    fn sampled(&mut self, shared: &mut Shared, tokens: Vec<SampledToken>) {
        let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
        let count = self.fold.accepts(&ids);
        let (Some(progress), Some(device)) = (self.fold.current(), self.device) else { return };
        if count == 0 {
            return;
        }
        let model = &shared.models[device];
        let asked = progress.request.settings.sampling.logprobs.is_some();
        let logprobs = tokens.into_iter().take(count).map(|token| token.logprobs);
        let run = TokenRun {
            origin: Origin::Sampled,
            precision: model.precision,
            numerics_class: model.info.numerics_class.clone(),
            ids: ids[..count].to_vec(),
            logprobs: if asked { logprobs.collect() } else { Vec::new() },
        };
        let (turn, generation) = (progress.number, progress.generation);
        shared.tokens_sampled += count as u64;
        self.drop_ephemeral(turn);
        let author = self.author(turn);
        self.write(shared, &author, vec![Body::Sampled { turn, generation, run }]);
    }

    /// Ends the running generation and decides what its turn does next.
    fn conclude(
        &mut self,
        shared: &mut Shared,
        reason: FinishReason,
        fills_context: bool,
        ending: Option<StopReason>,
        mut usage: Usage,
    ) {
        let Some(progress) = self.fold.current() else { return };
        let (turn, generation) = (progress.number, progress.generation);
        let stop_reason = match reason {
            _ if progress.stopped() => StopReason::StopSequence,
            FinishReason::StopToken | FinishReason::Prefilled if progress.generation_calls() > 0 => {
                StopReason::ToolCall
            }
            FinishReason::StopToken | FinishReason::Prefilled => StopReason::EndTurn,
            FinishReason::MaxTokens if !fills_context => StopReason::MaxOutputTokens,
            FinishReason::MaxTokens | FinishReason::ContextFull => StopReason::ContextFull,
            FinishReason::Cancelled => ending.unwrap_or(StopReason::Cancelled),
        };
        usage.output_tokens = progress.generation_sampled().into();
        usage.reasoning_tokens = progress.generation_reasoning(self.fold.text_end()).into();
        usage.context_used = self.fold.tokens().into();
        usage.context_limit = self.context_limit(shared).into();
        let author = self.author(turn);
        let usage = Box::new(usage);
        self.write(shared, &author, vec![Body::GenerationEnded { turn, generation, stop_reason, usage }]);
        let limit = shared.settings.limits.calls_per_turn;
        let calls = self.fold.current().map_or(0, |progress| progress.calls);
        match (stop_reason, ending) {
            (StopReason::ToolCall, Some(ending)) => {
                self.write_turn_end(shared, turn, ended_state(ending), Some(ending), None);
            }
            (StopReason::ToolCall, None) if calls > limit => {
                let failure = Failure::limit("calls_per_turn", limit.into(), calls.into());
                self.write_turn_end(shared, turn, TurnState::Failed, None, Some(failure));
            }
            (StopReason::ToolCall, None) if !self.is_completion() => {}
            (reason, _) => self.write_turn_end(shared, turn, ended_state(reason), Some(reason), None),
        }
        self.flush(shared, Durability::Power);
        self.advance(shared);
    }

    fn fail_turn(&mut self, shared: &mut Shared, failure: Failure) {
        let Some(turn) = self.fold.current().map(|progress| progress.number) else { return };
        self.write_turn_end(shared, turn, TurnState::Failed, None, Some(failure));
        self.flush(shared, Durability::Power);
        self.advance(shared);
    }
}
