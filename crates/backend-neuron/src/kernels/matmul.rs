//! Products of a few rows with one panel of a packed matrix, in f32 and in int8.
//!
//! In: rows of activations and a panel: [`PANEL`] neighbouring output features, packed so that one step along the depth
//! reads them side by side. Out: `[rows][PANEL]`. Deliberately not here: packing, threads, biases.
//!
//! Order of accumulation, the same for any number of rows: in f32 the depth is cut into segments of [`SEGMENT`], each summed from
//! zero in rising order, and segments are added in order; in int8 each group of 32 is summed exactly in integers, scaled, and
//! groups are added in order.

use super::kernel;
use super::quantise::GROUP;

/// Output features of a panel.
pub const PANEL: usize = 32;
/// Depth of a segment; short, because it also bounds rounding errors. Part of the kernels' revision.
pub(crate) const SEGMENT: usize = 256;
/// Rows that share one reading of a panel.
pub const TILE: usize = 4;

/// One row of quantised activations.
#[derive(Debug, Clone, Copy)]
pub struct Quantised<'a> {
    /// `[groups][GROUP]`, in -127..=127.
    pub codes: &'a [i8],
    /// `[groups]`.
    pub scales: &'a [f32],
}

/// One panel of int8 weights.
#[derive(Debug, Clone, Copy)]
pub struct Int8Panel<'a> {
    /// `[groups][GROUP][PANEL]`, in -127..=127.
    pub codes: &'a [i8],
    /// `[groups][PANEL]`.
    pub scales: &'a [f32],
}

kernel! {
    /// One row times a panel `[depth][PANEL]`.
    pub fn f32_row(x: &[&[f32]; 1], panel: &[f32], out: &mut [[f32; PANEL]; 1]) {
        f32_rows(x, panel, out);
    }
}

kernel! {
    /// [`TILE`] rows times a panel `[depth][PANEL]`.
    pub fn f32_tile(x: &[&[f32]; TILE], panel: &[f32], out: &mut [[f32; PANEL]; TILE]) {
        f32_rows(x, panel, out);
    }
}

