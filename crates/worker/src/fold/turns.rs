//! The part of the fold that turns are: acceptance, generations, tool results, the end.
//!
//! In: the bodies of turn entries. Out: turns as clients see them, the token log's new end, events. Deliberately not here: how
//! sampled tokens become text ([`super::output`]).

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_journal::{RequestMark, TurnRequest};
use holdfast_types::{
    Event, EventKind, Failure, GenerationRecord, Item, ItemContent, ItemNumber, ItemState, LogToken, NumberedItem,
    RequiredCall, StopReason, TimeUs, TokenId, TokenRun, Turn, TurnNumber, TurnState, Usage,
};

use super::output::{OutputFold, Piece};
use super::{LogPlace, MarkUse, SessionFold};
use crate::guiding::Rules;
use crate::language::{LogEnd, Prompt};

/// A turn that has not ended.
#[derive(Clone)]
pub(crate) struct Progress {
    pub(crate) number: TurnNumber,
    pub(crate) request: Arc<TurnRequest>,
    /// Where it began; `None` while it waits.
    pub(crate) start: Option<LogPlace>,
    /// The generation that runs or comes next.
    pub(crate) generation: u32,
    /// Positions below had been computed when that generation began.
    pub(crate) computed_before: u32,
    /// Tokens sampled by the turn, in order: over all its generations.
    pub(crate) sampled: Vec<TokenId>,
    /// Tool calls made by the turn.
    pub(crate) calls: u32,
    /// Items when the running generation began.
    items_before: u32,
    /// Results for waiting calls that have arrived.
    results: HashMap<String, Item>,
    output: Option<OutputFold>,
}

impl Progress {
    /// Tokens that the running generation has sampled.
    pub(crate) fn generation_sampled(&self) -> u32 {
        self.output.as_ref().map_or(0, OutputFold::sampled)
    }

    /// Whether a stop string has appeared in the running generation.
    pub(crate) fn stopped(&self) -> bool {
        self.output.as_ref().is_some_and(OutputFold::stopped)
    }

    /// Whole tool calls of the running generation.
    pub(crate) fn generation_calls(&self) -> u32 {
        self.output.as_ref().map_or(0, OutputFold::calls)
    }

    /// Tokens of the running generation that are reasoning, if it ends where the log does: at `end`.
    pub(crate) fn generation_reasoning(&self, end: u32) -> u32 {
        self.output.as_ref().map_or(0, |output| output.reasoning(end))
    }

    /// Results that have arrived, by call id.
    pub(crate) fn results(&self) -> &HashMap<String, Item> {
        &self.results
    }
}

impl SessionFold {
    /// How many of these sampled tokens belong to the log: all, or those up to the one that completes a stop string.
    pub(crate) fn accepts(&self, tokens: &[TokenId]) -> usize {
        let Some(progress) = self.current() else { return 0 };
        match &progress.output {
            Some(output) => output.accepts(tokens),
            None => self.new_output(progress, &mut Vec::new()).map_or(tokens.len(), |output| output.accepts(tokens)),
        }
    }

    /// Number of the `RequiresAction` that still holds: nothing of a turn follows while it waits.
    pub(crate) fn waiting_since(&self) -> Option<u64> {
        let turn = self.current().and_then(|progress| self.turn(progress.number))?;
        (turn.state == TurnState::RequiresAction).then_some(turn.last_sequence)
    }

    /// A turn that has not ended.
    pub(crate) fn unended(&self, turn: TurnNumber) -> Option<&Progress> {
        self.progress.iter().find(|progress| progress.number == turn)
    }

    /// What the generation that runs or comes next has said so far, what it continues included.
    pub(crate) fn said(&self) -> &[LogToken] {
        let Some(progress) = self.current() else { return &[] };
        let continues = progress.request.continue_last && progress.generation == 0;
        let output = progress.output.as_ref().or(self.parked.as_ref().filter(|_| continues));
        output.map_or(&[], |output| &self.log[output.first() as usize..])
    }

    /// Whether output that ended early can go on.
    pub(crate) fn can_continue(&self) -> bool {
        self.end.is_open() && self.last.is_some_and(|(_, early)| early)
    }

