//! The loops that limits are measured with: independent chains of multiply-adds that never leave the registers, and a sum
//! over memory.
//!
//! In: steps, or words. Out: sums, so that no compiler may drop the work and a test can check it. Deliberately not here:
//! clocks and threads.
//!
//! As the kernels do it, each loop is compiled for an instruction set that this machine was asked for before it runs.

use std::hint::black_box;

/// Chains side by side: more than two multiply-adds per cycle with a latency of five need, and few enough for 16 registers.
const CHAINS: usize = 12;
/// Words that a [`ReadLoop`] adds up side by side.
const READ_LANES: usize = 64;

/// A loop over registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loop {
    /// Its instructions, for people.
    pub(super) name: &'static str,
    /// Multiplications and additions of one step on one thread.
    pub(super) operations_per_step: u64,
    /// Does this many steps and returns the sum of all lanes of all chains. Sound only on a machine that has the
    /// instructions, which is why only this file makes a `Loop`.
    run: unsafe fn(u64) -> f64,
}

impl Loop {
    /// Does this many steps and returns the sum of all lanes of all chains.
    pub(super) fn run(self, steps: u64) -> f64 {
        // SAFETY: a `Loop` is only made by the functions below, after the machine was asked for its instructions.
        unsafe { (self.run)(steps) }
    }
}

/// A sum over memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadLoop {
    /// Its instructions, for people.
    pub(super) name: &'static str,
    /// Sound under the same condition as that of [`Loop`].
    run: unsafe fn(&[u64]) -> u64,
}

impl ReadLoop {
    /// The sum of all words, wrapping; each is read once.
    pub(super) fn sum(self, words: &[u64]) -> u64 {
        // SAFETY: as in `Loop::run`.
        unsafe { (self.run)(words) }
    }
}

/// What every machine of the target has.
pub(super) const PORTABLE_F32: Loop = Loop { name: "portable", operations_per_step: per_step(4), run: portable_f32 };
/// What every machine of the target has.
pub(super) const PORTABLE_INT8: Loop = Loop { name: "portable", operations_per_step: per_step(4), run: portable_int8 };
/// What every machine of the target has.
pub(super) const PORTABLE_READ: ReadLoop = ReadLoop { name: "portable", run: portable_read };

/// Operations of one step of chains with this many multiply-adds each.
const fn per_step(multiply_adds: u64) -> u64 {
    2 * CHAINS as u64 * multiply_adds
}

/// f32: every chain is `x = x * 0.5 + 1`, from its number on. The widest last, at least one.
pub(super) fn f32_loops() -> Vec<Loop> {
    let mut all = vec![PORTABLE_F32];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Loop { name: "avx2 fma", operations_per_step: per_step(8), run: x86::f32_avx2 });
        }
        if is_x86_feature_detected!("avx512f") {
            all.push(Loop { name: "avx512 fma", operations_per_step: per_step(16), run: x86::f32_avx512 });
        }
    }
    all
}

/// 8-bit integers: every lane of a chain adds the products 3 * -2, as many as one instruction takes, from the chain's number
/// on. The widest last, at least one.
pub(super) fn int8_loops() -> Vec<Loop> {
    let mut all = vec![PORTABLE_INT8];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            all.push(Loop { name: "avx2 maddubs", operations_per_step: per_step(32), run: x86::int8_avx2 });
        }
        if is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("avx2") {
            all.push(Loop { name: "avx vnni", operations_per_step: per_step(32), run: x86::int8_avx_vnni });
        }
        if is_x86_feature_detected!("avx512bw") {
            all.push(Loop { name: "avx512 maddubs", operations_per_step: per_step(64), run: x86::int8_avx512 });
        }
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f") {
            all.push(Loop { name: "avx512 vnni", operations_per_step: per_step(64), run: x86::int8_avx512_vnni });
        }
    }
    all
}

