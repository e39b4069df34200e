//! Products of quantised rows with one panel of nested weights, at 8 bits or at 4.
//!
//! In: a [`Tile`] of rows and a [`Panel`]: [`COLUMNS`] neighbouring output features. Out: sums, `[rows][COLUMNS]`, added to what is there.
//! Deliberately not here: packing, threads, biases.
//!
//! A weight is an int8 code c, kept as the byte w = c + 128 in two planes: the upper nibbles and the lower ones. Both make the 8-bit
//! weight. The upper one alone stands for the middle of the 16 bytes that share it: w = 16 * nibble + 7.5. Rows are int8 codes x, so
//! that a product of codes is `sum(x * w) + shift`, where w is a byte without sign (what the instructions for it want), the lower nibble
//! is 0 at 4 bits, and the shift, which depends on the row alone, takes back what w has too much: `-128 * sum(x)`, or at 4 bits
//! `-120.5 * sum(x)`, rounded down.
//!
//! Order of accumulation, the same on every path. The sum of a group of weights (32 or 64 along the depth) is exact in 32 bits; it begins
//! with the bits of [`BIAS`] beside the shift, so that the bits of the sum are the f32 `BIAS + sum` and nothing has to be converted. A block of
//! 64 begins with its offset, `-(BIAS * s)` or `-(BIAS * s0 + BIAS * s1)`, and fuses each group onto it with its weights' scale: with one group
//! that is the exact product, rounded once; with two, what is rounded in between is worth about one unit of the sum, far below what
//! quantised rows have lost. The block is fused onto the total with the row's scale, blocks in rising order.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use holdfast_model::nested::from_f16;
/// Depths of a block, which is also the group of the rows' scales, and of its half.
pub use holdfast_model::nested::{BLOCK, HALF};

use super::{Isa, Level};

/// Output features of a panel: two AVX-512 registers of sums, so that a code of a row that was read is used twice.
pub const COLUMNS: usize = 32;
/// Most rows of a tile: with 16 columns, what both halves of a block give fits into the 32 registers of AVX-512.
pub const TILE: usize = 12;
/// Codes of a block along the depth that one 32-bit lane holds.
pub(crate) const LANE: usize = 4;
/// Lanes of a block along the depth.
pub(crate) const STEPS: usize = BLOCK / LANE;
/// Bytes of a step: the codes of every column.
pub(crate) const STEP: usize = COLUMNS * LANE;
/// Bytes of one plane of a block. Byte i of its pair p holds, in its lower nibble, the plane's nibble of byte i of step 2p, in its upper
/// nibble that of step 2p + 1.
pub const PLANE: usize = BLOCK * COLUMNS / 2;
/// Most blocks that are unpacked at once: they stay in the nearest cache while all rows are multiplied with them.
pub const UNPACKED_BLOCKS: usize = 8;
/// 1.5 * 2^23: its last bit is worth 1, and a sum of a block changes no bit of its exponent.
pub(crate) const BIAS: f32 = 12_582_912.0;
/// Shifts of a row and block: of the first half, of the second, of the whole.
pub const SHIFTS: usize = 3;

/// Sums of a row, one for each column of a panel. At cache lines: registers that cross one cost the kernels a fifth of their speed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct Sums(pub [f32; COLUMNS]);

impl Sums {
    /// Where products begin.
    pub const ZERO: Self = Self([0.0; COLUMNS]);
}

/// Quantised rows of one precision, side by side: a block of the first row, the same block of the second, and so on.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// 1 to [`TILE`].
    pub rows: usize,
    /// `[blocks][rows][BLOCK]`, in -127..=127.
    pub codes: &'a [i8],
    /// `[blocks][rows]`.
    pub scales: &'a [f32],
    /// `[blocks][SHIFTS][rows]`, each with the bits of [`BIAS`].
    pub shifts: &'a [i32],
}

