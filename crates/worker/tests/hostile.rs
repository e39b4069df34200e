//! Requests with numbers that nobody sends in good faith: nothing panics, what is accepted is journaled and read back, and
//! the session stays usable.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{World, model, session, settings, user, with_tools};
use holdfast_journal::{Batch, Durability, Journal, MemoryJournal};
use holdfast_types::{
    Item, OnBusy, OnDisconnect, Reason, Role, SamplingOverrides, SessionConfig, SessionState, TenantId, ToolChoice,
    TurnNumber, UnresolvedCalls,
};
use holdfast_worker::core::{Input, ReadEvents, Reply, Request};
use holdfast_worker_api::{
    AppendItems, CancelTurn, ConfigPatch, CountTokens, CreateSession, Generate, ListItems, ListTurns, SessionPatch,
    StartTurn, SubmitToolResults, UpdateSession,
};
use proptest::option;
use proptest::prelude::*;

fn float() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(1.0),
        Just(2.0),
        Just(-2.0),
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(f32::MIN),
        Just(f32::MAX),
        Just(f32::MIN_POSITIVE),
        Just(f32::from_bits(1)),
        any::<f32>(),
    ]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0_u32..8, 1 => Just(u32::MAX), 1 => Just(u32::MAX - 1), 1 => any::<u32>()]
}

fn large() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0_u64..8, 1 => Just(u64::MAX), 1 => Just(i64::MAX as u64 + 1), 1 => any::<u64>()]
}

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        (0_u32..9).prop_map(|n| n.to_string()),
        Just("-1".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just("18446744073709551616".to_owned()),
        ".{0,6}",
    ]
}

fn sampling() -> impl Strategy<Value = SamplingOverrides> {
    let floats = (option::of(float()), option::of(float()), option::of(float()), option::of(float()));
    let more = (option::of(float()), option::of(float()), option::of(prop::collection::vec((small(), float()), 0..3)));
    let counts = (option::of(small()), option::of(small()), option::of(large()), option::of(small()));
    let stop = option::of(prop::collection::vec("[a-c]{0,3}", 0..3));
    let some = (floats, more, counts, stop).prop_map(|(floats, more, counts, stop)| SamplingOverrides {
        temperature: floats.0,
        top_p: floats.1,
        min_p: floats.2,
        frequency_penalty: floats.3,
        presence_penalty: more.0,
        repetition_penalty: more.1,
        logit_bias: more.2,
        top_k: counts.0,
        logprobs: counts.1,
        seed: counts.2,
        max_output_tokens: counts.3,
        stop,
    });
    let mild = (option::of(small()), option::of(Just(vec!["b".to_owned()])))
        .prop_map(|(max_output_tokens, stop)| SamplingOverrides { max_output_tokens, stop, ..Default::default() });
    prop_oneof![2 => Just(SamplingOverrides::default()), 2 => mild, 1 => some]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let item = prop_oneof![
        5 => "[a-c^:x ]{0,12}".prop_map(|text| Item::message(Role::User, text)),
        1 => "call_[1-3]_0_1_{0,1}".prop_map(|id| Item::tool_result(id, "done")),
        1 => Just(Item::message(Role::User, "y".repeat(150))),
    ];
    prop::collection::vec(item, 0..3)
}

fn choice() -> impl Strategy<Value = ToolChoice> {
    prop_oneof![
        6 => Just(ToolChoice::Auto),
        1 => Just(ToolChoice::None),
        1 => Just(ToolChoice::Required),
        1 => Just(ToolChoice::Name("x".to_owned())),
    ]
}

fn start() -> impl Strategy<Value = StartTurn> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let numbers = (option::weighted(0.2, large()), option::weighted(0.2, small()), option::of("[ab]"));
    (items(), sampling(), choice(), flags, numbers).prop_map(|(input, sampling, tool_choice, flags, numbers)| {
        StartTurn {
            sampling,
            tool_choice,
            on_busy: if flags.0 { OnBusy::Queue } else { OnBusy::Reject },
            on_disconnect: if flags.1 { OnDisconnect::Cancel } else { OnDisconnect::Continue },
            unresolved_calls: if flags.2 { UnresolvedCalls::CloseAsCancelled } else { UnresolvedCalls::Reject },
            discard_partial: flags.3,
            continue_last: flags.4 && input.is_empty(),
            turn_deadline_ms: numbers.0,
            expected_last_turn: numbers.1.map(TurnNumber),
            request_id: numbers.2,
            ..StartTurn::new(session("a"), input)
        }
    })
}

fn patch() -> impl Strategy<Value = SessionPatch> {
    // Not so small that the session expires in mid-test.
    let far = || prop_oneof![Just(u64::MAX), Just(i64::MAX as u64 + 1), (1_u64 << 50)..u64::MAX];
    (option::of(option::of(far())), option::of(far()), option::of(option::of(far()))).prop_map(
        |(expire_time_us, ttl_s, idle_timeout_s)| SessionPatch {
            expire_time_us,
            ttl_s,
            idle_timeout_s,
            ..Default::default()
        },
    )
}

#[derive(Debug)]
enum Act {
    Ask(Box<Request>),
    Step(u8),
    Wait(u64),
    Disconnect(u32),
    DropCompletion(u64),
    Restart,
}

