//! The chip table.
//!
//! In: nothing. Out: [`CHIPS`], facts with their source and date. Deliberately not here: prices (`price`), and what was fitted or assumed
//! (`walk`).

/// Where the table comes from.
pub const SOURCE: &str = "the public Neuron SDK documentation";
/// When it was read.
pub const DATE: &str = "2026-08";
/// The names, for messages.
pub(crate) const CHIP_NAMES: &str = "trn1, inf2, trn2, trn3";

/// Rows and columns of the tensor engine; partitions of SBUF and PSUM.
pub const PARTITIONS: u32 = 128;
/// Most columns of the operand that stays in the tensor engine.
pub const STATIONARY_MAX: u32 = 128;
/// Most columns of the operand that moves through it: one PSUM bank.
pub const MOVING_MAX: u32 = 512;
/// Bytes of a PSUM bank in each partition: [`MOVING_MAX`] sums of 32 bits.
pub const PSUM_BANK_BYTES: u32 = MOVING_MAX * 4;
/// DMA engines of a core.
pub const DMA_ENGINES: u32 = 16;
/// What one DMA engine moves, bytes per second: about 27 GiB.
pub const DMA_ENGINE_BYTES_PER_S: f64 = 27.0 * 1024.0 * 1024.0 * 1024.0;

/// One chip. Rates are peaks over the whole chip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chip {
    /// As settings call it.
    pub name: &'static str,
    /// NeuronCores.
    pub cores: u32,
    /// Dense bf16, TFLOPS; a multiplication and an addition are two.
    pub bf16_tflops: f64,
    /// Bytes of HBM.
    pub hbm_bytes: u64,
    /// HBM, bytes per second.
    pub hbm_bytes_per_s: f64,
    /// SBUF of one partition of one core, bytes.
    pub sbuf_partition_bytes: u32,
    /// PSUM of one partition of one core, bytes. Unverified for Trn2 and Trn3.
    pub psum_partition_bytes: u32,
    /// All DMA engines, bytes per second.
    pub dma_bytes_per_s: f64,
}

const GIB: u64 = 1 << 30;
const MIB: u32 = 1 << 20;

/// Every chip that is modelled.
pub const CHIPS: [Chip; 4] = [
    Chip {
        name: "trn1",
        cores: 2,
        bf16_tflops: 190.0,
        hbm_bytes: 32 * GIB,
        hbm_bytes_per_s: 0.82e12,
        sbuf_partition_bytes: 24 * MIB / PARTITIONS,
        psum_partition_bytes: 2 * MIB / PARTITIONS,
        dma_bytes_per_s: 1e12,
    },
    Chip {
        name: "inf2",
        cores: 2,
        bf16_tflops: 190.0,
        hbm_bytes: 32 * GIB,
        hbm_bytes_per_s: 0.82e12,
        sbuf_partition_bytes: 24 * MIB / PARTITIONS,
        psum_partition_bytes: 2 * MIB / PARTITIONS,
        dma_bytes_per_s: 1e12,
    },
    Chip {
        name: "trn2",
        cores: 8,
        bf16_tflops: 667.0,
        hbm_bytes: 96 * GIB,
        hbm_bytes_per_s: 2.9e12,
        sbuf_partition_bytes: 28 * MIB / PARTITIONS,
        psum_partition_bytes: 2 * MIB / PARTITIONS,
        dma_bytes_per_s: 3.5e12,
    },
    Chip {
        name: "trn3",
        cores: 8,
        bf16_tflops: 671.0,
        hbm_bytes: 144 * GIB,
        hbm_bytes_per_s: 4.9e12,
        sbuf_partition_bytes: 32 * MIB / PARTITIONS,
        psum_partition_bytes: 2 * MIB / PARTITIONS,
        dma_bytes_per_s: 4.9e12,
    },
];

impl Chip {
    /// The row of a name.
    pub fn named(name: &str) -> Option<&'static Chip> {
        CHIPS.iter().find(|chip| chip.name == name)
    }

    /// Columns that pass through the tensor engine of one core, per second.
    pub fn columns_per_s(&self) -> f64 {
        let per_column = 2.0 * f64::from(PARTITIONS) * f64::from(STATIONARY_MAX);
        self.bf16_tflops * 1e12 / per_column / f64::from(self.cores)
    }

    /// What one DMA engine of one core moves, bytes per second: its own rate, or its share of the chip's.
    pub fn dma_engine_bytes_per_s(&self) -> f64 {
        let share = self.dma_bytes_per_s / f64::from(self.cores * DMA_ENGINES);
        share.min(DMA_ENGINE_BYTES_PER_S)
    }

    /// One core's share of HBM, bytes per second.
    pub fn core_hbm_bytes_per_s(&self) -> f64 {
        self.hbm_bytes_per_s / f64::from(self.cores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_rules() {
        for chip in CHIPS {
            assert_eq!(Chip::named(chip.name), CHIPS.iter().find(|other| other.name == chip.name));
            assert!(CHIP_NAMES.split(", ").any(|name| name == chip.name));
            assert_eq!(chip.psum_partition_bytes, 8 * PSUM_BANK_BYTES, "{}: eight banks", chip.name);
            assert!(chip.columns_per_s() > 2e9 && chip.columns_per_s() < 3e9, "{}: a plausible clock", chip.name);
        }
        assert_eq!(CHIPS[0].sbuf_partition_bytes, 192 << 10);
        assert_eq!(CHIPS[0].psum_partition_bytes, 16 << 10);
        assert_eq!(Chip::named("trn9"), None);
    }
}
