//! Sampling settings and log probabilities.
//!
//! In: one layer of settings as a client writes it. Out: [`SamplingOverrides`] of finite numbers within their bounds in
//! number; settings in force and log probabilities back. Deliberately not here: the ranges of the values, which the
//! worker checks once for every layer.

use holdfast_contracts::v1;
use holdfast_types::{
    Failure, GenerationSettings, Limits, Reason, SamplingOverrides, TokenId, TokenLogprob, TokenRange,
};

use crate::field::Field;
use crate::limits::{self, at_most};

/// Reads a layer of settings.
pub(crate) fn overrides(
    limits: &Limits,
    field: Field<'_>,
    sampling: Option<v1::Sampling>,
) -> Result<SamplingOverrides, Failure> {
    let Some(sampling) = sampling else {
        return Ok(SamplingOverrides::default());
    };
    for (name, value) in [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("frequency_penalty", sampling.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("repetition_penalty", sampling.repetition_penalty),
    ] {
        if value.is_some_and(|value| !value.is_finite()) {
            return Err(field.member(name).failure(Reason::InvalidSampling, "is not a finite number"));
        }
    }
    if let Some(logprobs) = sampling.logprobs {
        let requested = usize::try_from(logprobs).unwrap_or(usize::MAX);
        at_most!(limits.top_logprobs, requested, field.member("logprobs"))?;
    }
    Ok(SamplingOverrides {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        repetition_penalty: sampling.repetition_penalty,
        logit_bias: logit_bias(limits, field.member("logit_bias"), sampling.logit_bias)?,
        logprobs: sampling.logprobs,
        seed: sampling.seed,
        max_output_tokens: sampling.max_output_tokens,
        stop: stop(limits, field.member("stop"), sampling.stop)?,
    })
}

/// Writes a layer of settings; a layer that says nothing is left out.
pub(crate) fn overrides_out(layer: &SamplingOverrides) -> Option<v1::Sampling> {
    (*layer != SamplingOverrides::default()).then(|| v1::Sampling {
        temperature: layer.temperature,
        top_k: layer.top_k,
        top_p: layer.top_p,
        min_p: layer.min_p,
        seed: layer.seed,
        stop: layer.stop.clone().unwrap_or_default(),
        frequency_penalty: layer.frequency_penalty,
        presence_penalty: layer.presence_penalty,
        repetition_penalty: layer.repetition_penalty,
        logit_bias: layer.logit_bias.iter().flatten().copied().collect(),
        logprobs: layer.logprobs,
        max_output_tokens: layer.max_output_tokens,
    })
}

/// Writes the settings in force, every value filled in.
pub(crate) fn settings(settings: &GenerationSettings) -> v1::Sampling {
    let sampling = &settings.sampling;
    v1::Sampling {
        temperature: Some(sampling.temperature),
        top_k: Some(sampling.top_k),
        top_p: Some(sampling.top_p),
        min_p: Some(sampling.min_p),
        seed: Some(settings.seed),
        stop: settings.stop.clone(),
        frequency_penalty: Some(sampling.frequency_penalty),
        presence_penalty: Some(sampling.presence_penalty),
        repetition_penalty: Some(sampling.repetition_penalty),
        logit_bias: sampling.logit_bias.iter().copied().collect(),
        logprobs: sampling.logprobs,
        max_output_tokens: Some(settings.max_output_tokens),
    }
}

/// Writes log probabilities: for each token of the range, the sampled one first, then the likeliest ones.
pub(crate) fn logprobs(range: TokenRange, tokens: &[Vec<TokenLogprob>]) -> Vec<v1::TokenLogprob> {
    let out = |(position, entry): (u64, &Vec<TokenLogprob>)| {
        let (sampled, top) = entry.split_first()?;
        Some(v1::TokenLogprob {
            position,
            token: sampled.id,
            logprob: sampled.logprob,
            top: top.iter().map(|one| v1::TopLogprob { token: one.id, logprob: one.logprob }).collect(),
        })
    };
    (u64::from(range.start)..).zip(tokens).filter_map(out).collect()
}

fn stop(limits: &Limits, field: Field<'_>, stop: Vec<String>) -> Result<Option<Vec<String>>, Failure> {
    at_most!(limits.stop_strings, stop.len(), field)?;
    for (at, text) in stop.iter().enumerate() {
        let field = field.element(at);
        if text.is_empty() {
            return Err(field.failure(Reason::InvalidSampling, "is empty"));
        }
        at_most!(limits.stop_string_bytes, text.len(), field)?;
        limits::plain(field, text)?;
    }
    Ok((!stop.is_empty()).then_some(stop))
}

/// In the order of the token ids, so that equal requests are equal.
fn logit_bias(
    limits: &Limits,
    field: Field<'_>,
    bias: impl IntoIterator<Item = (TokenId, f32)>,
) -> Result<Option<Vec<(TokenId, f32)>>, Failure> {
    let mut bias: Vec<_> = bias.into_iter().collect();
    at_most!(limits.logit_bias_entries, bias.len(), field)?;
    bias.sort_by_key(|(token, _)| *token);
    if let Some((token, _)) = bias.iter().find(|(_, value)| value.is_nan() || *value == f32::INFINITY) {
        let problem = format!("the bias of token {token} is neither finite nor negative infinity");
        return Err(field.failure(Reason::InvalidSampling, problem));
    }
    Ok((!bias.is_empty()).then_some(bias))
}