    pub(super) fn turn_accepted(
        &mut self,
        now: TimeUs,
        number: TurnNumber,
        request: &TurnRequest,
    ) -> Result<(), String> {
        if number.0 as usize != self.turns.len() + 1 {
            return Err(format!("turn {} after {} turns", number.0, self.turns.len()));
        }
        if let Some(RequestMark { id, digest }) = &request.request {
            self.marks.insert(id.clone(), (*digest, MarkUse::Turn(number)));
        }
        self.turns.push(Turn {
            number,
            state: TurnState::Queued,
            stop_reason: None,
            generations: Vec::new(),
            usage: Usage::default(),
            required_calls: Vec::new(),
            settings: request.settings.clone(),
            created_us: now,
            started_us: None,
            ended_us: None,
            deadline_us: request.deadline_us,
            failure: None,
            first_sequence: 0,
            last_sequence: 0,
        });
        self.progress.push_back(Progress {
            number,
            request: Arc::new(request.clone()),
            start: None,
            generation: 0,
            computed_before: 0,
            sampled: Vec::new(),
            calls: 0,
            items_before: 0,
            results: HashMap::new(),
            output: None,
        });
        Ok(())
    }

    pub(super) fn turn_started(
        &mut self,
        now: TimeUs,
        number: TurnNumber,
        events: &mut Vec<Event>,
    ) -> Result<(), String> {
        let here = LogPlace { tokens: self.tokens(), items: self.items.len() as u32, end: self.end };
        let (before, computed) = (self.last.map(|(start, _)| start), self.computed);
        let progress = self.progress.front_mut().filter(|progress| progress.number == number);
        let progress = progress.ok_or_else(|| format!("turn {} starts out of order", number.0))?;
        // What continues a turn is discarded together with it.
        progress.start = Some(if progress.request.continue_last { before.unwrap_or(here) } else { here });
        progress.computed_before = computed;
        progress.items_before = here.items;
        if !progress.request.continue_last {
            self.parked = None;
        }
        if let Some(turn) = self.turn_mut(number) {
            turn.state = TurnState::Running;
            turn.started_us = Some(now);
        }
        self.emit_turn(now, number, |turn| EventKind::TurnStarted { turn }, events);
        Ok(())
    }

    /// After items of a turn: the turn runs (again), from here.
    pub(super) fn turn_continues(&mut self, turn: Option<TurnNumber>) -> Result<(), String> {
        let Some(number) = turn else { return Ok(()) };
        let (computed, items) = (self.computed, self.items.len() as u32);
        let progress = self.progress.front_mut().filter(|progress| progress.number == number);
        let progress = progress.ok_or_else(|| format!("items of turn {}, which does not run", number.0))?;
        progress.computed_before = computed;
        progress.items_before = items;
        progress.results.clear();
        if let Some(turn) = self.turn_mut(number) {
            turn.state = TurnState::Running;
            turn.required_calls.clear();
        }
        Ok(())
    }

    pub(super) fn sampled(
        &mut self,
        now: TimeUs,
        number: TurnNumber,
        generation: u32,
        run: &TokenRun,
        events: &mut Vec<Event>,
    ) -> Result<(), String> {
        let mut progress = self.take_running(number, generation)?;
        let mut pieces = Vec::new();
        let mut output = match progress.output.take() {
            Some(output) => Some(output),
            None => self.new_output(&progress, &mut pieces),
        };
        let first = self.tokens();
        if let Some(output) = &mut output {
            for (i, &id) in run.ids.iter().enumerate() {
                output.push(id, first + i as u32, run.logprobs.get(i).cloned(), &mut pieces);
            }
        }
        progress.output = output;
        progress.sampled.extend_from_slice(&run.ids);
        self.parked = None;
        self.progress.push_front(progress);
        self.extend_log(run);
        self.computed = self.tokens().saturating_sub(1);
        let stops = self.language.as_ref().map_or(&[][..], |language| language.stop_tokens());
        self.end = if run.ids.last().is_some_and(|id| stops.contains(id)) { LogEnd::Sampled } else { LogEnd::Open };
        self.take_pieces(now, number, pieces, events);
        Ok(())
    }

