//! One bucket of the decoder as a list of tile operations for one core.
//!
//! In: a core's part, a chip, a bucket. Out: a [`Program`], or the SBUF limit that it breaks. Deliberately not here: HBM, which is a
//! question of all buckets together (`model`), and time (`walk`).
//!
//! How the decoder is laid out:
//! - rows pass through the layers in blocks, as many at a time as SBUF holds beside two weight buffers; each block reads the weights
//!   again;
//! - weights lie in HBM as partitions read them, so that a descriptor is as large as a buffer;
//! - attention runs for each sequence and key/value head over its bucket's whole context, in chunks that fill PSUM, with a running
//!   maximum and sum. Where a sequence begins is not known when the program is made, so nothing above the diagonal is left out. Keys come in
//!   token by token and are turned by the tensor engine, and so are the shares of many queries;
//! - experts: a block of at most 128 rows for each expert that rows may choose, and as many more as full blocks can be: no row is
//!   ever dropped;
//! - logits are computed for one row of each sequence.

use super::chip::{Chip, PARTITIONS};
use super::part::{BF16_BYTES, Kind, Part, WeightStorage};
use super::tile::{DESCRIPTOR_BYTES_MAX, Elementwise, Matmul, Memory, Op, Transfer, Work};
use super::{Bucket, ProgramError};

/// Rows of a block: at most what one PSUM bank holds.
const BLOCK_ROWS_MAX: u32 = 512;
/// Keys of a chunk of attention: what the banks of one product hold.
const CHUNK_KEYS: u32 = 2_048;

/// A program for one bucket: what every core does, its own part each.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The shape that it was made for.
    pub bucket: Bucket,
    /// What is done, in order; operations of like layers are one entry.
    pub ops: Vec<Op>,
    /// Rows that pass through a layer at a time.
    pub block_rows: u32,
    /// SBUF in use in each partition, bytes.
    pub sbuf_partition_bytes: u64,
}

/// Makes the program of a bucket.
pub(super) fn lower(part: &Part, chip: &Chip, block_tokens: u32, bucket: Bucket) -> Result<Program, ProgramError> {
    let rows = bucket.rows();
    let has = u64::from(chip.sbuf_partition_bytes);
    let mut block_rows = rows.next_power_of_two().min(BLOCK_ROWS_MAX);
    while block_rows > 1 && sbuf(part, bucket, block_rows) > has {
        block_rows /= 2;
    }
    let needs = sbuf(part, bucket, block_rows);
    if needs > has {
        return Err(ProgramError::Sbuf { chip: chip.name, bucket, needs, has });
    }
    let mut ops = Vec::new();
    let blocks = u64::from(rows.div_ceil(block_rows));
    let mut writer = Writer { part, bucket, rows: block_rows, block_tokens, ops: &mut ops, repeats: blocks };
    writer.dma("embed", Transfer::rows(Memory::Activations, block_rows.into(), u64::from(part.hidden) * BF16_BYTES));
    for kind in &part.kinds {
        writer.repeats = u64::from(kind.count) * blocks;
        writer.projections(kind);
        writer.repeats = u64::from(kind.count) * u64::from(bucket.batch) * u64::from(part.kv_heads);
        writer.attention(kind);
        writer.repeats = u64::from(kind.count) * blocks;
        writer.output();
        writer.feed_forward(kind);
    }
    writer.repeats = 1;
    writer.rows = bucket.batch;
    writer.logits();
    Ok(Program { bucket, ops, block_rows, sbuf_partition_bytes: needs })
}

/// Bytes of a partition with `rows` rows in a block.
fn sbuf(part: &Part, bucket: Bucket, rows: u32) -> u64 {
    let across = |width: u32| u64::from(width.div_ceil(PARTITIONS));
    // The stream in 32 bits and its normed copy, queries, keys and values, gate and up, all lying across partitions.
    let row =
        across(part.hidden) * (4 + BF16_BYTES) + across(part.qkv()) * BF16_BYTES + 2 * across(part.ffn) * BF16_BYTES;
    let keys = part.kinds.iter().map(|kind| part.keys(&kind.layer, bucket.query, bucket.context)).max().unwrap_or(0);
    let chunk = u64::from(keys.min(CHUNK_KEYS));
    let head = u64::from(part.head_dim);
    // Keys and values of a chunk, twice, for the next one comes in meanwhile; the turned keys; scores, shares and turned shares.
    let kv =
        2 * 2 * chunk.div_ceil(u64::from(PARTITIONS)) * head * BF16_BYTES + across(part.head_dim) * chunk * BF16_BYTES;
    let scores = chunk * (4 + 2 * BF16_BYTES);
    // Sums, maximum and total of every query row of a sequence.
    let sums = across(bucket.query * part.group) * (head + 2) * 4;
    u64::from(rows) * row + kv + scores + sums + 2 * DESCRIPTOR_BYTES_MAX
}

