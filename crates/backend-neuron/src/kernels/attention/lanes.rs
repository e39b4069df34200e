//! Sixteen f32 side by side, on every instruction set: what the attention kernels are written in.
//!
//! In and out: lanes. Each operation rounds once and gives the same bits everywhere; `mul_add` is fused everywhere. A type of this
//! file is only named in functions that are compiled for its instructions and chosen by an [`crate::kernels::Isa`], which is what makes
//! its operations sound. Deliberately not here: loops over memory.

use crate::kernels::{LANES, fold};

/// 1.5 * 2^23: adding it rounds to a whole number, ties to even, and leaves that number in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// Below this a power of two is taken as 0; at it, it is still a normal number.
const LEAST: f32 = -126.0;

/// Sixteen f32.
pub(crate) trait Lanes: Copy {
    /// Whether there are 32 registers of all sixteen lanes, for large tiles.
    const WIDE: bool;

    /// # Safety
    /// 16 f32 can be read at `at`.
    unsafe fn load(at: *const f32) -> Self;
    /// # Safety
    /// 16 f32 can be written at `at`.
    unsafe fn store(self, at: *mut f32);
    /// The lower and the upper halves of 16 words, each a bf16.
    ///
    /// # Safety
    /// 32 bf16 can be read at `at`.
    unsafe fn load_bf16_pairs(at: *const u16) -> (Self, Self);
    /// The lower and the upper bytes of 16 words of 16 bits, each a whole number with a sign.
    ///
    /// # Safety
    /// 32 bytes can be read at `at`.
    unsafe fn load_i8_pairs(at: *const i8) -> (Self, Self);
    /// Asks for the cache line at `at`, which may be any address.
    fn prefetch(at: *const u8);

    fn splat(value: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `if self > other { self } else { other }`.
    fn max(self, other: Self) -> Self;
    /// `self` where `x` is at least `least`, else 0.
    fn where_at_least(self, x: Self, least: Self) -> Self;
    /// `self * 2^n`, where `shifted` is [`ROUNDER`] plus a whole number n that keeps the exponent in range.
    fn times_power(self, shifted: Self) -> Self;
    /// As [`fold`] adds them.
    fn sum(self) -> f32;
    /// The largest lane.
    fn largest(self) -> f32;
}

/// 2^x for x up to 0, within 2 units in the last place. Range reduction and coefficients: Cephes `exp2f` (S. Moshier, 1984-1992).
#[inline(always)]
pub(super) fn exp2<L: Lanes>(x: L) -> L {
    let shifted = x.max(L::splat(LEAST)).add(L::splat(ROUNDER));
    let r = x.max(L::splat(LEAST)).sub(shifted.sub(L::splat(ROUNDER)));
    let mut p = L::splat(1.535_336_2e-4);
    for coefficient in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_7e-1, 6.931_472e-1, 1.0] {
        p = p.mul_add(r, L::splat(coefficient));
    }
    p.times_power(shifted).where_at_least(x, L::splat(LEAST))
}