impl Tile<'_> {
    /// These blocks of it.
    pub fn part(&self, first: usize, blocks: usize) -> Self {
        let (at, len) = (first * self.rows, blocks * self.rows);
        Self {
            rows: self.rows,
            codes: &self.codes[at * BLOCK..][..len * BLOCK],
            scales: &self.scales[at..][..len],
            shifts: &self.shifts[at * SHIFTS..][..len * SHIFTS],
        }
    }

    fn check(&self, blocks: usize) {
        assert!((1..=TILE).contains(&self.rows), "a tile has 1 to {TILE} rows");
        let len = blocks * self.rows;
        let whole = self.codes.len() == len * BLOCK && self.scales.len() == len && self.shifts.len() == len * SHIFTS;
        assert!(whole, "a tile is as deep as its weights");
    }
}

/// A [`Tile`] that is being made.
#[derive(Debug)]
pub struct TileMut<'a> {
    /// 1 to [`TILE`].
    pub rows: usize,
    /// `[blocks][rows][BLOCK]`.
    pub codes: &'a mut [i8],
    /// `[blocks][rows]`.
    pub scales: &'a mut [f32],
    /// `[blocks][SHIFTS][rows]`, each with the bits of [`BIAS`].
    pub shifts: &'a mut [i32],
}

/// One panel of nested weights, or some blocks of it.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// `[blocks][PLANE]`.
    pub upper: &'a [u8],
    /// As `upper`; `None` leaves 4 bits.
    pub lower: Option<&'a [u8]>,
    /// f16, `[blocks][groups of a block][COLUMNS]`: one group of 64, or two of 32.
    pub scales: &'a [u16],
    /// A power of two that scales are multiplied with.
    pub power: f32,
}

impl Panel<'_> {
    /// Blocks along the depth.
    pub fn blocks(&self) -> usize {
        self.upper.len() / PLANE
    }

    /// These blocks of it.
    pub fn part(&self, first: usize, blocks: usize) -> Self {
        let per_block = self.scales.len() / self.blocks();
        Self {
            upper: &self.upper[first * PLANE..][..blocks * PLANE],
            lower: self.lower.map(|lower| &lower[first * PLANE..][..blocks * PLANE]),
            scales: &self.scales[first * per_block..][..blocks * per_block],
            power: self.power,
        }
    }

    /// Whether scales belong to 32 weights, not 64.
    fn halves(&self) -> bool {
        self.scales.len() == 2 * self.blocks() * COLUMNS
    }

    fn check(&self) {
        let blocks = self.blocks();
        assert!(self.upper.len() == blocks * PLANE, "planes are whole blocks");
        assert!(self.lower.is_none_or(|lower| lower.len() == self.upper.len()), "planes are of one size");
        assert!(self.halves() || self.scales.len() == blocks * COLUMNS, "a block has one or two groups");
    }
}

/// What sums of a block are scaled with: the scales of its groups (of one that is 64, twice), and its offset.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Factors {
    scales: [[f32; COLUMNS]; 2],
    offset: [f32; COLUMNS],
}

/// Blocks of a panel with their bytes put together, for many tiles.
#[derive(Debug)]
#[repr(align(64))]
pub struct Unpacked {
    /// `[blocks][STEPS][COLUMNS][LANE]`.
    bytes: [[u8; STEPS * STEP]; UNPACKED_BLOCKS],
    factors: [Factors; UNPACKED_BLOCKS],
    blocks: usize,
    halves: bool,
}

impl Unpacked {
    /// Room for [`UNPACKED_BLOCKS`].
    pub fn new() -> Self {
        Self {
            bytes: [[0; STEPS * STEP]; UNPACKED_BLOCKS],
            factors: [Factors { scales: [[0.0; COLUMNS]; 2], offset: [0.0; COLUMNS] }; UNPACKED_BLOCKS],
            blocks: 0,
            halves: false,
        }
    }
}

