//! Turns.
//!
//! In: a new turn with its options, or results that continue one. Out: the worker's words for them; turns back.
//! Deliberately not here: what a turn may do to the session's state.

use holdfast_contracts::v1;
use holdfast_types::TurnNumber;
use holdfast_types::{
    Failure, GenerationRecord, ItemContent, Limits, OnBusy, OnDisconnect, RequiredCall, SessionId, StopReason, Turn,
    TurnState, UnresolvedCalls,
};
use holdfast_worker_api::{StartTurn, SubmitToolResults};

use super::{constraint, enumeration, item, sampling, time, tool, usage};
use crate::field::Field;
use crate::names::{self, Home};
use crate::{limits, status, unimplemented};

/// What RunTurn asks for.
#[derive(Debug)]
pub(crate) enum Run {
    /// A new turn.
    Start(Box<StartTurn>),
    /// Results for the turn that waits.
    Continue(SubmitToolResults),
}

/// Reads RunTurn.
pub(crate) fn run(limits: &Limits, request: v1::RunTurnRequest) -> Result<Run, Failure> {
    let on_disconnect_field = Field::Root("on_disconnect");
    let on_disconnect = enumeration::<v1::OnDisconnect>(on_disconnect_field, request.on_disconnect)?;
    if request.turn.is_empty() {
        let create = v1::CreateTurnRequest {
            session: request.session,
            input: request.input,
            options: request.options,
            request_id: request.request_id,
        };
        let mut turn = start(limits, create)?;
        turn.on_disconnect = match on_disconnect {
            v1::OnDisconnect::Unspecified | v1::OnDisconnect::Continue => OnDisconnect::Continue,
            v1::OnDisconnect::Cancel => OnDisconnect::Cancel,
        };
        return Ok(Run::Start(Box::new(turn)));
    }
    let session = names::parse_session(Field::Root("session"), &request.session)?;
    let (of_session, turn) = names::parse_turn(Field::Root("turn"), &request.turn)?;
    if of_session != session {
        return Err(Field::Root("turn").invalid("is a turn of another session"));
    }
    if request.options.is_some() {
        return Err(Field::Root("options").invalid("a turn that continues keeps its options; leave them out"));
    }
    if on_disconnect != v1::OnDisconnect::Unspecified {
        return Err(on_disconnect_field.invalid("a turn that continues keeps what it started with; leave it out"));
    }
    let field = Field::Root("input");
    let results = item::items(limits, field, request.input)?;
    if results.is_empty() {
        return Err(field.invalid("needs at least one tool result"));
    }
    if let Some(at) = results.iter().position(|item| !matches!(item.content, ItemContent::ToolResult { .. })) {
        return Err(field.element(at).invalid("is not a tool result; a turn is continued by tool results only"));
    }
    let request_id = limits::request_id(limits, request.request_id)?;
    Ok(Run::Continue(SubmitToolResults { session, turn: Some(turn), results, request_id }))
}

/// Reads a new turn.
pub(crate) fn start(limits: &Limits, request: v1::CreateTurnRequest) -> Result<StartTurn, Failure> {
    let session = names::parse_session(Field::Root("session"), &request.session)?;
    let field = Field::Root("options");
    let options = request.options.unwrap_or_default();
    let on_busy = field.member("on_busy");
    let on_busy = match enumeration(on_busy, options.on_busy)? {
        v1::OnBusy::Unspecified | v1::OnBusy::Reject => OnBusy::Reject,
        v1::OnBusy::Queue => OnBusy::Queue,
        v1::OnBusy::Steer => return Err(unimplemented::field(on_busy.member("STEER"))),
        v1::OnBusy::Interrupt => return Err(unimplemented::field(on_busy.member("INTERRUPT"))),
    };
    let unresolved_calls = match enumeration(field.member("unresolved_calls"), options.unresolved_calls)? {
        v1::UnresolvedCalls::Unspecified | v1::UnresolvedCalls::Reject => UnresolvedCalls::Reject,
        v1::UnresolvedCalls::CloseAsCancelled => UnresolvedCalls::CloseAsCancelled,
    };
    let input_field = Field::Root("input");
    let input = item::items(limits, input_field, request.input)?;
    match (options.continue_last, input.is_empty()) {
        (false, true) => return Err(item::empty_turn(input_field)),
        (true, false) => return Err(field.member("continue_last").invalid("takes no input")),
        (true, true) if options.discard_partial => {
            return Err(field.member("discard_partial").invalid("contradicts continue_last"));
        }
        _ => {}
    }
    Ok(StartTurn {
        sampling: sampling::overrides(limits, field.member("sampling"), options.sampling)?,
        allowed_tools: tool::allowed(limits, field.member("allowed_tools"), options.allowed_tools)?,
        tool_choice: tool::choice(field.member("tool_choice"), options.tool_choice)?,
        single_call: options.parallel_tool_calls == Some(false),
        constraint: constraint::constraint(limits, field.member("constraint"), options.constraint)?,
        on_busy,
        unresolved_calls,
        discard_partial: options.discard_partial,
        continue_last: options.continue_last,
        turn_deadline_ms: deadline(field.member("turn_deadline"), options.turn_deadline)?,
        expected_last_turn: options.expected_last_turn.map(TurnNumber),
        request_id: limits::request_id(limits, request.request_id)?,
        ..StartTurn::new(session, input)
    })
}

