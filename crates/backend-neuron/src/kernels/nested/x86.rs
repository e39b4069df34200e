//! The products in instructions of x86-64: AVX-512 with VNNI, and AVX2 with or without VNNI.
//!
//! In and out: as in the module above, whose functions check every size before they call these. Deliberately not here: choosing one.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::{BIAS, BLOCK, COLUMNS, Factors, LANE, PLANE, Panel, SHIFTS, STEP, STEPS, Sums, TILE, Tile, Unpacked};

/// How many blocks ahead memory is asked for: reading that many takes longer than memory takes to answer.
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
    /// The factors of 16 columns of a block, as [`Factors`] has them.
    ///
    /// # Safety
    /// As for `pair`.
    unsafe fn factors(self, block: usize, wide: usize) -> [__m512; 3];
}

/// Blocks that are unpacked; with `ASK`, memory is asked for lower planes and scales meanwhile.
#[derive(Clone, Copy)]
struct Kept<'a, const ASK: bool> {
    weights: &'a Unpacked,
    lower: *const u8,
    scales: *const u16,
}

impl<const ASK: bool> Source for Kept<'_, ASK> {
    #[inline(always)]
    fn halves(self) -> bool {
        self.weights.halves
    }

    #[inline(always)]
    unsafe fn pair(self, block: usize, pair: usize, wide: usize) -> [__m512i; 2] {
        // SAFETY: inside of the bytes by the caller's promise; prefetches may point anywhere.
        unsafe {
            if ASK {
                ask(self.lower, block * PLANE + pair * STEP + wide * 64);
            }
            let at = self.weights.bytes.as_ptr().cast::<u8>().add((block * STEPS + 2 * pair) * STEP + wide * 64);
            [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(STEP).cast())]
        }
    }

    #[inline(always)]
    unsafe fn factors(self, block: usize, wide: usize) -> [__m512; 3] {
        if ASK {
            ask_scales(self.scales, self.weights.halves, block, wide);
        }
        // SAFETY: inside of the factors by the caller's promise.
        unsafe {
            let at = self.weights.factors.as_ptr().add(block).cast::<f32>().add(wide * 16);
            [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(COLUMNS)), _mm512_loadu_ps(at.add(2 * COLUMNS))]
        }
    }
}

/// Planes as they lie in memory, which is asked for what comes next: for the upper one, and unless other tiles follow that
/// do it, for everything else. With `KEEP`, for other tiles, what is made of them is kept.
#[derive(Clone, Copy)]
struct Planes<const NARROW: bool, const KEEP: bool> {
    upper: *const u8,
    lower: *const u8,
    scales: *const u16,
    power: f32,
    halves: bool,
    /// `[blocks]`, as in [`Unpacked`].
    bytes: *mut [u8; STEPS * STEP],
    factors: *mut Factors,
}

impl<const NARROW: bool, const KEEP: bool> Source for Planes<NARROW, KEEP> {
    #[inline(always)]
    fn halves(self) -> bool {
        self.halves
    }

    #[inline(always)]
    unsafe fn pair(self, block: usize, pair: usize, wide: usize) -> [__m512i; 2] {
        let at = block * PLANE + pair * STEP + wide * 64;
        // SAFETY: inside of the planes, and of what is kept, by the caller's promise.
        unsafe {
            ask(self.upper, at);
            let upper = _mm512_loadu_si512(self.upper.add(at).cast());
            let nibbles = _mm512_set1_epi8(0xf0u8 as i8);
            let shifted = _mm512_slli_epi16::<4>(upper);
            let pair = if NARROW {
                [_mm512_and_si512(shifted, nibbles), _mm512_and_si512(upper, nibbles)]
            } else {
                if !KEEP {
                    ask(self.lower, at);
                }
                let lower = _mm512_loadu_si512(self.lower.add(at).cast());
                // Bits of the first where the second has them, else of the third.
                const SELECT: i32 = 0b1110_0010;
                [
                    _mm512_ternarylogic_epi32::<SELECT>(shifted, nibbles, lower),
                    _mm512_ternarylogic_epi32::<SELECT>(upper, nibbles, _mm512_srli_epi16::<4>(lower)),
                ]
            };
            if KEEP {
                // A pair takes two steps where the plane has one.
                let to = self.bytes.cast::<u8>().add(2 * at - wide * 64);
                _mm512_store_si512(to.cast(), pair[0]);
                _mm512_store_si512(to.add(STEP).cast(), pair[1]);
            }
            pair
        }
    }

