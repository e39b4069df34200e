//! What a core can do: tile operations, as loop nests with counts.
//!
//! In: extents. Out: [`Op`]s whose every tile is legal, tile by tile for a test ([`Matmul::tiles`]) and in closed form for the walk.
//! Deliberately not here: rates and time (`walk`).
//!
//! A product accumulates over its contraction in PSUM: for each stationary tile, for each group of moving tiles that PSUM holds
//! beside the group before, for each contraction tile, the stationary tile is loaded once and the group's moving tiles pass.

use super::chip::{MOVING_MAX, PARTITIONS, PSUM_BANK_BYTES, STATIONARY_MAX};

/// Banks of PSUM that a product fills at a time; as many again are being emptied.
pub const BANKS_AT_A_TIME: u32 = 4;
/// Columns that an instruction of the tensor engine takes at least: its fixed cost.
pub const TENSOR_COLUMNS_MIN: u32 = 64;
/// Most elements of a partition that one vector instruction takes.
pub const VECTOR_FREE_MAX: u32 = 2_048;
/// Cycles of a vector instruction besides its elements.
pub const VECTOR_OVERHEAD_CYCLES: u64 = 60;
/// Most bytes of a DMA descriptor: what a weight buffer holds in a partition.
pub const DESCRIPTOR_BYTES_MAX: u64 = 16 << 10;
/// A descriptor costs as much as this many bytes more.
pub const DESCRIPTOR_OVERHEAD_BYTES: u64 = 512;

/// One operation, done `repeats` times in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// What it is for.
    pub name: &'static str,
    /// How often.
    pub repeats: u64,
    /// What is done.
    pub work: Work,
}

/// What an engine is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A product on the tensor engine.
    Matmul(Matmul),
    /// Elements through the vector engine.
    Vector(Elementwise),
    /// Bytes between HBM and SBUF.
    Dma(Transfer),
    /// The sum of this many bytes over all cores, which every core gets.
    AllReduce(u64),
}

/// `[stationary, moving] += [contraction, stationary]^T [contraction, moving]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matmul {
    /// Elements that are summed over.
    pub contraction: u32,
    /// Columns of the operand that is loaded.
    pub stationary: u32,
    /// Columns of the operand that passes.
    pub moving: u32,
    /// A product with the identity, which only turns a tile: it takes time and is no work of the model's.
    pub transposes: bool,
}

/// One instruction of the tensor engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Partitions in use.
    pub contraction: u32,
    /// Columns of the loaded operand.
    pub stationary: u32,
    /// Columns that pass.
    pub moving: u32,
    /// Bank that takes the sums, of those of [`BANKS_AT_A_TIME`].
    pub bank: u32,
    /// The stationary operand is loaded before it.
    pub loads: bool,
}

/// `passes` times `free` elements in each of `partitions` partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elementwise {
    /// Partitions, at most 128.
    pub partitions: u32,
    /// Elements of each.
    pub free: u64,
    /// Instructions on each element.
    pub passes: u32,
}

/// Descriptors of one size, each for one row of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// What lies in HBM there.
    pub memory: Memory,
    /// How many.
    pub descriptors: u64,
    /// Bytes of each, at most [`DESCRIPTOR_BYTES_MAX`].
    pub bytes: u64,
}

/// What lies in HBM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Weights.
    Weights,
    /// Keys and values.
    Kv,
    /// What steps begin and end with: embeddings, logits.
    Activations,
}

impl Matmul {
    /// A product of the model's.
    pub fn new(contraction: u32, stationary: u32, moving: u32) -> Self {
        Self { contraction, stationary, moving, transposes: false }
    }

    /// `rows` rows through a matrix of `[width][depth]`: rows or weights stay in the engine, whichever takes fewer columns.
    pub fn product(rows: u32, depth: u32, width: u32) -> Self {
        let (rows_stay, weights_stay) = (Self::new(depth, rows, width), Self::new(depth, width, rows));
        if weights_stay.columns() < rows_stay.columns() { weights_stay } else { rows_stay }
    }

