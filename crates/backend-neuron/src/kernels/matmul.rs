//! Products of a few rows with one panel of a packed matrix in f32.
//!
//! In: rows of activations and a panel: [`PANEL`] neighbouring output features, packed so that one step along the depth
//! reads them side by side. Out: `[rows][PANEL]`. Deliberately not here: packing, threads, biases.
//!
//! Order of accumulation, the same for any number of rows: the depth is cut into segments of [`SEGMENT`], each summed from zero in rising
//! order, and segments are added in order.

use super::kernel;

/// Output features of a panel.
pub const PANEL: usize = 32;
/// Depth of a segment; short, because it also bounds rounding errors. Part of the kernels' revision.
pub(crate) const SEGMENT: usize = 256;
/// Rows that share one reading of a panel.
pub const TILE: usize = 4;

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

#[inline(always)]
fn rows<const R: usize>(x: &[&[f32]; R], panel: &[f32], out: &mut [[f32; PANEL]; R]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    /// Each element by itself, in the stated order.
    fn plain(x: &[f32], panel: &[f32], j: usize) -> f32 {
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

    #[test]
    fn products_are_the_plain_product_in_any_tile_on_every_isa() {
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
                        let want = plain(&x[row], &panel, j);
                        assert_eq!(tile[row][j].to_bits(), want.to_bits(), "{isa:?} depth {depth}");
                        assert_eq!(one[0][j].to_bits(), want.to_bits(), "{isa:?} depth {depth}");
                    }
                }
            }
        }
    }
}
