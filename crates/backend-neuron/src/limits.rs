//! What this machine can do at most: the peaks of its arithmetic and the rate at which its cores read memory.
//!
//! In: a number of threads and the time to spend. Out: [`Limits`], measured here and now, to hold a device's speed against.
//! Deliberately not here: any figure from a data sheet, and the loops that are timed (`loops`).
//!
//! An operation is one multiplication or one addition: a multiply-add is two. A figure comes from many short trials. Its `best`
//! is the limit, because whatever disturbs a trial only makes it slower; a `median` far below it tells of a busy machine.

mod loops;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::NeuronError;
use crate::pool::Pool;
use loops::{
    Loop, PORTABLE_F32, PORTABLE_INT8, PORTABLE_READ, ReadLoop, bf16_loops, f32_loops, int8_loops, read_loops,
};

/// How long one trial of a loop takes, about: long beside the waking of a thread, short beside a scheduler's slice.
const TRIAL: Duration = Duration::from_millis(5);
/// Fewest trials of a figure per call, however little time there is.
const TRIALS_MIN: usize = 3;
/// Steps that the search for a trial's length begins with.
const STEPS_MIN: u64 = 1 << 10;
/// The buffer that is read is this many times as large as the largest cache, so that little of it is found there again.
const BUFFER_PER_CACHE: u64 = 4;
/// Bounds of that buffer, in bytes.
const BUFFER_BYTES: std::ops::RangeInclusive<u64> = 256 << 20..=2 << 30;

/// One measured limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The best trial: the limit.
    pub best: f64,
    /// The median trial.
    pub median: f64,
}

/// What the machine can do with a number of threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Threads that worked at the same time.
    pub threads: usize,
    /// f32 multiply-adds in registers, 10^9 operations per second.
    pub f32_gflops: Figure,
    /// Products of 8-bit integers added up in 32 bits, in registers, 10^9 operations per second.
    pub int8_gops: Figure,
    /// Products of bf16 added up in f32, in registers, 10^9 operations per second; `None` without such instructions.
    pub bf16_gflops: Option<Figure>,
    /// Every thread reads a part of a buffer that no cache holds, 10^9 bytes per second in all.
    pub read_gb_per_s: Figure,
    /// Size of that buffer.
    pub read_buffer_bytes: u64,
    /// Which instructions were timed, for people.
    pub instructions: String,
}

/// Measures every limit once. See [`Meter`].
///
/// # Errors
/// As for [`Meter::new`].
pub fn measure(threads: usize, effort: Duration) -> Result<Limits, NeuronError> {
    let mut meter = Meter::new(threads)?;
    Ok(meter.measure(effort))
}

/// Measures limits again and again, so that a benchmark can do it between its own repetitions.
///
/// It keeps its threads, its buffer and every trial until it is dropped.
#[derive(Debug)]
pub struct Meter {
    pool: Pool,
    threads: usize,
    f32: Counted,
    int8: Counted,
    bf16: Option<Counted>,
    read: ReadLoop,
    buffer: Vec<u64>,
    reads: Vec<f64>,
}

/// A loop with the rates of its trials.
#[derive(Debug)]
struct Counted {
    timed: Loop,
    /// Steps of a trial; 0 until they are known.
    steps: u64,
    rates: Vec<f64>,
}

impl Meter {
    /// Starts the threads, the caller's among them, and takes the buffer from the system: four times the largest cache, at
    /// least 256 MiB and at most 2 GiB.
    ///
    /// # Errors
    /// [`NeuronError::Setting`] if `threads` is not 1 to 256; [`NeuronError::Threads`] if they do not start.
    pub fn new(threads: usize) -> Result<Self, NeuronError> {
        let bytes = (BUFFER_PER_CACHE * largest_cache_bytes()).clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end());
        Self::with_buffer(threads, bytes as usize / size_of::<u64>())
    }

    fn with_buffer(threads: usize, words: usize) -> Result<Self, NeuronError> {
        if !(1..=256).contains(&threads) {
            let rule = "it must be 1 to 256".to_owned();
            return Err(NeuronError::Setting { setting: "threads", value: threads.to_string(), rule });
        }
        Ok(Self {
            pool: Pool::new(threads, 0)?,
            threads,
            f32: Counted::new(f32_loops().last().copied().unwrap_or(PORTABLE_F32)),
            int8: Counted::new(int8_loops().last().copied().unwrap_or(PORTABLE_INT8)),
            bf16: bf16_loops().last().copied().map(Counted::new),
            read: read_loops().last().copied().unwrap_or(PORTABLE_READ),
            // Written, so that every page is memory of its own.
            buffer: (0..words as u64).collect(),
            reads: Vec::new(),
        })
    }

    /// Measures for about `effort` in equal shares, at least three trials of each limit, and returns what all trials say up
    /// to now.
    pub fn measure(&mut self, effort: Duration) -> Limits {
        let share = effort / if self.bf16.is_some() { 4 } else { 3 };
        for counted in [&mut self.f32, &mut self.int8].into_iter().chain(&mut self.bf16) {
            counted.measure(&self.pool, self.threads, share);
        }
        let bytes = size_of_val(self.buffer.as_slice()) as f64;
        trials(share, || {
            let spent = timed(|| {
                black_box(self.sum());
            });
            self.reads.push(bytes / spent.as_nanos().max(1) as f64);
        });
        let [f32, int8] = [&self.f32, &self.int8].map(|counted| figure(&counted.rates));
        let bf16_name = self.bf16.as_ref().map_or("none", |counted| counted.timed.name);
        Limits {
            threads: self.threads,
            f32_gflops: f32,
            int8_gops: int8,
            bf16_gflops: self.bf16.as_ref().map(|counted| figure(&counted.rates)),
            read_gb_per_s: figure(&self.reads),
            read_buffer_bytes: size_of_val(self.buffer.as_slice()) as u64,
            instructions: format!(
                "f32: {}; int8: {}; bf16: {bf16_name}; reads: {}",
                self.f32.timed.name, self.int8.timed.name, self.read.name
            ),
        }
    }

    /// The sum of the buffer, wrapping, read once by all threads.
    fn sum(&self) -> u64 {
        let sums: Vec<_> = (0..self.threads).map(|_| AtomicU64::new(0)).collect();
        let part = self.buffer.len().div_ceil(self.threads);
        self.pool.run(self.threads, usize::MAX, |thread| {
            let first = (thread * part).min(self.buffer.len());
            let last = (first + part).min(self.buffer.len());
            sums[thread].store(self.read.sum(&self.buffer[first..last]), Ordering::Relaxed);
        });
        sums.into_iter().fold(0, |sum, part| sum.wrapping_add(part.into_inner()))
    }
}