    /// Every instruction, in order.
    pub fn tiles(self) -> impl Iterator<Item = Tile> {
        let group = MOVING_MAX * BANKS_AT_A_TIME;
        pieces(self.stationary, STATIONARY_MAX).flat_map(move |stationary| {
            pieces(self.moving, group).flat_map(move |group| {
                pieces(self.contraction, PARTITIONS).flat_map(move |contraction| {
                    pieces(group, MOVING_MAX).zip(0..).map(move |(moving, bank)| Tile {
                        contraction,
                        stationary,
                        moving,
                        bank,
                        loads: bank == 0,
                    })
                })
            })
        })
    }

    /// Columns that pass through the engine, loads included: the sum of [`Tile::columns`].
    pub fn columns(self) -> u64 {
        let contractions = u64::from(self.contraction.div_ceil(PARTITIONS));
        let at_least = |columns: u32| u64::from(columns.max(TENSOR_COLUMNS_MIN));
        let sum = |extent: u32, most: u32| -> u64 {
            let rest = extent % most;
            u64::from(extent / most) * at_least(most) + if rest > 0 { at_least(rest) } else { 0 }
        };
        let groups = u64::from(self.moving.div_ceil(MOVING_MAX * BANKS_AT_A_TIME));
        let loads = sum(self.stationary, STATIONARY_MAX) * groups;
        let passes = u64::from(self.stationary.div_ceil(STATIONARY_MAX)) * sum(self.moving, MOVING_MAX);
        contractions * (loads + passes)
    }

    /// Multiplications with an addition that the model asked for.
    pub fn macs(self) -> u64 {
        if self.transposes {
            return 0;
        }
        u64::from(self.contraction) * u64::from(self.stationary) * u64::from(self.moving)
    }

    /// Bytes read from SBUF (operands of 16 bits) and written to it from PSUM (sums of 32 bits).
    pub fn sbuf_bytes(self) -> u64 {
        let (k, s, m) = (u64::from(self.contraction), u64::from(self.stationary), u64::from(self.moving));
        let groups = u64::from(self.moving.div_ceil(MOVING_MAX * BANKS_AT_A_TIME));
        let turns = u64::from(self.stationary.div_ceil(STATIONARY_MAX));
        2 * k * (s * groups + m * turns) + 4 * s * m
    }
}

impl Tile {
    /// Columns that it takes.
    pub fn columns(self) -> u64 {
        let load = if self.loads { self.stationary.max(TENSOR_COLUMNS_MIN) } else { 0 };
        u64::from(load) + u64::from(self.moving.max(TENSOR_COLUMNS_MIN))
    }

    /// Whether the chip can do it: the limits of the tensor engine, and the sums in one bank of PSUM.
    pub fn is_legal(self, psum_partition_bytes: u32) -> bool {
        let within = |value: u32, most: u32| (1..=most).contains(&value);
        within(self.contraction, PARTITIONS)
            && within(self.stationary, STATIONARY_MAX)
            && within(self.moving, MOVING_MAX)
            && self.moving * 4 <= PSUM_BANK_BYTES
            && self.bank < BANKS_AT_A_TIME
            && 2 * BANKS_AT_A_TIME * PSUM_BANK_BYTES <= psum_partition_bytes
    }
}

impl Elementwise {
    /// `elements` spread over all partitions.
    pub fn spread(elements: u64, passes: u32) -> Self {
        let partitions = elements.clamp(1, u64::from(PARTITIONS)) as u32;
        Self { partitions, free: elements.div_ceil(u64::from(PARTITIONS)).max(1), passes }
    }

