//! The page says what the reports say, trusts no text, and fetches nothing.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::machine::{Machine, Revision};
use crate::noise::Verdict;
use crate::plot::{Axis, Plot, Series, Shape};
use crate::report::SCHEMA_VERSION;
use crate::table::Table;

const HOSTILE: &str = r#"</pre><script src="https://example.org/x.js">'&"#;

fn report(scenario: &str, noisy: bool) -> Report {
    let mut table = Table::new("Time to first token", &["player", "p50 [ms]"]);
    table.row(["stateful", "9.81"]);
    table.row([HOSTILE, "-"]);
    let points = (1..=20).map(|turn| (f64::from(turn), 10.0)).collect();
    Report {
        schema_version: SCHEMA_VERSION,
        scenario: scenario.to_owned(),
        started: "2025-06-01T12:34:56.789Z".to_owned(),
        duration_s: 41.26,
        quick: true,
        seed: 7,
        machine: Machine {
            processor: "A & B".to_owned(),
            threads: 4,
            memory_bytes: 8 << 30,
            system: "Linux".to_owned(),
        },
        revision: Revision { commit: "c0ffee".to_owned(), modified: true },
        noise: Verdict {
            noisy,
            reasons: if noisy { vec!["other processes used 20%".to_owned()] } else { Vec::new() },
            others_cpu_share: Some(0.01),
            steal_share: None,
            probe_spread: Some(0.02),
            driver_cpu_s: None,
            runtime_cpu_s: None,
            driver_cpu_share: None,
        },
        model: json!({ "name": "llama-micro" }),
        settings: json!({ "turns": 20, "hostile": HOSTILE }),
        results: json!({ "ttft_ms": [1.5, 2.5] }),
        notes: vec!["The machine was <i>ours</i>.".to_owned(), HOSTILE.to_owned()],
        tables: vec![table],
        plots: vec![Plot {
            name: "ttft".to_owned(),
            title: HOSTILE.to_owned(),
            x: Axis::linear("turn"),
            y: Axis::logarithmic("time [ms]"),
            series: vec![Series { name: HOSTILE.to_owned(), points, shape: Shape::Line }],
        }],
    }
}

#[test]
fn the_page_has_all_that_the_reports_say() {
    let page = render(&[report("turns", false), report("dense", false)]).unwrap();
    for text in [
        "<h2>turns</h2>",
        "<h2>dense</h2>",
        "A &amp; B, 4 threads, 8.0 GiB",
        "c0ffee, with changes",
        "2025-06-01 12:34 UTC",
        "quick, seed 7, 41.3 s",
        "Quiet: others used 1.0% of all cores, the host took unknown",
        "<caption>Time to first token</caption>",
        "<td>9.81</td>",
        "<svg width=\"1000\"",
        "The machine was &lt;i&gt;ours&lt;&#x2f;i&gt;.",
        "llama-micro",
        "&quot;ttft_ms&quot;: [",
    ] {
        assert!(page.contains(text), "{text} in\n{page}");
    }
}

#[test]
fn noise_is_said_where_it_was_and_nowhere_else() {
    assert!(!render(&[report("turns", false)]).unwrap().contains("NOISY"));
    let page = render(&[report("turns", false), report("dense", true)]).unwrap();
    let (before, dense) = page.split_once("<section id=\"dense\">").unwrap();
    let turns = before.split_once("<section id=\"turns\">").unwrap().1;
    assert!(dense.contains("NOISY, figures are unsure: other processes used 20%."));
    assert!(!turns.contains("NOISY"));
}

#[test]
fn no_text_becomes_markup_and_nothing_is_fetched() {
    let page = render(&[report(HOSTILE, true)]).unwrap();
    assert!(!page.contains("<script") && !page.contains("<i>"));
    assert!(page.contains("&lt;script"));
    let fetched = ["src=\"", "href=\"", "url(", "@import"].iter().flat_map(|key| page.split(key).skip(1));
    assert!(fetched.clone().count() > 0, "the links to the scenarios");
    for address in fetched {
        assert!(address.starts_with('#'), "{}", &address[..40]);
    }
}

#[test]
fn the_file_is_written_with_its_directory_and_without_reports_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/report.html");
    write(&[], &path).unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains("No scenario was played") && page.ends_with("</html>"));
}