/// Where operations are written.
struct Writer<'a> {
    part: &'a Part,
    bucket: Bucket,
    rows: u32,
    block_tokens: u32,
    ops: &'a mut Vec<Op>,
    repeats: u64,
}

impl Writer<'_> {
    fn push(&mut self, name: &'static str, repeats: u64, work: Work) {
        self.ops.push(Op { name, repeats: self.repeats * repeats, work });
    }

    fn dma(&mut self, name: &'static str, transfer: Transfer) {
        self.push(name, 1, Work::Dma(transfer));
    }

    fn vector(&mut self, name: &'static str, elements: u64, passes: u32) {
        if passes > 0 {
            self.push(name, 1, Work::Vector(Elementwise::spread(elements, passes)));
        }
    }

    /// `rows` rows through a matrix that comes from HBM, `repeats` times.
    fn product(&mut self, name: &'static str, repeats: u64, rows: u32, depth: u32, width: u32, storage: WeightStorage) {
        let weights = u64::from(depth) * u64::from(width);
        let partitions = depth.min(PARTITIONS);
        let row = storage.bytes(weights).div_ceil(u64::from(partitions));
        self.push(name, repeats, Work::Dma(Transfer::rows(Memory::Weights, partitions.into(), row)));
        if storage == WeightStorage::Int8 {
            self.push(name, repeats, Work::Vector(Elementwise::spread(weights, 1)));
        }
        self.push(name, repeats, Work::Matmul(Matmul::product(rows, depth, width)));
    }

    fn all_reduce(&mut self) {
        if self.part.cores > 1 {
            let bytes = u64::from(self.rows) * u64::from(self.part.hidden) * BF16_BYTES;
            self.push("all_reduce", 1, Work::AllReduce(bytes));
        }
    }

    fn projections(&mut self, kind: &Kind) {
        let (part, rows) = (self.part, self.rows);
        let stream = u64::from(rows) * u64::from(part.hidden);
        self.vector("stream", stream, part.stream_passes(&kind.layer));
        self.product("qkv", 1, rows, part.hidden, part.qkv(), part.storage);
        let heads = u64::from(rows) * u64::from((part.heads() + part.kv_heads) * part.head_dim);
        self.vector("rope", heads, part.head_passes(&kind.layer));
        let written = u64::from(rows) * u64::from(2 * part.kv_heads);
        self.dma("kv_write", Transfer::rows(Memory::Kv, written, u64::from(part.head_dim) * BF16_BYTES));
    }

    /// One sequence and key/value head.
    fn attention(&mut self, kind: &Kind) {
        let (part, bucket) = (self.part, self.bucket);
        let keys = part.keys(&kind.layer, bucket.query, bucket.context);
        let (queries, head) = (bucket.query * part.group, part.head_dim);
        // A partition takes as many tokens of one block in a row as leave no partition idle.
        let in_a_row = keys.div_ceil(PARTITIONS).clamp(1, self.block_tokens);
        let descriptors = 2 * u64::from(keys.div_ceil(in_a_row));
        let bytes = u64::from(in_a_row) * u64::from(head) * BF16_BYTES;
        self.dma("kv_read", Transfer::rows(Memory::Kv, descriptors, bytes));
        let turned = |contraction, stationary, moving| {
            Work::Matmul(Matmul { contraction, stationary, moving, transposes: true })
        };
        self.push("turn_keys", keys.div_ceil(PARTITIONS).into(), turned(PARTITIONS, head, PARTITIONS));
        if queries < PARTITIONS {
            // Few queries: keys lie across partitions, so that all lanes work; maximum and sum are turned to be taken over keys.
            self.push("scores", 1, Work::Matmul(Matmul::new(head, keys, queries)));
            let scores = u64::from(keys) * u64::from(queries);
            self.push("softmax", 1, Work::Vector(Elementwise::spread(scores, part.score_passes)));
            self.push("turn_totals", 2, turned(PARTITIONS, queries, PARTITIONS));
        } else {
            self.push("scores", 1, Work::Matmul(Matmul::new(head, queries, keys)));
            let tiles = queries.div_ceil(PARTITIONS);
            let free = u64::from(tiles) * u64::from(keys);
            let scores = Elementwise { partitions: PARTITIONS, free, passes: part.score_passes };
            self.push("softmax", 1, Work::Vector(scores));
            self.push("turn_shares", tiles.into(), turned(PARTITIONS, keys, PARTITIONS));
        }
        self.push("values", 1, Work::Matmul(Matmul::new(keys, queries, head)));
    }

    fn output(&mut self) {
        let part = self.part;
        self.product("output", 1, self.rows, part.heads() * part.head_dim, part.hidden, part.storage);
        self.all_reduce();
    }

    fn feed_forward(&mut self, kind: &Kind) {
        let part = self.part;
        let (blocks, rows) = match part.experts {
            None => (1, self.rows),
            Some((count, chosen)) => {
                self.push("router", 1, Work::Dma(router(part.hidden, count)));
                self.push("router", 1, Work::Matmul(Matmul::product(self.rows, part.hidden, count)));
                expert_blocks(self.rows, count, chosen)
            }
        };
        self.product("gate_up", 2 * blocks, rows, part.hidden, part.ffn, part.storage);
        let inner = u64::from(rows) * u64::from(part.ffn);
        let passes = part.inner_passes + 2 * u32::from(kind.layer.mlp_bias);
        self.push("activation", blocks, Work::Vector(Elementwise::spread(inner, passes)));
        self.product("down", blocks, rows, part.ffn, part.hidden, part.storage);
        if part.experts.is_some() {
            self.push("shares", blocks, Work::Vector(Elementwise::spread(u64::from(rows) * u64::from(part.hidden), 2)));
        }
        self.all_reduce();
    }

    fn logits(&mut self) {
        let part = self.part;
        self.vector("final_norm", u64::from(self.rows) * u64::from(part.hidden), 3);
        let storage = if part.tied { WeightStorage::Bf16 } else { part.storage };
        self.product("logits", 1, self.rows, part.hidden, part.vocab, storage);
        self.dma("logits_out", Transfer::rows(Memory::Activations, self.rows.into(), 4 * u64::from(part.vocab)));
    }
}

