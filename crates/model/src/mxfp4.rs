//! MXFP4: blocks of 32 elements of four bits under a common power of two.
//!
//! In: blocks as GGUF files have them (ggml's type 39). Out: f32, exact. Deliberately not here: other layouts of the same elements.
//!
//! Source: OCP Microscaling Formats (MX) Specification 1.0, element E2M1 and scale E8M0.

/// Elements of a block.
pub(crate) const ELEMENTS: usize = 32;
/// Bytes of a block: its scale, and two elements in each further byte.
pub(crate) const BYTES: usize = 1 + ELEMENTS / 2;

/// E2M1, by its four bits.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// E8M0: two to the power of the byte less 127; 255 is not a number.
pub(crate) fn e8m0(byte: u8) -> f32 {
    match byte {
        // The one power that f32 has below its normal numbers.
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        byte => f32::from_bits(u32::from(byte) << 23),
    }
}

/// Every element of whole blocks. In a block the scale comes first; byte i holds element i in its low half, and element i + 16 in its high
/// half.
pub(crate) fn to_f32(blocks: &[u8]) -> Vec<f32> {
    let mut out = Vec::with_capacity(blocks.len() / BYTES * ELEMENTS);
    for block in blocks.chunks_exact(BYTES) {
        let scale = e8m0(block[0]);
        let element = |bits: u8| scale * E2M1[usize::from(bits)];
        out.extend(block[1..].iter().map(|pair| element(pair & 0xf)));
        out.extend(block[1..].iter().map(|pair| element(pair >> 4)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two() {
        assert_eq!([e8m0(127), e8m0(128), e8m0(126), e8m0(254)], [1.0, 2.0, 0.5, 2_f32.powi(127)]);
        assert_eq!(e8m0(0), 2_f32.powi(-127));
        assert!(e8m0(255).is_nan());
    }

    /// Two blocks, and what the `dequantize` of the PyPI package gguf 0.19 makes of them.
    #[test]
    fn blocks_are_what_ggml_makes_of_them() {
        let blocks = [
            0x78, 0xe5, 0xb8, 0xab, 0xee, 0xab, 0x14, 0xce, 0xf5, 0x99, 0xcc, 0x05, 0x25, 0x35, 0xd5, 0xce, 0xc0, 0x00,
            0x06, 0x78, 0x3f, 0x60, 0xec, 0x83, 0x76, 0x04, 0x57, 0xa1, 0x7c, 0x47, 0x2a, 0x49, 0xed, 0x10,
        ];
        let first = [
            6, 0, -3, -8, -3, 4, -8, 6, -1, -4, 6, 6, 6, 6, -8, 0, -8, -3, -2, -8, -2, 1, -4, -12, -1, -4, 0, 2, 3, -6,
            -4, -4,
        ];
        let second = [
            8, 0, -12, 0, -4, 3, 8, 4, 12, 1, -4, 12, -2, -1, -6, 0, 0, 12, 3, 8, -8, 0, 12, 0, 6, -2, 12, 4, 2, 4, -8,
            1,
        ];
        let scaled =
            |all: [i16; 32], exponent: i32| all.map(|n| f32::from(n) * 2_f32.powi(-64) * 2_f32.powi(exponent + 64));
        assert_eq!(to_f32(&blocks), [scaled(first, -8), scaled(second, -128)].concat());
    }

    #[test]
    fn low_halves_come_before_high_halves() {
        let mut block = [0x10_u8; BYTES];
        block[0] = 129;
        block[1] = 0xf2;
        let values = to_f32(&block);
        assert_eq!((values.len(), values[0], values[1], values[16], values[17]), (32, 4.0, 0.0, -24.0, 2.0));
    }
}
