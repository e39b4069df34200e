//! The sampler against a plain, slow twin, against exact cases, and its draws against their distribution.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

fn sampling(params: SamplingParams, seed: u64) -> SlotSampling {
    SlotSampling { params, seed, context: Vec::new(), sampled: Vec::new() }
}

fn sampler(params: SamplingParams) -> SlotSampler {
    SlotSampler::new(&sampling(params, 7), 4).unwrap()
}

/// Written from the documentation of [`SamplingParams`], with full sorts and nothing shared with the real one but the
/// keyed number.
fn twin(
    sampling: &SlotSampling,
    sampled_since: &[TokenId],
    logits: &[f32],
    position: u32,
    mask: Option<&TokenMask>,
) -> (TokenId, Vec<TokenLogprob>) {
    let p = &sampling.params;
    let tame = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x.min(f32::MAX) };
    let mut x: Vec<f32> = logits.iter().map(|l| tame(*l)).collect();
    for (t, b) in &p.logit_bias {
        x[*t as usize] = tame(x[*t as usize] + b);
    }
    for (t, x) in x.iter_mut().enumerate() {
        let earlier: u32 = sampling.sampled.iter().filter(|(s, _)| *s as usize == t).map(|(_, n)| n).sum();
        let count = earlier + sampled_since.iter().filter(|s| **s as usize == t).count() as u32;
        let listed = sampling.sampled.iter().any(|(s, _)| *s as usize == t);
        if p.repetition_penalty != 1.0 && (count > 0 || listed || sampling.context.contains(&(t as u32))) {
            *x = tame(if *x > 0.0 { *x / p.repetition_penalty } else { *x * p.repetition_penalty });
        }
        if count > 0 {
            *x = tame(*x - (count as f32 * p.frequency_penalty + p.presence_penalty));
        }
        if mask.is_some_and(|m| !m.allows(t as u32)) {
            *x = f32::NEG_INFINITY;
        }
    }
    let allowed = |t: &usize| mask.is_none_or(|m| m.allows(*t as u32));
    let alive: Vec<usize> = (0..x.len()).filter(|t| x[*t] > f32::NEG_INFINITY).collect();
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*b].partial_cmp(&x[*a]).unwrap().then(a.cmp(b)));
    let id = if alive.is_empty() {
        if mask.is_none() { 0 } else { (0..x.len()).find(allowed).unwrap() }
    } else if p.temperature == 0.0 {
        order[0]
    } else {
        let top = f64::from(x[order[0]]);
        let weight = |t: usize| libm::exp((f64::from(x[t]) - top) / f64::from(p.temperature));
        let mut kept: Vec<usize> = (0..x.len()).filter(|t| weight(*t) > 0.0).collect();
        let by_weight = |a: &usize, b: &usize| weight(*b).partial_cmp(&weight(*a)).unwrap().then(a.cmp(b));
        if p.top_k > 0 {
            kept.sort_by(by_weight);
            kept.truncate(p.top_k as usize);
            kept.sort();
        }
        if p.top_p < 1.0 {
            let goal = f64::from(p.top_p) * kept.iter().map(|t| weight(*t)).sum::<f64>();
            kept.sort_by(by_weight);
            let mut sum = 0.0;
            let n = kept.iter().position(|t| {
                sum += weight(*t);
                sum >= goal
            });
            kept.truncate(n.map_or(kept.len(), |n| n + 1));
            kept.sort();
        }
        kept.retain(|t| weight(*t) >= f64::from(p.min_p));
        let aim = unit(sampling.seed, position) * kept.iter().map(|t| weight(*t)).sum::<f64>();
        let mut sum = 0.0;
        *kept
            .iter()
            .find(|t| {
                sum += weight(**t);
                sum > aim
            })
            .unwrap()
    };
    let top = x[order[0]];
    let total: f64 = x.iter().map(|l| libm::exp(f64::from(*l) - f64::from(top))).sum();
    let logprob = |t: usize| TokenLogprob {
        id: t as u32,
        logprob: if x[t] == f32::NEG_INFINITY {
            f32::MIN
        } else {
            ((f64::from(x[t]) - (f64::from(top) + libm::log(total))) as f32).max(f32::MIN)
        },
    };
    let logprobs = p.logprobs.map_or_else(Vec::new, |n| {
        let others = order.iter().copied().filter(|t| *t != id).take(n as usize);
        std::iter::once(id).chain(others).map(logprob).collect()
    });
    (id as u32, logprobs)
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -8.0f32..8.0,
        2 => (-3i8..3).prop_map(f32::from),
        1 => prop_oneof![
            Just(f32::NAN), Just(f32::NEG_INFINITY), Just(f32::INFINITY), Just(-0.0), Just(f32::MIN), Just(f32::MAX)
        ],
    ]
}

