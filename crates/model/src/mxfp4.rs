//! MXFP4: blocks of 32 elements of four bits under a common power of two.
//!
//! In: blocks as GGUF files have them (ggml's type 39). Out: f32, exact. Deliberately not here: other layouts of the same elements.
//!
//! Source: OCP Microscaling Formats (MX) Specification 1.0, element E2M1 and scale E8M0.

/// Elements of a block.
const ELEMENTS: usize = 32;
/// Bytes of a block: its scale, and two elements in each further byte.
const BYTES: usize = 1 + ELEMENTS / 2;

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

    #[test]
    fn low_halves_come_before_high_halves() {
        let mut block = [0x10_u8; BYTES];
        block[0] = 129;
        block[1] = 0xf2;
        let values = to_f32(&block);
        assert_eq!((values.len(), values[0], values[1], values[16], values[17]), (32, 4.0, 0.0, -24.0, 2.0));
    }
}
