//! The products in instructions of x86-64: AVX-512 with VNNI, and AVX2 with or without VNNI.
//!
//! In and out: as in the module above, whose functions check every size before they call these. Deliberately not here: choosing one.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::{BLOCK, COLUMNS, LANE, PLANE, Panel, SHIFTS, STEP, STEPS, TILE, Tile, Unpacked};

/// How many blocks ahead a stream asks for planes and scales: reading that many takes longer than memory takes to answer.
const AHEAD: usize = 4;
/// Registers of the sums of a row, of the scales of a group, of a step.
const WIDE: usize = COLUMNS / 16;

/// Where the bytes of a panel come from.
trait Source: Copy {
    /// Whether scales belong to 32 weights.
    fn halves(self) -> bool;
    /// The bytes of 16 columns of step 2 * `pair` and of the one after it.
    ///
    /// # Safety
    /// They exist, and the machine has AVX-512.
    unsafe fn pair(self, block: usize, pair: usize, wide: usize) -> [__m512i; 2];
    /// The scales of 16 columns of a group of a block.
    ///
    /// # Safety
    /// As for `pair`.
    unsafe fn scales(self, block: usize, group: usize, wide: usize) -> __m512;
}

impl Source for &Unpacked {
    #[inline(always)]
    fn halves(self) -> bool {
        self.halves
    }

    #[inline(always)]
    unsafe fn pair(self, block: usize, pair: usize, wide: usize) -> [__m512i; 2] {
        // SAFETY: inside of the bytes by the caller's promise.
        unsafe {
            let at = self.bytes.as_ptr().cast::<u8>().add((block * STEPS + 2 * pair) * STEP + wide * 64);
            [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(STEP).cast())]
        }
    }

    #[inline(always)]
    unsafe fn scales(self, block: usize, group: usize, wide: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(self.scales.as_ptr().cast::<f32>().add((block * 2 + group) * COLUMNS + wide * 16)) }
    }
}

/// Planes as they lie in memory, asked for some blocks ahead.
#[derive(Clone, Copy)]
struct Planes<const NARROW: bool, const AHEAD: usize> {
    upper: *const u8,
    lower: *const u8,
    scales: *const u16,
    power: f32,
    halves: bool,
}

impl<const NARROW: bool, const AHEAD: usize> Source for Planes<NARROW, AHEAD> {
    #[inline(always)]
    fn halves(self) -> bool {
        self.halves
    }

    #[inline(always)]
    unsafe fn pair(self, block: usize, pair: usize, wide: usize) -> [__m512i; 2] {
        let at = block * PLANE + pair * STEP + wide * 64;
        // SAFETY: inside of the planes by the caller's promise; prefetches may point anywhere.
        unsafe {
            if AHEAD > 0 {
                _mm_prefetch::<_MM_HINT_T0>(self.upper.wrapping_add(at + AHEAD * PLANE).cast());
            }
            let upper = _mm512_loadu_si512(self.upper.add(at).cast());
            let nibbles = _mm512_set1_epi8(0xf0u8 as i8);
            let shifted = _mm512_slli_epi16::<4>(upper);
            if NARROW {
                return [_mm512_and_si512(shifted, nibbles), _mm512_and_si512(upper, nibbles)];
            }
            if AHEAD > 0 {
                _mm_prefetch::<_MM_HINT_T0>(self.lower.wrapping_add(at + AHEAD * PLANE).cast());
            }
            let lower = _mm512_loadu_si512(self.lower.add(at).cast());
            // Bits of the first where the second has them, else of the third.
            const SELECT: i32 = 0b1110_0010;
            [
                _mm512_ternarylogic_epi32::<SELECT>(shifted, nibbles, lower),
                _mm512_ternarylogic_epi32::<SELECT>(upper, nibbles, _mm512_srli_epi16::<4>(lower)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales(self, block: usize, group: usize, wide: usize) -> __m512 {
        let groups = if self.halves { 2 } else { 1 };
        // SAFETY: as above.
        unsafe {
            let at = self.scales.add((block * groups + group) * COLUMNS + wide * 16);
            if AHEAD > 0 {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * groups * COLUMNS).cast());
            }
            _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), _mm512_set1_ps(self.power))
        }
    }
}

