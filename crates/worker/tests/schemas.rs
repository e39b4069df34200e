//! Random JSON schemas over a random model at temperature 1.5: whatever it says is valid, says a validator that shares no code with
//! what held it to the schema; and it says the same after an interruption, and beside others.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;

use fastrand::Rng;
use holdfast_backend_neuron::{NeuronDevice, NeuronSettings};
use holdfast_engine::{Command, Effect, Engine, EngineConfig, FinishReason, Run, RunId, SampleRequest, TokenGuide};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_model::Model;
use holdfast_model::random::MicroShape;
use holdfast_types::{Constraint, LogToken, Precision, SamplingParams, SequenceId, TokenId, ToolChoice};
use holdfast_worker::TextOfModel;
use holdfast_worker::guiding::{ModelGuides, Rules};
use holdfast_worker::language::{Language, Prompt};
use serde_json::{Value, json};

const SCHEMAS: u64 = 200;
const GENERATIONS_OF_EACH: u64 = 5;
/// More than any of these schemas needs: an answer that reaches it is a failure.
const TOKENS_MAX: u32 = 900;

struct Rig {
    model: Model,
    language: TextOfModel,
    guides: ModelGuides,
}

impl Rig {
    fn new() -> Self {
        let shape = MicroShape {
            hidden: 32,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            ffn: 32,
            context_limit: 1024,
            tied: false,
            ..MicroShape::default()
        };
        let model = shape.build().unwrap();
        let language = TextOfModel::new(model.text().clone());
        let guides = ModelGuides::new(&language);
        Self { model, language, guides }
    }

    fn engine(&self) -> Engine {
        let settings = NeuronSettings { threads: 1, ..NeuronSettings::default() };
        let device = NeuronDevice::new(self.model.config(), self.model.weights(), &settings).unwrap();
        Engine::new(Box::new(device), EngineConfig::default())
    }

    fn guide(&self, schema: &Value, said: &[TokenId]) -> Box<dyn TokenGuide> {
        let constraint = Constraint::JsonSchema(schema.to_string());
        let rules = Rules {
            allowed_tools: None,
            tool_choice: &ToolChoice::Auto,
            single_call: false,
            constraint: Some(&constraint),
        };
        let guide = self.guides.guide(&self.language, &Prompt::default(), rules, said, "");
        guide.unwrap_or_else(|failure| panic!("{schema}: {failure}")).unwrap()
    }

    /// A run that has sampled `said`.
    fn run(&self, id: u64, said: &[TokenId], guide: Option<Box<dyn TokenGuide>>) -> Run {
        let prompt = self.model.text().encode(&format!("Say {id}:"));
        let token = |&id: &TokenId| LogToken { id, precision: Precision::Native };
        Run {
            run: RunId(id),
            sequence: SequenceId(id),
            log: prompt.iter().chain(said).map(token).collect(),
            computed_before: 0,
            domain: ChainDomain::single(DomainSecret([1; 32])),
            flow: id,
            accepted_us: 0,
            transient: true,
            resumed: said.len() as u32,
            sample: Some(SampleRequest {
                // Without a penalty, a model of random weights repeats a digit for ever.
                params: SamplingParams { temperature: 1.5, frequency_penalty: 0.5, ..SamplingParams::default() },
                seed: id,
                max_tokens: if guide.is_some() { TOKENS_MAX - said.len() as u32 } else { 40 },
                stop_tokens: self.language.stop_tokens().to_vec(),
                precision: Precision::Native,
                guide,
                sampled_before: said.to_vec(),
            }),
        }
    }

    fn text(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&id| self.language.token_bytes(id)).copied().collect();
        String::from_utf8(bytes).unwrap()
    }
}

/// Runs them all at once; what each sampled and why it ended.
fn play(engine: &mut Engine, runs: Vec<Run>) -> BTreeMap<u64, (Vec<TokenId>, FinishReason)> {
    let mut sampled: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
    let mut ended = BTreeMap::new();
    let mut commands: Vec<_> = runs.into_iter().map(|run| Command::Run(Box::new(run))).collect();
    while !commands.is_empty() || engine.has_work() {
        for effect in engine.poll(0, std::mem::take(&mut commands)) {
            match effect {
                Effect::Sampled { run, tokens } => {
                    sampled.entry(run.0).or_default().extend(tokens.iter().map(|token| token.id));
                }
                Effect::Finished { run, reason, .. } => {
                    ended.insert(run.0, (sampled.remove(&run.0).unwrap_or_default(), reason));
                }
                Effect::Failed { run, failure, .. } => panic!("{run:?}: {failure}"),
                Effect::Progress { .. } => {}
            }
        }
    }
    ended
}

/// A schema whose values are short, whatever is drawn.
fn schema(rng: &mut Rng) -> Value {
    let mut root = match part(rng, 3) {
        Value::Object(map) => Value::Object(map),
        _ => unreachable!("a part is an object"),
    };
    root["$defs"] = json!({
        "leaf": part(rng, 0),
        "node": {
            "type": "object",
            "properties": { "v": { "$ref": "#/$defs/leaf" }, "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/node" }] } },
            "required": ["v"],
            "additionalProperties": false,
        },
    });
    root
}

