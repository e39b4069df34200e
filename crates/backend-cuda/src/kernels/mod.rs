//! The kernels by name, their sources, and the parameters that they take.
//!
//! In: nothing. Out: [`Kernel`], [`source`], and structures that mirror those of the `.cu` files field by field. Deliberately not here: when which
//! kernel runs (`forward`).

use crate::card::Address;

/// The words that kernels are written in, for a real card.
const PRELUDE: &str = include_str!("prelude.cu");
/// The kernels, in an order in which each file finds what it uses.
pub(crate) const FILES: [&str; 9] = [
    include_str!("numbers.cu"),
    include_str!("rows.cu"),
    include_str!("matrix.cu"),
    include_str!("product.cu"),
    include_str!("nested.cu"),
    include_str!("paged.cu"),
    include_str!("attention.cu"),
    include_str!("experts.cu"),
    include_str!("measure.cu"),
];

/// Everything, as NVRTC compiles it.
pub(crate) fn source() -> String {
    std::iter::once(PRELUDE).chain(FILES).collect::<Vec<_>>().join("\n")
}

/// A kernel; what it does is written where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kernel {
    Embed,
    AddAndNorm,
    Gate,
    Take,
    SoftCap,
    TurnAndWrite,
    Attend,
    AttendMatrix,
    JoinSpans,
    ProductBf16Few,
    ProductBf16Many,
    ProductNestedFew,
    ProductNestedMany,
    Router,
    Route,
    AddShares,
    Fill,
    MatrixRate,
}

impl Kernel {
    /// All of them.
    pub(crate) const ALL: [Self; 18] = [
        Self::Embed,
        Self::AddAndNorm,
        Self::Gate,
        Self::Take,
        Self::SoftCap,
        Self::TurnAndWrite,
        Self::Attend,
        Self::AttendMatrix,
        Self::JoinSpans,
        Self::ProductBf16Few,
        Self::ProductBf16Many,
        Self::ProductNestedFew,
        Self::ProductNestedMany,
        Self::Router,
        Self::Route,
        Self::AddShares,
        Self::Fill,
        Self::MatrixRate,
    ];

    /// Its name in the sources.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::AddAndNorm => "add_and_norm",
            Self::Gate => "gate",
            Self::Take => "take",
            Self::SoftCap => "soft_cap",
            Self::TurnAndWrite => "turn_and_write",
            Self::Attend => "attend",
            Self::AttendMatrix => "attend_matrix",
            Self::JoinSpans => "join_spans",
            Self::ProductBf16Few => "product_bf16_few",
            Self::ProductBf16Many => "product_bf16_many",
            Self::ProductNestedFew => "product_nested_few",
            Self::ProductNestedMany => "product_nested_many",
            Self::Router => "router",
            Self::Route => "route",
            Self::AddShares => "add_shares",
            Self::Fill => "fill",
            Self::MatrixRate => "matrix_rate",
        }
    }

    /// Threads of a block, as the source says.
    pub(crate) fn threads(self) -> u32 {
        match self {
            Self::TurnAndWrite | Self::Attend | Self::AttendMatrix | Self::JoinSpans => 128,
            _ => 256,
        }
    }
}

/// A structure that kernels take.
///
/// `#[repr(C)]`, with the fields of the structure of the same name in the sources; a test compares their sizes.
pub(crate) trait Params: Copy {
    /// Those that take it.
    const KERNELS: &'static [Kernel];
}

/// Threads that a row is worked on by.
pub(crate) const ROW_THREADS: u32 = 256;
/// Lanes that reductions are spread over.
pub(crate) const LANES: u32 = 16;
/// What memory is filled with: pairs of bf16, any bits, a value.
pub(crate) const FILL_BF16: u32 = 0;
pub(crate) const FILL_BITS: u32 = 1;
pub(crate) const FILL_VALUE: u32 = 2;
/// Sums of a warp in the measurement of the matrix instructions' rate.
pub(crate) const RATE_CHAINS: u64 = 8;
/// Rows of an n-tile, n-tiles of a block of threads, for few rows.
pub(crate) const FEW_ROWS: u32 = 8 * 4;
/// Outputs of a tile.
pub(crate) const TILE: u32 = 16;
/// Rows, and outputs, of a block of threads for many rows.
pub(crate) const MANY_ROWS: u32 = 64;
pub(crate) const MANY_OUTPUTS: u32 = 128;
/// Depths are multiples of it.
pub(crate) const BLOCK: u32 = 64;
/// Most queries of a tile of attention: rows times query heads that share a KV head.
pub(crate) const QUERIES: u32 = 16;
/// Positions of a span.
pub(crate) const SPAN: u32 = 1_024;
/// Most elements of a head.
pub(crate) const HEAD_DIM_MAX: u32 = 256;