/// The router's matrix, 32 bits a weight.
fn router(hidden: u32, experts: u32) -> Transfer {
    let partitions = u64::from(hidden.min(PARTITIONS));
    Transfer::rows(Memory::Weights, partitions, (4 * u64::from(hidden) * u64::from(experts)).div_ceil(partitions))
}

/// Blocks, and rows of each, that hold every choice of `rows` rows whatever they choose.
fn expert_blocks(rows: u32, experts: u32, chosen: u32) -> (u64, u32) {
    let choices = u64::from(rows) * u64::from(chosen);
    let used = choices.min(experts.into());
    let block = rows.min(PARTITIONS);
    // Each expert leaves at most one block unfilled. A row chooses an expert once, so up to 128 rows need one block for each.
    let full = if rows > PARTITIONS { (choices - used) / u64::from(block) } else { 0 };
    (used + full, block)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most blocks that any choice needs, by the worst split of the choices over the experts.
    fn worst(rows: u32, experts: u32, chosen: u32) -> u64 {
        // Experts with one row beyond full blocks waste most; the rest go where they fill blocks.
        let (mut left, mut blocks) = (rows * chosen, 0_u64);
        let mut loads = vec![0_u32; experts as usize];
        for load in &mut loads {
            if left > 0 {
                *load = 1;
                left -= 1;
            }
        }
        for load in &mut loads {
            let more = left.min(rows - (*load).min(rows)) / PARTITIONS * PARTITIONS;
            *load += more;
            left -= more;
        }
        for load in loads {
            blocks += u64::from(load.div_ceil(PARTITIONS));
        }
        blocks
    }

    #[test]
    fn expert_blocks_hold_every_choice() {
        for (rows, experts, chosen) in [(1, 32, 4), (8, 32, 4), (128, 8, 2), (256, 8, 2), (512, 32, 4), (512, 4, 4)] {
            let (blocks, block) = expert_blocks(rows, experts, chosen);
            assert!(blocks >= worst(rows, experts, chosen), "{rows} {experts} {chosen}");
            assert!(blocks * u64::from(block) >= u64::from(rows) * u64::from(chosen));
        }
        assert_eq!(expert_blocks(1, 32, 4), (4, 1));
        assert_eq!(expert_blocks(128, 8, 2), (8, 128));
    }
}
