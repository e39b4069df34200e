//! Bad input of every kind against the real binary: each gets the status, reason and details that docs/errors.md says, and
//! leaves the runtime as it was: it answers, it is healthy, nothing runs, no KV block is held. One table drives the tests
//! and the document; `UPDATE_DOCS=1` writes the document anew.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod at_start;
mod document;
mod ground;
mod later;
mod limits;
mod names;
mod restarted;
mod sampling;
mod sessions;
mod streams;
mod tool_calls;
mod turns;
mod wire;

#[path = "../support/mod.rs"]
mod support;

use ground::{Ground, Row};

/// The rows that need no more than a runtime, by section of the document.
const SECTIONS: &[(&str, &[Row])] = &[
    ("Names", names::ROWS),
    ("Sessions", sessions::ROWS),
    ("Turns", turns::ROWS),
    ("Tool calls", tool_calls::ROWS),
    ("Sampling", sampling::ROWS),
    ("Limits", limits::ROWS),
    ("Lists and streams", streams::ROWS),
    ("In the contract, not built yet", later::ROWS),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_status_reason_and_details_and_leaves_no_trace() {
    let ground = Ground::new().await;
    let mut wrong = Vec::new();
    for row in SECTIONS.iter().flat_map(|(_, rows)| *rows) {
        let got = ground.answer(row).await;
        if got != (row.code, row.reason.to_owned(), row.details.to_owned()) {
            wrong.push(format!("{}\n    got      {got:?}\n    expected {:?}", row.input, row.expected()));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    ground.end().await;
}

#[test]
fn the_document_holds_exactly_these_rows() {
    document::check();
}

#[test]
fn the_table_is_long_enough_and_says_nothing_twice() {
    let inputs = document::inputs();
    let mut once = inputs.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), inputs.len());
    assert!(inputs.len() >= 40, "{}", inputs.len());
}