/// The input of a product.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Input {
    pub(crate) bf16: Address,
    pub(crate) codes: Address,
    pub(crate) scales: Address,
    pub(crate) shifts: Address,
    pub(crate) depth: u32,
}

/// A matrix of weights.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Matrix {
    pub(crate) bf16: Address,
    pub(crate) upper: Address,
    pub(crate) lower: Address,
    pub(crate) scales: Address,
    pub(crate) bias: Address,
    pub(crate) power: f32,
    pub(crate) width: u32,
    pub(crate) depth: u32,
    pub(crate) halves: u32,
}

/// A layer's part of a KV pool.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Pool {
    pub(crate) elements: Address,
    pub(crate) block_stride: u32,
    pub(crate) block_tokens: u32,
    pub(crate) layer: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) width: u32,
}

/// Neighbouring rows of a sequence that attend together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct AttendTile {
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) position: u32,
    pub(crate) table: u32,
    pub(crate) first_span: u32,
    pub(crate) spans: u32,
    pub(crate) first_seen: u32,
    pub(crate) padding: u32,
}

macro_rules! params {
    ($name:ident for $($kernel:ident),*: { $($field:ident: $type:ty),* $(,)? }) => {
        #[doc = concat!("What ", $(stringify!($kernel), " ",)* "takes.")]
        #[derive(Debug, Clone, Copy)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
        impl Params for $name {
            const KERNELS: &'static [Kernel] = &[$(Kernel::$kernel),*];
        }
    };
}

params!(EmbedParams for Embed: { table: Matrix, tokens: Address, stream: Address, hidden: u32, scale: f32 });
params!(NormParams for AddAndNorm: {
    stream: Address, change: Address, change_norm: Address, weight: Address, rows: Address, narrow: Address, input: Input, width: u32,
    eps: f32, keep: u32, normed: Address,
});
params!(GateParams for Gate: {
    gate_up: Address, rows: Address, narrow: Address, input: Input, width: u32, activation: u32, alpha: f32, limit: f32,
});
params!(TakeParams for Take: { values: Address, rows: Address, narrow: Address, input: Input, width: u32 });
params!(CapParams for SoftCap: { values: Address, count: u64, cap: f32 });
params!(TurnParams for TurnAndWrite: {
    qkv: Address, positions: Address, blocks: Address, q_norm: Address, k_norm: Address, turns: Address, pool: Pool, heads: u32,
    pairs: u32, eps: f32,
});
params!(AttendParams for Attend, AttendMatrix, JoinSpans: {
    qkv: Address, tiles: Address, tile_of: Address, tables: Address, sinks: Address, states: Address, out: Address, pool: Pool,
    heads: u32, window: u32, scale: f32, cap: f32, first_item: u32,
});
params!(ProductParams for ProductBf16Few, ProductBf16Many, ProductNestedFew, ProductNestedMany: {
    matrix: Matrix, input: Input, rows: Address, out: Address, count: u32, narrow: u32,
});
params!(RouterParams for Router: {
    values: Address, router: Address, bias: Address, logits: Address, rows: u32, experts: u32, width: u32,
});
params!(RouteParams for Route: {
    logits: Address, chosen: Address, shares: Address, rows: u32, experts: u32, count: u32,
});
params!(ShareParams for AddShares: { made: Address, rows: Address, shares: Address, sum: Address, width: u32 });
params!(FillParams for Fill: { words: Address, count: u64, seed: u64, kind: u32, value: u32, scale: f32 });
params!(RateParams for MatrixRate: { out: Address, steps: u32, integers: u32 });
