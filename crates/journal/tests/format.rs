//! Format 1 is frozen: these bytes and hashes were written once and must be written and read the same for ever.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use holdfast_journal::{Body, Journal, MemoryJournal};
use holdfast_types::TurnNumber;
use support::{batch, session, tenant, wait};

#[test]
fn a_golden_chain() {
    let (t, s) = (tenant("default"), session("session-1"));
    let journal = MemoryJournal::automatic([0; 32]);
    let mut golden = batch(&t, &s, [1, 2]);
    golden.entries[1].body = Body::TurnStarted { turn: TurnNumber(7) };
    wait(journal.append(golden)).unwrap();
    let hashes: Vec<String> = journal.read(&t, &s, 0, 2).unwrap().iter().map(|e| e.hash.to_string()).collect();
    assert_eq!(
        hashes,
        [
            "17ad05b99f022a4dadb9077aa16c8dcb162569720c7413643c7184452b8e0799",
            "6d3e492cb602782713ec74c3374995e4edaf34327c97caa96a07a989cfcad88b",
        ]
    );
}

#[test]
fn golden_bodies() {
    for (text, body) in [
        (r#"{"session_deleted":{}}"#, Body::SessionDeleted {}),
        (r#"{"turn_started":{"turn":7}}"#, Body::TurnStarted { turn: TurnNumber(7) }),
        (
            r#"{"sampled":{"turn":1,"generation":0,"run":{"origin":"sampled","precision":"native","numerics_class":"neuron/f32/r1","ids":[5]}}}"#,
            support::entry(&tenant("default"), &session("session-1"), 5).body,
        ),
    ] {
        assert_eq!(serde_json::to_string(&body).unwrap(), text);
        assert_eq!(serde_json::from_str::<Body>(text).unwrap(), body);
    }
}

#[test]
fn the_document_names_every_kind() {
    let unknown = serde_json::from_str::<Body>(r#"{"other":{}}"#).unwrap_err().to_string();
    let known: BTreeSet<&str> = unknown.split('`').skip(1).step_by(2).filter(|word| *word != "other").collect();
    assert_eq!(known.len(), 12, "{unknown}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/journal-format.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table = text.split("| kind | fields |").nth(1).unwrap().split("\n\n").next().unwrap();
    let documented: BTreeSet<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| line.split('`').next()).collect();
    assert_eq!(documented, known);
}