    /// Elements of each partition that one instruction takes, instruction by instruction; `passes` times all of them.
    pub fn tiles(self) -> impl Iterator<Item = u64> {
        let most = u64::from(VECTOR_FREE_MAX);
        (0..self.free.div_ceil(most)).map(move |at| (self.free - at * most).min(most))
    }

    /// Cycles of the vector engine.
    pub fn cycles(self) -> u64 {
        let instructions = self.free.div_ceil(u64::from(VECTOR_FREE_MAX));
        u64::from(self.passes) * (self.free + instructions * VECTOR_OVERHEAD_CYCLES)
    }

    /// Bytes read from and written to SBUF, 32 bits an element.
    pub fn sbuf_bytes(self) -> u64 {
        8 * u64::from(self.partitions) * self.free * u64::from(self.passes)
    }
}

impl Transfer {
    /// `bytes` in each of `rows` rows, cut into descriptors of one size, the last ones filled up.
    pub fn rows(memory: Memory, rows: u64, bytes: u64) -> Self {
        let pieces = bytes.div_ceil(DESCRIPTOR_BYTES_MAX).max(1);
        Self { memory, descriptors: rows * pieces, bytes: bytes.div_ceil(pieces) }
    }

    /// All bytes.
    pub fn total(self) -> u64 {
        self.descriptors * self.bytes
    }
}

/// Sizes of the pieces of an extent, all `most` but the last.
fn pieces(extent: u32, most: u32) -> impl Iterator<Item = u32> {
    (0..extent.div_ceil(most)).map(move |at| (extent - at * most).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_product_once_and_cost_what_the_closed_form_says() {
        let random = &mut fastrand::Rng::with_seed(5);
        for _ in 0..300 {
            let mut extent = |most: u32| 1 + random.u32(..most);
            let product = Matmul::new(extent(700), extent(500), extent(5_000));
            let (mut macs, mut columns) = (0, 0);
            for tile in product.tiles() {
                assert!(tile.is_legal(16 << 10), "{product:?}: {tile:?}");
                macs += u64::from(tile.contraction) * u64::from(tile.stationary) * u64::from(tile.moving);
                columns += tile.columns();
            }
            assert_eq!((macs, columns), (product.macs(), product.columns()), "{product:?}");
        }
    }

    #[test]
    fn what_the_chip_cannot_do_is_not_legal() {
        let tile = Tile { contraction: 128, stationary: 128, moving: 512, bank: 3, loads: true };
        assert!(tile.is_legal(16 << 10));
        for bad in [
            Tile { contraction: 129, ..tile },
            Tile { contraction: 0, ..tile },
            Tile { stationary: 129, ..tile },
            Tile { moving: 513, ..tile },
            Tile { bank: 4, ..tile },
        ] {
            assert!(!bad.is_legal(16 << 10), "{bad:?}");
        }
        assert!(!tile.is_legal(8 << 10), "half of PSUM is not enough");
    }

    #[test]
    fn the_cheaper_operand_stays_in_the_engine() {
        assert_eq!(Matmul::product(8, 4_096, 14_336).stationary, 8);
        assert_eq!(Matmul::product(2_048, 4_096, 128).stationary, 128);
    }

    #[test]
    fn vector_tiles_and_descriptors_stay_within_their_sizes() {
        for elements in [1, 127, 128, 129, 300_000, 10_000_001] {
            let work = Elementwise::spread(elements, 3);
            assert!(work.partitions <= PARTITIONS && work.tiles().all(|free| free <= u64::from(VECTOR_FREE_MAX)));
            assert_eq!(work.tiles().sum::<u64>(), work.free);
            assert!(u64::from(work.partitions) * work.free >= elements);
        }
        for bytes in [1, 512, 16 << 10, (16 << 10) + 1, 1 << 20] {
            let transfer = Transfer::rows(Memory::Weights, 128, bytes);
            assert!(transfer.bytes <= DESCRIPTOR_BYTES_MAX && transfer.total() >= 128 * bytes, "{transfer:?}");
        }
    }
}