/// Calls `$f` with the planes of a panel as a [`Source`].
macro_rules! with_planes {
    ($panel:ident, $ahead:expr, |$source:ident| $f:expr) => {{
        let (upper, scales) = ($panel.upper.as_ptr(), $panel.scales.as_ptr());
        let (power, halves) = ($panel.power, $panel.halves());
        match $panel.lower {
            Some(lower) => {
                let $source = Planes::<false, { $ahead }> { upper, lower: lower.as_ptr(), scales, power, halves };
                $f
            }
            None => {
                let $source = Planes::<true, { $ahead }> { upper, lower: upper, scales, power, halves };
                $f
            }
        }
    }};
}

/// # Safety
/// The machine has these instructions; tile, panel and sums fit each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn stream_avx512(tile: Tile<'_>, panel: Panel<'_>, sums: &mut [[f32; COLUMNS]]) {
    let blocks = panel.blocks();
    // SAFETY: passed on.
    unsafe { with_planes!(panel, AHEAD, |source| any_rows(tile, source, blocks, sums)) }
}

/// # Safety
/// The machine has these instructions; tile, weights and sums fit each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn product_avx512(tile: Tile<'_>, weights: &Unpacked, sums: &mut [[f32; COLUMNS]]) {
    // SAFETY: passed on.
    unsafe { any_rows(tile, weights, weights.blocks, sums) }
}

/// Does not look ahead, as its callers do.
///
/// # Safety
/// The machine has these instructions; there is room for the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn unpack_avx512(panel: Panel<'_>, to: &mut Unpacked) {
    let blocks = panel.blocks();
    // SAFETY: passed on.
    unsafe { with_planes!(panel, 0, |source| unpack_from(source, blocks, to)) }
}

/// # Safety
/// As for `unpack_avx512`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn unpack_from(source: impl Source, blocks: usize, to: &mut Unpacked) {
    let groups = if source.halves() { 2 } else { 1 };
    for block in 0..blocks {
        let bytes = to.bytes[block].as_mut_ptr();
        let scales = to.scales[block].as_mut_ptr().cast::<f32>();
        // SAFETY: pairs, groups and columns of a block that exists, from and to.
        unsafe {
            for pair in 0..STEPS / 2 {
                for wide in 0..WIDE {
                    let [even, odd] = source.pair(block, pair, wide);
                    let at = bytes.add(2 * pair * STEP + wide * 64);
                    _mm512_store_si512(at.cast(), even);
                    _mm512_store_si512(at.add(STEP).cast(), odd);
                }
            }
            for group in 0..groups {
                for wide in 0..WIDE {
                    _mm512_storeu_ps(scales.add(group * COLUMNS + wide * 16), source.scales(block, group, wide));
                }
            }
        }
    }
}

/// Asks for every `parts`-th line of a panel from line `part` on.
pub(super) fn ask(panel: Panel<'_>, part: usize, parts: usize) {
    const LINE: usize = 64;
    let scales = panel.scales.as_ptr().cast::<u8>();
    let planes =
        [Some((panel.upper.as_ptr(), panel.upper.len())), panel.lower.map(|lower| (lower.as_ptr(), lower.len()))];
    for (plane, bytes) in planes.into_iter().flatten().chain([(scales, size_of_val(panel.scales))]) {
        for at in (part * LINE..bytes).step_by(parts * LINE) {
            // SAFETY: every x86-64 has this instruction, which reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(plane.wrapping_add(at).cast()) };
        }
    }
}