fn part(rng: &mut Rng, depth: u32) -> Value {
    let kinds = if depth == 0 { 8 } else { 15 };
    match rng.u32(0..kinds) {
        0 => {
            let all = json!(["red", "dark \"blue\"", 7, -2.5, null, ["x", {}], { "é": true }]);
            json!({ "enum": all.as_array().unwrap()[..rng.usize(1..=7)] })
        }
        1 => json!({ "const": words(rng) }),
        2 => {
            let low = rng.i64(-2000..2000);
            json!({ "type": "integer", "minimum": low, "exclusiveMaximum": low + rng.i64(1..500) })
        }
        3 => {
            let low = f64::from(rng.i32(-90..90)) / 4.0;
            json!({ "type": "number", "minimum": low, "maximum": low + f64::from(rng.u32(1..60)) })
        }
        4 => {
            let least = rng.u32(0..3);
            json!({ "type": "string", "minLength": least, "maxLength": least + rng.u32(0..6) })
        }
        5 => {
            let pattern = ["^[a-f]{2,5}$", "^(ab|é|\\d)+x{0,3}$", "^[^\\s]{1,4}-\\w$"][rng.usize(0..3)];
            json!({ "type": "string", "pattern": pattern, "maxLength": 9 })
        }
        6 => json!({ "type": ["boolean", "null"] }),
        7 => {
            let format = if rng.bool() { "ipv4" } else { "uuid" };
            json!({ "type": "string", "format": format })
        }
        8 | 9 => {
            let least = rng.u32(0..2);
            json!({ "type": "array", "items": part(rng, depth - 1), "minItems": least, "maxItems": least + rng.u32(0..3) })
        }
        10 => {
            json!({ "type": "array", "prefixItems": [part(rng, depth - 1), part(rng, 0)], "items": false, "minItems": rng.u32(0..=2) })
        }
        11 => json!({ "anyOf": [part(rng, depth - 1), part(rng, depth - 1)] }),
        12 => json!({ "$ref": if rng.bool() { "#/$defs/leaf" } else { "#/$defs/node" } }),
        _ => {
            let names = ["id", "name of it", "tags", "ü", "at"];
            let properties: Vec<(String, Value)> =
                names[..rng.usize(1..=5)].iter().map(|name| ((*name).to_owned(), part(rng, depth - 1))).collect();
            let required: Vec<_> = properties.iter().filter(|_| rng.bool()).map(|(name, _)| name.clone()).collect();
            json!({
                "type": "object",
                "properties": Value::Object(properties.into_iter().collect()),
                "required": required,
                "additionalProperties": false,
            })
        }
    }
}

fn words(rng: &mut Rng) -> &'static str {
    ["", "a", "two words", "tab\tand \\ slash", "\u{1F600}"][rng.usize(0..5)]
}

#[test]
fn a_thousand_answers_under_random_schemas_are_valid() {
    let rig = Rig::new();
    let mut engine = rig.engine();
    let mut valid = 0;
    for seed in 0..SCHEMAS {
        let schema = schema(&mut Rng::with_seed(seed));
        let judge = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let id = |n: u64| 1 + seed * GENERATIONS_OF_EACH + n;
        let runs = (0..GENERATIONS_OF_EACH).map(|n| rig.run(id(n), &[], Some(rig.guide(&schema, &[])))).collect();
        for (id, (tokens, reason)) in play(&mut engine, runs) {
            let (_, said) = tokens.split_last().unwrap();
            let text = rig.text(said);
            assert_eq!(reason, FinishReason::StopToken, "{schema}\n{text}");
            let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{id}: {schema}\n{text}: {e}"));
            assert!(judge.is_valid(&value), "{id}: {schema}\n{text}");
            valid += 1;
        }
    }
    assert_eq!(valid, 1_000);
}

#[test]
fn an_interrupted_answer_goes_on_to_the_same_tokens() {
    let rig = Rig::new();
    for seed in 0..12 {
        let schema = schema(&mut Rng::with_seed(seed));
        let whole = play(&mut rig.engine(), vec![rig.run(seed, &[], Some(rig.guide(&schema, &[])))])[&seed].0.clone();
        let at = whole.len() * (seed as usize % 5) / 5;
        let (said, rest) = whole.split_at(at);
        let mut run = rig.run(seed, said, Some(rig.guide(&schema, said)));
        run.transient = false;
        assert_eq!(play(&mut rig.engine(), vec![run])[&seed].0, rest, "{schema}");
    }
}

#[test]
fn guided_answers_leave_free_ones_as_they_are_alone() {
    let rig = Rig::new();
    let schemas: Vec<_> = (0..4).map(|seed| schema(&mut Rng::with_seed(100 + seed))).collect();
    let run = |id: u64| {
        let guide = schemas.get(id as usize).map(|schema| rig.guide(schema, &[]));
        rig.run(id, &[], guide)
    };
    let together = play(&mut rig.engine(), (0..8).map(run).collect());
    for id in 0..8 {
        assert_eq!(together[&id], play(&mut rig.engine(), vec![run(id)])[&id], "{id}");
    }
}
