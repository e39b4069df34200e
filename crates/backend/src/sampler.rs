//! The sampler that every backend shares: from one row of logits to the next token.
//!
//! In: a slot's settings once, then raw logits, a position and perhaps a mask for each draw. Out: a [`SampledToken`].
//! Deliberately not here: stop strings, token limits and grammars, which are decisions of the engine and the worker.
//!
//! The same inputs give the same bits on every machine: exponentials and logarithms come from the `libm` crate (plain
//! arithmetic, no platform library), sums run in rising order of token ids in f64, and ties go to the lower id.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_types::{SampledToken, SamplingParams, SlotSampling, TokenId, TokenLogprob, TokenMask};

use crate::BackendError;

/// How many candidates nucleus sampling sorts first; it grows by this factor until the nucleus is inside.
const NUCLEUS_STEP: usize = 64;

/// Draws the tokens of one slot.
///
/// Born when a slot is opened, fed every row of the slot that samples, in order of position, and dropped with the slot. It
/// remembers only what penalties need: which tokens the context held and what it drew itself. Nothing in it is random: a
/// draw is a function of (settings, seed, position, logits, mask, tokens seen).
#[derive(Debug, Clone)]
pub struct SlotSampler {
    params: SamplingParams,
    seed: u64,
    vocab: usize,
    /// Tokens seen in the context or drawn; kept only while the repetition penalty is on.
    seen: BTreeSet<TokenId>,
    /// Tokens drawn in this turn with their counts; kept only while a frequency or presence penalty is on.
    drawn: BTreeMap<TokenId, u32>,
    /// Logits after bias, penalties and mask; `f32::NEG_INFINITY` is a banned token.
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// A token that may still be drawn, with its weight relative to the likeliest (which has 1).
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: TokenId,
    weight: f64,
}

impl SlotSampler {
    /// A sampler for a slot that was just opened, over a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] for a setting outside the range that [`SamplingParams`] states or a token outside the
    /// vocabulary.
    pub fn new(sampling: &SlotSampling, vocab: u32) -> Result<Self, BackendError> {
        check_params(&sampling.params)?;
        let named = sampling.params.logit_bias.iter().map(|(token, _)| *token);
        let past = sampling.context.iter().copied().chain(sampling.sampled.iter().map(|(token, _)| *token));
        if let Some(token) = named.chain(past).find(|token| *token >= vocab) {
            return Err(rejected(format!("sampling names token {token}, the vocabulary ends at {vocab}")));
        }
        let params = sampling.params.clone();
        let mut sampler = Self {
            seed: sampling.seed,
            vocab: vocab as usize,
            seen: BTreeSet::new(),
            drawn: BTreeMap::new(),
            adjusted: Vec::new(),
            candidates: Vec::new(),
            params,
        };
        if sampler.repeats_count() {
            sampler.seen.extend(sampling.context.iter().chain(sampling.sampled.iter().map(|(token, _)| token)));
        }
        if sampler.occurrences_count() {
            for (token, count) in &sampling.sampled {
                let entry = sampler.drawn.entry(*token).or_default();
                *entry = entry.saturating_add(*count);
            }
        }
        Ok(sampler)
    }

    /// Draws the token that takes `position` (one after the row that `logits` belong to) and remembers it for the
    /// penalties.
    ///
    /// `logits` is `[vocab_size]`, raw. A value that is not a number counts as banned, positive infinity as the largest
    /// number. If bias, mask and logits together leave no token, the lowest that the mask allows is taken (token 0 without a mask)
    /// and every log probability is [`f32::MIN`].
    ///
    /// # Panics
    /// If `logits` is not as long as the vocabulary: the device that calls made it so.
    pub fn sample(&mut self, logits: &[f32], position: u32, mask: Option<&TokenMask>) -> SampledToken {
        assert_eq!(logits.len(), self.vocab, "a row of logits is as long as the vocabulary");
        self.adjust(logits, mask);
        let id = match likeliest(&self.adjusted) {
            None => lowest_allowed(mask),
            Some(best) if self.params.temperature == 0.0 => best,
            Some(best) => self.draw(best, position),
        };
        let logprobs = self.params.logprobs.map_or_else(Vec::new, |count| log_probabilities(&self.adjusted, id, count));
        if self.repeats_count() {
            self.seen.insert(id);
        }
        if self.occurrences_count() {
            let entry = self.drawn.entry(id).or_default();
            *entry = entry.saturating_add(1);
        }
        SampledToken { id, position, logprobs }
    }

    /// How many alternatives are reported beside each token; `None` reports no log probabilities.
    pub fn logprobs(&self) -> Option<u32> {
        self.params.logprobs
    }

    fn repeats_count(&self) -> bool {
        self.params.repetition_penalty != 1.0
    }

    fn occurrences_count(&self) -> bool {
        self.params.frequency_penalty != 0.0 || self.params.presence_penalty != 0.0
    }

