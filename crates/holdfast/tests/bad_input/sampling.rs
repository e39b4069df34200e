//! Sampling values outside their ranges.

use holdfast_client::v1;
use v1::Sampling;

use crate::ground::{Row, rows};

pub(crate) const ROWS: &[Row] = rows! {
    "a temperature below 0" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.temperature`", |ground|
        ground.sampled(Sampling { temperature: Some(-0.1), ..Sampling::default() });
    "a temperature above 2" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.temperature`", |ground|
        ground.sampled(Sampling { temperature: Some(2.1), ..Sampling::default() });
    "a temperature that is not a number" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.temperature`", |ground|
        ground.sampled(Sampling { temperature: Some(f32::NAN), ..Sampling::default() });
    "an infinite temperature" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.temperature`", |ground|
        ground.sampled(Sampling { temperature: Some(f32::INFINITY), ..Sampling::default() });
    "a top_p of 0" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.top_p`", |ground|
        ground.sampled(Sampling { top_p: Some(0.0), ..Sampling::default() });
    "a top_p above 1" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.top_p`", |ground|
        ground.sampled(Sampling { top_p: Some(1.5), ..Sampling::default() });
    "a min_p above 1" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.min_p`", |ground|
        ground.sampled(Sampling { min_p: Some(1.5), ..Sampling::default() });
    "a frequency penalty above 2" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.frequency_penalty`", |ground|
        ground.sampled(Sampling { frequency_penalty: Some(2.5), ..Sampling::default() });
    "a presence penalty below -2" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.presence_penalty`", |ground|
        ground.sampled(Sampling { presence_penalty: Some(-2.5), ..Sampling::default() });
    "a repetition penalty of 0" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.repetition_penalty`", |ground|
        ground.sampled(Sampling { repetition_penalty: Some(0.0), ..Sampling::default() });
    "a logit bias that is not a number" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.logit_bias`", |ground|
        ground.sampled(Sampling { logit_bias: [(5, f32::NAN)].into(), ..Sampling::default() });
    "a logit bias of positive infinity" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.logit_bias`", |ground|
        ground.sampled(Sampling { logit_bias: [(5, f32::INFINITY)].into(), ..Sampling::default() });
    "a logit bias of a token outside the vocabulary" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.logit_bias`", |ground|
        ground.sampled(Sampling { logit_bias: [(4_000_000_000, 1.0)].into(), ..Sampling::default() });
    "a max_output_tokens of 0" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.max_output_tokens`", |ground|
        ground.sampled(Sampling { max_output_tokens: Some(0), ..Sampling::default() });
    "an empty stop string" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `options.sampling.stop[0]`", |ground|
        ground.sampled(Sampling { stop: vec![String::new()], ..Sampling::default() });
    "a stop string with a control byte" => InvalidArgument, "INVALID_ARGUMENT", "BadRequest `options.sampling.stop[0]`", |ground|
        ground.sampled(Sampling { stop: vec!["\u{1}".to_owned()], ..Sampling::default() });
    "a bad temperature as the session's own" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `session.config.sampling.temperature`", |ground| async {
        let sampling = Sampling { temperature: Some(9.0), ..Sampling::default() };
        ground.configure(v1::SessionConfig { sampling: Some(sampling), ..Default::default() }).await
    };
    "a bad temperature in Generate" => InvalidArgument, "INVALID_SAMPLING", "BadRequest `sampling.temperature`", |ground| async {
        let sampling = Some(Sampling { temperature: Some(9.0), ..Sampling::default() });
        let items = vec![holdfast_client::items::user("Hello")];
        let request = v1::GenerateRequest { items, sampling, ..Default::default() };
        crate::support::talk::hear(ground.client.completions().generate(request).await?.into_inner()).await
    };
};