/// What every machine has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: by the caller's promise; an array of f32 is aligned as its elements are.
        Self(unsafe { at.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { at.cast::<[f32; LANES]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(at: *const u16) -> (Self, Self) {
        // SAFETY: as in `load`.
        let words = unsafe { at.cast::<[[u16; 2]; LANES]>().read() };
        let half = |half: usize| Self(words.map(|pair| f32::from_bits(u32::from(pair[half]) << 16)));
        (half(0), half(1))
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(at: *const i8) -> (Self, Self) {
        // SAFETY: as in `load`.
        let words = unsafe { at.cast::<[[i8; 2]; LANES]>().read() };
        let half = |half: usize| Self(words.map(|pair| f32::from(pair[half])));
        (half(0), half(1))
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], term.0[lane])))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.each(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn where_at_least(self, x: Self, least: Self) -> Self {
        Self(std::array::from_fn(|lane| if x.0[lane] >= least.0[lane] { self.0[lane] } else { 0.0 }))
    }

    #[inline(always)]
    fn times_power(self, shifted: Self) -> Self {
        self.each(shifted, |value, power| f32::from_bits(value.to_bits().wrapping_add(power.to_bits() << 23)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self.0)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |most, lane| if lane > most { lane } else { most })
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// The upper half of each 32-bit lane.
    const UPPER: i32 = 0xffff_0000_u32.cast_signed();

    /// An expression of intrinsics without a safety rule but their instructions.
    macro_rules! op {
        ($e:expr) => {
            // SAFETY: the machine has the instructions: see the head of this file.
            unsafe { $e }
        };
    }

    /// One register.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    impl Lanes for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: by the caller's promise; the load needs no alignment.
            Self(unsafe { _mm512_loadu_ps(at) })
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: as in `load`.
            unsafe { _mm512_storeu_ps(at, self.0) }
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(at: *const u16) -> (Self, Self) {
            // SAFETY: as in `load`.
            let words = unsafe { _mm512_loadu_si512(at.cast()) };
            let (low, high) = op!((_mm512_slli_epi32::<16>(words), _mm512_and_si512(words, _mm512_set1_epi32(UPPER))));
            op!((Self(_mm512_castsi512_ps(low)), Self(_mm512_castsi512_ps(high))))
        }

        #[inline(always)]
        unsafe fn load_i8_pairs(at: *const i8) -> (Self, Self) {
            // SAFETY: as in `load`.
            let bytes = unsafe { _mm256_loadu_si256(at.cast()) };
            op!({
                let words = _mm512_cvtepi16_epi32(bytes);
                let low = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(words));
                (Self(_mm512_cvtepi32_ps(low)), Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<8>(words))))
            })
        }

        #[inline(always)]
        fn prefetch(at: *const u8) {
            op!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(op!(_mm512_set1_ps(value)))
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(op!(_mm512_add_ps(self.0, other.0)))
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(op!(_mm512_sub_ps(self.0, other.0)))
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(op!(_mm512_mul_ps(self.0, other.0)))
        }

        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(op!(_mm512_fmadd_ps(self.0, factor.0, term.0)))
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            Self(op!(_mm512_max_ps(self.0, other.0)))
        }

        #[inline(always)]
        fn where_at_least(self, x: Self, least: Self) -> Self {
            Self(op!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x.0, least.0), self.0)))
        }

        #[inline(always)]
        fn times_power(self, shifted: Self) -> Self {
            let power = op!(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0)));
            Self(op!(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), power))))
        }

        #[inline(always)]
        fn sum(self) -> f32 {
            op!({
                let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
                sum_of_eight(eight)
            })
        }

        #[inline(always)]
        fn largest(self) -> f32 {
            op!({
                let eight = _mm256_max_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
                largest_of_eight(eight)
            })
        }
    }

    /// Two registers.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        const WIDE: bool = false;

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: by the caller's promise; the loads need no alignment.
            unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: as in `load`.
            unsafe {
                _mm256_storeu_ps(at, self.0);
                _mm256_storeu_ps(at.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(at: *const u16) -> (Self, Self) {
            // SAFETY: as in `load`.
            let (a, b) = unsafe { (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(16).cast())) };
            op!({
                let upper = _mm256_set1_epi32(UPPER);
                let low = [a, b].map(|words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)));
                let high = [a, b].map(|words| _mm256_castsi256_ps(_mm256_and_si256(words, upper)));
                (Self(low[0], low[1]), Self(high[0], high[1]))
            })
        }

        #[inline(always)]
        unsafe fn load_i8_pairs(at: *const i8) -> (Self, Self) {
            // SAFETY: as in `load`.
            let (a, b) = unsafe { (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(16).cast())) };
            op!({
                let words = [a, b].map(|bytes| _mm256_cvtepi16_epi32(bytes));
                let low = words.map(|words| _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(words)));
                let high = words.map(|words| _mm256_srai_epi32::<8>(words));
                let [low, high] = [low, high].map(|halves| halves.map(|half| _mm256_cvtepi32_ps(half)));
                (Self(low[0], low[1]), Self(high[0], high[1]))
            })
        }

        #[inline(always)]
        fn prefetch(at: *const u8) {
            op!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            let half = op!(_mm256_set1_ps(value));
            Self(half, half)
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            op!(Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)))
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            op!(Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)))
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            op!(Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)))
        }

        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            op!(Self(_mm256_fmadd_ps(self.0, factor.0, term.0), _mm256_fmadd_ps(self.1, factor.1, term.1)))
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            op!(Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)))
        }

        #[inline(always)]
        fn where_at_least(self, x: Self, least: Self) -> Self {
            op!(Self(
                _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_GE_OQ>(x.0, least.0)),
                _mm256_and_ps(self.1, _mm256_cmp_ps::<_CMP_GE_OQ>(x.1, least.1)),
            ))
        }

        #[inline(always)]
        fn times_power(self, shifted: Self) -> Self {
            op!(Self(times_power_of_eight(self.0, shifted.0), times_power_of_eight(self.1, shifted.1)))
        }

        #[inline(always)]
        fn sum(self) -> f32 {
            op!(sum_of_eight(_mm256_add_ps(self.0, self.1)))
        }

        #[inline(always)]
        fn largest(self) -> f32 {
            op!(largest_of_eight(_mm256_max_ps(self.0, self.1)))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn times_power_of_eight(value: __m256, shifted: __m256) -> __m256 {
        let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), power))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_of_eight(eight: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn largest_of_eight(eight: __m256) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}