/// bf16: every lane of a chain adds the products 1 * 0.5 twice, from the chain's number on. The widest last, maybe none.
pub(super) fn bf16_loops() -> Vec<Loop> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        return vec![Loop { name: "avx512 bf16", operations_per_step: per_step(32), run: x86::bf16_avx512 }];
    }
    Vec::new()
}

/// Sums over memory. The widest last, at least one.
pub(super) fn read_loops() -> Vec<ReadLoop> {
    let mut all = vec![PORTABLE_READ];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            all.push(ReadLoop { name: "avx2", run: x86::read_avx2 });
        }
        if is_x86_feature_detected!("avx512f") {
            all.push(ReadLoop { name: "avx512", run: x86::read_avx512 });
        }
    }
    all
}

/// The sum of all words, wrapping.
#[inline(always)]
fn sum(words: &[u64]) -> u64 {
    let (whole, rest) = words.as_chunks::<READ_LANES>();
    let mut sums = [0u64; READ_LANES];
    for words in whole {
        for lane in 0..READ_LANES {
            sums[lane] = sums[lane].wrapping_add(words[lane]);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

fn portable_read(words: &[u64]) -> u64 {
    sum(words)
}

/// Four lanes, multiplied and then added, as portable kernels have to.
fn portable_f32(steps: u64) -> f64 {
    let (half, one) = (black_box(0.5f32), black_box(1.0f32));
    let mut chains: [[f32; 4]; CHAINS] = std::array::from_fn(|chain| [black_box(chain as f32); 4]);
    for _ in 0..steps {
        for lanes in &mut chains {
            for lane in lanes {
                *lane = *lane * half + one;
            }
        }
    }
    chains.as_flattened().iter().map(|lane| f64::from(*lane)).sum()
}

/// Four lanes, one product of widened integers each.
fn portable_int8(steps: u64) -> f64 {
    let mut chains: [[i32; 4]; CHAINS] = std::array::from_fn(|chain| [black_box(chain as i32); 4]);
    let (a, b) = ([3i8; 4], [-2i8; 4]);
    for _ in 0..steps {
        // Hidden in each step, or the product would be computed once for all.
        let (a, b) = (black_box(a), black_box(b));
        for lanes in &mut chains {
            for lane in 0..4 {
                let product = i32::from(i16::from(a[lane]) * i16::from(b[lane]));
                lanes[lane] = lanes[lane].wrapping_add(product);
            }
        }
    }
    chains.as_flattened().iter().map(|lane| f64::from(*lane)).sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    /// A loop over `CHAINS` registers. The compiler must take `$hidden` for new in every step, or it would move products that do
    /// not depend on a chain out of the loop.
    macro_rules! chains {
        ($name:ident, $features:literal, start $start:expr, operands ($($operand:ident = $value:expr),*),
         $(hidden $hidden:ident,)? step |$chain:ident| $step:expr, lanes [$lane:ty; $lanes:literal]) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(steps: u64) -> f64 {
                $(let $operand = black_box($value);)*
                let mut chains = [$start(0 as $lane); CHAINS];
                for (number, chain) in chains.iter_mut().enumerate() {
                    *chain = $start(black_box(number as $lane));
                }
                for _ in 0..steps {
                    $(let $hidden = black_box($hidden);)?
                    for chain in &mut chains {
                        let $chain = *chain;
                        *chain = $step;
                    }
                }
                let mut sum = 0.0;
                for chain in chains {
                    // SAFETY: a vector and an array of its lanes have the same size, and any bits are lanes.
                    let lanes: [$lane; $lanes] = unsafe { std::mem::transmute(chain) };
                    sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
                }
                sum
            }
        };
    }

    chains!(f32_avx2, "avx2,fma", start _mm256_set1_ps, operands (half = _mm256_set1_ps(0.5), one = _mm256_set1_ps(1.0)),
        step |chain| _mm256_fmadd_ps(chain, half, one), lanes [f32; 8]);

    chains!(f32_avx512, "avx512f", start _mm512_set1_ps, operands (half = _mm512_set1_ps(0.5), one = _mm512_set1_ps(1.0)),
        step |chain| _mm512_fmadd_ps(chain, half, one), lanes [f32; 16]);

    chains!(int8_avx2, "avx2", start _mm256_set1_epi32,
        operands (a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2), ones = _mm256_set1_epi16(1)),
        hidden b, step |chain| _mm256_add_epi32(chain, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones)), lanes [i32; 8]);

    chains!(int8_avx512, "avx512f,avx512bw", start _mm512_set1_epi32,
        operands (a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2), ones = _mm512_set1_epi16(1)),
        hidden b, step |chain| _mm512_add_epi32(chain, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones)), lanes [i32; 16]);

    chains!(int8_avx_vnni, "avx2,avxvnni", start _mm256_set1_epi32,
        operands (a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2)),
        step |chain| _mm256_dpbusd_avx_epi32(chain, a, b), lanes [i32; 8]);

    chains!(int8_avx512_vnni, "avx512f,avx512vnni", start _mm512_set1_epi32,
        operands (a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2)),
        step |chain| _mm512_dpbusd_epi32(chain, a, b), lanes [i32; 16]);

    chains!(bf16_avx512, "avx512f,avx512bf16", start _mm512_set1_ps,
        operands (a = pairs(1.0), b = pairs(0.5)),
        step |chain| _mm512_dpbf16_ps(chain, a, b), lanes [f32; 16]);

    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(words: &[u64]) -> u64 {
        super::sum(words)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(words: &[u64]) -> u64 {
        super::sum(words)
    }

    /// One value in all 32 places.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn pairs(value: f32) -> __m512bh {
        let all = _mm512_set1_ps(value);
        _mm512_cvtne2ps_pbh(all, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a chain's value after `steps` over all lanes of all chains.
    fn expected(timed: Loop, multiply_adds_per_lane: u64, steps: u64, value: fn(f64, f64) -> f64) -> f64 {
        let lanes = timed.operations_per_step / 2 / CHAINS as u64 / multiply_adds_per_lane;
        (0..CHAINS).map(|chain| value(chain as f64, steps as f64)).sum::<f64>() * lanes as f64
    }

    #[test]
    fn chains_compute_what_they_say_on_every_instruction_set() {
        for steps in [0, 1, 2, 10] {
            for timed in f32_loops() {
                let want = expected(timed, 1, steps, |first, steps| 2.0 + (first - 2.0) * 0.5f64.powf(steps));
                assert_eq!(timed.run(steps), want, "{} after {steps}", timed.name);
            }
            for timed in int8_loops() {
                let per_lane = if timed.name == "portable" { 1 } else { 4 };
                let want = match per_lane {
                    1 => expected(timed, 1, steps, |first, steps| first - 6.0 * steps),
                    _ => expected(timed, 4, steps, |first, steps| first - 24.0 * steps),
                };
                assert_eq!(timed.run(steps), want, "{} after {steps}", timed.name);
            }
            for timed in bf16_loops() {
                let want = expected(timed, 2, steps, |first, steps| first + steps);
                assert_eq!(timed.run(steps), want, "{} after {steps}", timed.name);
            }
        }
    }

    #[test]
    fn sums_are_sums_on_every_instruction_set() {
        for len in [0, 1, 63, 64, 65, 1_000, 4_096] {
            let words: Vec<u64> = (0..len).map(|word| u64::MAX - word * word).collect();
            let want = words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
            for timed in read_loops() {
                assert_eq!(timed.sum(&words), want, "{} of {len}", timed.name);
            }
        }
    }

    #[test]
    fn long_runs_stay_finite() {
        for timed in f32_loops().into_iter().chain(int8_loops()).chain(bf16_loops()) {
            assert!(timed.run(100_000).is_finite(), "{}", timed.name);
        }
    }
}
