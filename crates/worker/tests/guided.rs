//! Constraints and tool choice, from the request to what is sampled, journaled and continued.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{STOP, Toy, World, settings, speaking, user, with_tools};
use holdfast_types::{
    Constraint, Failure, FailureDetail, Item, OnBusy, Reason, SamplingOverrides, SessionConfig, StopReason, TokenId,
    Tool, ToolChoice, TurnState,
};
use holdfast_worker::core::{Input, Reply, Request};
use holdfast_worker_api::{CancelTurn, CreateSession, Generate, StartTurn};

const NUMBER: &str =
    r#"{"type": "object", "properties": {"n": {"enum": [12, 13]}}, "required": ["n"], "additionalProperties": false}"#;

fn fresh(config: SessionConfig) -> World {
    let mut world = World::new();
    world.create("a", config);
    world
}

fn world(template: &str, config: SessionConfig) -> World {
    let mut world = World::on(harness::Disk::default(), settings(), speaking(Toy::of_template(template), "toy/1"));
    world.create("a", config);
    world
}

fn schema(text: &str) -> Option<Constraint> {
    Some(Constraint::JsonSchema(text.to_owned()))
}

fn run(world: &mut World, turn: StartTurn) -> holdfast_types::Turn {
    let number = world.start(turn).unwrap().number;
    world.settle();
    world.turn("a", number.0)
}

#[test]
fn an_answer_follows_its_constraint_and_ends_with_it() {
    let mut world = fresh(SessionConfig::default());
    for (constraint, said) in [
        (schema(NUMBER), "{\"n\":12}"),
        (Some(Constraint::Regex("[x-z]{3}".into())), "xxy"),
        (Some(Constraint::Choice(vec!["no".into(), "none".into()])), "no"),
        (Some(Constraint::Grammar("start: \"<\" /[a-c]+/ \">\"".into())), "<a>"),
    ] {
        let sampling = SamplingOverrides { max_output_tokens: Some(20), ..Default::default() };
        let turn = run(&mut world, StartTurn { constraint, sampling, ..user("a", "Anything.") });
        assert_eq!(world.texts("a").last().unwrap(), said);
        assert_eq!((turn.state, turn.stop_reason), (TurnState::Completed, Some(StopReason::EndTurn)));
    }
    let free = run(&mut world, user("a", "Anything."));
    assert_eq!((free.state, world.texts("a").last().unwrap().as_str()), (TurnState::Completed, "Anything."));
}

#[test]
fn what_the_limit_cuts_short_says_so_and_goes_on_under_its_constraint() {
    for limit in 1..8 {
        let mut world = fresh(SessionConfig::default());
        let sampling = SamplingOverrides { max_output_tokens: Some(limit), ..Default::default() };
        let turn = run(&mut world, StartTurn { constraint: schema(NUMBER), sampling, ..user("a", "hi") });
        assert_eq!((turn.state, turn.stop_reason), (TurnState::Incomplete, Some(StopReason::MaxOutputTokens)));
        let mut on = StartTurn { continue_last: true, constraint: schema(NUMBER), ..user("a", "") };
        on.input.clear();
        let turn = run(&mut world, on.clone());
        assert_eq!((turn.state, turn.stop_reason), (TurnState::Completed, Some(StopReason::EndTurn)), "{limit}");
        assert_eq!(world.texts("a").last().unwrap(), "{\"n\":12}", "{limit}");
    }
    let mut world = fresh(SessionConfig::default());
    let sampling = SamplingOverrides { max_output_tokens: Some(3), ..Default::default() };
    run(&mut world, StartTurn { sampling, ..user("a", "free text") });
    let mut on = StartTurn { continue_last: true, constraint: schema(NUMBER), ..user("a", "") };
    on.input.clear();
    let turn = run(&mut world, on);
    assert_eq!(turn.state, TurnState::Failed, "what was said does not follow it");
    assert_eq!(turn.failure.unwrap().reason, Reason::InvalidArgument);
    assert_eq!(run(&mut world, user("a", "hi")).state, TurnState::Completed, "the session stays usable");
}

#[test]
fn a_restart_in_the_middle_goes_on_to_the_same_tokens() {
    let turn = || StartTurn { constraint: schema(NUMBER), ..user("a", "{\"n\":13}") };
    let mut whole = fresh(SessionConfig::default());
    run(&mut whole, turn());
    let tokens = whole.engine.seen.last().unwrap().log.len();
    for steps in 0..9 {
        let mut world = fresh(SessionConfig::default());
        world.start(turn()).unwrap();
        for _ in 0..steps {
            world.step();
        }
        let mut world = world.restart();
        world.settle();
        assert_eq!(world.texts("a"), whole.texts("a"), "after {steps} steps");
        let last = world.engine.seen.last().map_or(tokens, |run| run.log.len() - run.resumed as usize);
        assert_eq!(last, tokens, "after {steps} steps");
    }
}

