//! Elements of tensors: their types, what they are in f32, and whether all of them are numbers.
//!
//! In: bytes of whole rows. Out: f32, exact; the first element that is not finite. Deliberately not here: where tensors lie, and the
//! elements of experts in Hugging Face layout (`experts`).

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSlice as _;

use crate::mxfp4;

/// Type of the elements of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
    /// ggml's blocks of integers under common scales: one of [`BLOCKS`].
    Blocks(GgmlDType),
    /// Bytes, which only mean something together with other tensors.
    U8,
    /// Blocks of four-bit floats under a common power of two.
    Mxfp4,
    /// One that is not read, by its name.
    Other(String),
}

/// The blocks that are read, by ggml's names.
pub(crate) const BLOCKS: &[(GgmlDType, &str)] = &[
    (GgmlDType::Q8_0, "Q8_0"),
    (GgmlDType::Q5_0, "Q5_0"),
    (GgmlDType::Q5_1, "Q5_1"),
    (GgmlDType::Q4_0, "Q4_0"),
    (GgmlDType::Q4_1, "Q4_1"),
    (GgmlDType::Q6K, "Q6_K"),
    (GgmlDType::Q5K, "Q5_K"),
    (GgmlDType::Q4K, "Q4_K"),
    (GgmlDType::Q3K, "Q3_K"),
    (GgmlDType::Q2K, "Q2_K"),
];

/// Bytes of a block of Q8_0, and its elements.
const Q8_0_BYTES: usize = 2 + Q8_0_ELEMENTS;
const Q8_0_ELEMENTS: usize = 32;
/// Bytes that a thread looks through at once, about.
const BYTES_AT_ONCE: usize = 256 << 10;

/// Why elements were not taken.
#[derive(Debug)]
pub(super) enum Unread {
    /// The type is not read.
    Dtype,
    /// candle cannot take the blocks apart.
    Blocks(String),
}

impl Element {
    /// The name that digests and messages use.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Blocks(dtype) => BLOCKS.iter().find(|(known, _)| known == dtype).map_or("blocks", |(_, name)| *name),
            Self::U8 => "U8",
            Self::Mxfp4 => "MXFP4",
            Self::Other(name) => name,
        }
    }

    /// Elements of a block, and its bytes.
    fn block(&self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(dtype) => (dtype.block_size(), dtype.type_size()),
            Self::Mxfp4 => (mxfp4::ELEMENTS, mxfp4::BYTES),
            Self::U8 | Self::Other(_) => (1, 1),
        }
    }

    /// Bytes of a row of so many elements, which are whole blocks.
    pub(super) fn bytes_of(&self, elements: usize) -> usize {
        let (block, bytes) = self.block();
        elements / block * bytes
    }
}

/// Elements seen where they lie, if they are f32 as this machine has them.
pub(super) fn as_f32<'a>(element: &Element, bytes: &'a [u8]) -> Option<&'a [f32]> {
    let alike = *element == Element::F32 && cfg!(target_endian = "little");
    bytemuck::try_cast_slice(bytes).ok().filter(|_| alike)
}

/// Writes elements in f32; `bytes` are as many whole blocks as `out` has elements. Tensors are aligned as the container promises and blocks
/// have an even number of bytes, which is what the blocks' scales need.
pub(super) fn read(element: &Element, bytes: &[u8], out: &mut [f32]) -> Result<(), Unread> {
    match element {
        Element::F32 => {
            let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        Element::Bf16 => read_bf16(bytes, out),
        Element::F16 => {
            let values = bytes.as_chunks().0.iter().map(|bytes| half_to_f32(u16::from_le_bytes(*bytes)));
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        Element::Blocks(GgmlDType::Q8_0) => read_q8_0(bytes, out),
        Element::Blocks(dtype) => {
            let tensor = qtensor_from_ggml(*dtype, bytes, vec![out.len()], &Device::Cpu);
            let values = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>());
            out.copy_from_slice(&values.map_err(|error| Unread::Blocks(error.to_string()))?);
        }
        Element::Mxfp4 => out.copy_from_slice(&mxfp4::to_f32(bytes)),
        Element::U8 | Element::Other(_) => return Err(Unread::Dtype),
    }
    Ok(())
}

/// bf16 is the upper half of an f32.
pub(super) fn read_bf16(bytes: &[u8], out: &mut [f32]) {
    let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16));
    out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
}

/// ggml's `dequantize_row_q8_0`.
pub(super) fn read_q8_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<Q8_0_BYTES>().0.iter().zip(out.as_chunks_mut::<Q8_0_ELEMENTS>().0) {
        let scale = half_to_f32(u16::from_le_bytes([block[0], block[1]]));
        out.iter_mut().zip(&block[2..]).for_each(|(out, code)| *out = f32::from(*code as i8) * scale);
    }
}