fn params(vocab: u32) -> impl Strategy<Value = SamplingParams> {
    (
        prop_oneof![Just(0.0f32), 0.01f32..2.0, Just(f32::MIN_POSITIVE)],
        prop_oneof![Just(0u32), 1..vocab + 3],
        prop_oneof![Just(1.0f32), 0.01f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..=1.0],
        prop_oneof![Just((0.0f32, 0.0f32)), (-2.0f32..2.0, -2.0f32..2.0)],
        prop_oneof![Just(1.0f32), 0.1f32..10.0],
        prop::collection::vec((0..vocab, prop_oneof![-5.0f32..5.0, Just(f32::NEG_INFINITY)]), 0..4),
        prop::option::of(0..vocab + 3),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, (frequency, presence), repetition, logit_bias, logprobs)| {
            SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                frequency_penalty: frequency,
                presence_penalty: presence,
                repetition_penalty: repetition,
                logit_bias,
                logprobs,
            }
        })
}

fn mask(vocab: u32) -> impl Strategy<Value = Option<TokenMask>> {
    let only = prop::collection::btree_set(0..vocab, 1..6).prop_map(|set| TokenMask::Only(set.into_iter().collect()));
    let bits = prop::collection::btree_set(0..vocab, 1..vocab as usize + 1).prop_map(move |set| {
        let mut words = vec![0u64; vocab.div_ceil(64) as usize];
        set.into_iter().for_each(|token| words[token as usize / 64] |= 1 << (token % 64));
        TokenMask::Bits(words)
    });
    prop::option::of(prop_oneof![only, bits])
}

/// Logits of one draw, and its mask.
type Draw = (Vec<f32>, Option<TokenMask>);