    pub(super) fn generation_ended(
        &mut self,
        now: TimeUs,
        number: TurnNumber,
        generation: u32,
        stop_reason: StopReason,
        usage: &Usage,
        events: &mut Vec<Event>,
    ) -> Result<(), String> {
        let progress = self.take_running(number, generation)?;
        self.progress.push_front(progress);
        let early = !matches!(stop_reason, StopReason::EndTurn | StopReason::ToolCall | StopReason::StopSequence);
        self.finish_output(now, number, early, events);
        let known = usage.cached.total() + usage.computed_tokens + usage.recomputed_tokens;
        self.computed = self.computed.max(self.tokens().saturating_sub(1).min(known.try_into().unwrap_or(u32::MAX)));
        let (computed, items) = (self.computed, self.items.len() as u32);
        let mut calls = Vec::new();
        if let Some(progress) = self.progress.front_mut() {
            calls = required_calls(&self.items[progress.items_before.min(items) as usize..]);
            progress.generation += 1;
            progress.computed_before = computed;
            progress.items_before = items;
            progress.calls += calls.len() as u32;
        }
        if let Some(turn) = self.turn_mut(number) {
            turn.generations.push(GenerationRecord { stop_reason, usage: *usage });
            turn.usage += usage;
            if stop_reason == StopReason::ToolCall {
                turn.state = TurnState::RequiresAction;
                turn.required_calls = calls.clone();
            }
        }
        if stop_reason == StopReason::ToolCall {
            self.emit(now, number, EventKind::RequiresAction { calls }, events);
        }
        Ok(())
    }

    pub(super) fn tool_results(
        &mut self,
        number: TurnNumber,
        results: &[Item],
        request: Option<&RequestMark>,
    ) -> Result<(), String> {
        let progress = self.progress.front_mut().filter(|progress| progress.number == number);
        let progress = progress.ok_or_else(|| format!("results for turn {}, which does not wait", number.0))?;
        for item in results {
            let ItemContent::ToolResult { call_id, .. } = &item.content else {
                return Err("a result that is none".to_owned());
            };
            progress.results.insert(call_id.clone(), item.clone());
            let turn = (number.0 as usize).checked_sub(1).and_then(|at| self.turns.get_mut(at));
            let mut calls = turn.into_iter().flat_map(|turn| &mut turn.required_calls);
            if let Some(call) = calls.find(|call| call.call_id == *call_id) {
                call.answered = true;
            }
        }
        if let Some(RequestMark { id, digest }) = request {
            self.marks.insert(id.clone(), (*digest, MarkUse::Results(number, self.sequence + 1)));
        }
        Ok(())
    }

    pub(super) fn turn_ended(
        &mut self,
        now: TimeUs,
        number: TurnNumber,
        state: TurnState,
        stop_reason: Option<StopReason>,
        failure: Option<Failure>,
        events: &mut Vec<Event>,
    ) -> Result<(), String> {
        let at = self.progress.iter().position(|progress| progress.number == number);
        let at = at.ok_or_else(|| format!("turn {} ends twice", number.0))?;
        if at == 0 {
            self.finish_output(now, number, true, events);
        }
        let ended = self.progress.remove(at);
        if let Some(start) = ended.and_then(|progress| progress.start) {
            self.last = Some((start, state != TurnState::Completed));
        }
        if let Some(turn) = self.turn_mut(number) {
            turn.state = state;
            turn.stop_reason = stop_reason;
            turn.failure = failure;
            turn.ended_us = Some(now);
            turn.required_calls.clear();
        }
        self.emit_turn(now, number, |turn| EventKind::TurnEnded { turn }, events);
        Ok(())
    }

    /// Emits an event that shows the turn as of that event, its own number included.
    fn emit_turn(
        &mut self,
        now: TimeUs,
        number: TurnNumber,
        kind: impl FnOnce(Box<Turn>) -> EventKind,
        events: &mut Vec<Event>,
    ) {
        let next = self.sequence + 1;
        let Some(turn) = self.turn_mut(number) else { return };
        turn.last_sequence = next;
        if turn.first_sequence == 0 {
            turn.first_sequence = next;
        }
        let turn = Box::new(turn.clone());
        self.emit(now, number, kind(turn), events);
    }

    fn take_running(&mut self, number: TurnNumber, generation: u32) -> Result<Progress, String> {
        let runs = self.turn(number).is_some_and(|turn| turn.state == TurnState::Running);
        match self.progress.pop_front() {
            Some(progress) if runs && progress.number == number && progress.generation == generation => Ok(progress),
            _ => Err(format!("output of turn {}, generation {generation}, which does not run", number.0)),
        }
    }