    #[inline(always)]
    unsafe fn factors(self, block: usize, wide: usize) -> [__m512; 3] {
        if !KEEP {
            ask_scales(self.scales, self.halves, block, wide);
        }
        // SAFETY: as above.
        unsafe {
            let groups = if self.halves { 2 } else { 1 };
            let at = self.scales.add(block * groups * COLUMNS + wide * 16);
            let power = _mm512_set1_ps(self.power);
            let first = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), power);
            let offset = _mm512_mul_ps(first, _mm512_set1_ps(-BIAS));
            let (second, offset) = if self.halves {
                let second = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(at.add(COLUMNS).cast())), power);
                // A product that is exact, so that fusing changes nothing.
                (second, _mm512_fnmadd_ps(_mm512_set1_ps(BIAS), second, offset))
            } else {
                (first, offset)
            };
            if KEEP {
                let to = self.factors.add(block).cast::<f32>().add(wide * 16);
                _mm512_storeu_ps(to, first);
                _mm512_storeu_ps(to.add(COLUMNS), second);
                _mm512_storeu_ps(to.add(2 * COLUMNS), offset);
            }
            [first, second, offset]
        }
    }
}

/// Asks memory for what lies as far from `at` in a plane as [`AHEAD`] blocks are long, which may be behind its end: there the next
/// panel begins.
#[inline(always)]
fn ask(plane: *const u8, at: usize) {
    // SAFETY: every x86-64 has this instruction, which reads nothing and may point anywhere.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(plane.wrapping_add(at + AHEAD * PLANE).cast()) };
}

/// Asks for scales as [`ask`] does: a register of 16 columns for each cache line of 32.
#[inline(always)]
fn ask_scales(scales: *const u16, halves: bool, block: usize, wide: usize) {
    let groups = if halves { 2 } else { 1 };
    if wide < groups {
        let at = ((block + AHEAD) * groups + wide) * COLUMNS;
        // SAFETY: as in `ask`.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(at).cast()) };
    }
}

/// Calls `$f` with the planes of a panel as a [`Source`], to be kept in `$to` or not.
macro_rules! with_planes {
    ($panel:ident, $keep:literal, ($bytes:expr, $factors:expr), |$source:ident| $f:expr) => {{
        let (upper, scales) = ($panel.upper.as_ptr(), $panel.scales.as_ptr());
        let (power, halves, bytes, factors) = ($panel.power, $panel.halves(), $bytes, $factors);
        match $panel.lower {
            Some(lower) => {
                let lower = lower.as_ptr();
                let $source = Planes::<false, $keep> { upper, lower, scales, power, halves, bytes, factors };
                $f
            }
            None => {
                let $source = Planes::<true, $keep> { upper, lower: upper, scales, power, halves, bytes, factors };
                $f
            }
        }
    }};
}

/// # Safety
/// The machine has these instructions; tile, panel and sums fit each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn stream_avx512(tile: Tile<'_>, panel: Panel<'_>, sums: &mut [Sums]) {
    let blocks = panel.blocks();
    let nowhere = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: passed on.
    unsafe { with_planes!(panel, false, (nowhere.0, nowhere.1), |source| any_rows(tile, source, blocks, sums)) }
}

