//! Reasoning: split from answers, counted, and left behind when a session asks for it, at whatever batch the process dies.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;
mod talk;

use harness::{Disk, Scripts, World, session, settings, user as say};
use holdfast_journal::Body;
use holdfast_types::{EventKind, Item, ItemContent, ReasoningRetention, SamplingOverrides, SessionConfig, TurnState};
use holdfast_worker_api::StartTurn;
use talk::spoken::*;
use talk::{Family, Step, config, folded, log_of, play};

fn dropping(tools: bool) -> SessionConfig {
    config(ReasoningRetention::DropAtNextUserMessage, tools)
}

fn qwen3() -> Family {
    Family::new(QWEN3, &QWEN3_TOKENS, &[])
}

fn is_reasoning(item: &Item) -> bool {
    matches!(item.content, ItemContent::Reasoning { .. })
}

/// The context of a generation: reasoning before the last user message is gone.
fn without_old_reasoning(items: &[Item]) -> Vec<Item> {
    let last = items
        .iter()
        .rposition(|item| matches!(item.content, ItemContent::Message { role: holdfast_types::Role::User, .. }));
    let old = |i: usize| last.is_some_and(|last| i < last);
    items
        .iter()
        .enumerate()
        .filter(|(i, item)| !(old(*i) && is_reasoning(item)))
        .map(|(_, item)| item.clone())
        .collect()
}

/// Four turns: reasoning, reasoning with tools, none, reasoning. What each generation says, and what a client does.
fn four_turns(calls: usize) -> (Vec<Vec<Item>>, Vec<Step>) {
    let id = |n: usize| format!("call_2_0_{n}");
    let mut asks = vec![thought("Two things.\nOr three?")];
    asks.extend((1..=calls).map(|n| call(&id(n), &format!("{{\"at\": \"{n}\"}}"))));
    let mut says = vec![vec![thought("hm"), assistant("b")]];
    let mut steps = vec![Step::Say("a".into()), Step::Say("c".into())];
    if calls > 0 {
        says.push(asks);
        steps.push(Step::Answer((1..=calls).map(|n| format!("found {n}")).collect()));
    }
    says.extend([vec![thought("so"), assistant("d")], vec![assistant("f")], vec![thought("again"), assistant("h")]]);
    steps.extend([Step::Say("e".into()), Step::Say("g".into()), Step::Say("i".into())]);
    says.push(vec![assistant("j")]);
    (says, steps)
}

/// Items before each generation, by what the steps send and the generations say.
fn contexts(says: &[Vec<Item>], steps: &[Step]) -> Vec<Vec<Item>> {
    let mut all = Vec::new();
    let contexts = says.iter().zip(steps).map(|(says, step)| {
        match step {
            Step::Say(text) => all.push(user(text)),
            Step::Answer(texts) => {
                let result =
                    |(i, text): (usize, &String)| Item::tool_result(format!("call_2_0_{}", i + 1), text.as_str());
                all.extend(texts.iter().enumerate().map(result));
            }
        }
        let before = all.clone();
        all.extend(says.iter().cloned());
        before
    });
    contexts.collect()
}

#[test]
fn after_a_user_message_the_log_is_the_history_without_its_reasoning() {
    let harmony = Family::new(GPT_OSS, &HARMONY_TOKENS, &HARMONY_STOPS);
    for (family, calls, marked) in
        [(qwen3(), 2, "<think>\nhm\n</think>"), (harmony, 1, "<|channel|>analysis<|message|>hm<|end|>")]
    {
        let config = dropping(true);
        let (says, steps) = four_turns(calls);
        let scripts: Vec<_> = says.iter().map(|says| family.says(&config, says)).collect();
        let mut world = play(&family, &config, &scripts, &steps, &[]);
        let contexts = contexts(&says, &steps);
        assert_eq!(world.engine.seen.len(), contexts.len());
        for (run, before) in world.engine.seen.iter().zip(&contexts) {
            let log: Vec<u32> = run.log.iter().map(|token| token.id).collect();
            let whole = family.whole(&config, &without_old_reasoning(before));
            assert_eq!(family.spelt(&log), family.spelt(&whole));
            assert_eq!(log, whole);
        }
        let fold = folded(&world, &family);
        let thoughts: Vec<_> = fold.items().iter().filter(|item| is_reasoning(&item.item)).collect();
        assert_eq!(thoughts.len(), 4, "they stay listed");
        assert!(thoughts.iter().all(|item| item.tokens.is_empty()), "none is in the log");
        let rebases = world.disk.entries[&session("a")].iter().filter_map(|entry| match &entry.body {
            Body::Rebase { cause, .. } => Some(cause.as_str()),
            _ => None,
        });
        assert_eq!(rebases.collect::<Vec<_>>(), ["drop_reasoning"; 3], "one for each turn after reasoning");
        let usage = world.turn("a", 1).usage;
        assert_eq!(usage.reasoning_tokens, family.tokens(marked).len() as u64);
        assert_eq!(world.turn("a", 3).usage.reasoning_tokens, 0);
        assert_eq!(world.turn("a", 5).usage.recomputed_tokens, 0);
    }
}