impl Counted {
    fn new(timed: Loop) -> Self {
        Self { timed, steps: 0, rates: Vec::new() }
    }

    fn measure(&mut self, pool: &Pool, threads: usize, share: Duration) {
        let timed_loop = self.timed;
        let run = |steps: u64| {
            timed(|| {
                pool.run(threads, usize::MAX, |_| {
                    black_box(timed_loop.run(black_box(steps)));
                });
            })
        };
        if self.steps == 0 {
            // Doubling also lets the cores reach the clock that they keep under this load.
            self.steps = STEPS_MIN;
            while run(self.steps) < TRIAL {
                self.steps *= 2;
            }
        }
        let operations = (self.steps * timed_loop.operations_per_step * threads as u64) as f64;
        trials(share, || self.rates.push(operations / run(self.steps).as_nanos().max(1) as f64));
    }
}

/// Calls `trial` until `share` is spent, and at least [`TRIALS_MIN`] times.
fn trials(share: Duration, mut trial: impl FnMut()) {
    let mut spent = Duration::ZERO;
    let mut done = 0;
    while done < TRIALS_MIN || spent < share {
        spent += timed(&mut trial);
        done += 1;
    }
}

#[expect(clippy::disallowed_methods, reason = "measuring is what this file is for; nothing else is decided by it")]
fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Best and median of at least one rate.
fn figure(rates: &[f64]) -> Figure {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    Figure { best: sorted[sorted.len() - 1], median: sorted[sorted.len() / 2] }
}

/// Bytes of the first core's largest cache as Linux tells it; 0 where nobody does.
fn largest_cache_bytes() -> u64 {
    let sizes = (0..8).filter_map(|index| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()
    });
    sizes.filter_map(|size| cache_bytes(size.trim())).max().unwrap_or(0)
}

/// A size as Linux writes it: `2048K`.
fn cache_bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_figure_is_a_rate() {
        for threads in [1, 2] {
            let mut meter = Meter::with_buffer(threads, 1 << 16).unwrap();
            let first = meter.measure(Duration::ZERO);
            let second = meter.measure(Duration::ZERO);
            for limits in [&first, &second] {
                let figures = [limits.f32_gflops, limits.int8_gops, limits.read_gb_per_s];
                for figure in figures.into_iter().chain(limits.bf16_gflops) {
                    assert!(
                        figure.best.is_finite() && figure.median > 0.0 && figure.best >= figure.median,
                        "{limits:?}"
                    );
                }
            }
            assert!(second.f32_gflops.best >= first.f32_gflops.best, "trials add up");
            assert_eq!(meter.reads.len(), 2 * TRIALS_MIN);
            assert_eq!(first.read_buffer_bytes, 8 << 16);
        }
    }

    #[test]
    fn every_word_is_read_once_on_any_number_of_threads() {
        for (threads, words) in [(1, 1), (1, 1_000), (2, 64), (3, 12_345), (5, 3), (2, 1 << 14)] {
            let meter = Meter::with_buffer(threads, words).unwrap();
            assert_eq!(meter.sum(), (words * (words - 1) / 2) as u64, "{threads} threads, {words} words");
        }
    }

    #[test]
    fn threads_are_bounded() {
        assert!(measure(0, Duration::ZERO).unwrap_err().to_string().starts_with("device setting threads is 0"));
        assert!(Meter::new(257).is_err());
    }

    #[test]
    fn the_best_is_the_limit_and_the_median_stands_beside_it() {
        assert_eq!(figure(&[3.0, 1.0, 2.0]), Figure { best: 3.0, median: 2.0 });
        assert_eq!(figure(&[7.0]), Figure { best: 7.0, median: 7.0 });
    }

    #[test]
    fn cache_sizes_are_understood() {
        assert_eq!(cache_bytes("48K"), Some(48 << 10));
        assert_eq!(cache_bytes("260M"), Some(260 << 20));
        assert_eq!(cache_bytes("512"), Some(512));
        assert_eq!(cache_bytes("big"), None);
    }
}