    /// The output fold of the generation that begins; `None` without a language.
    fn new_output(&self, progress: &Progress, pieces: &mut Vec<Piece>) -> Option<OutputFold> {
        let language = self.language.clone()?;
        let names = (progress.number.0, progress.generation);
        let stops = progress.request.settings.stop.clone();
        match &self.parked {
            Some(parked) if progress.request.continue_last && progress.generation == 0 => {
                Some(parked.clone().reopen(stops, names, self.tokens(), pieces))
            }
            _ => {
                let rules = Rules::of(&progress.request, progress.generation);
                let tools = rules.callable(&self.config.tools).map(|tool| tool.name.clone()).collect();
                let thinking = language.opens_reasoning(&Prompt::of(&self.config, &self.pinned_date));
                Some(OutputFold::new(language, (stops, tools, thinking), names, self.tokens()))
            }
        }
    }

    fn finish_output(&mut self, now: TimeUs, number: TurnNumber, early: bool, events: &mut Vec<Event>) {
        let Some(mut output) = self.progress.front_mut().and_then(|progress| progress.output.take()) else { return };
        let end = self.text_end();
        let state = if early { ItemState::Incomplete } else { ItemState::Complete };
        let mut pieces = Vec::new();
        output.finish(state, end, &mut pieces);
        self.take_pieces(now, number, pieces, events);
        self.parked = early.then_some(output);
    }

    /// The position behind the last token of text: a stop token is none.
    pub(crate) fn text_end(&self) -> u32 {
        if self.end == LogEnd::Sampled { self.tokens() - 1 } else { self.tokens() }
    }

    fn take_pieces(&mut self, now: TimeUs, turn: TurnNumber, pieces: Vec<Piece>, events: &mut Vec<Event>) {
        // One item is open at a time; it has its number before it has its place.
        for piece in pieces {
            let next = ItemNumber(self.items.len() as u32 + 1);
            let open = self.open_item.unwrap_or(next);
            let kind = match piece {
                Piece::Started { mut item, again } => {
                    self.unique_call_id(&mut item, again);
                    let number = if again { ItemNumber(next.0 - 1) } else { next };
                    self.open_item = Some(number);
                    EventKind::ItemStarted { number, item }
                }
                Piece::Text { text, tokens, logprobs } => EventKind::TextDelta { item: open, text, tokens, logprobs },
                Piece::Thought { text, tokens } => EventKind::ReasoningDelta { item: open, text, tokens },
                Piece::Arguments { arguments, tokens } => {
                    EventKind::ToolArgumentsDelta { item: open, arguments, tokens }
                }
                Piece::Done { mut item, tokens } => {
                    self.open_item = None;
                    let again = open != next;
                    self.unique_call_id(&mut item, again);
                    self.note_call(&item);
                    let place = NumberedItem { number: open, turn: Some(turn), tokens, item: item.clone() };
                    if again {
                        let at = open.0 as usize - 1;
                        let turn = self.items[at].turn;
                        if let Some(progress) = self.progress.front_mut() {
                            progress.items_before = progress.items_before.min(at as u32);
                        }
                        self.items[at] = NumberedItem { turn, ..place };
                    } else {
                        self.items.push(place);
                    }
                    EventKind::ItemDone { number: open, item, tokens }
                }
            };
            self.emit(now, turn, kind, events);
        }
    }

    /// A sampled call's id is ours to choose: one that the session has used already (an imported call) is not taken.
    fn unique_call_id(&self, item: &mut Item, again: bool) {
        if let ItemContent::ToolCall { call_id, .. } = &mut item.content
            && !again
        {
            while self.calls.contains_key(call_id.as_str()) {
                call_id.push('_');
            }
        }
    }
}

fn required_calls(items: &[NumberedItem]) -> Vec<RequiredCall> {
    let calls = items.iter().filter(|item| item.item.state == ItemState::Complete).filter_map(|item| {
        match &item.item.content {
            ItemContent::ToolCall { call_id, name, arguments, parse_error } => Some(RequiredCall {
                call_id: call_id.clone(),
                name: name.clone(),
                arguments: arguments.clone(),
                parse_error: parse_error.clone(),
                answered: false,
            }),
            _ => None,
        }
    });
    calls.collect()
}
