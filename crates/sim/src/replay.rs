//! Audit by replay: every sampled token of a journal, once more, from its log alone.
//!
//! In: a session's entries. Out: the first token that differs, in words. The tokens come from
//! [`holdfast_engine::testing::expected_tokens`], which knows neither blocks nor batches nor chunks; so what a journal says after any
//! crash, fault and pressure is compared with a run that had none. Deliberately not here: cut-off points that time decides
//! (a cancelled turn is a prefix of what it would have been).

use std::collections::BTreeMap;

use holdfast_engine::testing::expected_tokens;
use holdfast_engine::{Run, RunId, SampleRequest};
use holdfast_journal::{Body, NewEntry, TurnRequest};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_types::{
    DeviceDescription, LogToken, Precision, SequenceId, SessionConfig, StopReason, TokenId, ToolChoice, TurnNumber,
};
use holdfast_worker::language::Language;

/// A generation as the journal has it.
struct Generation {
    turn: TurnNumber,
    number: u32,
    /// Tokens of the log when it began.
    start: usize,
    tokens: Vec<TokenId>,
}

/// Checks every generation of a session.
///
/// # Errors
/// What differs.
pub fn check(entries: &[NewEntry], language: &dyn Language, device: &DeviceDescription) -> Result<(), String> {
    let mut config = SessionConfig::default();
    let mut log: Vec<LogToken> = Vec::new();
    let mut requests: BTreeMap<TurnNumber, &TurnRequest> = BTreeMap::new();
    let mut sampled: BTreeMap<TurnNumber, Vec<TokenId>> = BTreeMap::new();
    let mut running: Option<Generation> = None;
    for entry in entries {
        match &entry.body {
            Body::SessionCreated { config: first, .. } => config = (**first).clone(),
            Body::SessionUpdated { config: Some(next), .. } => config = (**next).clone(),
            Body::TurnAccepted { turn, request } => drop(requests.insert(*turn, request)),
            Body::ItemsAppended { runs, .. } => {
                log.extend(
                    runs.iter().flat_map(|run| run.ids.iter().map(|&id| LogToken { id, precision: run.precision })),
                );
            }
            Body::Rebase { keep_until, replacement, .. } => {
                log.truncate(*keep_until as usize);
                let tokens = replacement
                    .iter()
                    .flat_map(|run| run.ids.iter().map(|&id| LogToken { id, precision: run.precision }));
                log.extend(tokens);
            }
            Body::Sampled { turn, generation, run } => {
                let of = running.get_or_insert_with(|| Generation {
                    turn: *turn,
                    number: *generation,
                    start: log.len(),
                    tokens: Vec::new(),
                });
                if (of.turn, of.number) != (*turn, *generation) {
                    return Err(format!("generation {generation} of turn {} in the middle of another", turn.0));
                }
                of.tokens.extend(&run.ids);
                log.extend(run.ids.iter().map(|&id| LogToken { id, precision: run.precision }));
            }
            Body::GenerationEnded { turn, stop_reason, .. } => {
                let tokens = running.as_ref().map(|of| of.tokens.as_slice()).unwrap_or_default();
                let before = sampled.get(turn).map_or(0, Vec::len);
                let request = requests.get(turn).ok_or("a generation without a turn")?;
                check_stop(*stop_reason, tokens, before, request, language)
                    .map_err(|problem| format!("turn {}: {problem}", turn.0))?;
                finish(&mut running, &mut sampled, &requests, (&config, &log), language, device)?;
            }
            // A queued turn may end while another one runs.
            Body::TurnEnded { turn, .. } if running.as_ref().is_some_and(|of| of.turn == *turn) => {
                finish(&mut running, &mut sampled, &requests, (&config, &log), language, device)?;
            }
            _ => {}
        }
    }
    finish(&mut running, &mut sampled, &requests, (&config, &log), language, device)
}

fn finish(
    running: &mut Option<Generation>,
    sampled: &mut BTreeMap<TurnNumber, Vec<TokenId>>,
    requests: &BTreeMap<TurnNumber, &TurnRequest>,
    (config, log): (&SessionConfig, &[LogToken]),
    language: &dyn Language,
    device: &DeviceDescription,
) -> Result<(), String> {
    let Some(Generation { turn, number, start, tokens }) = running.take() else { return Ok(()) };
    let request = requests.get(&turn).ok_or("a generation without a turn")?;
    let before = sampled.entry(turn).or_default();
    let run = alone(request, config, (number, &log[..start]), before, tokens.len() as u32, language);
    let expected = expected_tokens(device, &run, u32::MAX).map_err(|error| error.to_string())?;
    if expected != tokens {
        let at = expected.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        return Err(format!(
            "turn {}, generation {number}: token {at} after a log of {start} is {:?}, alone and from scratch it is {:?}",
            turn.0,
            tokens.get(at),
            expected.get(at)
        ));
    }
    before.extend(tokens);
    Ok(())
}

/// The run that samples so many tokens of a generation, from scratch.
fn alone(
    request: &TurnRequest,
    config: &SessionConfig,
    (generation, log): (u32, &[LogToken]),
    sampled_before: &[TokenId],
    count: u32,
    language: &dyn Language,
) -> Run {
    let mut params = request.settings.sampling.clone();
    let (mut forced, mut is_banned) = (Vec::new(), false);
    let none_allowed = request.allowed_tools.as_ref().is_some_and(Vec::is_empty);
    match &request.tool_choice {
        ToolChoice::Name(name) => forced = language.forced_prefix(Some(name)),
        ToolChoice::Required => {
            let only = if let [tool] = config.tools.as_slice() { Some(tool.name.as_str()) } else { None };
            forced = language.forced_prefix(only);
        }
        ToolChoice::None => is_banned = !config.tools.is_empty(),
        ToolChoice::Auto => is_banned = none_allowed && !config.tools.is_empty(),
    }
    if generation > 0 || request.continue_last {
        forced.clear();
    }
    if is_banned {
        let open = language.call_form().and_then(|form| form.open_token);
        params.logit_bias.extend(open.map(|token| (token, f32::NEG_INFINITY)));
    }
    Run {
        run: RunId(1),
        sequence: SequenceId(1),
        log: log.to_vec(),
        computed_before: 0,
        domain: ChainDomain::single(DomainSecret([0; 32])),
        flow: 0,
        accepted_us: 0,
        transient: false,
        resumed: 0,
        sample: Some(SampleRequest {
            params,
            seed: request.settings.seed,
            max_tokens: count,
            stop_tokens: Vec::new(),
            precision: Precision::Native,
            forced,
            sampled_before: sampled_before.to_vec(),
        }),
    }
}

fn check_stop(
    reason: StopReason,
    tokens: &[TokenId],
    before: usize,
    request: &TurnRequest,
    language: &dyn Language,
) -> Result<(), String> {
    let is_stop = |token: &TokenId| language.stop_tokens().contains(token);
    if let Some(at) = tokens.iter().position(is_stop).filter(|at| at + 1 < tokens.len()) {
        return Err(format!("it went on after the stop token at {at}"));
    }
    let (total, most) = (before + tokens.len(), request.settings.max_output_tokens as usize);
    let holds = match reason {
        StopReason::EndTurn | StopReason::ToolCall => tokens.last().is_some_and(is_stop),
        StopReason::MaxOutputTokens => total == most,
        StopReason::StopSequence => !request.settings.stop.is_empty(),
        StopReason::ContextFull | StopReason::Cancelled | StopReason::DeadlineExceeded => true,
    };
    if holds && total <= most { Ok(()) } else { Err(format!("{reason:?} after {total} tokens of {most}: {tokens:?}")) }
}