kernel! {
    /// One quantised row times an int8 panel.
    pub fn int8_row(x: &[Quantised<'_>; 1], panel: Int8Panel<'_>, out: &mut [[f32; PANEL]; 1]) {
        int8_rows(x, panel, out);
    }
}

kernel! {
    /// [`TILE`] quantised rows times an int8 panel.
    pub fn int8_tile(x: &[Quantised<'_>; TILE], panel: Int8Panel<'_>, out: &mut [[f32; PANEL]; TILE]) {
        int8_rows(x, panel, out);
    }
}

#[inline(always)]
fn f32_rows<const R: usize>(x: &[&[f32]; R], panel: &[f32], out: &mut [[f32; PANEL]; R]) {
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
                    sums[row][j] += value * weights[j];
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

#[inline(always)]
fn int8_rows<const R: usize>(x: &[Quantised<'_>; R], panel: Int8Panel<'_>, out: &mut [[f32; PANEL]; R]) {
    let (steps, _) = panel.codes.as_chunks::<PANEL>();
    let (scales, _) = panel.scales.as_chunks::<PANEL>();
    let mut totals = [[0.0f32; PANEL]; R];
    for (group, (steps, scales)) in steps.chunks_exact(GROUP).zip(scales).enumerate() {
        let codes: [&[i8]; R] = std::array::from_fn(|row| &x[row].codes[group * GROUP..(group + 1) * GROUP]);
        let mut sums = [[0i32; PANEL]; R];
        for (pair, two) in steps.chunks_exact(2).enumerate() {
            for row in 0..R {
                let (a, b) = (i16::from(codes[row][pair * 2]), i16::from(codes[row][pair * 2 + 1]));
                for j in 0..PANEL {
                    // Codes are at most 127: two products fit in 16 bits, the sum of a group in 32. Wrapping only
                    // spares the checks.
                    let products =
                        a.wrapping_mul(i16::from(two[0][j])).wrapping_add(b.wrapping_mul(i16::from(two[1][j])));
                    sums[row][j] = sums[row][j].wrapping_add(i32::from(products));
                }
            }
        }
        for row in 0..R {
            let scale = x[row].scales[group];
            for j in 0..PANEL {
                totals[row][j] += sums[row][j] as f32 * (scale * scales[j]);
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
    fn plain_f32(x: &[f32], panel: &[f32], j: usize) -> f32 {
        let mut total = 0.0f32;
        for (at, segment) in x.chunks(SEGMENT).enumerate() {
            let mut sum = 0.0f32;
            for (k, value) in segment.iter().enumerate() {
                sum += value * panel[(at * SEGMENT + k) * PANEL + j];
            }
            total += sum;
        }
        total
    }

    fn plain_int8(x: Quantised<'_>, panel: Int8Panel<'_>, j: usize) -> f32 {
        let mut total = 0.0f32;
        for (group, scale) in x.scales.iter().enumerate() {
            let sum: i32 = (group * GROUP..(group + 1) * GROUP)
                .map(|k| i32::from(x.codes[k]) * i32::from(panel.codes[k * PANEL + j]))
                .sum();
            total += sum as f32 * (scale * panel.scales[group * PANEL + j]);
        }
        total
    }

    #[test]
    fn f32_is_the_plain_product_in_any_tile_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(4);
        for depth in [1, 3, 17, 64, 255, 256, 257, 700] {
            let x: Vec<Vec<f32>> = (0..TILE).map(|_| (0..depth).map(|_| rng.f32() - 0.5).collect()).collect();
            let panel: Vec<f32> = (0..depth * PANEL).map(|_| rng.f32() - 0.5).collect();
            for isa in Isa::available() {
                let mut tile = [[7.0; PANEL]; TILE];
                f32_tile(isa, &std::array::from_fn(|row| x[row].as_slice()), &panel, &mut tile);
                for row in 0..TILE {
                    let mut one = [[7.0; PANEL]];
                    f32_row(isa, &[&x[row]], &panel, &mut one);
                    for j in 0..PANEL {
                        let want = plain_f32(&x[row], &panel, j);
                        assert_eq!(tile[row][j].to_bits(), want.to_bits(), "{isa:?} depth {depth}");
                        assert_eq!(one[0][j].to_bits(), want.to_bits(), "{isa:?} depth {depth}");
                    }
                }
            }
        }
    }

    #[test]
    fn int8_is_the_plain_product_in_any_tile_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(5);
        for groups in [1, 2, 3, 9] {
            let mut codes = |n: usize, least: i8| -> Vec<i8> {
                // Extremes often: they are where 16 bits would overflow.
                (0..n).map(|_| if rng.bool() { rng.i8(-127..=127) } else { [127, least][rng.usize(0..2)] }).collect()
            };
            let x: Vec<Vec<i8>> = (0..TILE).map(|_| codes(groups * GROUP, -127)).collect();
            let weights = codes(groups * GROUP * PANEL, -127);
            let x_scales: Vec<f32> = (0..groups).map(|_| rng.f32()).collect();
            let scales: Vec<f32> = (0..groups * PANEL).map(|_| rng.f32()).collect();
            let panel = Int8Panel { codes: &weights, scales: &scales };
            let rows: [Quantised<'_>; TILE] =
                std::array::from_fn(|row| Quantised { codes: &x[row], scales: &x_scales });
            for isa in Isa::available() {
                let mut tile = [[7.0; PANEL]; TILE];
                int8_tile(isa, &rows, panel, &mut tile);
                for row in 0..TILE {
                    let mut one = [[7.0; PANEL]];
                    int8_row(isa, &[rows[row]], panel, &mut one);
                    for j in 0..PANEL {
                        let want = plain_int8(rows[row], panel, j);
                        assert_eq!(tile[row][j].to_bits(), want.to_bits(), "{isa:?}");
                        assert_eq!(one[0][j].to_bits(), want.to_bits(), "{isa:?}");
                    }
                }
            }
        }
    }
}
