//! Matrices of weights in the order in which kernels read them: see `kernels/matrix.cu`.
//!
//! In: rows as the model's files hold them. Out: packed numbers on the host, and a [`Matrix`] on a card. Deliberately not here: what the matrices mean, and how a group
//! of nested weights is quantised ([`holdfast_model::nested`]).

use holdfast_model::nested::{self, HALF, Power, quantise_group, wants_halves};
use holdfast_model::{WeightMatrix, WeightRow};

use crate::WeightFormat;
use crate::card::{Address, Card, CardError, Launch, launch};
use crate::kernels::{BLOCK, FILL_BF16, FILL_BITS, FILL_VALUE, FillParams, Kernel, Matrix, ROW_THREADS, TILE};

/// A matrix, `[out, depth]`, and its bias.
pub(crate) type Part<'a> = (WeightMatrix<'a>, Option<&'a [f32]>);

const OUTPUTS: usize = TILE as usize;
const DEPTH: usize = BLOCK as usize;
/// Elements of a tile of bf16: 16 outputs, 16 along the depth.
const BF16_TILE: usize = OUTPUTS * 16;
/// Bytes of one plane of a tile of nested weights: 16 outputs, 64 along the depth, half a byte each.
const PLANE: usize = OUTPUTS * DEPTH / 2;
/// The byte of the code 0.
const ZERO: u8 = 128;

/// A depth with its padding.
pub(crate) fn padded(depth: usize) -> usize {
    depth.next_multiple_of(DEPTH)
}

/// Packs parts that share a depth, one under the other, and brings them to a card.
pub(crate) fn load(
    card: &mut dyn Card,
    parts: &[Part<'_>],
    depth: usize,
    format: WeightFormat,
) -> Result<Matrix, CardError> {
    let rows: Vec<WeightRow<'_>> =
        parts.iter().flat_map(|(matrix, _)| (0..matrix.rows()).map(|row| matrix.row(row))).collect();
    let mut matrix = Matrix { power: 1.0, width: rows.len() as u32, depth: padded(depth) as u32, ..Matrix::default() };
    match format {
        WeightFormat::Bf16 => matrix.bf16 = put(card, &bf16(&rows, depth))?,
        WeightFormat::Nested => {
            let packed = Nested::pack(&rows, depth);
            matrix.upper = put(card, &packed.upper)?;
            matrix.lower = put(card, &packed.lower)?;
            matrix.scales = put(card, &packed.scales)?;
            (matrix.power, matrix.halves) = (packed.power, u32::from(packed.halves));
        }
    }
    if parts.iter().any(|(_, bias)| bias.is_some()) {
        let mut all = Vec::with_capacity(rows.len());
        for (matrix, bias) in parts {
            match bias {
                Some(bias) => all.extend_from_slice(bias),
                None => all.resize(all.len() + matrix.rows(), 0.0),
            }
        }
        matrix.bias = put(card, &all)?;
    }
    Ok(matrix)
}

/// A matrix that is made up on a card: elements are small enough that sums over the depth stay near 1.
pub(crate) fn random(
    card: &mut dyn Card,
    width: usize,
    depth: usize,
    format: WeightFormat,
    seed: u64,
) -> Result<Matrix, CardError> {
    /// 2^-14 as f16: with the power below, a code of the size of most is worth about the root of 1 / depth.
    const SCALE: u32 = 0x0400_0400;
    let (tiles, depth) = (width.div_ceil(OUTPUTS), padded(depth));
    let elements = (tiles * OUTPUTS * depth) as u64;
    let mut fill = |bytes: u64, kind: u32, value: u32, scale: f32| -> Result<Address, CardError> {
        let words = card.allocate(bytes)?;
        let params = FillParams {
            words,
            count: bytes / 4,
            seed: seed.wrapping_mul(0x1_0001) + u64::from(kind),
            kind,
            value,
            scale,
        };
        launch(card, Kernel::Fill, fill_of(params.count), &params)?;
        Ok(words)
    };
    let root = 1.0 / (depth as f32).sqrt();
    let mut matrix = Matrix { power: 1.0, width: width as u32, depth: depth as u32, ..Matrix::default() };
    match format {
        // Of numbers spread evenly over -1 to 1, the root mean square is the root of a third.
        WeightFormat::Bf16 => matrix.bf16 = fill(2 * elements, FILL_BF16, 0, root * 3f32.sqrt())?,
        WeightFormat::Nested => {
            matrix.upper = fill(elements / 2, FILL_BITS, 0, 0.0)?;
            matrix.lower = fill(elements / 2, FILL_BITS, 0, 0.0)?;
            matrix.scales = fill(2 * elements / DEPTH as u64, FILL_VALUE, SCALE, 0.0)?;
            matrix.power = root * 3f32.sqrt() / 128.0 * 16_384.0;
        }
    }
    Ok(matrix)
}

/// A launch that fills so many words.
pub(crate) fn fill_of(words: u64) -> Launch {
    let blocks = u32::try_from(words.div_ceil(ROW_THREADS.into())).unwrap_or(u32::MAX);
    Launch { grid: [blocks, 1, 1], shared_bytes: 0 }
}

/// Numbers in memory of their own.
pub(crate) fn put<T: bytemuck::Pod>(card: &mut dyn Card, values: &[T]) -> Result<Address, CardError> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let address = card.allocate(bytes.len() as u64)?;
    card.upload(address, bytes)?;
    Ok(address)
}