#[test]
fn marks_that_the_template_leaves_out_of_history_are_left_out_of_it() {
    let (says, steps) = four_turns(0);
    let raw = |open: &str, after: &str, end: &str, items: &[Item]| {
        let said = items.iter().map(|item| match &item.content {
            ItemContent::Reasoning { text } => format!("{open}{text}\n</think>{after}"),
            ItemContent::Message { parts, .. } => parts[0].text().to_owned(),
            other => panic!("{other:?}"),
        });
        // A model whose prompt opens reasoning has to close it.
        let said: String = said.collect();
        if open.is_empty() && !said.contains("</think>") { format!("</think>{said}{end}") } else { said + end }
    };
    let end = "<｜end▁of▁sentence｜>";
    for (family, open, after, end) in [
        (Family::new(SMOLLM3, &QWEN3_TOKENS, &[]), "<think>\n", "\n", "<|im_end|>"),
        (Family::new(DEEPSEEK, &DEEPSEEK_TOKENS, &[end]), "", "\n\n", end),
    ] {
        let config = dropping(false);
        let scripts: Vec<_> = says.iter().map(|says| family.tokens(&raw(open, after, end, says))).collect();
        let mut world = play(&family, &config, &scripts, &steps, &[]);
        for (run, before) in world.engine.seen.iter().zip(contexts(&says, &steps)) {
            let log: Vec<u32> = run.log.iter().map(|token| token.id).collect();
            let before: Vec<_> = before.into_iter().filter(|item| !is_reasoning(item)).collect();
            let whole = family.whole(&config, &before);
            assert_eq!(family.spelt(&log), family.spelt(&whole));
            assert_eq!(log, whole);
        }
        let told = world.events("a").into_iter().filter_map(|event| match event.kind {
            EventKind::ReasoningDelta { text, .. } => Some(text),
            _ => None,
        });
        assert_eq!(told.collect::<String>(), "hmsoagain");
        let said = world.items("a");
        let said = said.iter().filter(|item| !is_reasoning(item)).cloned().collect::<Vec<_>>();
        let texts = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let speaker = |(n, text): (usize, &&str)| if n % 2 == 0 { user(text) } else { assistant(text) };
        assert_eq!(said, texts.iter().enumerate().map(speaker).collect::<Vec<_>>());
    }
}

#[test]
fn a_crash_at_any_batch_gives_the_same_tokens() {
    let family = qwen3();
    let config = dropping(true);
    let (says, steps) = four_turns(2);
    let scripts: Vec<_> = says.iter().map(|says| family.says(&config, says)).collect();
    let whole = play(&family, &config, &scripts, &steps, &[]);
    let expected = folded(&whole, &family);
    for at in 1..whole.disk.batches {
        let world = play(&family, &config, &scripts, &steps, &[at]);
        let fold = folded(&world, &family);
        assert_eq!(log_of(&fold), log_of(&expected), "crash after batch {at}");
        assert_eq!(fold.items(), expected.items(), "crash after batch {at}");
        assert_eq!(fold.sequence(), expected.sequence(), "crash after batch {at}");
    }
}

#[test]
fn reasoning_that_ends_early_goes_on_where_it_was() {
    let family = qwen3();
    let config = config(ReasoningRetention::Keep, false);
    let script = family.says(&config, &[thought("one\ntwo\n\nthree"), assistant("b")]);
    for limit in 1..script.len() - 1 {
        let mut world = World::on(Disk::default(), settings(), family.served());
        let ahead = [script.clone(), script[limit..].to_vec()];
        world.engine.scripts = Some(Scripts::new(ahead));
        world.create("a", config.clone());
        let sampling = SamplingOverrides { max_output_tokens: Some(limit as u32), ..Default::default() };
        world.start(StartTurn { sampling, ..say("a", "a") }).unwrap();
        world.settle();
        assert_eq!(world.turn("a", 1).state, TurnState::Incomplete, "{limit}");
        let mut on = say("a", "");
        on.input.clear();
        on.continue_last = true;
        world.start(on).unwrap();
        world.settle();
        assert_eq!(world.items("a"), [user("a"), thought("one\ntwo\n\nthree"), assistant("b")], "{limit}");
        let counted: u64 = (1..=2).map(|turn| world.turn("a", turn).usage.reasoning_tokens).sum();
        let marked = family.tokens("<think>\none\ntwo\n\nthree\n</think>").len() as u64;
        assert_eq!(counted, marked, "{limit}");
    }
}

#[test]
fn imported_reasoning_that_was_answered_is_listed_and_not_rendered() {
    let family = qwen3();
    let config = dropping(false);
    let history = [user("a"), thought("hm"), assistant("b"), user("c"), thought("so"), assistant("d")];
    let mut world = World::on(Disk::default(), settings(), family.served());
    world.engine.scripts = Some(Scripts::new([family.says(&config, &[assistant("f")])]));
    let create = holdfast_worker_api::CreateSession {
        session: Some(session("a")),
        config: config.clone(),
        items: history.to_vec(),
        ..Default::default()
    };
    world.ask(holdfast_worker::core::Request::CreateSession(create)).unwrap();
    let first = folded(&world, &family);
    let ranges: Vec<_> = first.items().iter().map(|item| item.tokens.is_empty()).collect();
    assert_eq!(ranges, [false, true, false, false, false, false]);
    world.say("a", "e");
    let log: Vec<u32> = world.engine.seen[0].log.iter().map(|token| token.id).collect();
    let said: Vec<_> = history.iter().filter(|item| !is_reasoning(item)).cloned().chain([user("e")]).collect();
    assert_eq!(family.spelt(&log), family.spelt(&family.whole(&config, &said)));
    assert_eq!(world.items("a").len(), 8);
}
