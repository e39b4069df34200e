//! The suite that every backend passes: against the reference forward, against itself bit for bit in other batches,
//! chunkings, slots and blocks, and against wrong plans.
//!
//! In: a factory of fresh devices, all with the same model, a [`Reference`] for that model and a [`Tolerance`]. Out: a [`Report`],
//! or a panic that says which rule broke. Deliberately not here: speed.
//!
//! ```text
//! let report = conformance::run(&mut || Box::new(device()), &reference, Tolerance { abs: 1e-4, rel: 1e-4 });
//! ```

mod plan;
mod rejections;
mod rig;
mod sampling;
mod state;

use holdfast_types::{DeviceDescription, Precision};

use crate::Backend;
pub use plan::PlanBuilder;
use rig::Rig;

/// The oracle: a plain forward pass of the model that the device holds.
pub trait Reference {
    /// Logits of every position of `tokens`, `[tokens][vocab_size]`.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>>;
}

/// How far a device's logits may be from the reference's: `|got - want| <= abs + rel * |want|` for each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f32,
    /// Part relative to the reference.
    pub rel: f32,
}

/// What the suite saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Names of the checks that passed, once per precision.
    pub checks: Vec<(Precision, &'static str)>,
    /// Rows of logits that were compared with the reference.
    pub rows_compared: usize,
    /// Largest absolute distance from the reference.
    pub max_abs_error: f32,
    /// Root of the mean square distance, divided by the root of the mean square reference.
    pub relative_rms_error: f64,
}

/// The least a device must offer for the suite to say anything.
const SLOTS_MIN: u32 = 4;
const ROWS_MIN: u32 = 8;
/// Sequences of the suite are this many blocks and a bit long.
const FULL_BLOCKS: u32 = 3;
const BIT: u32 = 5;
/// Blocks per group that the suite uses at once.
const BLOCKS_MIN: u32 = 4 * (FULL_BLOCKS + 1);

/// Runs every check at every precision that the device lists.
///
/// The device needs at least 4 slots, steps of 8 rows and 4 sequences, 16 blocks per group, and a context of three blocks and five
/// tokens.
///
/// # Panics
/// When a rule is broken, with the rule.
#[track_caller]
pub fn run(factory: &mut dyn FnMut() -> Box<dyn Backend>, reference: &dyn Reference, tolerance: Tolerance) -> Report {
    let description = factory().describe().clone();
    check_description(&description);
    let mut report = Report::default();
    let mut squares = (0.0f64, 0.0f64);
    for precision in description.precisions.clone() {
        let mut rig = Rig::new(factory, precision);
        against_reference(&mut rig, reference, tolerance, &mut report, &mut squares);
        let mut done = |name| report.checks.push((precision, name));
        done("the reference's logits within tolerance");
        for (name, check) in CHECKS {
            check(&mut rig);
            rig.renew();
            done(name);
        }
    }
    report.relative_rms_error = (squares.0 / squares.1.max(f64::MIN_POSITIVE)).sqrt();
    report
}

type Check = fn(&mut Rig<'_>);

const CHECKS: &[(&str, Check)] = &[
    ("any chunking", state::chunkings),
    ("alone or in a batch", state::batches),
    ("any slot and block ids", state::ids),
    ("block copies inside the device", state::copy_on_write),
    ("shared prefix blocks", state::shared_prefix),
    ("nothing behind a window is read", state::windows),
    ("export and import", state::export_and_import),
    ("a step that was told to begin", state::started_step),
    ("scratch leaves no trace", state::scratch),
    ("a closed slot is new again", state::reopened_slot),
    ("samples are the shared sampler's", sampling::shared_sampler),
    ("masks", sampling::masks),
    ("the last sample as input", sampling::last_sample),
    ("only accepted samples", sampling::accepted_samples),
    ("wrong plans are rejected whole", rejections::plans),
    ("wrong tickets, masks and copies are rejected", rejections::late_and_copies),
];

#[track_caller]
fn check_description(d: &DeviceDescription) {
    assert!(!d.kv_groups.is_empty() && !d.precisions.is_empty() && d.block_tokens > 0 && d.vocab_size > 1, "{d:?}");
    assert!(d.slots >= SLOTS_MIN && d.limits.sequences >= SLOTS_MIN, "the suite needs {SLOTS_MIN} slots: {d:?}");
    assert!(d.limits.rows >= ROWS_MIN, "the suite needs steps of {ROWS_MIN} rows: {d:?}");
    assert!(d.limits.in_flight >= 1, "a device takes at least one step: {d:?}");
    assert!(d.limits.context >= FULL_BLOCKS * d.block_tokens + BIT, "the suite needs more context: {d:?}");
    for group in &d.kv_groups {
        assert!(group.blocks >= BLOCKS_MIN, "the suite needs {BLOCKS_MIN} blocks per group: {d:?}");
        assert!(group.bytes_per_block > 0 && !group.layers.is_empty(), "{d:?}");
    }
}

#[track_caller]
fn against_reference(
    rig: &mut Rig<'_>,
    reference: &dyn Reference,
    tolerance: Tolerance,
    report: &mut Report,
    squares: &mut (f64, f64),
) {
    for seed in 0..3 {
        let tokens = rig.tokens(seed);
        let wanted = reference.logits(&tokens);
        let got = rig.computed_anew(&tokens);
        assert_eq!(wanted.len(), got.len(), "one row of logits per token");
        for (position, (want, got)) in wanted.iter().zip(&got).enumerate() {
            assert_eq!(want.len(), got.len(), "a row of logits is as long as the vocabulary");
            for (token, (want, got)) in want.iter().zip(got).enumerate() {
                let error = (want - got).abs();
                assert!(
                    error <= tolerance.abs + tolerance.rel * want.abs(),
                    "logit of token {token} at position {position} is {got}, the reference says {want} ({tolerance:?}, {:?})",
                    rig.precision,
                );
                report.max_abs_error = report.max_abs_error.max(error);
                squares.0 += f64::from(error) * f64::from(error);
                squares.1 += f64::from(*want) * f64::from(*want);
            }
        }
        report.rows_compared += got.len();
    }
}