#[test]
fn what_a_request_needs_is_compiled_while_others_are_served() {
    let mut world = fresh(SessionConfig::default());
    world.create("b", SessionConfig::default());
    world.holds_compiles = true;
    let turn = || StartTurn { constraint: schema(NUMBER), ..user("a", "hi") };
    let wrong = StartTurn { constraint: schema(r#"{"type": "nothing"}"#), ..user("a", "hi") };
    let held = world.send(Request::StartTurn(turn()));
    let refused = world.send(Request::StartTurn(wrong));
    assert_eq!(world.say("b", "free").state, TurnState::Completed);
    assert!(world.reply(held).is_none() && world.reply(refused).is_none());
    world.feed(vec![Input::Drain]);
    world.settle();
    assert!(!world.drained, "they get their answers");
    let drained = compiled(&mut world, held).unwrap_err();
    assert_eq!(drained.reason, Reason::RuntimeDraining);

    let mut world = world.restart();
    world.settle();
    world.holds_compiles = true;
    let held = world.send(Request::StartTurn(turn()));
    world.settle();
    compiled(&mut world, held).unwrap();
    world.settle();
    assert_eq!(world.texts("a").last().unwrap(), "{\"n\":12}");
    // It is compiled: nobody waits again.
    assert_eq!(run(&mut world, turn()).state, TurnState::Completed);
    assert!(world.compiles.is_empty());
}

/// Compiles what waits and gives the reply to a request.
fn compiled(world: &mut World, id: u64) -> Result<Reply, Failure> {
    compile(world);
    while world.commit() {}
    world.reply(id).unwrap()
}

/// Compiles what waits; how much it was.
fn compile(world: &mut World) -> usize {
    let held = std::mem::take(&mut world.compiles);
    let count = held.len();
    for (ticket, work) in held {
        work.run();
        world.feed(vec![Input::Compiled { ticket }]);
    }
    count
}

/// A world that was started again in the middle of a guided turn of session `a`, which waits for its grammar.
fn interrupted() -> World {
    let mut world = fresh(SessionConfig::default());
    world.create("b", SessionConfig::default());
    world.start(StartTurn { constraint: schema(NUMBER), ..user("a", "{\"n\":13}") }).unwrap();
    for _ in 0..4 {
        world.step();
    }
    let mut world = world.restart_with_compiles_held();
    world.settle();
    assert_eq!(world.compiles.len(), 1);
    assert_eq!(world.turn("a", 1).state, TurnState::Running);
    world
}

#[test]
fn a_generation_that_goes_on_after_a_restart_has_its_grammar_compiled_while_others_are_served() {
    let mut world = interrupted();
    assert_eq!(world.say("b", "free").state, TurnState::Completed);
    assert_eq!((compile(&mut world), world.engine.seen.len()), (1, 2), "the run of a begins with its grammar");
    world.settle();
    assert_eq!(
        (world.turn("a", 1).state, world.texts("a").last().unwrap().as_str()),
        (TurnState::Completed, "{\"n\":13}")
    );
    assert!(world.compiles.is_empty());
}

#[test]
fn a_turn_that_waits_for_its_grammar_can_be_cancelled_and_the_next_one_begins_with_its_own() {
    let mut world = interrupted();
    let cancel = CancelTurn { session: harness::session("a"), turn: None };
    let cancelled = world.send(Request::CancelTurn(cancel));
    world.settle();
    assert!(world.reply(cancelled).unwrap().is_ok());
    assert_eq!(world.turn("a", 1).state, TurnState::Cancelled);
    let next = StartTurn { constraint: Some(Constraint::Choice(vec!["no".into()])), ..user("a", "hi") };
    let next = world.send(Request::StartTurn(next));
    assert_eq!(compile(&mut world), 2, "the cancelled turn's, and the request's");
    world.settle();
    assert!(world.reply(next).unwrap().is_ok());
    assert_eq!((world.texts("a").last().unwrap().as_str(), world.compiles.len()), ("no", 0));
}

#[test]
fn a_runtime_that_drains_does_not_wait_for_the_grammar_of_a_turn_that_goes_on_later() {
    let mut world = interrupted();
    world.feed(vec![Input::Drain]);
    world.settle();
    assert!(world.drained);
    compile(&mut world);
    assert!(world.engine.seen.is_empty(), "it goes on at the next start");
    let mut world = world.restart();
    world.settle();
    assert_eq!(world.turn("a", 1).state, TurnState::Completed);
}

#[test]
fn a_queued_turn_whose_grammar_was_evicted_has_it_compiled_while_others_are_served() {
    let mut world = fresh(SessionConfig::default());
    world.create("b", SessionConfig::default());
    world.start(user("a", "a longer answer")).unwrap();
    let queued = StartTurn { constraint: schema(NUMBER), on_busy: OnBusy::Queue, ..user("a", "hi") };
    assert_eq!(world.start(queued).unwrap().state, TurnState::Queued);
    for n in 0..64 {
        let choice = Some(Constraint::Choice(vec![format!("choice {n}")]));
        let items = vec![Item::message(holdfast_types::Role::User, "hi")];
        world.ask(Request::Generate(Generate { constraint: choice, items, ..Default::default() })).unwrap();
    }
    world.holds_compiles = true;
    world.settle();
    assert_eq!((world.turn("a", 2).state, world.compiles.len()), (TurnState::Running, 1));
    assert_eq!(world.say("b", "free").state, TurnState::Completed);
    assert_eq!(compile(&mut world), 1);
    world.settle();
    assert_eq!((world.texts("a").last().unwrap().as_str(), world.compiles.len()), ("{\"n\":12}", 0));
}

#[test]
fn requests_that_wait_for_a_compilation_have_a_limit() {
    let mut world = fresh(SessionConfig::default());
    world.holds_compiles = true;
    let choice = |n: usize| Some(Constraint::Choice(vec![format!("choice {n}")]));
    let send =
        |world: &mut World, n| world.send(Request::StartTurn(StartTurn { constraint: choice(n), ..user("a", "hi") }));
    let ids: Vec<_> = (0..=settings().requests_waiting).map(|n| send(&mut world, n)).collect();
    let refused = world.reply(*ids.last().unwrap()).unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::QueueFull);
    assert!(compiled(&mut world, ids[0]).is_ok());
    // One turn at a time: the others were compiled, looked at and refused.
    assert_eq!(world.reply(ids[1]).unwrap().unwrap_err().reason, Reason::SessionBusy);
}

#[test]
fn a_constraint_that_cannot_be_held_to_is_refused_with_its_place() {
    let mut world = fresh(with_tools(&["x"]));
    for (constraint, path, says) in [
        (
            schema(r#"{"properties": {"a": {"not": {}}}}"#),
            "json_schema",
            "#/properties/a: Unimplemented keys: [\"not\"]",
        ),
        (schema("["), "json_schema", "at #: it is not JSON"),
        (schema(r##"{"$ref": "#"}"##), "json_schema", "nothing that the model can say"),
        (Some(Constraint::Regex("a(".into())), "regex", ""),
        (Some(Constraint::Grammar("start: nowhere".into())), "grammar", "nowhere"),
        (Some(Constraint::Choice(vec![])), "choice", "at least one"),
    ] {
        let refused = world.start(StartTurn { constraint: constraint.clone(), ..user("a", "hi") }).unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidArgument);
        let FailureDetail::Field { path: found, problem } = &refused.details[0] else { panic!("{refused:?}") };
        assert_eq!(*found, format!("options.constraint.{path}"));
        assert!(problem.contains(says), "{problem}");
        let items = vec![Item::message(holdfast_types::Role::User, "hi")];
        let refused = world.ask(Request::Generate(Generate { constraint, items, ..Default::default() })).unwrap_err();
        assert!(
            matches!(&refused.details[0], FailureDetail::Field { path: found, .. } if *found == format!("constraint.{path}"))
        );
    }
    assert_eq!(world.show("a").turns, 0);
}

#[test]
fn a_strict_tool_whose_schema_cannot_be_held_to_is_refused_and_others_are_not() {
    let tool = |strict| Tool {
        name: "x".into(),
        parameters_json_schema: r#"{"type": "object", "properties": {"a": {"if": true}}}"#.into(),
        strict,
        ..Tool::default()
    };
    let mut world = World::new();
    let mut create = |tool| {
        let config = SessionConfig { tools: vec![tool], ..SessionConfig::default() };
        world.ask(Request::CreateSession(CreateSession { config, ..Default::default() }))
    };
    let refused = create(tool(true)).unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidTool);
    let FailureDetail::Field { path, problem } = &refused.details[0] else { panic!("{refused:?}") };
    assert_eq!(path, "session.config.tools[0].function.parameters_json_schema");
    assert!(problem.starts_with("at #/properties/a:"), "{problem}");
    create(tool(false)).unwrap();
}

#[test]
fn required_and_named_calls_are_made_and_results_are_answered_in_words() {
    let mut world = fresh(with_tools(&["x", "y"]));
    for (choice, name) in [(ToolChoice::Required, "x"), (ToolChoice::Name("y".into()), "y")] {
        let turn = run(&mut world, StartTurn { tool_choice: choice, ..user("a", "Words.") });
        assert_eq!(turn.state, TurnState::RequiresAction);
        assert_eq!((turn.required_calls[0].name.as_str(), turn.required_calls[0].arguments.as_str()), (name, "{}"));
        assert_eq!(turn.required_calls[0].parse_error, None);
        world.results("a", &[(&turn.required_calls[0].call_id, "done")]).unwrap();
        world.settle();
        assert_eq!(
            world.turn("a", turn.number.0).state,
            TurnState::Completed,
            "only the first generation is held to it"
        );
    }
}

#[test]
fn only_what_may_be_called_is() {
    let called = |turn: StartTurn, config: SessionConfig, template: &str| {
        let mut world = world(template, config);
        let turn = run(&mut world, turn);
        let calls: Vec<_> = turn.required_calls.iter().map(|call| call.name.clone()).collect();
        (calls, world.texts("a")[1..].to_vec())
    };
    let tools = || with_tools(&["x", "y"]);
    let hermes = "<tool_call>\n{\"name\": \"x\", \"arguments\": {}}\n</tool_call>";
    let llama = "{\"name\": \"x\", \"parameters\": {}}";
    let (llama_says, llama_form) = (|turn| StartTurn { ..turn }, "<|start_header_id|>ipython<|end_header_id|>");
    // Allowed: the call as it would be made.
    assert_eq!(called(user("a", hermes), tools(), "<tool_call>").0, ["x"]);
    assert_eq!(called(user("a", llama), tools(), llama_form).0, ["x"]);
    let allow = |turn, names: &[&str]| StartTurn {
        allowed_tools: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..turn
    };
    assert_eq!(called(allow(user("a", llama), &["x"]), tools(), llama_form).0, ["x"]);
    // Another is called in its place, or nothing.
    assert_eq!(called(allow(user("a", llama), &["y"]), tools(), llama_form).0, ["y"]);
    let none = |turn| StartTurn { tool_choice: ToolChoice::None, ..turn };
    for (turn, form) in [
        (none(user("a", llama)), llama_form),
        (allow(user("a", llama), &[]), llama_form),
        (none(user("a", hermes)), "<tool_call>"),
        (none(user("a", "a^{}")), "[TOOL_CALLS]["),
    ] {
        let (calls, texts) = called(llama_says(turn), tools(), form);
        assert!(calls.is_empty() && texts.len() == 1, "{form}: {calls:?} {texts:?}");
    }
    // With nothing to call, an answer may look like a call.
    let alike = StartTurn {
        constraint: schema(
            r#"{"type": "object", "properties": {"name": {"const": "x"}, "parameters": {"type": "object"}}, "required": ["name", "parameters"]}"#,
        ),
        ..none(user("a", llama))
    };
    assert_eq!(called(alike, tools(), llama_form), (Vec::new(), vec![llama.to_owned()]));
}

#[test]
fn strict_arguments_follow_their_schema_and_one_call_may_be_all() {
    let mut config = with_tools(&["x", "y"]);
    config.tools[0].strict = true;
    config.tools[0].parameters_json_schema =
        r#"{"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}"#.into();
    let said = "^[{\"name\": \"x\", \"arguments\": {\"m\": 1}}, {\"name\": \"y\", \"arguments\": {}}]";
    let mut both = world("[TOOL_CALLS][", config.clone());
    let turn = run(&mut both, user("a", said));
    assert!(turn.required_calls[0].arguments.starts_with("{\"n"), "{:?}", turn.required_calls);
    let parallel = "^[{\"name\": \"y\", \"arguments\": {}}, {\"name\": \"y\", \"arguments\": {}}]";
    let turn = run(&mut world("[TOOL_CALLS][", config.clone()), user("a", parallel));
    assert_eq!(turn.required_calls.len(), 2);
    let single = StartTurn { single_call: true, ..user("a", parallel) };
    assert_eq!(run(&mut world("[TOOL_CALLS][", config), single).required_calls.len(), 1);
}

#[test]
fn free_turns_are_not_guided() {
    let mut world = fresh(with_tools(&["x"]));
    run(&mut world, user("a", "hi"));
    assert!(world.engine.seen.iter().all(|run| run.sample.as_ref().unwrap().guide.is_none()));
    run(&mut world, StartTurn { tool_choice: ToolChoice::None, ..user("a", "hi") });
    let guide = world.engine.seen.last().unwrap().sample.as_ref().unwrap().guide.as_ref().unwrap();
    let mask = guide.fork().mask().unwrap();
    let allowed = |id: TokenId| mask.allows(id);
    assert!(allowed(STOP) && allowed(u32::from(b'<')) && !allowed(harness::CALL));
}
