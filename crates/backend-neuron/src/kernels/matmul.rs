//! Products in f32 of a few rows with one panel of a packed matrix, whose weights are f32 or bf16.
//!
//! In: rows of activations and a panel: [`PANEL`] neighbouring output features, packed so that one step along the depth
//! reads them side by side. Out: `[rows][PANEL]`. Deliberately not here: packing, threads, biases.
//!
//! A weight in bf16 is widened to the f32 that it stands for and then treated as one: the product has the bits that the same weights in f32
//! would give. The instructions that multiply bf16 directly round otherwise (and flush small numbers to zero), so they are not used.
//!
//! Order of accumulation, the same for any number of rows: the depth is cut into segments of [`SEGMENT`], each summed from zero in rising
//! order, and segments are added in order.

use super::{Isa, kernel};

/// Output features of a panel.
pub const PANEL: usize = 32;
/// Depth of a segment; short, because it also bounds rounding errors. Part of the kernels' revision.
pub(crate) const SEGMENT: usize = 256;
/// Rows that share one reading of a panel.
pub const TILE: usize = 4;

/// What a weight is held in.
pub trait Weight: Copy + Send + Sync {
    /// What it stands for.
    fn value(self) -> f32;
    /// One row times a panel `[depth][PANEL]`.
    fn row(isa: Isa, x: &[&[f32]; 1], panel: &[Self], out: &mut [[f32; PANEL]; 1]);
    /// [`TILE`] rows times a panel `[depth][PANEL]`.
    fn tile(isa: Isa, x: &[&[f32]; TILE], panel: &[Self], out: &mut [[f32; PANEL]; TILE]);
}

impl Weight for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    fn row(isa: Isa, x: &[&[f32]; 1], panel: &[Self], out: &mut [[f32; PANEL]; 1]) {
        f32_row(isa, x, panel, out);
    }

    fn tile(isa: Isa, x: &[&[f32]; TILE], panel: &[Self], out: &mut [[f32; PANEL]; TILE]) {
        f32_tile(isa, x, panel, out);
    }
}

/// bf16: the upper half of an f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// The nearest, ties to even. A finite value stays finite: what would be rounded beyond the largest becomes that.
    pub fn nearest(value: f32) -> Self {
        /// The exponent of infinities.
        const INFINITE: u16 = 0x7f80;
        let bits = value.to_bits();
        let rounded = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        Self(if value.is_finite() && rounded & INFINITE == INFINITE { rounded - 1 } else { rounded })
    }
}

impl Weight for Bf16 {
    #[inline(always)]
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    fn row(isa: Isa, x: &[&[f32]; 1], panel: &[Self], out: &mut [[f32; PANEL]; 1]) {
        bf16_row(isa, x, panel, out);
    }

    fn tile(isa: Isa, x: &[&[f32]; TILE], panel: &[Self], out: &mut [[f32; PANEL]; TILE]) {
        bf16_tile(isa, x, panel, out);
    }
}

kernel! {
    /// One row times a panel `[depth][PANEL]`.
    pub fn f32_row(x: &[&[f32]; 1], panel: &[f32], out: &mut [[f32; PANEL]; 1]) {
        rows(x, panel, out);
    }
}

kernel! {
    /// [`TILE`] rows times a panel `[depth][PANEL]`.
    pub fn f32_tile(x: &[&[f32]; TILE], panel: &[f32], out: &mut [[f32; PANEL]; TILE]) {
        rows(x, panel, out);
    }
}

kernel! {
    /// One row times a panel `[depth][PANEL]` of bf16.
    pub fn bf16_row(x: &[&[f32]; 1], panel: &[Bf16], out: &mut [[f32; PANEL]; 1]) {
        rows(x, panel, out);
    }
}

kernel! {
    /// [`TILE`] rows times a panel `[depth][PANEL]` of bf16.
    pub fn bf16_tile(x: &[&[f32]; TILE], panel: &[Bf16], out: &mut [[f32; PANEL]; TILE]) {
        rows(x, panel, out);
    }
}