/// # Safety
/// As for `stream_avx512`; there is room for the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn unpack_avx512(tile: Tile<'_>, panel: Panel<'_>, to: &mut Unpacked, sums: &mut [Sums]) {
    let blocks = panel.blocks();
    // SAFETY: passed on.
    unsafe {
        let kept = (to.bytes.as_mut_ptr(), to.factors.as_mut_ptr());
        with_planes!(panel, true, (kept.0, kept.1), |source| any_rows(tile, source, blocks, sums))
    }
}

/// # Safety
/// The machine has these instructions; tile, weights and sums fit each other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn product_avx512(tile: Tile<'_>, weights: &Unpacked, ahead: Option<Panel<'_>>, sums: &mut [Sums]) {
    // SAFETY: passed on.
    unsafe {
        match ahead.and_then(|ahead| Some((ahead.lower?.as_ptr(), ahead.scales.as_ptr()))) {
            Some((lower, scales)) => {
                any_rows(tile, Kept::<true> { weights, lower, scales }, weights.blocks, sums);
            }
            None => {
                let (lower, scales) = (std::ptr::null(), std::ptr::null());
                any_rows(tile, Kept::<false> { weights, lower, scales }, weights.blocks, sums);
            }
        }
    }
}

/// Chooses the code for a number of rows. Few are multiplied with both registers of columns for each code that is read. Many are
/// multiplied with one after the other: codes are then read by the products themselves, which leaves registers for both halves of a block.
///
/// # Safety
/// As for `product_avx512`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn any_rows(tile: Tile<'_>, source: impl Source, blocks: usize, sums: &mut [Sums]) {
    macro_rules! of {
        ($($rows:literal * $wide:literal)*) => {
            match tile.rows {
                $($rows => if source.halves() {
                    some_rows::<$rows, $wide, true>(tile, source, blocks, sums)
                } else {
                    some_rows::<$rows, $wide, false>(tile, source, blocks, sums)
                },)*
                _ => unreachable!("a tile has 1 to {TILE} rows"),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { of!(1 * 2 2 * 2 3 * 2 4 * 2 5 * 2 6 * 2 7 * 1 8 * 1 9 * 1 10 * 1 11 * 1 12 * 1) }
}

/// `R` rows times `W` registers of columns at a time.
///
/// # Safety
/// As for `product_avx512`; the tile has `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[expect(clippy::needless_range_loop, reason = "registers by their numbers")]
unsafe fn some_rows<const R: usize, const W: usize, const HALVES: bool>(
    tile: Tile<'_>,
    source: impl Source,
    blocks: usize,
    sums: &mut [Sums],
) {
    // Counts that the compiler does not know: it would unroll both halves, mix them, and run out of registers.
    let (middle, pairs) = black_box((STEPS / 4, STEPS / 2));
    // SAFETY: every pointer stays inside of its slice, because sizes fit `blocks` and `R`.
    unsafe {
        for block in 0..blocks {
            let codes = tile.codes.as_ptr().add(block * R * BLOCK);
            let shifts = tile.shifts.as_ptr().add(block * R * SHIFTS);
            let scales = tile.scales.as_ptr().add(block * R);
            for side in (0..WIDE).step_by(W) {
                let mut inner = [[_mm512_setzero_ps(); W]; R];
                let mut last = [_mm512_setzero_ps(); W];
                let (end, shift) = if HALVES { (middle, 0) } else { (pairs, 2) };
                let dots = dots_of::<R, W>(source, (block, side), (0, end), codes, shifts.add(shift * R));
                for wide in 0..W {
                    let [first, second, offset] = source.factors(block, side + wide);
                    last[wide] = second;
                    for row in 0..R {
                        inner[row][wide] = _mm512_fmadd_ps(dots[row][wide], first, offset);
                    }
                }
                if HALVES {
                    let dots = dots_of::<R, W>(source, (block, side), (middle, pairs), codes, shifts.add(R));
                    for wide in 0..W {
                        for row in 0..R {
                            inner[row][wide] = _mm512_fmadd_ps(dots[row][wide], last[wide], inner[row][wide]);
                        }
                    }
                }
                // Sums wait in memory, hidden from the compiler, which would keep them in registers that the products need.
                let sums = black_box(sums.as_mut_ptr()).cast::<f32>().add(side * 16);
                for wide in 0..W {
                    for row in 0..R {
                        let sum = sums.add(row * COLUMNS + wide * 16);
                        let scale = _mm512_set1_ps(*scales.add(row));
                        _mm512_store_ps(sum, _mm512_fmadd_ps(inner[row][wide], scale, _mm512_load_ps(sum)));
                    }
                }
            }
        }
    }
}

/// The f32 that are the shifts and the products of pairs `first..last` of a block. Without instructions of its own, so that it can be made part
/// of its caller always: as a call it would hand its registers over through memory.
///
/// # Safety
/// As for `some_rows`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "registers by their numbers")]
unsafe fn dots_of<const R: usize, const W: usize>(
    source: impl Source,
    (block, side): (usize, usize),
    (first, last): (usize, usize),
    codes: *const i8,
    shifts: *const i32,
) -> [[__m512; W]; R] {
    // SAFETY: passed on; codes of a row are 64 bytes, read by fours that need not be aligned.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); W]; R];
        for row in 0..R {
            sums[row] = [_mm512_set1_epi32(*shifts.add(row)); W];
        }
        for pair in first..last {
            let mut weights = [[_mm512_setzero_si512(); 2]; W];
            for wide in 0..W {
                weights[wide] = source.pair(block, pair, side + wide);
            }
            for odd in 0..2 {
                for row in 0..R {
                    let x = codes.add(row * BLOCK + (2 * pair + odd) * LANE).cast::<i32>().read_unaligned();
                    let x = _mm512_set1_epi32(x);
                    for wide in 0..W {
                        sums[row][wide] = _mm512_dpbusd_epi32(sums[row][wide], weights[wide][odd], x);
                    }
                }
            }
        }
        let mut biased = [[_mm512_setzero_ps(); W]; R];
        for row in 0..R {
            for wide in 0..W {
                biased[row][wide] = _mm512_castsi512_ps(sums[row][wide]);
            }
        }
        biased
    }
}

/// # Safety
/// The machine has AVX2 and FMA, and AVX-VNNI if `vnni` says so; tile, weights and sums fit each other.
pub(super) unsafe fn product_avx2(vnni: bool, tile: Tile<'_>, weights: &Unpacked, sums: &mut [Sums]) {
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
        unsafe fn $name(tile: Tile<'_>, weights: &Unpacked, sums: &mut [Sums]) {
            let rows = tile.rows;
            // SAFETY: every pointer stays inside of its slice, because sizes fit each other.
            unsafe {
                for block in 0..weights.blocks {
                    let bytes = weights.bytes[block].as_ptr();
                    let factors = (&raw const weights.factors[block]).cast::<f32>();
                    let factor = |at: usize, side: usize| _mm256_loadu_ps(factors.add(at * COLUMNS + side * 8));
                    for (row, Sums(sums)) in sums.iter_mut().enumerate() {
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
                            sums.map(|sum| _mm256_castsi256_ps(sum))
                        };
                        let mut inner = [_mm256_setzero_ps(); SIDES];
                        let (middle, shift) = if weights.halves { (STEPS / 2, 0) } else { (STEPS, 2) };
                        for (side, first) in dots(0, middle, shift).into_iter().enumerate() {
                            inner[side] = _mm256_fmadd_ps(first, factor(0, side), factor(2, side));
                        }
                        if weights.halves {
                            for (side, second) in dots(middle, STEPS, 1).into_iter().enumerate() {
                                inner[side] = _mm256_fmadd_ps(second, factor(1, side), inner[side]);
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
