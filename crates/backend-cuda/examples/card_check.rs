//! Everything that only a GPU can show, in one run: `cargo xtask cuda-check`, or this program alone on a machine that has no toolchain.
//!
//! In: perhaps the path of NVRTC's library (`--nvrtc PATH`) and a file for the report (`--out PATH`). Out: the conformance suite over every family and
//! precision, the bits of the CPU device, and speed of an 8B model's shape with weights made up on the card beside the ceilings that are measured in the
//! same run; a report in Markdown. It ends with an error at the first rule that breaks. Deliberately not here: what can be shown without a GPU.

#![allow(clippy::expect_used, clippy::print_stdout)]

#[path = "../tests/suite/mod.rs"]
mod suite;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use holdfast_backend::conformance::PlanBuilder;
use holdfast_backend::{Backend, BlockCopy, CopyDirection};
use holdfast_backend_cuda::{CardFigures, CudaDevice, CudaError, CudaSettings, KvSize, WeightFormat, cards, figures};
use holdfast_model::DecoderConfig;
use holdfast_types::{BlockId, LateInputs, OutputRequest, Precision, SamplingParams, SlotSampling};

use suite::{conforms, has_the_bits_of_the_cpu_device, has_the_bits_of_the_cpu_device_over_spans, shapes};

/// The shape of Llama 3.1 8B.
const SHAPE: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 16384,
"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "bfloat16"}"#;
/// Steps that a median is taken of.
const STEPS: usize = 20;
/// Rows of a prefill step.
const ROWS: u32 = 2_048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.windows(2).find(|pair| pair[0] == name).map(|pair| PathBuf::from(&pair[1]));
    let (nvrtc, out) = (value("--nvrtc"), value("--out"));
    let found = match cards(nvrtc.as_deref()) {
        Ok(found) if !found.cards.is_empty() => found,
        Ok(_) => return skipped("the driver knows of no GPU"),
        Err(error @ CudaError::NoDriver) => return skipped(&error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let card = &found.cards[0];
    let settings =
        CudaSettings { nvrtc, cache_dir: Some(std::env::temp_dir().join("holdfast-kernels")), ..Default::default() };
    let mut report = String::new();
    writeln!(report, "# The CUDA device on a card\n")?;
    writeln!(
        report,
        "{}, compute capability {}.{}, driver for CUDA {}, {}. Made by `cargo xtask cuda-check`.\n",
        card.name,
        card.capability.0,
        card.capability.1,
        found.driver,
        found.nvrtc.as_ref().map_or_else(Clone::clone, |version| format!("NVRTC {version}")),
    )?;
    exactness(&settings, &mut report)?;
    let ceilings = figures(&settings)?;
    speed(&settings, ceilings, &mut report)?;
    println!("{report}");
    if let Some(out) = out {
        std::fs::write(out, report)?;
    }
    Ok(())
}

fn skipped(why: &str) -> Result<(), Box<dyn std::error::Error>> {
    println!("skipped: {why}");
    Ok(())
}

fn exactness(settings: &CudaSettings, report: &mut String) -> std::fmt::Result {
    let make = |model: &holdfast_model::Model, wanted: &CudaSettings| {
        let wanted =
            CudaSettings { nvrtc: settings.nvrtc.clone(), cache_dir: settings.cache_dir.clone(), ..wanted.clone() };
        CudaDevice::new(model.config(), model.weights(), &wanted)
    };
    writeln!(
        report,
        "| family | precision | checks | rows | largest error | relative rms error |\n|---|---|---|---|---|---|"
    )?;
    let mut compared = 0;
    for shape in shapes() {
        for precision in [Precision::Native, Precision::Int8, Precision::Int4] {
            let seen = conforms(&make, &shape, precision);
            println!("{:?} {precision:?}: {} checks", shape.family, seen.checks.len());
            writeln!(
                report,
                "| {:?} | {precision:?} | {} | {} | {:.2e} | {:.2e} |",
                shape.family,
                seen.checks.len(),
                seen.rows_compared,
                seen.max_abs_error,
                seen.relative_rms_error
            )?;
        }
        compared += has_the_bits_of_the_cpu_device(&make, &shape);
    }
    compared += has_the_bits_of_the_cpu_device_over_spans(&make, &shapes()[0]);
    writeln!(report, "\nWith nested weights, {compared} logits have the bits of the CPU device.\n")
}

fn speed(
    settings: &CudaSettings,
    ceilings: CardFigures,
    report: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let config = DecoderConfig::parse(SHAPE, Path::new("config.json"))?;
    writeln!(
        report,
        "Measured ceilings: {:.2} TB/s copied (read and written), {:.0} TFLOP/s and {:.0} TOP/s by the matrix instructions that the kernels use \
         (bf16 and 8 bits, registers only), link {:.1} GB/s out and {:.1} GB/s in.\n",
        ceilings.copy_bytes_per_s / 1e12,
        ceilings.bf16_operations_per_s / 1e12,
        ceilings.int8_operations_per_s / 1e12,
        ceilings.to_host_bytes_per_s / 1e9,
        ceilings.from_host_bytes_per_s / 1e9,
    )?;
    writeln!(
        report,
        "The shape of Llama 3.1 8B, weights made up on the card, device time of a step, median of {STEPS}:\n"
    )?;
    writeln!(report, "| weights | precision | step | ms | tokens/s | of the bound |\n|---|---|---|---|---|---|")?;
    let layer = config.q_width() * 2 + 2 * config.kv_width() + 3 * config.ffn;
    let elements = (config.hidden * (config.layers.len() * layer + config.vocab_size as usize)) as f64;
    let kv_token = (config.layers.len() * 2 * config.kv_width() * 2) as f64;
    for (weights, precisions) in
        [(WeightFormat::Bf16, &[Precision::Native][..]), (WeightFormat::Nested, &[Precision::Int8, Precision::Int4])]
    {
        let wanted =
            CudaSettings { weights, kv: KvSize::Share(0.6), slots: 64, max_step_rows: ROWS, ..settings.clone() };
        let mut bench = Bench::new(CudaDevice::with_random_weights(&config, 1, &wanted)?);
        for precision in precisions {
            let bytes_per_element = match precision {
                Precision::Int8 => 1.0 + 2.0 / 64.0,
                Precision::Int4 => 0.5 + 2.0 / 64.0,
                _ => 2.0,
            };
            for (batch, context) in [(1, 64), (1, 8_192), (16, 2_048), (64, 2_048)] {
                let step_s = bench.decode(*precision, batch, context);
                let bytes = elements * bytes_per_element + f64::from(batch) * f64::from(context) * kv_token;
                let share = bytes / ceilings.copy_bytes_per_s / step_s;
                let tokens = f64::from(batch) / step_s;
                let step = format!("decode {batch} x {context}");
                line(report, weights, *precision, &step, step_s, tokens, share)?;
            }
            let prefill_s = bench.prefill(*precision, 8_192);
            let operations = 2.0 * elements * 8_192.0;
            let rate = if weights == WeightFormat::Bf16 {
                ceilings.bf16_operations_per_s
            } else {
                ceilings.int8_operations_per_s
            };
            line(
                report,
                weights,
                *precision,
                "prefill 8192",
                prefill_s,
                8_192.0 / prefill_s,
                operations / rate / prefill_s,
            )?;
        }
        if weights == WeightFormat::Bf16 {
            let (out_s, in_s, bytes) = bench.copies(64);
            writeln!(
                report,
                "| | | 64 blocks of {bytes} bytes out and in again | {:.2} | | {:.0}% and {:.0}% of the link |",
                (out_s + in_s) * 1e3,
                100.0 * 64.0 * bytes as f64 / out_s / ceilings.to_host_bytes_per_s,
                100.0 * 64.0 * bytes as f64 / in_s / ceilings.from_host_bytes_per_s
            )?;
        }
    }
    Ok(())
}

fn line(
    report: &mut String,
    weights: WeightFormat,
    precision: Precision,
    step: &str,
    step_s: f64,
    tokens_per_s: f64,
    share: f64,
) -> std::fmt::Result {
    let text = format!(
        "| {weights:?} | {precision:?} | {step} | {:.3} | {tokens_per_s:.0} | {:.0}% |",
        step_s * 1e3,
        100.0 * share
    );
    println!("{text}");
    writeln!(report, "{text}")
}

/// A device that steps are timed on.
struct Bench {
    device: CudaDevice,
    next: u64,
}

impl Bench {
    fn new(device: CudaDevice) -> Self {
        Self { device, next: 1 }
    }

    fn plan(&mut self) -> PlanBuilder {
        self.next += 1;
        PlanBuilder::new(self.next - 1)
    }

    /// Runs a plan and returns the device's time, seconds.
    fn run(&mut self, plan: PlanBuilder) -> f64 {
        let ticket = self.device.submit(&plan.build()).expect("a good plan");
        let output = self.device.collect(ticket, &LateInputs::default()).expect("a good step");
        output.device_time_us as f64 * 1e-6
    }

    /// Opens a slot with room for so many tokens and some steps.
    fn open(&mut self, slot: u32, tokens: u32) {
        let blocks = (tokens + STEPS as u32 + 8).div_ceil(self.device.describe().block_tokens);
        let params = SamplingParams::default();
        let sampling = SlotSampling { params, seed: 1, context: Vec::new(), sampled: Vec::new() };
        let own: Vec<u32> = (slot * blocks..(slot + 1) * blocks).collect();
        let plan = self.plan().open(slot, sampling).table(slot, 0, 0, &own);
        self.run(plan);
    }

    /// Computes so many tokens of a slot, and returns the time.
    fn feed(&mut self, precision: Precision, slot: u32, tokens: u32) -> f64 {
        let mut time_s = 0.0;
        for start in (0..tokens).step_by(ROWS as usize) {
            let rows: Vec<u32> = (start..tokens.min(start + ROWS)).map(|at| at * 7_919 % 120_000).collect();
            let plan = self.plan().rows(slot, start, &rows, precision);
            time_s += self.run(plan);
        }
        time_s
    }

    fn close(&mut self, batch: u32) {
        let plan = (0..batch).fold(self.plan(), PlanBuilder::close);
        self.run(plan);
    }

    /// The median time of a step of one row for each of `batch` sequences with `context` tokens.
    fn decode(&mut self, precision: Precision, batch: u32, context: u32) -> f64 {
        for slot in 0..batch {
            self.open(slot, context);
            self.feed(precision, slot, context);
        }
        let mut times = Vec::new();
        for step in 0..STEPS as u32 + 4 {
            let plan = (0..batch).fold(self.plan(), |plan, slot| {
                plan.rows(slot, context + step, &[1_000 + step], precision).want(0, OutputRequest::Sample)
            });
            let time_s = self.run(plan);
            // The first ones warm up.
            if step >= 4 {
                times.push(time_s);
            }
        }
        self.close(batch);
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    /// The time of `tokens` new tokens of one sequence; the better of two.
    fn prefill(&mut self, precision: Precision, tokens: u32) -> f64 {
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            self.open(0, tokens);
            best = best.min(self.feed(precision, 0, tokens));
            self.close(1);
        }
        best
    }

    /// Seconds that so many blocks take out of the device and into it again, and the bytes of one.
    #[expect(clippy::disallowed_methods, reason = "a measurement reads a clock")]
    fn copies(&mut self, count: u32) -> (f64, f64, u64) {
        let bytes = self.device.describe().kv_groups[0].bytes_per_block;
        let mut times = [0.0; 2];
        let mut blocks = vec![vec![0x3c; bytes as usize]; count as usize];
        // The first round takes pinned memory.
        for _ in 0..2 {
            for (is_import, time) in [false, true].into_iter().zip(&mut times) {
                let begun = Instant::now();
                for (number, bytes) in (0u32..).zip(&mut blocks) {
                    let direction =
                        if is_import { CopyDirection::Import(std::mem::take(bytes)) } else { CopyDirection::Export };
                    let copy = BlockCopy { group: 0, block: BlockId(number), direction };
                    self.device.begin_copy(copy).expect("a copy");
                }
                let mut done = 0;
                while done < count {
                    for ended in self.device.poll_copies() {
                        if let Some(bytes) = ended.result.expect("a copy") {
                            blocks[done as usize] = bytes;
                        }
                        done += 1;
                    }
                }
                *time = begun.elapsed().as_secs_f64();
            }
        }
        (times[0], times[1], bytes)
    }
}