/// The first element that is not finite, and what it is. `bytes` are rows of `depth` elements.
pub(super) fn first_not_finite(element: &Element, bytes: &[u8], depth: usize) -> Result<Option<(usize, f32)>, Unread> {
    /// What every number of a type with the exponent `all` in its upper bits lacks.
    fn halves(bytes: &[u8], all: u16) -> bool {
        bytes.as_chunks().0.iter().fold(false, |found, bytes| found | (u16::from_le_bytes(*bytes) & all == all))
    }
    /// Exponents of f16 and of bf16.
    const F16: u16 = 0x7c00;
    const BF16: u16 = 0x7f80;
    if matches!(element, Element::U8 | Element::Other(_)) {
        return Err(Unread::Dtype);
    }
    let row_bytes = element.bytes_of(depth).max(1);
    let rows = (BYTES_AT_ONCE / row_bytes).max(1);
    let look = |(part, bytes): (usize, &[u8])| -> Option<Result<(usize, f32), Unread>> {
        let suspect = match element {
            Element::Bf16 => halves(bytes, BF16),
            Element::F16 => halves(bytes, F16),
            Element::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .fold(false, |found, b| found | (u16::from_le_bytes([b[2], b[3]]) & BF16 == BF16)),
            // A code times a finite f16 is finite.
            Element::Blocks(GgmlDType::Q8_0) => {
                bytes.as_chunks::<Q8_0_BYTES>().0.iter().fold(false, |found, block| found | halves(&block[..2], F16))
            }
            _ => true,
        };
        if !suspect {
            return None;
        }
        let mut values = vec![0.0; bytes.len() / row_bytes * depth];
        if let Err(unread) = read(element, bytes, &mut values) {
            return Some(Err(unread));
        }
        let bad = values.iter().enumerate().find(|(_, value)| !value.is_finite());
        bad.map(|(at, value)| Ok((part * rows * depth + at, *value)))
    };
    bytes.par_chunks(rows * row_bytes).enumerate().find_map_first(look).transpose()
}

/// IEEE 754 binary16 to binary32, exact.
fn half_to_f32(bits: u16) -> f32 {
    /// 2^112: the difference of the exponents' biases.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let rest = u32::from(bits & 0x7fff) << 13;
    let finite = f32::from_bits(rest) * REBIAS;
    // Infinities and what is no number have every bit of the exponent.
    let size = if bits & 0x7c00 == 0x7c00 { f32::from_bits(rest | 0x7f80_0000) } else { finite };
    f32::from_bits(size.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn halves_convert_exactly() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65_504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(half_to_f32(bits).to_bits(), f32::to_bits(value), "{bits:#06x}");
        }
        assert!(half_to_f32(0x7e00).is_nan() && half_to_f32(0xfc01).is_nan());
    }

    #[test]
    fn q8_0_is_what_candle_makes_of_it() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut bytes: Vec<u8> = (0..64 * Q8_0_BYTES).map(|_| rng.u8(..)).collect();
        bytes.chunks_exact_mut(Q8_0_BYTES).for_each(|block| block[1] &= 0xbb);
        let (mut ours, elements) = (vec![0.0; 64 * Q8_0_ELEMENTS], 64 * Q8_0_ELEMENTS);
        read_q8_0(&bytes, &mut ours);
        let theirs = qtensor_from_ggml(GgmlDType::Q8_0, &bytes, vec![elements], &Device::Cpu).unwrap();
        assert_eq!(ours, theirs.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap());
    }

    #[test]
    fn the_first_element_that_is_no_number_is_found_wherever_it_lies() {
        let depth = 64;
        for (element, bad) in [
            (Element::F32, &[0x00, 0x00, 0x80, 0x7f][..]),
            (Element::F16, &[0x00, 0xfc]),
            (Element::Bf16, &[0x81, 0x7f]),
            (Element::Blocks(GgmlDType::Q8_0), &[0x01, 0x7e]),
            (Element::Blocks(GgmlDType::Q4_0), &[0x00, 0x7c]),
            (Element::Mxfp4, &[0xff]),
        ] {
            let (block, block_bytes) = element.block();
            let mut bytes = vec![0x11; element.bytes_of(depth) * 20_000];
            assert_eq!(first_not_finite(&element, &bytes, depth).unwrap(), None, "{element:?}");
            let blocks = bytes.len() / block_bytes;
            for at in [blocks - 1, blocks / 2, 7] {
                bytes[at * block_bytes..][..bad.len()].copy_from_slice(bad);
                let (found, value) = first_not_finite(&element, &bytes, depth).unwrap().unwrap();
                assert_eq!(found, at * block, "{element:?}");
                assert!(!value.is_finite());
            }
        }
        for element in [Element::U8, Element::Other("I8".to_owned())] {
            assert!(matches!(first_not_finite(&element, &[0; 64], 64), Err(Unread::Dtype)));
        }
    }
}
