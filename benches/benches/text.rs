//! Text on its way in and out: tokenizer, template, characters out of bytes, and events as protobuf.
//!
//! `cargo bench -p holdfast-benches --bench text`; figures are bytes or tokens per second. Its limit: all of it runs on one core
//! beside the device, so it has to be far from a turn's time: encoding and rendering once per turn and only of what is new (the
//! figure of one item must not grow with the conversation), decoding and events once per sampled token and session. Pebble's
//! vocabulary has 1,536 tokens, so its tokens are shorter and its merges fewer than a large model's. Deliberately not here: gRPC
//! and its transport, which the scenarios measure.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod conversation;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_gateway::session_event;
use holdfast_model::{LogEnd, Next, Prompt, Utf8Assembler};
use holdfast_types::{Item, Role};
use prost::Message as _;

use conversation::{Conversation, QUESTION};

/// Prose, tables and code, some ten thousand bytes of it.
const PROSE: &str = include_str!("../../ARCHITECTURE.md");
/// Two and three bytes a character.
const UMLAUTS_AND_KANJI: &str = "Größe und Maß: 端末の大きさ、まだ変わらない。";
/// Items of the long conversation.
const ITEMS: usize = 200;
/// Tokens of the turn whose events are written.
const SAMPLED: usize = 256;

fn tokenizer(c: &mut Criterion) {
    let mut group = c.benchmark_group("tokenizer");
    let text = conversation::pebble();
    let tokens = text.encode(PROSE);
    group.throughput(Throughput::ElementsAndBytes { elements: tokens.len() as u64, bytes: PROSE.len() as u64 });
    group.bench_function("encode", |b| b.iter(|| text.encode(PROSE)));
    group.bench_function("decode, one token at a time", |b| {
        b.iter(|| {
            let mut assembler = Utf8Assembler::new();
            tokens.iter().map(|token| assembler.push(text.token_bytes(*token)).len()).sum::<usize>()
        });
    });
    group.finish();
}

fn characters(c: &mut Criterion) {
    let mut group = c.benchmark_group("characters out of bytes");
    let bytes = UMLAUTS_AND_KANJI.repeat(64).into_bytes();
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for piece in [1, 4, bytes.len()] {
        group.bench_function(format!("{piece} at a time"), |b| {
            b.iter(|| {
                let mut assembler = Utf8Assembler::new();
                let whole: usize = bytes.chunks(piece).map(|piece| assembler.push(piece).len()).sum();
                assert_eq!(whole, bytes.len());
            });
        });
    }
    group.finish();
}

fn template(c: &mut Criterion) {
    let mut group = c.benchmark_group("template");
    let text = conversation::pebble();
    let prompt = Prompt { instructions: "You are a careful engineer.", date: "2026-01-01", ..Prompt::default() };
    let items: Vec<Item> =
        (0..ITEMS).map(|at| Item::message(if at % 2 == 0 { Role::User } else { Role::Assistant }, QUESTION)).collect();
    let cases = [
        ("a conversation of 200 items", LogEnd::Start, &items[..ITEMS - 1]),
        ("one new item", LogEnd::Sampled, &items[..1]),
    ];
    for (name, after, items) in cases {
        let render = || text.render(&prompt, after, items, Next::Generate).unwrap();
        group.throughput(Throughput::Elements(render().len() as u64));
        group.bench_function(name, |b| b.iter(render));
    }
    group.finish();
}

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("events to protobuf");
    let (mut conversation, _) = Conversation::begin(&conversation::pebble(), 0);
    let (_, events) = conversation.turn(SAMPLED);
    let encode = || -> usize {
        events.iter().map(|event| session_event(conversation.session(), event).encode_to_vec().len()).sum()
    };
    group.throughput(Throughput::ElementsAndBytes { elements: SAMPLED as u64, bytes: encode() as u64 });
    group.bench_function("a turn of 256 sampled tokens", |b| b.iter(encode));
    group.finish();
}

criterion_group!(benches, tokenizer, characters, template, events);
criterion_main!(benches);