    /// Logit bias, then penalties (repetition first, as published; then frequency and presence), then the mask.
    fn adjust(&mut self, logits: &[f32], mask: Option<&TokenMask>) {
        let adjusted = &mut self.adjusted;
        adjusted.clear();
        adjusted.extend(logits.iter().map(|logit| tame(*logit)));
        for (token, bias) in &self.params.logit_bias {
            let logit = &mut adjusted[*token as usize];
            *logit = tame(*logit + bias);
        }
        // Repetition penalty: CTRL, https://arxiv.org/abs/1909.05858, section 4.1, with the sign rule that all
        // implementations share.
        let repetition = self.params.repetition_penalty;
        for token in &self.seen {
            let logit = &mut adjusted[*token as usize];
            *logit = tame(if *logit > 0.0 { *logit / repetition } else { *logit * repetition });
        }
        for (token, count) in &self.drawn {
            let logit = &mut adjusted[*token as usize];
            let penalty = *count as f32 * self.params.frequency_penalty + self.params.presence_penalty;
            *logit = tame(*logit - if *count > 0 { penalty } else { 0.0 });
        }
        match mask {
            None => {}
            Some(TokenMask::Only(tokens)) => {
                let mut rest = tokens.iter().copied().peekable();
                for (token, logit) in adjusted.iter_mut().enumerate() {
                    while rest.next_if(|allowed| (*allowed as usize) < token).is_some() {}
                    if rest.peek().is_none_or(|allowed| *allowed as usize != token) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            Some(TokenMask::Bits(words)) => {
                let words = words.iter().copied().chain(std::iter::repeat(0));
                for (logits, word) in adjusted.chunks_mut(64).zip(words) {
                    match word {
                        0 => logits.fill(f32::NEG_INFINITY),
                        u64::MAX => {}
                        _ => {
                            for (bit, logit) in logits.iter_mut().enumerate() {
                                *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                            }
                        }
                    }
                }
            }
        }
    }

    /// Temperature, top-k, top-p, min-p, then the draw. `best` is the likeliest token.
    fn draw(&mut self, best: TokenId, position: u32) -> TokenId {
        let most = f64::from(self.adjusted[best as usize]);
        let temperature = f64::from(self.params.temperature);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(self.adjusted.iter().enumerate().filter_map(|(token, logit)| {
            // Its weight would be nothing; a mask bans most of a vocabulary.
            if *logit == f32::NEG_INFINITY {
                return None;
            }
            let weight = libm::exp((f64::from(*logit) - most) / temperature);
            (weight > 0.0).then_some(Candidate { id: token as TokenId, weight })
        }));
        let keep = self.params.top_k as usize;
        if keep > 0 && keep < candidates.len() {
            candidates.select_nth_unstable_by(keep - 1, likelier);
            candidates.truncate(keep);
            candidates.sort_unstable_by_key(|candidate| candidate.id);
        }
        if self.params.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(self.params.top_p));
            candidates.sort_unstable_by_key(|candidate| candidate.id);
        }
        // The likeliest has weight 1, so the threshold is min_p itself.
        candidates.retain(|candidate| candidate.weight >= f64::from(self.params.min_p));

        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let aim = unit(self.seed, position) * total;
        let mut reached = 0.0;
        for candidate in candidates.iter() {
            reached += candidate.weight;
            if reached > aim {
                return candidate.id;
            }
        }
        // `reached` ends at `total` exactly, and the aim lies below it; only a total of one tiny weight rounds up to it.
        candidates.last().map_or(best, |candidate| candidate.id)
    }
}

/// Checks a mask that arrives with [`holdfast_types::LateInputs`] against the vocabulary.
///
/// # Errors
/// [`BackendError::Rejected`] for an empty mask, a token outside the vocabulary or a list that does not rise.
pub fn check_mask(mask: &TokenMask, vocab: u32) -> Result<(), BackendError> {
    match mask {
        TokenMask::Only(tokens) => {
            let Some(last) = tokens.last() else { return Err(rejected("a mask allows no token".to_owned())) };
            if tokens.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(rejected("the tokens of a mask do not rise".to_owned()));
            }
            if *last >= vocab {
                return Err(rejected(format!("a mask allows token {last}, the vocabulary ends at {vocab}")));
            }
        }
        TokenMask::Bits(words) => {
            let Some(word) = words.iter().rposition(|word| *word != 0) else {
                return Err(rejected("a mask allows no token".to_owned()));
            };
            let last = word as u64 * 64 + 63 - u64::from(words[word].leading_zeros());
            if last >= u64::from(vocab) {
                return Err(rejected(format!("a mask allows token {last}, the vocabulary ends at {vocab}")));
            }
        }
    }
    Ok(())
}

