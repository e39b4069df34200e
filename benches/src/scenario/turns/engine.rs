//! What the device alone would take for a turn: the engine, without gateway, worker, scheduler and journal.
//!
//! In: how many tokens a turn computed, and how many it found. Out: the time up to its first sampled token. It is asked between
//! turns, while the runtime is idle. Deliberately not here: the measuring itself.

use std::time::Duration;

use holdfast_model::{Model, ModelSource};

use crate::engine::device::DeviceBench;
use crate::engine::settings::Settings;
use crate::model::Chosen;
use crate::options::Common;
use crate::player::Answer;

/// A device that was asked nothing else.
pub(super) trait Perfect {
    /// Time to compute `new` tokens after `depth` others and sample the one that follows.
    ///
    /// # Errors
    /// When they do not fit.
    fn first_token(&mut self, new: u32, depth: u32) -> anyhow::Result<Duration>;
}

/// The device that the runtime has, with the same model and settings.
///
/// # Errors
/// When the model cannot be loaded, or a setting cannot be meant.
pub(super) fn perfect(model: &Chosen, common: &Common) -> anyhow::Result<DeviceBench> {
    let model = Model::load(&ModelSource::resolve(&model.path)?)?;
    let settings = Settings::of(&common.set)?.for_model(&model);
    DeviceBench::new(&model, &settings.device, settings.chunk_tokens)
}

impl Perfect for DeviceBench {
    fn first_token(&mut self, new: u32, depth: u32) -> anyhow::Result<Duration> {
        self.turn(new, depth)
    }
}

/// What the device alone takes for what `answer` computed and found, in milliseconds.
pub(super) fn first_token_ms(perfect: &mut impl Perfect, answer: &Answer) -> anyhow::Result<f64> {
    let (new, depth) = (u32::try_from(answer.tokens.computed)?, u32::try_from(answer.tokens.cached)?);
    Ok(perfect.first_token(new, depth)?.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::player::Tokens;

    /// A millisecond for each new token, and one for every hundred before them.
    struct Exact;

    impl Perfect for Exact {
        fn first_token(&mut self, new: u32, depth: u32) -> anyhow::Result<Duration> {
            Ok(Duration::from_millis(u64::from(new + depth / 100)))
        }
    }

    #[test]
    fn the_device_is_asked_for_what_the_turn_computed() {
        let tokens = Tokens { input: 3_150, cached: 3_000, computed: 150, output: 16 };
        let answer = Answer { tokens, ..Answer::default() };
        assert_eq!(first_token_ms(&mut Exact, &answer).unwrap(), 180.0);
    }
}
