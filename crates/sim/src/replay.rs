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
    DeviceDescription, LogToken, Precision, SequenceId, SessionConfig, StopReason, TokenId, TurnNumber,
};
use holdfast_worker::guiding::{ModelGuides, Rules};
use holdfast_worker::language::{Language, Prompt};

/// A generation as the journal has it.
struct Generation {
    turn: TurnNumber,
    number: u32,
    /// Tokens of the log when its item began, which is earlier if it continues another.
    item: usize,
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
    let guides = ModelGuides::new(language);
    // Where the item begins that a turn may extend.
    let mut partial: Option<usize> = None;
    for entry in entries {
        match &entry.body {
            Body::SessionCreated { config: first, .. } => config = (**first).clone(),
            Body::SessionUpdated { config: Some(next), .. } => config = (**next).clone(),
            Body::TurnAccepted { turn, request } => drop(requests.insert(*turn, request)),
            Body::ItemsAppended { runs, .. } => {
                partial = None;
                log.extend(
                    runs.iter().flat_map(|run| run.ids.iter().map(|&id| LogToken { id, precision: run.precision })),
                );
            }
            Body::Rebase { keep_until, replacement, .. } => {
                partial = None;
                log.truncate(*keep_until as usize);
                let tokens = replacement
                    .iter()
                    .flat_map(|run| run.ids.iter().map(|&id| LogToken { id, precision: run.precision }));
                log.extend(tokens);
            }
            Body::Sampled { turn, generation, run } => {
                let continues = *generation == 0 && requests.get(turn).is_some_and(|request| request.continue_last);
                let item = partial.filter(|_| continues).unwrap_or(log.len());
                let of = running.get_or_insert_with(|| Generation {
                    turn: *turn,
                    number: *generation,
                    item,
                    start: log.len(),
                    tokens: Vec::new(),
                });
                partial = Some(of.item);
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
                finish(&mut running, &mut sampled, &requests, (&config, &log), (language, &guides), device)?;
            }
            // A queued turn may end while another one runs.
            Body::TurnEnded { turn, .. } if running.as_ref().is_some_and(|of| of.turn == *turn) => {
                finish(&mut running, &mut sampled, &requests, (&config, &log), (language, &guides), device)?;
            }
            _ => {}
        }
    }
    finish(&mut running, &mut sampled, &requests, (&config, &log), (language, &guides), device)
}

fn finish(
    running: &mut Option<Generation>,
    sampled: &mut BTreeMap<TurnNumber, Vec<TokenId>>,
    requests: &BTreeMap<TurnNumber, &TurnRequest>,
    (config, log): (&SessionConfig, &[LogToken]),
    speech: (&dyn Language, &ModelGuides),
    device: &DeviceDescription,
) -> Result<(), String> {
    let Some(Generation { turn, number, item, start, tokens }) = running.take() else { return Ok(()) };
    let request = requests.get(&turn).ok_or("a generation without a turn")?;
    let before = sampled.entry(turn).or_default();
    let run = alone(request, config, (number, item, &log[..start]), before, tokens.len() as u32, speech);
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
    (generation, item, log): (u32, usize, &[LogToken]),
    sampled_before: &[TokenId],
    count: u32,
    (language, guides): (&dyn Language, &ModelGuides),
) -> Run {
    let said: Vec<TokenId> = log[item..].iter().map(|token| token.id).collect();
    let guide = guides.guide(language, &Prompt::of(config, ""), Rules::of(request, generation), &said, "");
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
            params: request.settings.sampling.clone(),
            seed: request.settings.seed,
            max_tokens: count,
            stop_tokens: Vec::new(),
            precision: Precision::Native,
            guide: guide.unwrap_or_default(),
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