/// Chooses the code for a number of rows.
///
/// # Safety
/// As for `product_avx512`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn any_rows(tile: Tile<'_>, source: impl Source, blocks: usize, sums: &mut [[f32; COLUMNS]]) {
    macro_rules! of {
        ($($rows:literal)*) => {
            match tile.rows {
                $($rows => if source.halves() {
                    some_rows::<$rows, true>(tile, source, blocks, sums)
                } else {
                    some_rows::<$rows, false>(tile, source, blocks, sums)
                },)*
                _ => unreachable!("a tile has 1 to {TILE} rows"),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { of!(1 2 3 4 5 6 7 8) }
}

/// # Safety
/// As for `product_avx512`; the tile has `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn some_rows<const R: usize, const HALVES: bool>(
    tile: Tile<'_>,
    source: impl Source,
    blocks: usize,
    sums: &mut [[f32; COLUMNS]],
) {
    // SAFETY: every pointer stays inside of its slice, because sizes fit `blocks` and `R`.
    unsafe {
        for block in 0..blocks {
            let codes = tile.codes.as_ptr().add(block * R * BLOCK);
            let shifts = tile.shifts.as_ptr().add(block * R * SHIFTS);
            let scales = tile.scales.as_ptr().add(block * R);
            // Sums wait in memory, hidden from the compiler, which would keep them in registers that the products need.
            let sums = black_box(sums.as_mut_ptr()).cast::<f32>();
            let mut inner = [[_mm512_setzero_ps(); WIDE]; R];
            if HALVES {
                let dots = dots_of::<R>(source, block, 0, STEPS / 4, codes, shifts);
                for wide in 0..WIDE {
                    let weights = source.scales(block, 0, wide);
                    for row in 0..R {
                        inner[row][wide] = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[row][wide]), weights);
                    }
                }
            }
            let (begin, shifts) = if HALVES { (STEPS / 4, shifts.add(R)) } else { (0, shifts.add(2 * R)) };
            let dots = dots_of::<R>(source, block, begin, STEPS / 2, codes, shifts);
            for wide in 0..WIDE {
                let weights = source.scales(block, HALVES as usize, wide);
                for row in 0..R {
                    let at = row * COLUMNS + wide * 16;
                    let dots = _mm512_cvtepi32_ps(dots[row][wide]);
                    let inner = match HALVES {
                        true => _mm512_fmadd_ps(dots, weights, inner[row][wide]),
                        false => _mm512_mul_ps(dots, weights),
                    };
                    let scale = _mm512_set1_ps(*scales.add(row));
                    _mm512_storeu_ps(sums.add(at), _mm512_fmadd_ps(inner, scale, _mm512_loadu_ps(sums.add(at))));
                }
            }
        }
    }
}

/// The shifts and the products of pairs `first..last` of a block. Without instructions of its own, so that it can be made part of its caller
/// always: as a call it would hand its registers over through memory.
///
/// # Safety
/// As for `some_rows`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "registers by their numbers")]
unsafe fn dots_of<const R: usize>(
    source: impl Source,
    block: usize,
    first: usize,
    last: usize,
    codes: *const i8,
    shifts: *const i32,
) -> [[__m512i; WIDE]; R] {
    // SAFETY: passed on; codes of a row are 64 bytes, read by fours that need not be aligned.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); WIDE]; R];
        for row in 0..R {
            sums[row] = [_mm512_set1_epi32(*shifts.add(row)); WIDE];
        }
        for pair in first..last {
            let mut weights = [[_mm512_setzero_si512(); 2]; WIDE];
            for (wide, weights) in weights.iter_mut().enumerate() {
                *weights = source.pair(block, pair, wide);
            }
            for odd in 0..2 {
                for row in 0..R {
                    let x = codes.add(row * BLOCK + (2 * pair + odd) * LANE).cast::<i32>().read_unaligned();
                    let x = _mm512_set1_epi32(x);
                    for wide in 0..WIDE {
                        sums[row][wide] = _mm512_dpbusd_epi32(sums[row][wide], weights[wide][odd], x);
                    }
                }
            }
        }
        sums
    }
}

