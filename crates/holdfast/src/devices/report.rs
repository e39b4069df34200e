//! What `holdfast devices` tells, as data and as a page.
//!
//! In: descriptions and chip models. Out: [`Report`]. Deliberately not here: settings.

use std::io::Write;

use holdfast_backend_neuron::program::walk::EFFICIENCY;
use holdfast_backend_neuron::program::{CHIPS, Chip, ChipModel, POINTS, ProgramError, Span, chip, points, price};
use holdfast_types::DeviceDescription;
use indicatif::HumanBytes;
use serde::Serialize;

use crate::gpus::Gpus;

/// The steps that speed is told for: a decode step of this many sequences at this many tokens, or three quarters of the context.
const DECODE_SEQUENCES: usize = 8;
const DECODE_CONTEXT: u32 = 3_000;
/// And a prefill step of one sequence with this many new tokens.
const PREFILL_ROWS: u32 = 512;

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    devices: Vec<DeviceReport>,
    gpus: Gpus,
    chip_table: Vec<ChipRow>,
    chip_table_source: String,
    list_prices: Vec<PriceRow>,
    /// The one fitted parameter, and the public points that it was fitted to.
    efficiency: f64,
    public_points: Vec<PointRow>,
}

/// A device and the chips that it could stand for.
#[derive(Debug, Serialize)]
pub(super) struct DeviceReport {
    model: String,
    device: String,
    numerics_class: String,
    context_tokens: u32,
    /// The chip that it stands for; absent when nothing is modelled.
    stands_for: Option<&'static str>,
    modelled: Vec<Modelled>,
}

/// What is modelled of one chip.
#[derive(Debug, Serialize)]
struct Modelled {
    chip: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// It holds the model.
    Holds(Box<Held>),
    /// The limit that it breaks.
    Refused(String),
}

#[derive(Debug, Serialize)]
struct Held {
    cores: u32,
    chip_cores: u32,
    programs: usize,
    batch_buckets: Vec<u32>,
    query_buckets: Vec<u32>,
    context_buckets: Vec<u32>,
    hbm_bytes: u64,
    weight_bytes: u64,
    kv_bytes: u64,
    free_bytes: u64,
    sbuf_partition_bytes: u32,
    sbuf_partition_bytes_used: u64,
    usd_per_hour: Option<f64>,
    decode: Speed,
    prefill: Speed,
}

/// A step's speed.
#[derive(Debug, Serialize)]
struct Speed {
    sequences: usize,
    rows: u32,
    context: u32,
    /// The engine that its longest run waits for.
    busiest: Option<&'static str>,
    step_us: f64,
    tokens_per_s: f64,
    usd_per_million_tokens: Option<f64>,
    /// Part of its multiplications that is padding.
    padding: f64,
}

#[derive(Debug, Serialize)]
struct ChipRow {
    chip: &'static str,
    cores: u32,
    bf16_tflops: f64,
    hbm_bytes: u64,
    hbm_bytes_per_s: f64,
    sbuf_bytes_per_core: u64,
    dma_bytes_per_s: f64,
}

#[derive(Debug, Serialize)]
struct PriceRow {
    chip: &'static str,
    usd_per_chip_hour: f64,
    instance: &'static str,
    terms: &'static str,
    date: &'static str,
}

#[derive(Debug, Serialize)]
struct PointRow {
    instance: &'static str,
    published_tokens_per_s: f64,
    modelled_tokens_per_s: f64,
    error: f64,
}

impl Report {
    pub(super) fn of(devices: Vec<DeviceReport>, gpus: Gpus) -> anyhow::Result<Self> {
        let point = |point: &points::Point| -> anyhow::Result<PointRow> {
            let modelled_tokens_per_s = point.modelled()?;
            let error = modelled_tokens_per_s / point.tokens_per_s - 1.0;
            let published_tokens_per_s = point.tokens_per_s;
            Ok(PointRow { instance: point.instance, published_tokens_per_s, modelled_tokens_per_s, error })
        };
        Ok(Self {
            devices,
            gpus,
            chip_table: CHIPS.iter().map(ChipRow::of).collect(),
            chip_table_source: format!("{}, {}", chip::SOURCE, chip::DATE),
            list_prices: price::PRICES.iter().map(PriceRow::of).collect(),
            efficiency: EFFICIENCY,
            public_points: POINTS.iter().map(point).collect::<anyhow::Result<_>>()?,
        })
    }

