//! The kernels, and the choice of an instruction set for them.
//!
//! In: slices and an [`Isa`]. Out: the same bits on every instruction set. Each kernel is written once, plainly, over
//! fixed-width lanes, and compiled several times; the compiler may widen it but never reorders floating point or fuses a
//! multiplication with an addition. Deliberately not here: threads.
//!
//! Public so that benchmarks measure them one by one; [`crate::NeuronDevice`] is how they are used. They are safe to call with
//! anything: an [`Isa`] only comes from detection, and a slice that lacks the shape that a kernel names panics or gives numbers
//! without meaning.

pub mod activation;
pub mod attention;
pub mod matmul;
pub mod nested;
pub mod norm;
pub(crate) mod pack;
pub mod quantise;
pub mod rope;

/// Width that reductions are spread over: one AVX-512 register of f32. Part of the kernels' revision.
pub(crate) const LANES: usize = 16;

/// An instruction set that this machine was found to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    level: Level,
    /// Products of 8-bit integers added up in 32 bits by one instruction, in registers of the level's width.
    vnni: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Portable,
    /// With FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// With F, BW, VL, DQ, and all that belongs to `Avx2`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// What every machine of the target has.
    pub const PORTABLE: Self = Self { level: Level::Portable, vnni: false };

    /// Every instruction set that kernels are compiled for and that this machine has, the widest last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self { level: Level::Avx2, vnni: false });
                if is_x86_feature_detected!("avxvnni") {
                    all.push(Self { level: Level::Avx2, vnni: true });
                }
            }
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if wide && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
                all.push(Self { level: Level::Avx512, vnni: false });
                if is_x86_feature_detected!("avx512vnni") {
                    all.push(Self { level: Level::Avx512, vnni: true });
                }
            }
        }
        all
    }

    /// The widest of [`Isa::available`].
    pub fn widest() -> Self {
        Self::available().last().copied().unwrap_or(Self::PORTABLE)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match (self.level, self.vnni) {
            (Level::Portable, _) => "portable",
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, false) => "avx2",
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, true) => "avx2 vnni",
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, false) => "avx512",
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, true) => "avx512 vnni",
        }
    }
}

/// Compiles one body for every [`Isa`]: `fn name(args)` becomes `fn name(isa, args)`.
macro_rules! kernel {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        $vis fn $name(isa: $crate::kernels::Isa, $($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                body($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            fn avx512($($arg: $type),*) {
                body($($arg),*);
            }

            match isa.level {
                $crate::kernels::Level::Portable => body($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level is only made by `Isa::available`, after the machine was asked for
                // avx2 and fma.
                $crate::kernels::Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above, after the machine was asked for every feature.
                $crate::kernels::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;

/// Adds lanes pairwise, halves onto halves: one fixed order.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
