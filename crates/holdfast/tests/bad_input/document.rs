//! docs/errors.md, written from the tables of this test and held against them.

use std::fs;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::ground::Row;
use crate::{SECTIONS, at_start, restarted, wire};

const INTRODUCTION: &str = "\
# Bad input, and what it gets

Every refused call answers a `google.rpc.Status` with a code, a message for people, and details for programs. The first
detail is an `ErrorInfo` of the domain `holdfast`, whose `reason` is one word of the closed list in
[`error.proto`](../proto/holdfast/v1/error.proto), which also says what to do next. The table tells what else is in the
details: `BadRequest` names the field, `QuotaFailure` the limit, `PreconditionFailure` the state in the way,
`ResourceInfo` the kind of resource that is meant, `RetryInfo` when to try again, and `metadata` further facts of the
`ErrorInfo`.

After each of these the runtime answers as before: it is healthy, nothing runs, and no KV block is held.

This page is written by its test: `UPDATE_DOCS=1 cargo test -p holdfast --test bad_input document` writes it anew from the
rows that `cargo test -p holdfast --test bad_input` holds against the real binary.
";

/// Fails unless the document is what the tables make of it; writes it if UPDATE_DOCS says so.
pub(crate) fn check() {
    let text = write();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path(), &text).unwrap();
    }
    let found = fs::read_to_string(path()).unwrap_or_default();
    let differs = text.lines().zip(found.lines()).find(|(wanted, found)| wanted != found);
    assert!(found == text, "docs/errors.md is not what its test says (UPDATE_DOCS=1 writes it): {differs:?}");
}

/// Every kind of bad input, in the order of the document.
pub(crate) fn inputs() -> Vec<&'static str> {
    let rows = SECTIONS.iter().flat_map(|(_, rows)| *rows).chain(wire::ROWS).map(|row| row.input);
    let behaviours = wire::BEHAVIOURS.iter().map(|behaviour| behaviour.input);
    let changes = restarted::CHANGES.iter().map(|change| change.input);
    rows.chain(behaviours).chain(changes).chain(at_start::STARTS.iter().map(|start| start.input)).collect()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md")
}

fn write() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (section, rows) in SECTIONS {
        table(&mut text, section, rows);
    }
    table(&mut text, "On the wire", wire::ROWS);
    text.push_str("\n| Behaviour | What comes of it |\n|---|---|\n");
    for behaviour in wire::BEHAVIOURS {
        text.push_str(&format!("| {} | {} |\n", capital(behaviour.input), behaviour.outcome));
    }
    heading(&mut text, "When the runtime came back as another");
    for change in restarted::CHANGES {
        line(&mut text, change.input, &status(change.code), change.reason, change.details);
    }
    text.push_str("\n## At start\n\nThe process ends with exit code 1 and a message that begins with `holdfast: ` and the reason.\n");
    text.push_str("\n| Input | Reason | The message names |\n|---|---|---|\n");
    for start in at_start::STARTS {
        text.push_str(&format!("| {} | `{}` | `{}` |\n", capital(start.input), start.reason, start.names.join("`, `")));
    }
    text
}

fn heading(text: &mut String, section: &str) {
    text.push_str(&format!("\n## {section}\n\n| Input | Status | Reason | Details |\n|---|---|---|---|\n"));
}

fn table(text: &mut String, section: &str, rows: &[Row]) {
    heading(text, section);
    for row in rows {
        line(text, row.input, &status(row.code), row.reason, row.details);
    }
}

fn line(text: &mut String, input: &str, status: &str, reason: &str, details: &str) {
    text.push_str(&format!("| {} | {status} | `{reason}` | {details} |\n", capital(input)));
}

/// `INVALID_ARGUMENT`, as the codes are written in the contract.
fn status(code: Code) -> String {
    let mut word = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(character.to_ascii_uppercase());
    }
    word
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
