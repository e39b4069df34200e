//! Checks that what a device samples is what the shared sampler draws from the logits it reports.

use holdfast_types::{LateInputs, OutputRequest, RowInput, SamplingParams, SlotId, SlotSampling, TokenMask};

use super::rig::{Rig, greedy, only, sampled};
use crate::sampler::SlotSampler;

/// Every setting at once, so that nothing can be left out unseen.
fn rich(seed: u64, vocab: u32) -> SlotSampling {
    SlotSampling {
        params: SamplingParams {
            temperature: 1.3,
            top_k: vocab - 1,
            top_p: 0.97,
            min_p: 0.001,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            repetition_penalty: 1.2,
            logit_bias: vec![(1, 2.0), (0, f32::NEG_INFINITY)],
            logprobs: Some(3),
        },
        seed,
        context: vec![0, 1],
        sampled: vec![(1, 2)],
    }
}

#[track_caller]
fn twin(sampling: &SlotSampling, vocab: u32) -> SlotSampler {
    match SlotSampler::new(sampling, vocab) {
        Ok(sampler) => sampler,
        Err(error) => panic!("the suite's own settings: {error}"),
    }
}

pub(super) fn shared_sampler(rig: &mut Rig<'_>) {
    let vocab = rig.description.vocab_size;
    let blocks = rig.blocks(0);
    for (slot, sampling) in [rich(1, vocab), rich(2, vocab), greedy()].into_iter().enumerate() {
        let slot = slot as u32;
        let mut twin = twin(&sampling, vocab);
        rig.open(slot, &blocks, sampling);
        let mut token = 1;
        for position in 0..rig.description.block_tokens + 3 {
            let precision = rig.precision;
            let plan = rig.plan().rows(slot, position, &[token], precision).want(0, OutputRequest::LogitsAndSample);
            let output = only(rig.run(&plan.build()).sequences);
            let want = twin.sample(&output.logits[0].1, position + 1, None);
            assert_eq!(output.samples, [want], "a sample is the shared sampler's");
            token = output.samples[0].id;
        }
    }
}

pub(super) fn masks(rig: &mut Rig<'_>) {
    let vocab = rig.description.vocab_size;
    let blocks = rig.blocks(0);
    let sampling = sampled(SamplingParams { temperature: 1.0, logprobs: Some(2), ..Default::default() }, 5);
    let mut twin = twin(&sampling, vocab);
    rig.open(0, &blocks, sampling);
    let mut every_second = vec![0u64; vocab.div_ceil(64) as usize];
    (0..vocab).step_by(2).for_each(|token| every_second[token as usize / 64] |= 1 << (token % 64));
    let masks = [TokenMask::Only(vec![vocab - 1]), TokenMask::Bits(every_second), TokenMask::Only(vec![0, 1])];
    for (position, mask) in (0u32..).zip(masks) {
        let precision = rig.precision;
        let plan = rig.plan().rows(0, position, &[1], precision).want(0, OutputRequest::LogitsAndSample).build();
        let late = LateInputs { masks: vec![(SlotId(0), 0, mask.clone())] };
        let output = only(rig.run_late(&plan, &late).sequences);
        let want = twin.sample(&output.logits[0].1, position + 1, Some(&mask));
        assert_eq!(output.samples, [want], "a masked sample is the shared sampler's");
        assert!(mask.allows(output.samples[0].id), "a mask holds");
    }
}

pub(super) fn last_sample(rig: &mut Rig<'_>) {
    let precision = rig.precision;
    let sampling = sampled(SamplingParams { temperature: 1.0, ..Default::default() }, 9);
    let prompt = &rig.tokens(90)[..5];
    let mut explicit = Vec::new();
    let blocks = rig.blocks(0);
    rig.open(0, &blocks, sampling.clone());
    let mut inputs: Vec<u32> = prompt.to_vec();
    let mut start = 0;
    for _ in 0..8 {
        let last = inputs.len() as u32 - 1;
        let plan = rig.plan().rows(0, start, &inputs, precision).want(last, OutputRequest::Sample).build();
        let sample = only(rig.run(&plan).sequences).samples[0].id;
        start += inputs.len() as u32;
        inputs = vec![sample];
        explicit.push(sample);
    }

    // The same without ever telling the device a sample, as many steps open as it takes.
    let blocks = rig.blocks(1);
    rig.open(1, &blocks, sampling);
    let mut got = Vec::new();
    let mut open = std::collections::VecDeque::new();
    let mut position = 0;
    for step in 0..8 {
        let plan = if step == 0 {
            let last = prompt.len() as u32 - 1;
            rig.plan().rows(1, 0, prompt, precision).want(last, OutputRequest::Sample).build()
        } else {
            rig.plan().inputs(1, position, vec![RowInput::LastSample], precision).want(0, OutputRequest::Sample).build()
        };
        position += plan.sequences[0].inputs.len() as u32;
        match rig.backend.submit(&plan) {
            Ok(ticket) => open.push_back(ticket),
            Err(error) => panic!("a good plan failed: {error}"),
        }
        while open.len() >= rig.description.limits.in_flight as usize || (step == 7 && !open.is_empty()) {
            let Some(ticket) = open.pop_front() else { break };
            match rig.backend.collect(ticket, &LateInputs::default()) {
                Ok(output) => got.push(only(output.sequences).samples[0].id),
                Err(error) => panic!("a good step failed: {error}"),
            }
        }
    }
    assert_eq!(got, explicit, "the last sample as input is the sample");
}

pub(super) fn accepted_samples(rig: &mut Rig<'_>) {
    let precision = rig.precision;
    let blocks = rig.blocks(0);
    rig.open(0, &blocks, greedy());
    let mut tokens = vec![1];
    for position in 0..4 {
        let plan = rig
            .plan()
            .rows(0, position, &tokens[position as usize..], precision)
            .want(0, OutputRequest::Sample)
            .build();
        tokens.push(only(rig.run(&plan).sequences).samples[0].id);
    }
    // Drafts: two right, then a wrong one, then one that follows the wrong one.
    let wrong = (tokens[3] + 1) % rig.description.vocab_size;
    let drafts = [tokens[0], tokens[1], tokens[2], wrong, tokens[4]];
    rig.open(1, &rig.blocks(1), greedy());
    let mut plan = rig.plan().rows(1, 0, &drafts, precision);
    for row in 0..drafts.len() as u32 {
        plan = plan.want(row, OutputRequest::Sample);
    }
    let got: Vec<u32> = only(rig.run(&plan.build()).sequences).samples.iter().map(|sample| sample.id).collect();
    assert_eq!(got, tokens[1..=3], "samples end with the first that differs from the next input");
}