    pub(super) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        for device in &self.devices {
            device.print(out)?;
        }
        self.gpus.print(out)?;
        writeln!(out)?;
        writeln!(
            out,
            "Modelled figures come from the chip table ({}) and one fitted parameter:",
            self.chip_table_source
        )?;
        writeln!(
            out,
            "  efficiency {}: the part of the table's rates that a whole served model reaches",
            self.efficiency
        )?;
        for point in &self.public_points {
            writeln!(
                out,
                "  Llama-3-8B on {}: published {:.0} tok/s, modelled {:.0}, {:+.1}%",
                point.instance,
                point.published_tokens_per_s,
                point.modelled_tokens_per_s,
                100.0 * point.error
            )?;
        }
        for price in &self.list_prices {
            let PriceRow { chip, usd_per_chip_hour, instance, terms, date } = price;
            writeln!(out, "  {chip}: {usd_per_chip_hour:.3} USD per chip and hour ({instance}, {terms}, {date})")?;
        }
        Ok(())
    }
}

impl DeviceReport {
    /// `compile` makes the programs of any chip for the device's model.
    pub(super) fn of(
        model: String,
        description: &DeviceDescription,
        stands_for: Option<ChipModel>,
        compile: impl Fn(&'static Chip) -> Result<ChipModel, ProgramError>,
    ) -> Self {
        let context = description.limits.context;
        let modelled = CHIPS.iter().map(|chip| {
            let outcome = compile(chip).and_then(|mut model| Held::of(&mut model, context));
            let outcome =
                outcome.map_or_else(|error| Outcome::Refused(error.to_string()), |held| Outcome::Holds(Box::new(held)));
            Modelled { chip: chip.name, outcome }
        });
        Self {
            model,
            device: description.name.clone(),
            numerics_class: description.numerics_class.to_string(),
            context_tokens: context,
            stands_for: stands_for.map(|model| model.chip().name),
            modelled: modelled.collect(),
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Self { model, device, numerics_class, context_tokens, .. } = self;
        writeln!(out, "{model} on {device}, {numerics_class}, {context_tokens} tokens of context")?;
        let own = self.modelled.iter().find(|modelled| Some(modelled.chip) == self.stands_for);
        match own.map(|own| (own.chip, &own.outcome)) {
            Some((chip, Outcome::Holds(held))) => held.print(chip, out)?,
            _ => writeln!(out, "  stands for no chip: its steps are measured and nothing is modelled")?,
        }
        writeln!(out)?;
        let decode = format!("decode {DECODE_SEQUENCES} x {}", decode_context(*context_tokens));
        let prefill = format!("prefill {}", PREFILL_ROWS.min(*context_tokens));
        writeln!(out, "  modelled                   {decode:<36}{prefill}")?;
        let titles = format!("{:>9}{:>12}{:>9}", "tok/s", "USD/M tok", "padding");
        writeln!(out, "  chip  cores  HBM used {titles}      {titles}")?;
        for Modelled { chip, outcome } in &self.modelled {
            match outcome {
                Outcome::Holds(held) => {
                    let used = 100.0 * (held.weight_bytes + held.kv_bytes) as f64 / held.hbm_bytes as f64;
                    let (decode, prefill) = (held.decode.columns(), held.prefill.columns());
                    writeln!(out, "  {chip:<6}{:>5}{used:>8.1} % {decode}      {prefill}", held.cores)?;
                }
                Outcome::Refused(why) => writeln!(out, "  {chip:<6} does not hold it. {why}")?,
            }
        }
        writeln!(out)
    }
}

impl Held {
    fn of(model: &mut ChipModel, context: u32) -> Result<Self, ProgramError> {
        let (hbm, chip) = (model.hbm(), model.chip());
        let axis = |of: fn(&holdfast_backend_neuron::program::Bucket) -> u32| {
            let sizes: std::collections::BTreeSet<u32> =
                model.programs().map(|(program, _)| of(&program.bucket)).collect();
            sizes.into_iter().collect::<Vec<_>>()
        };
        let (batch_buckets, query_buckets, context_buckets) =
            (axis(|bucket| bucket.batch), axis(|bucket| bucket.query), axis(|bucket| bucket.context));
        let decode = Span { rows: 1, context: decode_context(context) };
        let prefill = Span { rows: PREFILL_ROWS.min(context), context: PREFILL_ROWS.min(context) };
        Ok(Self {
            cores: model.cores(),
            chip_cores: chip.cores,
            programs: model.programs().count(),
            batch_buckets,
            query_buckets,
            context_buckets,
            hbm_bytes: hbm.has,
            weight_bytes: hbm.weights,
            kv_bytes: hbm.kv,
            free_bytes: hbm.free(),
            sbuf_partition_bytes: chip.sbuf_partition_bytes,
            sbuf_partition_bytes_used: model.sbuf_partition_bytes(),
            usd_per_hour: model.usd_per_hour(),
            decode: Speed::of(model, &[decode; DECODE_SEQUENCES])?,
            prefill: Speed::of(model, &[prefill])?,
        })
    }

    fn print(&self, chip: &str, out: &mut impl Write) -> std::io::Result<()> {
        let ends = |sizes: &[u32]| match sizes {
            [] => String::new(),
            [only] => only.to_string(),
            [first, .., last] => format!("{first}-{last}"),
        };
        writeln!(out, "  stands for {chip}, {} core(s) of {}; all below is modelled", self.cores, self.chip_cores)?;
        writeln!(
            out,
            "  programs  {}: batch {}, query {}, context {}; made before the first step",
            self.programs,
            ends(&self.batch_buckets),
            ends(&self.query_buckets),
            ends(&self.context_buckets)
        )?;
        writeln!(
            out,
            "  HBM       weights {}, KV {}, free {} of {}",
            HumanBytes(self.weight_bytes),
            HumanBytes(self.kv_bytes),
            HumanBytes(self.free_bytes),
            HumanBytes(self.hbm_bytes)
        )?;
        writeln!(
            out,
            "  SBUF      {} of {} in each partition",
            HumanBytes(self.sbuf_partition_bytes_used),
            HumanBytes(self.sbuf_partition_bytes.into())
        )
    }
}

impl Speed {
    fn of(model: &mut ChipModel, spans: &[Span]) -> Result<Self, ProgramError> {
        let step = model.step(spans)?;
        let rows: u32 = spans.iter().map(|span| span.rows).sum();
        let context = spans.iter().map(|span| span.context).max().unwrap_or(0);
        let seconds = step.time_ns as f64 / 1e9;
        let tokens_per_s = f64::from(rows) / seconds;
        let usd_per_million_tokens = model.usd_per_hour().map(|price| price / 3_600.0 / tokens_per_s * 1e6);
        Ok(Self {
            sequences: spans.len(),
            rows,
            context,
            busiest: model.busiest(spans),
            step_us: seconds * 1e6,
            tokens_per_s,
            usd_per_million_tokens,
            padding: step.padding(),
        })
    }

    fn columns(&self) -> String {
        let price = self.usd_per_million_tokens.map_or("no price".to_owned(), |price| format!("{price:.4}"));
        format!("{:>9.0}{price:>12}{:>7.0} %", self.tokens_per_s, 100.0 * self.padding)
    }
}

/// Tokens of the decode step's sequences: within a bucket, where sequences are most of the time.
fn decode_context(limit: u32) -> u32 {
    DECODE_CONTEXT.min(limit - limit / 4)
}

impl ChipRow {
    fn of(chip: &Chip) -> Self {
        Self {
            chip: chip.name,
            cores: chip.cores,
            bf16_tflops: chip.bf16_tflops,
            hbm_bytes: chip.hbm_bytes,
            hbm_bytes_per_s: chip.hbm_bytes_per_s,
            sbuf_bytes_per_core: u64::from(chip.sbuf_partition_bytes) * u64::from(chip::PARTITIONS),
            dma_bytes_per_s: chip.dma_bytes_per_s,
        }
    }
}

impl PriceRow {
    fn of(price: &price::ListPrice) -> Self {
        Self {
            chip: price.chip,
            usd_per_chip_hour: price.usd_per_chip_hour(),
            instance: price.instance,
            terms: price.terms,
            date: price.date,
        }
    }
}