/// # Safety
/// The machine has AVX2 and FMA, and AVX-VNNI if `vnni` says so; tile, weights and sums fit each other.
pub(super) unsafe fn product_avx2(vnni: bool, tile: Tile<'_>, weights: &Unpacked, sums: &mut [[f32; COLUMNS]]) {
    // SAFETY: passed on.
    unsafe {
        match vnni {
            true => rows_avx_vnni(tile, weights, sums),
            false => rows_avx2(tile, weights, sums),
        }
    }
}

/// Registers of 256 bits that hold the sums of a row.
const SIDES: usize = COLUMNS / 8;

/// One function body for 256-bit registers: `$dot` adds to the sums of eight columns the products of a step.
macro_rules! rows_256 {
    ($name:ident, $features:literal, $dot:ident) => {
        /// # Safety
        /// As for `product_avx2`.
        #[target_feature(enable = $features)]
        unsafe fn $name(tile: Tile<'_>, weights: &Unpacked, sums: &mut [[f32; COLUMNS]]) {
            let rows = tile.rows;
            // SAFETY: every pointer stays inside of its slice, because sizes fit each other.
            unsafe {
                for block in 0..weights.blocks {
                    let bytes = weights.bytes[block].as_ptr();
                    let scales = weights.scales[block].as_ptr().cast::<f32>();
                    let scale_of = |group: usize, side: usize| _mm256_loadu_ps(scales.add(group * COLUMNS + side * 8));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = tile.codes.as_ptr().add((block * rows + row) * BLOCK);
                        let shifts = tile.shifts.as_ptr().add(block * rows * SHIFTS + row);
                        let scale = _mm256_set1_ps(tile.scales[block * rows + row]);
                        let dots = |first: usize, last: usize, shift: usize| {
                            let mut sums = [_mm256_set1_epi32(*shifts.add(shift * rows)); SIDES];
                            for step in first..last {
                                let x = _mm256_set1_epi32(x.add(step * LANE).cast::<i32>().read_unaligned());
                                for (side, sum) in sums.iter_mut().enumerate() {
                                    let w = bytes.add(step * STEP + side * 32);
                                    *sum = $dot(*sum, _mm256_load_si256(w.cast()), x);
                                }
                            }
                            sums
                        };
                        let mut inner = [_mm256_setzero_ps(); SIDES];
                        if weights.halves {
                            let (first, second) = (dots(0, STEPS / 2, 0), dots(STEPS / 2, STEPS, 1));
                            for side in 0..SIDES {
                                inner[side] = _mm256_mul_ps(_mm256_cvtepi32_ps(first[side]), scale_of(0, side));
                                let second = _mm256_cvtepi32_ps(second[side]);
                                inner[side] = _mm256_fmadd_ps(second, scale_of(1, side), inner[side]);
                            }
                        } else {
                            let whole = dots(0, STEPS, 2);
                            for side in 0..SIDES {
                                inner[side] = _mm256_mul_ps(_mm256_cvtepi32_ps(whole[side]), scale_of(0, side));
                            }
                        }
                        for (side, inner) in inner.into_iter().enumerate() {
                            let at = sums.as_mut_ptr().add(side * 8);
                            _mm256_storeu_ps(at, _mm256_fmadd_ps(inner, scale, _mm256_loadu_ps(at)));
                        }
                    }
                }
            }
        }
    };
}

rows_256!(rows_avx_vnni, "avx2,fma,avxvnni", dot_avx_vnni);
rows_256!(rows_avx2, "avx2,fma", dot_avx2);

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn dot_avx_vnni(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, weights, x)
}

/// In 16 bits, even and odd places by themselves: products of bytes with and without sign would not fit where two are added.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_avx2(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    let even = _mm256_and_si256(weights, _mm256_set1_epi16(0xff));
    let odd = _mm256_srli_epi16::<8>(weights);
    let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
    let x_odd = _mm256_srai_epi16::<8>(x);
    let products = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
    _mm256_add_epi32(sum, products)
}
