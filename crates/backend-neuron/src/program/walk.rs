//! What a program takes: cycles of each engine, bytes of each memory, time.
//!
//! In: a program and a chip. Out: [`Walk`], for one run of the program on all cores. Deliberately not here: who pays for it (`model`).
//!
//! **Overlap rule.** The engines of a core have queues of their own, and weights do not wait for data, so they are fetched ahead: a
//! run takes as long as its busiest engine. Sums over cores wait for every core, so they are added. Rates are the table's peaks
//! times [`EFFICIENCY`], the one fitted parameter.

use super::chip::{Chip, DMA_ENGINES};
use super::lower::Program;
use super::tile::{DESCRIPTOR_OVERHEAD_BYTES, Memory, Work};

/// The part of the table's rates that a whole served model reaches: fitted to the public points (`points`), for all engines,
/// chips and shapes alike.
pub const EFFICIENCY: f64 = 0.328;
/// Clock of the vector engine, from the public kernel guide; 128 lanes take an element each.
pub const VECTOR_HZ: f64 = 0.96e9;
/// Time of a sum over cores besides its bytes, seconds. Assumed.
pub const COLLECTIVE_S: f64 = 10e-6;
/// Time to start a program, seconds. Assumed.
pub const LAUNCH_S: f64 = 15e-6;

/// What one run of a program takes. Cycles are of one core, bytes of all cores together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Walk {
    /// Columns through the tensor engine: its cycles.
    pub tensor_cycles: u64,
    /// Cycles of the vector engine.
    pub vector_cycles: u64,
    /// Descriptors of all DMA engines of one core.
    pub descriptors: u64,
    /// Weights that are read.
    pub weight_bytes: u64,
    /// KV that is read and written.
    pub kv_bytes: u64,
    /// Embeddings and logits.
    pub activation_bytes: u64,
    /// Read from and written to SBUF.
    pub sbuf_bytes: u64,
    /// Summed over cores.
    pub collective_bytes: u64,
    /// Multiplications of the program, padding included.
    pub macs: u64,
    /// Time of the tensor engine, seconds; this and the next two at the table's rates.
    pub tensor_s: f64,
    /// Time of the vector engine, seconds.
    pub vector_s: f64,
    /// Time of DMA, seconds.
    pub dma_s: f64,
    /// Time of sums over cores, seconds.
    pub collective_s: f64,
    /// Time of the run, seconds.
    pub time_s: f64,
}

impl Walk {
    /// Walks a program on `cores` cores of `chip` that reach a part of their rates.
    pub(crate) fn at(program: &Program, chip: &Chip, cores: u32, efficiency: f64) -> Self {
        let mut walk = Self::default();
        let engine_rate = chip.dma_engine_bytes_per_s();
        let collective_rate = engine_rate * f64::from(DMA_ENGINES) * efficiency;
        let mut dma_engine_s = 0.0;
        let all = u64::from(cores);
        for op in &program.ops {
            match op.work {
                Work::Matmul(product) => {
                    walk.tensor_cycles += op.repeats * product.columns();
                    walk.macs += all * op.repeats * product.macs();
                    walk.sbuf_bytes += all * op.repeats * product.sbuf_bytes();
                }
                Work::Vector(elements) => {
                    walk.vector_cycles += op.repeats * elements.cycles();
                    walk.sbuf_bytes += all * op.repeats * elements.sbuf_bytes();
                }
                Work::Dma(transfer) => {
                    let bytes = all * op.repeats * transfer.total();
                    match transfer.memory {
                        Memory::Weights => walk.weight_bytes += bytes,
                        Memory::Kv => walk.kv_bytes += bytes,
                        Memory::Activations => walk.activation_bytes += bytes,
                    }
                    walk.sbuf_bytes += bytes;
                    walk.descriptors += op.repeats * transfer.descriptors;
                    let turns = transfer.descriptors.div_ceil(u64::from(DMA_ENGINES));
                    let one = (transfer.bytes + DESCRIPTOR_OVERHEAD_BYTES) as f64 / engine_rate;
                    dma_engine_s += (op.repeats * turns) as f64 * one;
                }
                Work::AllReduce(bytes) => {
                    walk.collective_bytes += all * op.repeats * bytes;
                    // A ring: each core sends its part of the sum around, twice.
                    let sent = 2.0 * f64::from(cores - 1) / f64::from(cores) * bytes as f64;
                    walk.collective_s += op.repeats as f64 * (COLLECTIVE_S + sent / collective_rate);
                }
            }
        }
        walk.tensor_s = walk.tensor_cycles as f64 / chip.columns_per_s();
        walk.vector_s = walk.vector_cycles as f64 / VECTOR_HZ;
        let hbm_s = walk.hbm_bytes() as f64 / f64::from(cores) / chip.core_hbm_bytes_per_s();
        walk.dma_s = dma_engine_s.max(hbm_s);
        let busiest = walk.tensor_s.max(walk.vector_s).max(walk.dma_s);
        walk.time_s = busiest / efficiency + walk.collective_s + LAUNCH_S;
        walk
    }

    /// Bytes of HBM, all memories.
    pub fn hbm_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.activation_bytes
    }

    /// The engine that the run waits for.
    pub fn busiest(&self) -> &'static str {
        if self.dma_s >= self.tensor_s && self.dma_s >= self.vector_s {
            "dma"
        } else if self.tensor_s >= self.vector_s {
            "tensor"
        } else {
            "vector"
        }
    }
}