fn request() -> impl Strategy<Value = Request> {
    let a = || session("a");
    let turn = || option::of(small().prop_map(TurnNumber));
    prop_oneof![
        8 => start().prop_map(Request::StartTurn),
        3 => (turn(), items()).prop_map(move |(turn, results)| {
            Request::SubmitToolResults(SubmitToolResults { session: a(), turn, results, request_id: None })
        }),
        1 => turn().prop_map(move |turn| Request::CancelTurn(CancelTurn { session: a(), turn })),
        1 => (small(), large()).prop_map(move |(turn, from_sequence)| {
            Request::GetTurn { session: a(), turn: TurnNumber(turn), from_sequence }
        }),
        1 => (small(), token()).prop_map(move |(page_size, page_token)| {
            Request::ListTurns(ListTurns { session: a(), page_size, page_token })
        }),
        1 => (small(), token(), any::<bool>()).prop_map(move |(page_size, page_token, descending)| {
            Request::ListItems(ListItems { session: a(), page_size, page_token, descending })
        }),
        2 => (items(), any::<bool>()).prop_map(move |(items, prefill)| {
            Request::AppendItems(AppendItems { session: a(), items, prefill, request_id: None })
        }),
        1 => large().prop_map(move |from_sequence| Request::Watch { session: a(), from_sequence }),
        1 => (large(), small(), large(), turn()).prop_map(move |(from, limit, seen, turn)| {
            Request::ReadEvents(ReadEvents { session: a(), turn, from, limit: limit as usize, seen })
        }),
        1 => (large(), large(), small()).prop_map(|(completion, from, limit)| {
            Request::ReadCompletion { completion, from, limit: limit as usize }
        }),
        1 => (patch(), sampling()).prop_map(move |(patch, sampling)| {
            let values = SessionConfig { sampling, ..Default::default() };
            let config = Some(ConfigPatch { fields: vec!["sampling".to_owned()], values });
            Request::UpdateSession(UpdateSession { session: a(), etag: None, patch, config })
        }),
        1 => (items(), sampling(), choice(), option::of(large())).prop_map(|(items, sampling, tool_choice, deadline_ms)| {
            let config = SessionConfig { sampling, ..with_tools(&["x"]) };
            Request::Generate(Generate { config, items, tool_choice, deadline_ms, ..Default::default() })
        }),
        1 => (items(), any::<bool>()).prop_map(move |(items, new)| {
            let session = (!new).then(a);
            Request::CountTokens(CountTokens { session, items, ..Default::default() })
        }),
        1 => (patch(), items()).prop_map(move |(patch, items)| {
            Request::CreateSession(CreateSession { session: Some(session("b")), patch, items, ..Default::default() })
        }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => request().prop_map(|request| Act::Ask(Box::new(request))),
        4 => (0_u8..30).prop_map(Act::Step),
        1 => (0_u64..3_000_000).prop_map(Act::Wait),
        1 => small().prop_map(Act::Disconnect),
        1 => large().prop_map(Act::DropCompletion),
        1 => Just(()).prop_map(|()| Act::Restart),
    ]
}

/// Everything that was committed is taken by a journal that checks it.
fn check_journal(world: &World) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (id, entries) in &world.disk.entries {
        let journal = MemoryJournal::automatic([1; 32]);
        let head = world.disk.heads.get(id).cloned();
        assert!(
            head.as_ref().is_none_or(|head| head.expires_us.is_none_or(|at| i64::try_from(at).is_ok())),
            "{head:?}"
        );
        let batch = Batch { entries: entries.clone(), head, durability: Durability::Process };
        runtime.block_on(journal.append(batch)).unwrap();
        let read = journal.read(&TenantId::default(), id, 0, usize::MAX).unwrap();
        assert!(read.iter().map(|entry| &entry.entry).eq(entries), "what is read back is what was written");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_numbers_never_panic_and_never_poison_a_journal(acts in prop::collection::vec(act(), 1..40)) {
        let mut settings = settings();
        settings.recent_events = 20;
        settings.limits.calls_per_turn = 2;
        let mut world = World::on(harness::Disk::default(), settings, model(Some("</call>"), "toy/1"));
        world.create("a", with_tools(&["x"]));
        for act in acts {
            match act {
                Act::Ask(request) => {
                    // A number that only the shell draws: a wrong one is the shell's defect.
                    let inner = matches!(*request, Request::ReadCompletion { .. });
                    let id = world.send(*request);
                    while world.commit() {}
                    if let Some(Err(failure)) = world.reply(id) {
                        prop_assert!(inner || failure.reason != Reason::Internal, "{:?}", failure);
                    }
                }
                Act::Step(steps) => (0..steps).for_each(|_| {
                    world.step();
                }),
                Act::Wait(us) => {
                    world.now += us;
                    world.feed(Vec::new());
                }
                Act::Disconnect(turn) => world.feed(vec![Input::Disconnected {
                    tenant: TenantId::default(),
                    session: session("a"),
                    turn: TurnNumber(turn),
                }]),
                Act::DropCompletion(completion) => world.feed(vec![Input::CompletionDropped { completion }]),
                Act::Restart => world = world.restart(),
            }
        }
        world.settle();
        check_journal(&world);
        // The session answers still: a turn that waits is closed, unless others wait behind it, and a full context says so.
        let last = world.start(StartTurn { unresolved_calls: UnresolvedCalls::CloseAsCancelled, ..user("a", "hi") });
        let mut rests = vec![SessionState::Idle];
        if let Err(failure) = last {
            prop_assert!(matches!(failure.reason, Reason::ContextOverflow | Reason::SessionBusy), "{:?}", failure);
            rests.push(SessionState::RequiresAction);
        }
        world.settle();
        let mut world = world.restart();
        world.settle();
        match world.ask(Request::GetSession(session("a"))) {
            Ok(Reply::Session(shown)) => prop_assert!(rests.contains(&shown.state), "{:?}", shown.state),
            other => prop_assert!(false, "{:?}", other),
        }
        check_journal(&world);
    }
}
