//! What holding a generation to a form costs: its mask and the taking of its token, and beside the step of a device.
//!
//! `cargo bench -p holdfast-benches --bench guides`; figures are tokens per second, each with its mask computed. Its limit: the part of
//! the vocabulary that the form neither allows nor forbids as a whole is walked. Steps are compared by runs of one sequence, free
//! and guided in turns; the last lines say by how much a token costs more. Goals: 15% on the micro model, 2% on the shape llama-0.3b
//! (made in a temporary directory, under `cargo bench` only; a filter of `none` leaves these lines alone). Deliberately not here:
//! what the worker adds.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::time::Instant;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_backend_neuron::{NeuronDevice, NeuronSettings};
use holdfast_engine::{Command, Effect, Engine, EngineConfig, Run, RunId, SampleRequest, TokenGuide};
use holdfast_guide::{
    CallBody, CallLayout, CallSpelling, CallableTool, Calls, Guide, Guides, Need, Spec, Spelt, Vocabulary,
};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_model::random::MicroShape;
use holdfast_model::{Model, ModelSource};
use holdfast_model_maker::{Format, Shape, make};
use holdfast_types::{Constraint, LogToken, Precision, SamplingParams, SequenceId, TokenId, TokenMask, ToolChoice};
use holdfast_worker::TextOfModel;
use holdfast_worker::guiding::{ModelGuides, Rules};
use holdfast_worker::language::Prompt;