#[inline(always)]
fn rows<W: Weight, const R: usize>(x: &[&[f32]; R], panel: &[W], out: &mut [[f32; PANEL]; R]) {
    let (steps, _) = panel.as_chunks::<PANEL>();
    let mut totals = [[0.0f32; PANEL]; R];
    for (segment, steps) in steps.chunks(SEGMENT).enumerate() {
        let first = segment * SEGMENT;
        let x: [&[f32]; R] = std::array::from_fn(|row| &x[row][first..first + steps.len()]);
        let mut sums = [[0.0f32; PANEL]; R];
        for (k, weights) in steps.iter().enumerate() {
            for row in 0..R {
                let value = x[row][k];
                for j in 0..PANEL {
                    sums[row][j] += value * weights[j].value();
                }
            }
        }
        for row in 0..R {
            for j in 0..PANEL {
                totals[row][j] += sums[row][j];
            }
        }
    }
    *out = totals;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    /// Each element by itself, in the stated order.
    fn plain<W: Weight>(x: &[f32], panel: &[W], j: usize) -> f32 {
        let mut total = 0.0f32;
        for (at, segment) in x.chunks(SEGMENT).enumerate() {
            let mut sum = 0.0f32;
            for (k, value) in segment.iter().enumerate() {
                sum += value * panel[(at * SEGMENT + k) * PANEL + j].value();
            }
            total += sum;
        }
        total
    }

    fn check<W: Weight>(x: &[Vec<f32>], panel: &[W]) {
        for isa in Isa::available() {
            let mut tile = [[7.0; PANEL]; TILE];
            W::tile(isa, &std::array::from_fn(|row| x[row].as_slice()), panel, &mut tile);
            for row in 0..TILE {
                let mut one = [[7.0; PANEL]];
                W::row(isa, &[&x[row]], panel, &mut one);
                for j in 0..PANEL {
                    let want = plain(&x[row], panel, j);
                    assert_eq!(tile[row][j].to_bits(), want.to_bits(), "{isa:?} depth {}", x[row].len());
                    assert_eq!(one[0][j].to_bits(), want.to_bits(), "{isa:?} depth {}", x[row].len());
                }
            }
        }
    }

    #[test]
    fn products_are_the_plain_product_in_any_tile_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(4);
        for depth in [1, 3, 17, 64, 255, 256, 257, 700] {
            let x: Vec<Vec<f32>> = (0..TILE).map(|_| (0..depth).map(|_| rng.f32() - 0.5).collect()).collect();
            let panel: Vec<f32> = (0..depth * PANEL).map(|_| rng.f32() - 0.5).collect();
            let rounded: Vec<Bf16> = panel.iter().map(|value| Bf16::nearest(*value)).collect();
            check(&x, &panel);
            check(&x, &rounded);
            // Small and large numbers too: nothing is flushed on the way.
            let any: Vec<Bf16> = (0..depth * PANEL).map(|_| Bf16(rng.u16(..) & 0xbfff)).collect();
            check(&x, &any);
            // What bf16 holds exactly has the bits of the same weights in f32.
            let (mut narrow, mut wide) = ([[0.0; PANEL]], [[0.0; PANEL]]);
            let widened: Vec<f32> = rounded.iter().map(|weight| weight.value()).collect();
            bf16_row(Isa::widest(), &[&x[0]], &rounded, &mut narrow);
            f32_row(Isa::widest(), &[&x[0]], &widened, &mut wide);
            assert_eq!(narrow.map(|row| row.map(f32::to_bits)), wide.map(|row| row.map(f32::to_bits)));
        }
    }

    #[test]
    fn bf16_is_the_nearest_and_stays_finite() {
        let nearest = |bits| Bf16::nearest(f32::from_bits(bits)).0;
        for (bits, want) in [
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0xbf81_8000, 0xbf82),
            (0x7f7f_ffff, 0x7f7f),
            (0xff7f_ffff, 0xff7f),
            (0x0000_8000, 0x0000),
            (0x0001_8000, 0x0002),
            (0x8000_0000, 0x8000),
        ] {
            assert_eq!(nearest(bits), want, "{bits:x}");
        }
        assert!(
            (0..=u16::MAX).filter(|bits| bits & 0x7f80 != 0x7f80).all(|bits| nearest(u32::from(bits) << 16) == bits)
        );
    }
}
