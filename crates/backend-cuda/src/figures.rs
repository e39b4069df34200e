//! What a card does at most: the ceilings that steps are measured against.
//!
//! In: settings. Out: [`CardFigures`]. Measured on the card as it is found, in about a second. Deliberately not here: steps of a model.

use std::time::Instant;

use crate::card::{Address, Card, CardError, Launch, launch};
use crate::gpu::Gpu;
use crate::kernels::{Kernel, RATE_CHAINS, ROW_THREADS, RateParams};
use crate::{CudaError, CudaSettings};

/// Bytes that are copied at once: many times the second cache.
const COPY_BYTES: u64 = 1 << 30;
/// Bytes over the link at once.
const LINK_BYTES: u64 = 256 << 20;
/// Times that each measurement is done; the first only warms up.
const ROUNDS: u32 = 6;
/// Matrix instructions of each chain.
const RATE_STEPS: u32 = 20_000;

/// Rates of a card, in units of one and second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardFigures {
    /// Bytes read plus bytes written by a large copy inside of the card.
    pub copy_bytes_per_s: f64,
    /// Multiplications plus additions of the bf16 matrix instruction that the kernels use, from registers.
    pub bf16_operations_per_s: f64,
    /// The same of the 8-bit one.
    pub int8_operations_per_s: f64,
    /// Bytes from the card to pinned memory.
    pub to_host_bytes_per_s: f64,
    /// Bytes from pinned memory to the card.
    pub from_host_bytes_per_s: f64,
}

/// Measures a card.
///
/// # Errors
/// As for [`crate::CudaDevice::new`].
pub fn figures(settings: &CudaSettings) -> Result<CardFigures, CudaError> {
    let (mut card, info) = Gpu::open(settings)?;
    let (from, to) = (card.allocate(COPY_BYTES)?, card.allocate(COPY_BYTES)?);
    let copy_s = best(&mut card, |card| card.copy(from, to, COPY_BYTES))?;
    let blocks = info.multiprocessors * 8;
    let out = card.allocate(u64::from(blocks * ROW_THREADS) * 4)?;
    let warps = u64::from(blocks * ROW_THREADS / 32);
    // A product of 16 x 16 and 16 x 8, or of 16 x 32 and 32 x 8.
    let operations = |depth: u64| (warps * u64::from(RATE_STEPS) * RATE_CHAINS * 2 * 16 * 8 * depth) as f64;
    let mut rate = |integers: u32| {
        let params = RateParams { out, steps: RATE_STEPS, integers };
        let whole = Launch { grid: [blocks, 1, 1], shared_bytes: 0 };
        best(&mut card, |card| launch(card, Kernel::MatrixRate, whole, &params))
    };
    let (bf16_s, int8_s) = (rate(0)?, rate(1)?);
    let bytes = vec![0x5a; LINK_BYTES as usize];
    let to_host_s = best(&mut card, |card| {
        let copy = card.begin_export(from, LINK_BYTES)?;
        card.order_after(copy)?;
        finish(card, copy)
    })?;
    let from_host_s = best(&mut card, |card| {
        let copy = card.begin_import(to, &bytes)?;
        card.order_after(copy)?;
        finish(card, copy)
    })?;
    Ok(CardFigures {
        copy_bytes_per_s: 2.0 * COPY_BYTES as f64 / copy_s,
        bf16_operations_per_s: operations(16) / bf16_s,
        int8_operations_per_s: operations(32) / int8_s,
        to_host_bytes_per_s: LINK_BYTES as f64 / to_host_s,
        from_host_bytes_per_s: LINK_BYTES as f64 / from_host_s,
    })
}

/// Waits for a copy and forgets what it brought.
fn finish(card: &mut Gpu, copy: crate::card::CopyId) -> Result<(), CardError> {
    card.download(Address::NULL, &mut [])?;
    while card.poll_copy(copy)?.is_none() {
        std::thread::yield_now();
    }
    Ok(())
}

/// The shortest time that something takes until the card has done it, seconds.
#[expect(clippy::disallowed_methods, reason = "a measurement reads a clock")]
fn best(card: &mut Gpu, mut run: impl FnMut(&mut Gpu) -> Result<(), CardError>) -> Result<f64, CardError> {
    let mut best = f64::INFINITY;
    for round in 0..ROUNDS {
        card.download(Address::NULL, &mut [])?;
        let begun = Instant::now();
        run(card)?;
        card.download(Address::NULL, &mut [])?;
        if round > 0 {
            best = best.min(begun.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}