impl Default for Unpacked {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the sum of one or two halves begins that takes back `shift`.
#[inline(always)]
pub(crate) fn biased(shift: i32) -> i32 {
    BIAS.to_bits() as i32 + shift
}

/// What a sum of a half's codes takes back from its products: the byte 128 is the code 0, and at 4 bits the middle of what a nibble
/// stands for is 7.5 above it.
#[inline(always)]
pub(crate) fn shift(sum: i32, narrow: bool) -> i32 {
    if narrow { (-241 * sum) >> 1 } else { -128 * sum }
}

/// A tile times a panel, whose planes are read once.
pub fn stream(isa: Isa, tile: Tile<'_>, panel: Panel<'_>, sums: &mut [Sums]) {
    panel.check();
    tile.check(panel.blocks());
    let sums = &mut sums[..tile.rows];
    match isa.level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` with these instructions is only made after the machine was asked for them; sizes were checked.
        Level::Avx512 if isa.vnni => unsafe { x86::stream_avx512(tile, panel, sums) },
        _ => {
            let mut unpacked = Unpacked::new();
            for first in (0..panel.blocks()).step_by(UNPACKED_BLOCKS) {
                let blocks = UNPACKED_BLOCKS.min(panel.blocks() - first);
                unpack(isa, tile.part(first, blocks), panel.part(first, blocks), &mut unpacked, sums);
            }
        }
    }
}

/// A tile times at most [`UNPACKED_BLOCKS`] blocks of a panel, which are put together for the tiles that follow.
pub fn unpack(isa: Isa, tile: Tile<'_>, panel: Panel<'_>, to: &mut Unpacked, sums: &mut [Sums]) {
    panel.check();
    tile.check(panel.blocks());
    assert!(panel.blocks() <= UNPACKED_BLOCKS, "at most {UNPACKED_BLOCKS} blocks are unpacked at once");
    let sums = &mut sums[..tile.rows];
    (to.blocks, to.halves) = (panel.blocks(), panel.halves());
    match isa.level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `stream`.
        Level::Avx512 if isa.vnni => unsafe { x86::unpack_avx512(tile, panel, to, sums) },
        _ => {
            portable::unpack(isa, panel, to);
            product(isa, tile, to, None, sums);
        }
    }
}

/// A tile times blocks that are unpacked. Where the machine can be asked, memory is asked for the lower planes that come some blocks after
/// those of `ahead`, which is as many blocks.
pub fn product(isa: Isa, tile: Tile<'_>, weights: &Unpacked, ahead: Option<Panel<'_>>, sums: &mut [Sums]) {
    tile.check(weights.blocks);
    assert!(
        ahead.is_none_or(|ahead| ahead.blocks() == weights.blocks),
        "what is asked for is as much as is multiplied"
    );
    let sums = &mut sums[..tile.rows];
    match isa.level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `stream`.
        Level::Avx512 if isa.vnni => unsafe { x86::product_avx512(tile, weights, ahead, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `stream`.
        Level::Avx2 | Level::Avx512 => unsafe { x86::product_avx2(isa.vnni, tile, weights, sums) },
        Level::Portable => portable::product(tile, weights, sums),
    }
}

/// What sums of a block are scaled with.
#[inline(always)]
fn factors(scales: [f32; 2], halves: bool) -> [f32; 3] {
    let [first, second] = scales;
    // Scales are f16: products with the bias are exact.
    [first, second, if halves { -BIAS * first - BIAS * second } else { -BIAS * first }]
}

#[cfg(test)]
mod tests {
    use holdfast_model::nested::to_f16;

    use super::*;

    /// Every f16 scale, code and row in the plainest way, in the stated order.
    fn plain(tile: Tile<'_>, panel: Panel<'_>, row: usize, column: usize) -> f32 {
        let groups = if panel.halves() { 2 } else { 1 };
        let mut total = 0.0f32;
        for block in 0..panel.blocks() {
            let scale_of =
                |group: usize| from_f16(panel.scales[(block * groups + group) * COLUMNS + column]) * panel.power;
            let mut inner = -(0..groups).map(|group| f64::from(BIAS) * f64::from(scale_of(group))).sum::<f64>() as f32;
            for group in 0..groups {
                let mut sum = 0i64;
                for half in group * 2 / groups..(group + 1) * 2 / groups {
                    let mut twice = 0i64;
                    for k in half * HALF..(half + 1) * HALF {
                        let x = i64::from(tile.codes[(block * tile.rows + row) * BLOCK + k]);
                        let (step, byte) = (k / LANE, column * LANE + k % LANE);
                        let nibble =
                            |plane: &[u8]| plane[block * PLANE + step / 2 * STEP + byte] >> (step % 2 * 4) & 15;
                        let upper = i64::from(nibble(panel.upper));
                        twice += x * match panel.lower {
                            Some(lower) => 2 * (16 * upper + i64::from(nibble(lower)) - 128),
                            None => 32 * upper - 241,
                        };
                    }
                    sum += twice.div_euclid(2);
                }
                inner = (BIAS + sum as f32).mul_add(scale_of(group), inner);
            }
            total = inner.mul_add(tile.scales[block * tile.rows + row], total);
        }
        total
    }

    struct Case {
        upper: Vec<u8>,
        lower: Vec<u8>,
        scales: Vec<u16>,
        codes: Vec<i8>,
        row_scales: Vec<f32>,
        shifts: Vec<i32>,
    }

    fn case(rng: &mut fastrand::Rng, rows: usize, blocks: usize, halves: bool, narrow: bool) -> Case {
        // Extremes often: they are where narrow integers would overflow.
        let codes: Vec<i8> = (0..blocks * rows * BLOCK)
            .map(|_| if rng.bool() { rng.i8(-127..=127) } else { [127, -127][rng.usize(0..2)] })
            .collect();
        let mut shifts = vec![0; blocks * SHIFTS * rows];
        for (at, codes) in codes.chunks_exact(BLOCK).enumerate() {
            let (block, row) = (at / rows, at % rows);
            for (half, codes) in codes.chunks_exact(HALF).enumerate() {
                let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
                let shift = shift(sum, narrow);
                shifts[(block * SHIFTS + half) * rows + row] = biased(shift);
                shifts[(block * SHIFTS + 2) * rows + row] += shift;
            }
            let whole = &mut shifts[(block * SHIFTS + 2) * rows + row];
            *whole = biased(*whole);
        }
        let groups = if halves { 2 } else { 1 };
        Case {
            upper: (0..blocks * PLANE).map(|_| rng.u8(..)).collect(),
            // No byte is 0, as no code is -128.
            lower: (0..blocks * PLANE).map(|_| rng.u8(..) | 0x11).collect(),
            scales: (0..blocks * groups * COLUMNS).map(|_| to_f16(rng.f32() + 0.01)).collect(),
            row_scales: (0..blocks * rows).map(|_| rng.f32()).collect(),
            codes,
            shifts,
        }
    }

    #[test]
    fn products_are_plain_products_for_any_tile_on_every_isa() {
        let mut rng = fastrand::Rng::with_seed(4);
        for blocks in [1, 2, 7, UNPACKED_BLOCKS + 3] {
            for rows in 1..=TILE {
                for (halves, narrow) in [(false, false), (true, false), (false, true), (true, true)] {
                    let case = case(&mut rng, rows, blocks, halves, narrow);
                    let lower = (!narrow).then_some(case.lower.as_slice());
                    let panel = Panel { upper: &case.upper, lower, scales: &case.scales, power: 0.25 };
                    let tile = Tile { rows, codes: &case.codes, scales: &case.row_scales, shifts: &case.shifts };
                    for isa in Isa::available() {
                        let mut streamed = vec![Sums::ZERO; rows];
                        stream(isa, tile, panel, &mut streamed);
                        let mut unpacked = Unpacked::new();
                        let [mut first_tile, mut second, mut third] = [(); 3].map(|()| vec![Sums::ZERO; rows]);
                        for first in (0..blocks).step_by(UNPACKED_BLOCKS) {
                            let blocks = UNPACKED_BLOCKS.min(blocks - first);
                            let (tile, panel) = (tile.part(first, blocks), panel.part(first, blocks));
                            unpack(isa, tile, panel, &mut unpacked, &mut first_tile);
                            product(isa, tile, &unpacked, Some(panel), &mut second);
                            product(isa, tile, &unpacked, None, &mut third);
                        }
                        for row in 0..rows {
                            for column in 0..COLUMNS {
                                let want = plain(tile, panel, row, column).to_bits();
                                let got =
                                    [&streamed, &first_tile, &second, &third].map(|sums| sums[row].0[column].to_bits());
                                assert_eq!(got, [want; 4], "{isa:?} {rows} rows, {blocks} blocks, {halves} {narrow}");
                            }
                        }
                    }
                }
            }
        }
    }
}