/// About Pebble's, Llama 2's and Llama 3's.
const VOCABULARIES: [u32; 3] = [1_024, 32_000, 128_256];
/// Tokens of one walk.
const TOKENS: usize = 64;
const RECORDS: &str = r#"{"type": "array", "minItems": 1000, "items": {"type": "object", "required": ["name", "n", "kind", "tags"],
    "properties": {"name": {"type": "string"}, "n": {"type": "number"}, "kind": {"enum": ["alpha", "beta", "gamma"]},
                   "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}}}, "additionalProperties": false}}"#;

fn masks(c: &mut Criterion) {
    let json = |schema: &str| answer(Constraint::JsonSchema(schema.to_owned()));
    let specs = [
        ("records", json(RECORDS)),
        ("a long string", json(r#"{"type": "string", "minLength": 1000}"#)),
        ("numbers", json(r#"{"type": "array", "minItems": 1000, "items": {"type": "number"}}"#)),
        ("any JSON", json(r#"{"type": "array", "minItems": 1000}"#)),
        ("expression", answer(Constraint::Regex("([a-z]{1,9} )+[0-9]+".to_owned()))),
        ("no call", no_call()),
    ];
    for size in VOCABULARIES {
        let guides = Guides::new(vocabulary(size));
        let mut group = c.benchmark_group(format!("guide, vocabulary of {size}"));
        group.throughput(Throughput::Elements(TOKENS as u64));
        for (name, spec) in &specs {
            let path = walk(guides.begin(spec).unwrap());
            group.bench_function(*name, |b| {
                b.iter_batched(|| guides.begin(spec).unwrap(), |guide| follow(guide, &path), BatchSize::LargeInput);
            });
        }
        group.finish();
        let mut group = c.benchmark_group(format!("guide compiled, vocabulary of {size}"));
        let mut fresh = 0_u32;
        group.bench_function("records", |b| {
            b.iter(|| {
                // Another name each time, or it would be found.
                fresh += 1;
                guides.begin(&json(&RECORDS.replace("gamma", &format!("gamma{fresh}")))).unwrap()
            });
        });
        group.bench_function("records, found", |b| b.iter(|| guides.begin(&json(RECORDS)).unwrap()));
        group.finish();
    }
}

fn steps(_: &mut Criterion) {
    let micro = MicroShape { context_limit: 512, ..MicroShape::default() }.build().unwrap();
    // A test run of the benchmarks makes no model of a gigabyte.
    let measures = std::env::args().any(|argument| argument == "--bench");
    compare("micro", &micro, if measures { 1_000 } else { 1 });
    if measures {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("llama-0.3b.gguf");
        make(Shape::named("llama-0.3b").unwrap(), Format::GgufQ8_0, 0, &path, &mut |_, _| {}).unwrap();
        compare("llama-0.3b", &Model::load(&ModelSource::File(path)).unwrap(), 8);
    }
}

/// Runs of one sequence, free and guided in turns, so that what else the machine does meets both.
fn compare(name: &str, model: &Model, pairs: usize) {
    let settings = NeuronSettings { context: Some(512), ..NeuronSettings::default() };
    let device = NeuronDevice::new(model.config(), model.weights(), &settings).unwrap();
    let mut engine = Engine::new(Box::new(device), EngineConfig::default());
    let language = TextOfModel::new(model.text().clone());
    let guides = ModelGuides::new(&language);
    let constraint = Constraint::JsonSchema(RECORDS.to_owned());
    let rules = Rules {
        allowed_tools: None,
        tool_choice: &ToolChoice::Auto,
        single_call: false,
        constraint: Some(&constraint),
    };
    let guide = || guides.guide(&language, &Prompt::default(), rules, &[], "").unwrap();
    let mut id = 0;
    let mut time = |guide| {
        id += 1;
        #[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
        let begun = Instant::now();
        run(&mut engine, id, guide);
        begun.elapsed().as_secs_f64() * 1e6 / TOKENS as f64
    };
    let cold = time(guide());
    let (mut free, mut guided): (Vec<f64>, Vec<f64>) = (0..pairs).map(|_| (time(None), time(guide()))).unzip();
    let (free, guided) = (median(&mut free), median(&mut guided));
    println!(
        "a token of one sequence on {name}: {free:.1} us free, {guided:.1} us guided ({:+.1}%), medians of {pairs} runs of \
         {TOKENS} tokens; {cold:.1} us in the first run of the grammar",
        (guided / free - 1.0) * 100.0
    );
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// One run from its command to its end.
fn run(engine: &mut Engine, id: u64, guide: Option<Box<dyn TokenGuide>>) {
    let run = Run {
        run: RunId(id),
        sequence: SequenceId(id),
        log: (5..13).map(|id| LogToken { id, precision: Precision::Native }).collect(),
        computed_before: 0,
        domain: ChainDomain::single(DomainSecret([0; 32])),
        flow: 0,
        accepted_us: 0,
        transient: true,
        resumed: 0,
        sample: Some(SampleRequest {
            params: SamplingParams { temperature: 1.0, ..SamplingParams::default() },
            seed: id,
            max_tokens: TOKENS as u32,
            stop_tokens: Vec::new(),
            precision: Precision::Native,
            guide,
            sampled_before: Vec::new(),
        }),
    };
    let mut commands = vec![Command::Run(Box::new(run))];
    loop {
        for effect in engine.poll(0, std::mem::take(&mut commands)) {
            match effect {
                Effect::Finished { .. } => return,
                Effect::Failed { failure, .. } => panic!("{failure}"),
                Effect::Progress { .. } | Effect::Sampled { .. } => {}
            }
        }
    }
}

fn answer(answer: Constraint) -> Spec {
    Spec { answer: Some(answer), ..Spec::default() }
}

fn no_call() -> Spec {
    let text = |text: &str| Spelt { text: text.to_owned(), token: None };
    let spelling = CallSpelling {
        open: text("<tool_call>"),
        close: Some(text("</tool_call>")),
        layout: CallLayout::Enclosed,
        body: CallBody::Object { name_key: "name".to_owned(), arguments_key: "arguments".to_owned() },
    };
    let tools: Vec<CallableTool> = Vec::new();
    Spec { calls: Some(Calls { spelling, tools, need: Need::Optional, single: false }), ..Spec::default() }
}

/// Every byte, then words of letters with and without a space before them, digits and marks: the mix of a trained vocabulary.
fn vocabulary(size: u32) -> Vocabulary {
    let mut rng = fastrand::Rng::with_seed(u64::from(size));
    let mut words: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
    while words.len() < size as usize - 1 {
        let letters = rng.usize(2..10);
        let word: String = match rng.u32(..20) {
            0 => (0..rng.usize(1..4)).map(|_| rng.digit(10)).collect(),
            1 => (0..letters / 2 + 1)
                .map(|_| ['"', ':', '{', '}', ',', '[', ']', '\\', '\n', ' '][rng.usize(..10)])
                .collect(),
            2 => (0..letters / 2 + 1).map(|_| rng.char('\u{80}'..'\u{2fff}')).collect(),
            _ => (0..letters).map(|_| rng.lowercase()).collect(),
        };
        words.push(if rng.bool() { format!(" {word}").into_bytes() } else { word.into_bytes() });
    }
    Vocabulary::new(size, |id| words.get(id as usize).map_or(&[], Vec::as_slice), |id| id == size - 1, &[size - 1])
}

/// Tokens that a guide lets through, drawn evenly.
fn walk(mut guide: Guide) -> Vec<TokenId> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut draw = || {
        let mask = guide.mask().unwrap();
        let TokenMask::Bits(words) = &mask else { panic!("a guide's masks are bits") };
        let allowed: Vec<TokenId> = (0..words.len() as u32 * 64).filter(|&id| mask.allows(id)).collect();
        let id = allowed[rng.usize(..allowed.len())];
        guide.accept(id).unwrap();
        id
    };
    (0..TOKENS).map(|_| draw()).collect()
}

fn follow(mut guide: Guide, path: &[TokenId]) {
    for &id in path {
        assert!(guide.mask().unwrap().allows(id));
        guide.accept(id).unwrap();
    }
}

criterion_group!(benches, masks, steps);
criterion_main!(benches);