fn case() -> impl Strategy<Value = (SlotSampling, Vec<Draw>)> {
    prop_oneof![1u32..12, 60u32..300].prop_flat_map(|vocab| {
        let sampling = (
            params(vocab),
            any::<u64>(),
            prop::collection::vec(0..vocab, 0..5),
            prop::collection::vec((0..vocab, 0u32..4), 0..4),
        )
            .prop_map(|(params, seed, context, sampled)| SlotSampling { params, seed, context, sampled });
        let row = (prop::collection::vec(logit(), vocab as usize), mask(vocab));
        (sampling, prop::collection::vec(row, 1..5))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn draws_what_the_plain_twin_draws((sampling, rows) in case()) {
        let mut sampler = SlotSampler::new(&sampling, rows[0].0.len() as u32).unwrap();
        let mut since = Vec::new();
        for (position, (logits, mask)) in rows.iter().enumerate() {
            let got = sampler.sample(logits, position as u32, mask.as_ref());
            let (id, logprobs) = twin(&sampling, &since, logits, position as u32, mask.as_ref());
            prop_assert_eq!(got.id, id);
            prop_assert_eq!(got.position, position as u32);
            prop_assert_eq!(&got.logprobs, &logprobs);
            prop_assert!(got.logprobs.iter().all(|entry| entry.logprob.is_finite() && entry.logprob <= 1e-6));
            prop_assert!(mask.as_ref().is_none_or(|mask| mask.allows(got.id)));
            since.push(id);
        }
    }
}

#[test]
fn greedy_takes_the_lower_id_of_a_tie() {
    assert_eq!(sampler(SamplingParams::default()).sample(&[1.0, 3.0, 3.0, f32::NAN], 1, None).id, 1);
}

#[test]
fn all_banned_falls_to_the_lowest_that_the_mask_allows() {
    let params = SamplingParams { logprobs: Some(1), temperature: 1.0, ..Default::default() };
    let banned = [f32::NEG_INFINITY; 4];
    let drawn = sampler(params.clone()).sample(&banned, 1, Some(&TokenMask::Only(vec![2, 3])));
    assert_eq!((drawn.id, drawn.logprobs[0].logprob), (2, f32::MIN));
    assert_eq!(sampler(params.clone()).sample(&banned, 1, Some(&TokenMask::Bits(vec![0b1000]))).id, 3);
    assert_eq!(sampler(params).sample(&banned, 1, None).id, 0);
}

#[test]
fn penalties_count_what_the_sampler_drew_itself() {
    let mut once = sampler(SamplingParams { presence_penalty: 2.0, ..Default::default() });
    let logits = [1.0, 2.0, 0.0, 0.0];
    assert_eq!([0, 1, 2].map(|position| once.sample(&logits, position, None).id), [1, 0, 1]);
}

#[test]
fn bad_settings_and_foreign_tokens_are_rejected() {
    let bad = |change: fn(&mut SlotSampling)| {
        let mut with = sampling(SamplingParams::default(), 0);
        change(&mut with);
        matches!(SlotSampler::new(&with, 4), Err(BackendError::Rejected(_)))
    };
    assert!(bad(|s| s.params.temperature = -0.1));
    assert!(bad(|s| s.params.temperature = f32::NAN));
    assert!(bad(|s| s.params.top_p = 0.0));
    assert!(bad(|s| s.params.min_p = 1.1));
    assert!(bad(|s| s.params.frequency_penalty = 2.1));
    assert!(bad(|s| s.params.presence_penalty = -2.1));
    assert!(bad(|s| s.params.repetition_penalty = 0.0));
    assert!(bad(|s| s.params.logit_bias = vec![(0, f32::INFINITY)]));
    assert!(bad(|s| s.params.logit_bias = vec![(4, 0.0)]));
    assert!(bad(|s| s.context = vec![4]));
    assert!(bad(|s| s.sampled = vec![(4, 1)]));
}

#[test]
fn masks_are_checked_against_the_vocabulary() {
    let ok = |mask: TokenMask| check_mask(&mask, 70).is_ok();
    assert!(
        ok(TokenMask::Only(vec![0, 69])) && ok(TokenMask::Bits(vec![0, 0b10_0000])) && ok(TokenMask::Bits(vec![1]))
    );
    assert!(!ok(TokenMask::Only(vec![])) && !ok(TokenMask::Bits(vec![])) && !ok(TokenMask::Bits(vec![0, 0])));
    assert!(
        !ok(TokenMask::Only(vec![70])) && !ok(TokenMask::Only(vec![3, 3])) && !ok(TokenMask::Bits(vec![0, 0b100_0000]))
    );
}

/// The first outputs of the published SplitMix64 with seed 1234567 are known; ours mixes the seed before it.
#[test]
fn the_keyed_number_is_fixed_for_ever() {
    let bits = |seed, position| unit(seed, position).to_bits();
    assert_eq!(bits(0, 0), bits(0, 0));
    let mut all: Vec<u64> =
        (0..1000).map(|position| bits(1, position)).chain((0..1000).map(|seed| bits(seed, 0))).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1999, "only (1, 0) is in both lists");
    assert!((0..100_000).all(|position| (0.0..1.0).contains(&unit(42, position))));
}

/// Pearson's statistic of 40,000 draws against the softmax, for several temperatures and truncations; the bound is the
/// 0.9999 quantile of chi-square with 7 degrees of freedom. Seeds are fixed, so this never flickers.
#[test]
fn draws_follow_the_distribution() {
    const DRAWS: u32 = 40_000;
    let logits = [0.0f32, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.25];
    for (seed, temperature, top_k, top_p) in [(1, 1.0, 0, 1.0), (2, 0.5, 0, 1.0), (3, 2.0, 5, 1.0), (4, 1.0, 0, 0.8)] {
        let params = SamplingParams { temperature, top_k, top_p, ..Default::default() };
        let mut sampler = SlotSampler::new(&sampling(params, seed), 8).unwrap();
        let mut counts = [0u32; 8];
        (0..DRAWS).for_each(|position| counts[sampler.sample(&logits, position, None).id as usize] += 1);

        let mut order: Vec<usize> = (0..8).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let weight = |t: usize| f64::from(logits[t] / temperature).exp();
        if top_k > 0 {
            order.truncate(top_k as usize);
        }
        let total: f64 = order.iter().map(|t| weight(*t)).sum();
        let mut sum = 0.0;
        let nucleus = order.iter().position(|t| {
            sum += weight(*t) / total;
            sum >= f64::from(top_p) - 1e-9
        });
        order.truncate(nucleus.unwrap() + 1);
        let kept: f64 = order.iter().map(|t| weight(*t)).sum();
        let mut statistic = 0.0;
        for (token, count) in counts.iter().enumerate() {
            if order.contains(&token) {
                let expected = f64::from(DRAWS) * weight(token) / kept;
                statistic += (f64::from(*count) - expected).powi(2) / expected;
            } else {
                assert_eq!(*count, 0, "token {token} was truncated");
            }
        }
        assert!(statistic < 29.9, "seed {seed}: {statistic} from {counts:?}");
    }
}
