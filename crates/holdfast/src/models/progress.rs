//! What a person sees on standard error while a large model is read. Nothing where nobody looks: not in a pipe, not in a log.

use std::time::Duration;

use holdfast_model::{LoadProgress, Model, ModelError, ModelSource};
use indicatif::{ProgressBar, ProgressStyle};

/// Between two pictures of a spinner.
const TICK: Duration = Duration::from_millis(120);

/// Of a bar of bytes.
const BYTES: &str = "{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left";
/// Of work of unknown length.
const SPINNER: &str = "{spinner} {msg} {elapsed}";

/// Loads a model, and shows how far that is: a bar while weights are read, a spinner before and after.
pub(crate) fn load(source: &ModelSource) -> Result<Model, ModelError> {
    let bar = ProgressBar::new(0).with_message(format!("checking {source}"));
    style(&bar, SPINNER);
    bar.enable_steady_tick(TICK);
    let mut shown = None;
    let loaded = Model::load_with(source, &mut |progress| {
        if shown.replace(std::mem::discriminant(&progress)) != Some(std::mem::discriminant(&progress)) {
            let (what, template) = match progress {
                LoadProgress::Checksums => ("checking", SPINNER),
                LoadProgress::Weights { .. } => ("reading", BYTES),
                LoadProgress::Text => ("proving the template of", SPINNER),
            };
            style(&bar, template);
            bar.set_message(format!("{what} {source}"));
        }
        if let LoadProgress::Weights { bytes_read, bytes_total } = progress {
            bar.set_length(bytes_total);
            bar.set_position(bytes_read);
        }
    });
    bar.finish_and_clear();
    loaded
}

/// A bar of bytes, of a length that is told later.
pub(super) fn bytes(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what);
    style(&bar, BYTES);
    bar
}

fn style(bar: &ProgressBar, template: &str) {
    // The templates are constants; one that cannot be read leaves the bar's own.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
