//! What `resume` shows: keys, two tables, one plot, and notes.

use std::time::Duration;

use serde_json::{Value, json};

use super::Arguments;
use super::stand::{Found, MidTurn};
use crate::model::Chosen;
use crate::plot::{Axis, Plot, Series, Shape};
use crate::report::Outcome;
use crate::statistics::{Summary, ratios};
use crate::table::{Table, number};

/// Samples of all repetitions.
struct Figures {
    cold_ttft_ms: Vec<f64>,
    restored_ttft_ms: Vec<f64>,
    cold_start_s: Vec<f64>,
    restart_s: Vec<f64>,
    /// Cold over restored, pair by pair.
    speedup: Summary,
    /// Of the restored turns' input: in all, found, and computed again.
    input_tokens: u64,
    cached_tokens: u64,
    recomputed_tokens: u64,
    /// Of the cold turns.
    cold_input_tokens: u64,
}

impl Figures {
    fn of(found: &Found) -> Self {
        let all = &found.repetitions;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let cold_ttft_ms: Vec<_> = all.iter().map(|one| ms(one.cold.first_token)).collect();
        let restored_ttft_ms: Vec<_> = all.iter().map(|one| ms(one.restored.answer.first_token)).collect();
        Self {
            speedup: Summary::of(&ratios(&cold_ttft_ms, &restored_ttft_ms)),
            cold_ttft_ms,
            restored_ttft_ms,
            cold_start_s: all.iter().map(|one| one.cold_start.as_secs_f64()).collect(),
            restart_s: all.iter().map(|one| one.restart.as_secs_f64()).collect(),
            input_tokens: all.iter().map(|one| one.restored.usage.input_tokens).sum(),
            cached_tokens: all.iter().map(|one| one.restored.usage.cached_tokens).sum(),
            recomputed_tokens: all.iter().map(|one| one.restored.usage.recomputed_tokens).sum(),
            cold_input_tokens: all.iter().map(|one| one.cold.tokens.input).sum(),
        }
    }
}

/// Everything that the scenario found.
pub(super) fn outcome(arguments: &Arguments, model: &Chosen, found: &Found) -> Outcome {
    let figures = Figures::of(found);
    Outcome {
        results: results(&figures, found),
        model: model.describe(),
        settings: json!({ "tokens": arguments.tokens(), "repetitions": arguments.repetitions() }),
        tables: vec![times(&figures, found), story(found)],
        plots: vec![plot(&figures)],
        notes: notes(&figures, found),
    }
}

fn identical(found: &Found) -> bool {
    found.differs.is_none() && found.items_identical
}

fn results(figures: &Figures, found: &Found) -> Value {
    let median = |samples: &[f64]| Summary::of(samples).median;
    json!({
        "cold_ttft_ms": median(&figures.cold_ttft_ms),
        "restored_ttft_ms": median(&figures.restored_ttft_ms),
        "speedup": figures.speedup.median,
        "speedup_spread": figures.speedup.spread,
        "lost_events": found.losses.events.len(),
        "lost_items": found.losses.items,
        "identical": identical(found),
        "restart_s": median(&figures.restart_s),
        "cold_start_s": median(&figures.cold_start_s),
        "cold_ttft_ms_by_repetition": figures.cold_ttft_ms,
        "restored_ttft_ms_by_repetition": figures.restored_ttft_ms,
        "input_tokens": figures.input_tokens,
        "cached_tokens": figures.cached_tokens,
        "recomputed_tokens": figures.recomputed_tokens,
        "cold_input_tokens": figures.cold_input_tokens,
        "mid_turn": found.mid_turn.as_ref().map(|one| json!({
            "tokens_before": one.tokens_before,
            "next_token_ms": one.rest.first_token.as_secs_f64() * 1e3,
        })),
        "dropped_files": found.dropped_files,
    })
}

fn times(figures: &Figures, found: &Found) -> Table {
    let title = format!(
        "The turn after a SIGKILL, {} times, in turn with the same conversation given whole to a fresh runtime",
        found.repetitions.len()
    );
    let mut table = Table::new(&title, &["", "median", "spread", "min", "max"]);
    let mut row = |name: &str, samples: &[f64]| {
        let Summary { median, spread, min, max, .. } = Summary::of(samples);
        table.row([name.to_owned(), number(median), format!("{:.0}%", spread * 100.0), number(min), number(max)]);
    };
    row("cold time to first token [ms]", &figures.cold_ttft_ms);
    row("restored time to first token [ms]", &figures.restored_ttft_ms);
    row("cold / restored", &ratios(&figures.cold_ttft_ms, &figures.restored_ttft_ms));
    row("start before cold [s]", &figures.cold_start_s);
    row("restart before restored [s]", &figures.restart_s);
    table
}

fn story(found: &Found) -> Table {
    let mut table = Table::new("The session's story after the restarts", &["", "read before", "lost or different"]);
    let losses = &found.losses;
    table.row(["events".to_owned(), losses.known_events.to_string(), losses.events.len().to_string()]);
    table.row(["items".to_owned(), losses.known_items.to_string(), losses.items.to_string()]);
    table
}

fn notes(figures: &Figures, found: &Found) -> Vec<String> {
    let mut notes = vec![
        identical_note(found),
        format!(
            "Of the {} input tokens of the restored turns, {} were found and {} were computed again{}.",
            figures.input_tokens,
            figures.cached_tokens,
            figures.recomputed_tokens,
            if figures.cached_tokens == 0 {
                ": nothing of the computed state outlives the process, so a restart costs what a \
              cold start costs"
            } else {
                ""
            }
        ),
    ];
    notes.extend(found.mid_turn.as_ref().map(mid_turn_note));
    notes.extend(page_cache_note(found).map(ToOwned::to_owned));
    notes
}

fn identical_note(found: &Found) -> String {
    match (found.differs, found.items_identical) {
        (None, true) => "Every answer is the uninterrupted twin's, token by token and to the last bit of its log \
                         probabilities, and so is every item."
            .to_owned(),
        (None, false) => "The answers are the uninterrupted twin's, but its items are not.".to_owned(),
        (Some(turn), _) => format!("The answer of turn {turn} is not the uninterrupted twin's."),
    }
}

fn mid_turn_note(one: &MidTurn) -> String {
    format!(
        "Killed within an answer after {} tokens were read: the next piece came {} ms after attaching again.",
        one.tokens_before,
        number(one.rest.first_token.as_secs_f64() * 1e3)
    )
}

fn page_cache_note(found: &Found) -> Option<&'static str> {
    match found.dropped_files {
        None => Some(
            "This system has no way to drop files from the page cache: what was read at the start may have come from memory.",
        ),
        Some(_) if found.model_kept => {
            Some("The model is no file or directory here: its pages stayed in the page cache.")
        }
        Some(_) => None,
    }
}

fn plot(figures: &Figures) -> Plot {
    let series = |name: &str, samples: &[f64]| Series {
        name: name.to_owned(),
        points: (1..).map(f64::from).zip(samples.iter().copied()).collect(),
        shape: Shape::Bars,
    };
    Plot {
        name: "resume-ttft".to_owned(),
        title: "Time to first token after a restart".to_owned(),
        x: Axis::linear("repetition"),
        y: Axis::linear("time to first token [ms]"),
        series: vec![series("cold", &figures.cold_ttft_ms), series("restored", &figures.restored_ttft_ms)],
    }
}