/// A number in [0, 1) that depends on (seed, position) only: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
/// number generators", OOPSLA 2014) read at index `position` of the stream that the mixed seed opens. Mixing the seed first
/// keeps neighbouring seeds from sharing a shifted stream.
pub fn unit(seed: u64, position: u32) -> f64 {
    /// 2^64 divided by the golden ratio, the generator's increment.
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    let stream = mix(seed.wrapping_add(GAMMA));
    let bits = mix(stream.wrapping_add(GAMMA.wrapping_mul(u64::from(position) + 1)));
    // The upper 53 bits fill the mantissa of an f64 exactly.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn rejected(why: String) -> BackendError {
    BackendError::Rejected(why)
}

fn check_params(params: &SamplingParams) -> Result<(), BackendError> {
    let within = |name: &str, value: f32, ok: bool| {
        if ok { Ok(()) } else { Err(rejected(format!("sampling setting {name} = {value} is out of range"))) }
    };
    let p = params;
    within("temperature", p.temperature, (0.0..=2.0).contains(&p.temperature))?;
    within("top_p", p.top_p, p.top_p > 0.0 && p.top_p <= 1.0)?;
    within("min_p", p.min_p, (0.0..=1.0).contains(&p.min_p))?;
    within("frequency_penalty", p.frequency_penalty, (-2.0..=2.0).contains(&p.frequency_penalty))?;
    within("presence_penalty", p.presence_penalty, (-2.0..=2.0).contains(&p.presence_penalty))?;
    within("repetition_penalty", p.repetition_penalty, p.repetition_penalty > 0.0 && p.repetition_penalty <= 10.0)?;
    for (_, bias) in &p.logit_bias {
        within("logit_bias", *bias, *bias < f32::INFINITY)?;
    }
    Ok(())
}

/// Not a number becomes banned, infinity the largest number; the rest stays.
fn tame(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// The likeliest token that is not banned; the lower id wins a tie.
fn likeliest(adjusted: &[f32]) -> Option<TokenId> {
    let mut best = f32::NEG_INFINITY;
    let mut id = None;
    for (token, logit) in adjusted.iter().enumerate() {
        if *logit > best {
            best = *logit;
            id = Some(token as TokenId);
        }
    }
    id
}

fn lowest_allowed(mask: Option<&TokenMask>) -> TokenId {
    match mask {
        None => 0,
        Some(TokenMask::Only(tokens)) => tokens.first().copied().unwrap_or(0),
        Some(TokenMask::Bits(words)) => {
            words.iter().position(|word| *word != 0).map_or(0, |at| at as TokenId * 64 + words[at].trailing_zeros())
        }
    }
}

/// Falling weight, then rising id: a total order, because weights are finite.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Keeps the smallest set of likeliest candidates whose share of the total reaches `top_p`; leaves them in any order.
/// Nucleus sampling: <https://arxiv.org/abs/1904.09751>. Candidates come in rising order of ids.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let goal = top_p * candidates.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < candidates.len() {
        // Only as much of the tail is sorted as the nucleus needs; the sums are those of a full sort.
        let end = (sorted.max(1) * NUCLEUS_STEP).min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, likelier);
        }
        candidates[sorted..end].sort_unstable_by(likelier);
        for at in sorted..end {
            reached += candidates[at].weight;
            if reached >= goal {
                candidates.truncate(at + 1);
                return;
            }
        }
        sorted = end;
    }
}

/// Log-softmax of `adjusted` at `id` and at the `count` likeliest other tokens.
fn log_probabilities(adjusted: &[f32], id: TokenId, count: u32) -> Vec<TokenLogprob> {
    let most = likeliest(adjusted).map(|best| f64::from(adjusted[best as usize]));
    let log_total = most.map(|most| {
        let total: f64 = adjusted.iter().map(|logit| libm::exp(f64::from(*logit) - most)).sum();
        most + libm::log(total)
    });
    let logprob = |token: TokenId| {
        let logit = adjusted[token as usize];
        let value = log_total.map_or(f32::MIN, |total| (f64::from(logit) - total) as f32);
        TokenLogprob { id: token, logprob: value.max(f32::MIN) }
    };
    let falling = |a: &TokenId, b: &TokenId| {
        // Never not-a-number here; a total order of floats would part 0 from -0.
        let by_logit = adjusted[*b as usize].partial_cmp(&adjusted[*a as usize]).unwrap_or(Ordering::Equal);
        by_logit.then(a.cmp(b))
    };
    let keep = (count as usize).min(adjusted.len() - 1);
    let mut others: Vec<TokenId> = (0..adjusted.len() as TokenId).filter(|other| *other != id).collect();
    if keep > 0 && keep < others.len() {
        others.select_nth_unstable_by(keep - 1, falling);
    }
    others.truncate(keep);
    others.sort_unstable_by(falling);
    std::iter::once(id).chain(others).map(logprob).collect()
}

#[cfg(test)]
mod tests;