/// Reads SubmitToolResults.
pub(crate) fn submit(limits: &Limits, request: v1::SubmitToolResultsRequest) -> Result<SubmitToolResults, Failure> {
    let (session, turn) = names::parse_turn(Field::Root("name"), &request.name)?;
    let results = item::tool_results(limits, Field::Root("results"), request.results)?;
    let request_id = limits::request_id(limits, request.request_id)?;
    Ok(SubmitToolResults { session, turn: Some(turn), results, request_id })
}

/// Reads a deadline of work.
pub(crate) fn deadline(field: Field<'_>, deadline: Option<prost_types::Duration>) -> Result<Option<u64>, Failure> {
    deadline.map(|deadline| time::positive_ms(field, &deadline)).transpose()
}

/// Writes a turn of a session.
pub(crate) fn of_session(session: &SessionId, turn: &Turn) -> v1::Turn {
    self::turn(Home::Session(session), turn)
}

/// Writes a turn.
pub(crate) fn turn(home: Home<'_>, turn: &Turn) -> v1::Turn {
    let state = match turn.state {
        TurnState::Queued => v1::TurnState::Queued,
        TurnState::Running => v1::TurnState::Running,
        TurnState::RequiresAction => v1::TurnState::RequiresAction,
        TurnState::Completed => v1::TurnState::Completed,
        TurnState::Incomplete => v1::TurnState::Incomplete,
        TurnState::Cancelled => v1::TurnState::Cancelled,
        TurnState::Failed => v1::TurnState::Failed,
    };
    v1::Turn {
        name: home.turn(turn.number),
        state: state as i32,
        stop_reason: turn.stop_reason.map_or(v1::StopReason::Unspecified, stop_reason) as i32,
        generations: turn.generations.iter().map(generation).collect(),
        required_calls: turn.required_calls.iter().map(required_call).collect(),
        create_time: Some(time::timestamp(turn.created_us)),
        start_time: turn.started_us.map(time::timestamp),
        end_time: turn.ended_us.map(time::timestamp),
        deadline_time: turn.deadline_us.map(time::timestamp),
        sampling: Some(sampling::settings(&turn.settings)),
        usage: Some(usage::usage(&turn.usage)),
        error: turn.failure.as_ref().map(status::turn_error),
        first_sequence: turn.first_sequence,
        last_sequence: turn.last_sequence,
    }
}

/// Adds what was modelled of a turn and its generations to the usage in its answer, for a client that asked.
pub(crate) fn add_modelled_cost(answer: &mut v1::Turn, turn: &Turn) {
    let generations = answer.generations.iter_mut().map(|generation| &mut generation.usage);
    let answers = generations.chain([&mut answer.usage]);
    let used = turn.generations.iter().map(|generation| &generation.usage).chain([&turn.usage]);
    for (answer, used) in answers.zip(used) {
        if let Some(answer) = answer {
            answer.modelled_cost = used.modelled.as_ref().map(usage::modelled_cost);
        }
    }
}

/// Writes a call that waits.
pub(crate) fn required_call(call: &RequiredCall) -> v1::RequiredCall {
    v1::RequiredCall {
        call_id: call.call_id.clone(),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
        parse_error: call.parse_error.clone(),
        answered: call.answered,
    }
}

fn generation(record: &GenerationRecord) -> v1::Generation {
    v1::Generation { stop_reason: stop_reason(record.stop_reason) as i32, usage: Some(usage::usage(&record.usage)) }
}

fn stop_reason(reason: StopReason) -> v1::StopReason {
    match reason {
        StopReason::EndTurn => v1::StopReason::EndTurn,
        StopReason::ToolCall => v1::StopReason::ToolCall,
        StopReason::MaxOutputTokens => v1::StopReason::MaxOutputTokens,
        StopReason::StopSequence => v1::StopReason::StopSequence,
        StopReason::ContextFull => v1::StopReason::ContextFull,
        StopReason::Cancelled => v1::StopReason::Cancelled,
        StopReason::DeadlineExceeded => v1::StopReason::DeadlineExceeded,
    }
}
