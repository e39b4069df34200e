//! What `turns` shows: keys, a table, three plots, and notes on what a reader might stumble over.

use serde_json::{Map, Value, json};

use super::figures::{self, Figures, LAST_TURNS, Speedup};
use super::{Arguments, Line, Played};
use crate::model::Chosen;
use crate::player::Answer;
use crate::plot::{Axis, Plot, Series, Shape};
use crate::report::Outcome;
use crate::statistics::{Summary, median, ratios};
use crate::table::{Table, number};

/// One player's name and figures.
struct Shown<'a> {
    name: &'a str,
    figures: Figures,
}

/// Everything that the scenario found.
pub(super) fn outcome(arguments: &Arguments, model: &Chosen, played: &Played) -> Outcome {
    let shown = |line: &'_ Line| Figures::of(&line.answers);
    let shown: Vec<_> = played.lines.iter().map(|line| Shown { name: &line.name, figures: shown(line) }).collect();
    Outcome {
        results: results(&shown, played),
        model: model.describe(),
        settings: json!({
            "turns": arguments.turns(),
            "answer_tokens": arguments.answer_tokens,
            "history_tokens": played.log_tokens,
            "peers": shown[2..].iter().map(|shown| shown.name).collect::<Vec<_>>(),
        }),
        tables: vec![table(&shown, played)],
        plots: plots(&shown),
        notes: notes(&shown, played),
    }
}

fn results(shown: &[Shown<'_>], played: &Played) -> Value {
    let (stateful, stateless) = (&shown[0].figures, &shown[1].figures);
    let Speedup { speedup_total, speedup_ttft_last } = stateful.speedup_over(stateless);
    let over_engine = over_engine(stateful, played);
    let peers = shown[2..].iter().map(|peer| (peer.name.to_owned(), peer_results(stateful, &peer.figures)));
    json!({
        "stateful": stateful,
        "stateless": stateless,
        "speedup_total": speedup_total,
        "speedup_ttft_last": speedup_ttft_last,
        "speedup_ttft_last_turns": stateful.last_ttft_ms().len(),
        "ttft_over_engine": over_engine.median,
        "ttft_over_engine_spread": over_engine.spread,
        "engine_ttft_ms": played.engine_ms,
        "peers": peers.collect::<Map<_, _>>(),
    })
}

fn peer_results(stateful: &Figures, peer: &Figures) -> Value {
    let Speedup { speedup_total, speedup_ttft_last } = stateful.speedup_over(peer);
    let mut results = json!(peer);
    results["speedup_total"] = json!(speedup_total);
    results["speedup_ttft_last"] = json!(speedup_ttft_last);
    results
}

fn over_engine(stateful: &Figures, played: &Played) -> Summary {
    Summary::of(&ratios(&stateful.ttft_ms, &played.engine_ms))
}

fn table(shown: &[Shown<'_>], played: &Played) -> Table {
    let (turns, history) = (shown[0].figures.ttft_ms.len(), played.log_tokens);
    let title = format!(
        "{turns} turns, history up to {history} tokens. TTFT: time to first token; last: median of the last {LAST_TURNS} turns \
         (spread: distance of the quartiles over it); x: times the stateful player's"
    );
    let mut table = Table::new(
        &title,
        &[
            "player",
            "computed tokens",
            "turns [s]",
            "x",
            "TTFT, all [ms]",
            "last [ms]",
            "spread",
            "x",
            "between words [ms]",
        ],
    );
    for Shown { name, figures } in shown {
        let last = Summary::of(figures.last_ttft_ms());
        let Speedup { speedup_total, speedup_ttft_last } = shown[0].figures.speedup_over(figures);
        table.row([
            (*name).to_owned(),
            figures.computed_tokens.to_string(),
            number(figures.total_s),
            number(speedup_total),
            number(median(&figures.ttft_ms)),
            number(last.median),
            format!("{:.0}%", last.spread * 100.0),
            number(speedup_ttft_last),
            number(figures.itl_ms.p50),
        ]);
    }
    table
}

fn notes(shown: &[Shown<'_>], played: &Played) -> Vec<String> {
    let stateful = &played.lines[0].answers;
    let mut notes = vec![engine_note(over_engine(&shown[0].figures, played))];
    notes.extend(once_note(shown[0].figures.computed_tokens, figures::computed_if_once(played.log_tokens, stateful)));
    notes.extend(played.lines[1..].iter().filter_map(|line| apart_note(&line.name, stateful, &line.answers)));
    notes
}

fn engine_note(ratios: Summary) -> String {
    format!(
        "The stateful time to first token is {} times what the device alone takes (median over turns; {} to {}).",
        number(ratios.median),
        number(ratios.min),
        number(ratios.max)
    )
}

fn once_note(computed: u64, once: u64) -> Option<String> {
    (computed != once).then(|| {
        format!("The session computed {computed} input tokens; each token of its log once would have been {once}.")
    })
}

fn apart_note(name: &str, stateful: &[Answer], other: &[Answer]) -> Option<String> {
    let lengths = figures::turns_apart(stateful, other, |answer| answer.tokens.output);
    let texts = figures::turns_apart(stateful, other, |answer| answer.text.clone());
    (lengths + texts > 0).then(|| {
        format!(
            "Of {} answers, {name} gave {texts} with another text than the session and {lengths} of another length: an answer that is \
             sent again as text need not become the tokens that were sampled.",
            stateful.len()
        )
    })
}

fn plots(shown: &[Shown<'_>]) -> Vec<Plot> {
    let series = |name: &str, values: Vec<f64>| Series {
        name: name.to_owned(),
        points: (1..).map(f64::from).zip(values).collect(),
        shape: Shape::Line,
    };
    let all =
        |values: fn(&Figures) -> Vec<f64>| shown.iter().map(|line| series(line.name, values(&line.figures))).collect();
    let plot = |name: &str, title: &str, y: Axis, series: Vec<Series>| Plot {
        name: name.to_owned(),
        title: title.to_owned(),
        x: Axis::linear("turn"),
        y,
        series,
    };
    vec![
        plot(
            "turns-ttft",
            "Time to first token by turn",
            Axis::logarithmic("time to first token [ms]"),
            all(|figures| figures.ttft_ms.clone()),
        ),
        plot(
            "turns-computed",
            "Input tokens computed since the first turn",
            Axis::linear("computed input [tokens]"),
            all(|figures| figures::cumulated(figures.computed_tokens_by_turn.iter().map(|tokens| *tokens as f64))),
        ),
        plot(
            "turns-time",
            "Time of all turns since the first",
            Axis::linear("time [s]"),
            all(|figures| figures::cumulated(figures.turn_ms.iter().map(|ms| ms / 1e3))),
        ),
    ]
}
