//! Experts' matrices as Hugging Face files hold gpt-oss: transposed, or in MXFP4, the outputs of gate and up alternating.
//!
//! In: the elements of such tensors. Out: f32 as `[experts][out][in]`. Deliberately not here: names and shapes, which are checked before.
//!
//! MXFP4: OCP Microscaling Formats (MX) Specification 1.0; here byte i of a block holds elements 2i, in its low half, and 2i + 1.

use crate::mxfp4::{E2M1, e8m0};

/// Bytes of the elements of a block.
pub(super) const BLOCK_BYTES: usize = 16;

/// One of several matrices per expert whose outputs alternate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Alternating {
    pub(super) experts: usize,
    /// Outputs of this matrix.
    pub(super) outputs: usize,
    /// Elements of a row; 1 for a bias.
    pub(super) depth: usize,
    /// Its place among the matrices.
    pub(super) from: usize,
    /// How many these are.
    pub(super) of: usize,
}

impl Alternating {
    /// Picks its part of `[experts][in][of * out]`.
    pub(super) fn transposed(self, values: &[f32]) -> Vec<f32> {
        let elements = self.experts * self.outputs * self.depth;
        (0..elements).map(|index| values[self.place(index)]).collect()
    }

    /// Where element `index` of `[experts][out][in]` lies in `[experts][in][of * out]`.
    pub(super) fn place(self, index: usize) -> usize {
        let (row, element) = (index / self.depth, index % self.depth);
        let (expert, output) = (row / self.outputs, row % self.outputs);
        (expert * self.depth + element) * self.of * self.outputs + output * self.of + self.from
    }

    /// Picks and converts its part of `[experts][of * out][blocks][BLOCK_BYTES]` under the scales `[experts][of * out][blocks]`. Elements under
    /// a scale that is not a number are none either.
    pub(super) fn packed(self, blocks: &[u8], scales: &[u8]) -> Vec<f32> {
        let per_row = self.depth / (2 * BLOCK_BYTES);
        let mut out = Vec::with_capacity(self.experts * self.outputs * self.depth);
        for row in 0..self.experts * self.outputs {
            let row = row * self.of + self.from;
            let scales = &scales[row * per_row..(row + 1) * per_row];
            let blocks = &blocks[row * per_row * BLOCK_BYTES..(row + 1) * per_row * BLOCK_BYTES];
            for (block, scale) in blocks.chunks_exact(BLOCK_BYTES).zip(scales) {
                let element = |bits: u8| e8m0(*scale) * E2M1[usize::from(bits)];
                out.extend(block.iter().flat_map(|pair| [element(pair & 0xf), element(pair >> 4)]));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternating_outputs_are_picked_from_transposed_matrices() {
        // Two experts, two inputs, three outputs of each of two matrices: element = 100 expert + 10 input + place.
        let stored: Vec<f32> = (0..2)
            .flat_map(|expert| (0..2).flat_map(move |k| (0..6).map(move |at| (100 * expert + 10 * k + at) as f32)))
            .collect();
        let part = |from| Alternating { experts: 2, outputs: 3, depth: 2, from, of: 2 }.transposed(&stored);
        assert_eq!(part(0), [0., 10., 2., 12., 4., 14., 100., 110., 102., 112., 104., 114.]);
        assert_eq!(part(1), [1., 11., 3., 13., 5., 15., 101., 111., 103., 113., 105., 115.]);
    }

    #[test]
    fn packed_rows_are_scaled_block_by_block() {
        // One expert, one row of two blocks of each of two matrices.
        let mut blocks = vec![0x22_u8; 4 * BLOCK_BYTES];
        blocks[2 * BLOCK_BYTES] = 0xf1;
        let scales = [127, 127, 128, 126];
        let part = Alternating { experts: 1, outputs: 1, depth: 64, from: 1, of: 2 };
        let values = part.packed(&blocks, &scales);
        assert_eq!((values.len(), values[0], values[1], values[2], values[32]), (64, 1.0, -12.0, 2.0, 0.5));
        assert!(part.packed(&blocks, &[127, 127, 127, 255])[32..].iter().all(|value| value.is_nan()));
    }
}