/// The nearest bf16, ties to even; weights are finite.
fn bf16_of(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Calls `f` with every tile's number and its part of `out`, on all cores.
fn each_tile<T: Send>(out: &mut [T], tile: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let tiles = out.len() / tile.max(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = tiles.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (at, part) in out.chunks_mut(share * tile).enumerate() {
            let f = &f;
            scope
                .spawn(move || part.chunks_mut(tile).enumerate().for_each(|(inside, out)| f(at * share + inside, out)));
        }
    });
}

fn bf16(rows: &[WeightRow<'_>], depth: usize) -> Vec<u16> {
    let steps = padded(depth) / 16;
    let mut out = vec![0; rows.len().div_ceil(OUTPUTS) * steps * BF16_TILE];
    each_tile(&mut out, steps * BF16_TILE, |tile, out| {
        let mut values = vec![0.0; depth];
        for (output, row) in rows[tile * OUTPUTS..].iter().take(OUTPUTS).enumerate() {
            row.read(&mut values);
            for (k, value) in values.iter().enumerate() {
                let (inside, lane) = (k % 16, output % 8 * 4 + k % 16 / 4);
                let word = inside % 4 / 2 * 2 + output / 8;
                out[k / 16 * BF16_TILE + lane * 8 + word * 2 + inside % 2] = bf16_of(*value);
            }
        }
    });
    out
}

/// Nested weights on the host.
struct Nested {
    upper: Vec<u8>,
    lower: Vec<u8>,
    scales: Vec<u16>,
    power: f32,
    halves: bool,
}

/// Bytes of a block of Q8_0: an f16 and the codes that it is the scale of.
const Q8_0_BYTES: usize = 2 + HALF;

/// How the rows of a matrix become codes.
enum Coding<'a> {
    /// Codes and scales of Q8_0 as they are.
    Stored(Vec<&'a [u8]>),
    /// Through f32.
    Quantised(Power),
}

/// A block of a row: codes, and the scales of its groups.
type Block = ([i8; DEPTH], [u16; 2]);

impl<'a> Coding<'a> {
    /// As the CPU device chooses, so that both hold the same model. Also whether groups are of 32.
    fn of(rows: &[WeightRow<'a>], depth: usize) -> (Self, bool) {
        let stored = rows.iter().map(|row| if let WeightRow::Q8_0(bytes) = *row { Some(bytes) } else { None });
        // A scale with a sign has no place.
        let fits = |bytes: &&[u8]| bytes.as_chunks::<Q8_0_BYTES>().0.iter().all(|block| block[1] & 0x80 == 0);
        if let Some(stored) = stored.collect::<Option<Vec<&[u8]>>>()
            && stored.iter().all(fits)
        {
            return (Self::Stored(stored), true);
        }
        let mut values = vec![0.0; depth];
        let mut most = 0.0f32;
        for row in rows {
            row.read(&mut values);
            most = most.max(nested::largest(&values));
        }
        let power = Power::of_largest(most);
        (Self::Quantised(power), wants_halves(rows, depth, power))
    }

    /// What stored scales are multiplied with.
    fn power(&self) -> f32 {
        match self {
            Self::Stored(_) => 1.0,
            Self::Quantised(power) => power.down,
        }
    }

    /// Every block of a row, whose values are read into `values`. Rows beyond the last are zeros.
    fn row(&self, rows: &[WeightRow<'_>], row: usize, halves: bool, values: &mut [f32], blocks: &mut [Block]) {
        blocks.fill(([0; DEPTH], [0; 2]));
        if row >= rows.len() {
            return;
        }
        match self {
            Self::Stored(stored) => {
                for (at, bytes) in stored[row].as_chunks::<Q8_0_BYTES>().0.iter().enumerate() {
                    let (codes, scales) = &mut blocks[at / 2];
                    scales[at % 2] = u16::from_le_bytes([bytes[0], bytes[1]]);
                    let codes = codes[at % 2 * HALF..].iter_mut().zip(&bytes[2..]);
                    codes.for_each(|(code, byte)| *code = byte.cast_signed());
                }
            }
            Self::Quantised(power) => {
                rows[row].read(values);
                let size = if halves { HALF } else { DEPTH };
                for ((codes, scales), values) in blocks.iter_mut().zip(values.chunks(DEPTH)) {
                    // The last group may be short: zeros behind it change neither its scale nor its codes.
                    let groups = codes.chunks_mut(size).zip(values.chunks(size)).zip(scales);
                    groups.for_each(|((codes, values), scale)| *scale = quantise_group(values, *power, codes));
                }
            }
        }
    }
}

impl Nested {
    fn pack(rows: &[WeightRow<'_>], depth: usize) -> Self {
        let (coding, halves) = Coding::of(rows, depth);
        let groups = if halves { 2 } else { 1 };
        let blocks = padded(depth) / DEPTH;
        let tiles = rows.len().div_ceil(OUTPUTS);
        // A tile's upper plane, its lower plane, and its scales, so that threads share one buffer.
        let planes = blocks * PLANE;
        let stride = 2 * planes + 2 * blocks * groups * OUTPUTS;
        let mut all = vec![0u8; tiles * stride];
        each_tile(&mut all, stride, |tile, out| {
            let (upper, rest) = out.split_at_mut(planes);
            let (lower, scales) = rest.split_at_mut(planes);
            let (mut values, mut row) = (vec![0.0; depth], vec![([0; DEPTH], [0; 2]); blocks]);
            for output in 0..OUTPUTS {
                coding.row(rows, tile * OUTPUTS + output, halves, &mut values, &mut row);
                for (block, (codes, row_scales)) in row.iter().enumerate() {
                    for (group, scale) in row_scales.iter().take(groups).enumerate() {
                        let at = ((block * groups + group) * OUTPUTS + output) * 2;
                        scales[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                    for (k, code) in codes.iter().enumerate() {
                        let byte = *code as u8 ^ ZERO;
                        let (lane, inside) = (output % 8 * 4 + k % HALF / 8, k % HALF % 8);
                        let word = 4 * (k / HALF) + inside / 4 * 2 + output / 8;
                        let at = block * PLANE + lane * 16 + word / 2 * 4 + inside % 4;
                        let shift = word % 2 * 4;
                        upper[at] |= byte >> 4 << shift;
                        lower[at] |= (byte & 15) << shift;
                    }
                }
            }
        });
        let mut packed =
            Self { upper: Vec::new(), lower: Vec::new(), scales: Vec::new(), power: coding.power(), halves };
        for tile in all.chunks_exact(stride) {
            packed.upper.extend_from_slice(&tile[..planes]);
            packed.lower.extend_from_slice(&tile[planes..2 * planes]);
            let scales = tile[2 * planes..].as_chunks().0.iter();
            packed.scales.extend(scales.map(|bytes| u16::from_le_bytes(*bytes)));
        }
        packed
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::nested::from_f16;

    use super::*;

    /// What a Q8_0 file holds is taken as it is, and through f32 it would be the same numbers.
    #[test]
    fn blocks_of_q8_0_are_kept() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (width, depth) = (21, 96);
        let (mut stored, mut values) = (Vec::new(), Vec::new());
        for _ in 0..width * depth / HALF {
            let scale = rng.u16(0x1000..0x3000);
            let mut codes: [i8; HALF] = std::array::from_fn(|_| rng.i8(-127..=127));
            codes[rng.usize(0..HALF)] = -127;
            stored.extend(scale.to_le_bytes());
            stored.extend(codes.map(i8::cast_unsigned));
            values.extend(codes.map(|code| f32::from(code) * from_f16(scale)));
        }
        let pack = |rows: Vec<WeightRow<'_>>| Nested::pack(&rows, depth);
        let row_bytes = depth / HALF * Q8_0_BYTES;
        let kept = pack(stored.chunks_exact(row_bytes).map(WeightRow::Q8_0).collect());
        let quantised = pack(values.chunks_exact(depth).map(WeightRow::F32).collect());
        assert!(kept.halves && quantised.halves && kept.power == 1.0);
        assert!(kept.upper == quantised.upper && kept.lower == quantised.lower);
        for (a, b) in kept.scales.iter().zip(&quantised.scales) {
            assert_eq!(from_f16(*a), from_f16(*b) * quantised.power);
        }
        // A sign has no place in the planes' scales.
        stored[1] |= 0x80;
        assert!(pack(stored.chunks_exact(row_bytes).map(WeightRow::Q8_0).collect()).power != 1.0);
    }

    #[test]
    fn bf16_is_the_nearest_and_even_where_two_are() {
        for (bits, want) in [(0x3f80_7fff, 0x3f80), (0x3f80_8000, 0x3f80), (0x3f80_8001, 0x3f81), (0xbf81_8000, 0xbf82)]
        {
            assert_eq!(bf16_of(f32::from_bits(bits)), want, "{bits:x}");
        }
    }
}
