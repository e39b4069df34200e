//! MXFP4: elements of four bits, 32 of which share a power of two.
//!
//! In: their bits. Out: f32, exact. Deliberately not here: how files lay blocks out.
//!
//! Source: OCP Microscaling Formats (MX) Specification 1.0, element E2M1 and scale E8M0.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two() {
        assert_eq!([e8m0(127), e8m0(128), e8m0(126), e8m0(254)], [1.0, 2.0, 0.5, 2_f32.powi(127)]);
        assert_eq!(e8m0(0), 2_f32.powi(-127));
        assert!(e8m0(255).is_nan());
    }
}
