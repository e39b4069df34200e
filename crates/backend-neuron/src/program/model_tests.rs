//! Programs over random decoders: every tile legal, budgets kept, steps accounted for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_model::{DecoderConfig, ExpertsConfig, LayerConfig};

use super::*;
use crate::program::tile::{DESCRIPTOR_BYTES_MAX, VECTOR_FREE_MAX, Work};
use crate::program::{CHIPS, points};

/// A decoder of any family: experts, windows, sinks, biases, heads that do not divide by anything.
fn decoder(random: &mut fastrand::Rng) -> DecoderConfig {
    let mut config = points::llama_3_8b().unwrap();
    config.hidden = random.usize(1..=40) * 16;
    config.kv_heads = random.usize(1..=9);
    config.heads = config.kv_heads * random.usize(1..=6);
    config.head_dim = *random.choice(&[16, 48, 64, 128, 256]).unwrap();
    config.ffn = random.usize(1..=1_500);
    config.vocab_size = random.u32(10..=40_000);
    config.tied = random.bool();
    config.score_cap = random.bool().then_some(50.0);
    let count = random.usize(1..=16);
    config.experts = random.bool().then(|| ExpertsConfig { count, chosen: random.usize(1..=count), packed: false });
    config.layers.truncate(random.usize(1..=8));
    for layer in &mut config.layers {
        *layer = LayerConfig {
            qkv_bias: random.bool(),
            output_bias: random.bool(),
            mlp_bias: random.bool(),
            qk_norm: random.bool(),
            sinks: random.bool(),
            post_norms: random.bool(),
            window: random.bool().then(|| random.u32(1..=900)),
            ..layer.clone()
        };
    }
    config
}

fn demand(random: &mut fastrand::Rng) -> Demand {
    Demand {
        storage: if random.bool() { WeightStorage::Bf16 } else { WeightStorage::Int8 },
        context: random.u32(1..=5_000),
        block_tokens: 16,
        kv_layer_tokens: random.u64(0..=1 << 20),
    }
}

fn settings(random: &mut fastrand::Rng) -> ChipSettings {
    let chip = random.choice(&CHIPS).unwrap();
    let cores = if random.bool() { 0 } else { random.u32(1..=2 * chip.cores) };
    let buckets = Buckets { batch: vec![1, 3, 8], query: vec![1, 16, 130, 600], context: Vec::new() };
    ChipSettings { cores, buckets, ..ChipSettings::new(chip) }
}

fn llama(change: impl Fn(&mut ChipSettings), kv_layer_tokens: u64) -> Result<ChipModel, ProgramError> {
    let mut settings = ChipSettings::new(Chip::named("trn2").unwrap());
    change(&mut settings);
    let demand = Demand { storage: WeightStorage::Bf16, context: 8_192, block_tokens: 16, kv_layer_tokens };
    ChipModel::compile(&points::llama_3_8b().unwrap(), &settings, &demand)
}

fn spans(random: &mut fastrand::Rng, context: u32) -> Vec<Span> {
    let span = |random: &mut fastrand::Rng| {
        let rows = if random.bool() { 1 } else { random.u32(1..=context.min(700)) };
        Span { rows, context: random.u32(rows..=context) }
    };
    (0..random.usize(1..=20)).map(|_| span(random)).collect()
}

#[test]
fn every_tile_of_random_decoders_is_legal() {
    let random = &mut fastrand::Rng::with_seed(11);
    for _ in 0..40 {
        let (config, settings, demand) = (decoder(random), settings(random), demand(random));
        let model = match ChipModel::compile(&config, &settings, &demand) {
            Ok(model) => model,
            Err(error) => panic!("{error}: {config:?}"),
        };
        let chip = settings.chip;
        for (program, walk) in model.programs() {
            assert!(program.sbuf_partition_bytes <= u64::from(chip.sbuf_partition_bytes), "{}", program.bucket);
            for op in &program.ops {
                match op.work {
                    Work::Matmul(product) => {
                        assert!(product.tiles().all(|tile| tile.is_legal(chip.psum_partition_bytes)), "{op:?}");
                    }
                    Work::Vector(work) => {
                        assert!(work.partitions <= 128 && work.tiles().all(|free| free <= VECTOR_FREE_MAX.into()));
                    }
                    Work::Dma(transfer) => assert!((1..=DESCRIPTOR_BYTES_MAX).contains(&transfer.bytes), "{op:?}"),
                    Work::AllReduce(bytes) => assert!(bytes > 0 && model.cores() > 1),
                }
            }
            // A program does at least what its bucket needs when every sequence is as long as it may be.
            let Bucket { batch, query, context } = program.bucket;
            let full = model.part.needed_macs(Span { rows: query.min(context), context });
            assert!(walk.macs >= u64::from(batch) * full, "{}: {} < {batch} x {full}", program.bucket, walk.macs);
        }
    }
}

#[test]
fn hbm_is_a_limit_and_a_refusal_tells_the_numbers() {
    let model = llama(|_| {}, 0).unwrap();
    let hbm = model.hbm();
    assert_eq!((model.cores(), hbm.has), (8, 96 << 30));
    // 8.03 billion weights of 16 bits.
    assert!((16_000_000_000..16_200_000_000).contains(&hbm.weights), "{}", hbm.weights);
    // A token's keys and values take 128 KiB in 32 layers.
    let tokens = hbm.free() / (128 << 10);
    assert_eq!(llama(|_| {}, tokens * 32).unwrap().hbm().kv, tokens * (128 << 10));
    let error = llama(|_| {}, (tokens + 1) * 32).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "HBM: {} bytes of weights and {} bytes of KV on 8 core(s) of trn2, which have {} bytes",
            hbm.weights,
            (tokens + 1) * (128 << 10),
            96_u64 << 30
        )
    );
    assert!(matches!(llama(|s| s.hbm_bytes = Some(8 << 30), 0), Err(ProgramError::Hbm { has, .. }) if has == 8 << 30));
    assert!(matches!(llama(|s| s.cores = 1, 0), Err(ProgramError::Hbm { cores: 1, .. })));
    assert_eq!(llama(|s| s.cores = 2, 0).unwrap().hbm().has, 24 << 30);
    assert!(matches!(llama(|s| s.cores = 129, 0), Err(ProgramError::Cores { asked: 129, most: 128 })));
}

#[test]
fn a_row_that_no_partition_holds_is_refused_by_sbuf() {
    let mut config = points::llama_3_8b().unwrap();
    config.layers.truncate(1);
    config.hidden = 8 << 20;
    config.ffn = 64;
    let settings = ChipSettings::new(&CHIPS[3]);
    let demand = Demand { storage: WeightStorage::Bf16, context: 512, block_tokens: 16, kv_layer_tokens: 0 };
    let error =
        ChipModel::compile(&config, &ChipSettings { hbm_bytes: Some(1 << 60), ..settings }, &demand).unwrap_err();
    assert!(error.to_string().starts_with("SBUF: ") && error.to_string().ends_with("trn3 has 262144"), "{error}");
}

#[test]
fn cores_without_a_setting_follow_the_heads_and_then_the_memory() {
    let mut config = points::llama_3_8b().unwrap();
    config.kv_heads = 2;
    let settings = ChipSettings::new(Chip::named("trn2").unwrap());
    let cores = |kv_layer_tokens| {
        let demand = Demand { storage: WeightStorage::Bf16, context: 512, block_tokens: 16, kv_layer_tokens };
        ChipModel::compile(&config, &settings, &demand).unwrap().cores()
    };
    assert_eq!(cores(0), 2);
    // 1 KiB a token and layer: 24 GiB are not enough for 14 GB of weights and 16 GiB of KV.
    assert_eq!(cores(16 << 20), 4);
}

#[test]
fn no_program_is_made_after_warm_up_whatever_comes() {
    let random = &mut fastrand::Rng::with_seed(12);
    for _ in 0..10 {
        let (config, settings, demand) = (decoder(random), settings(random), demand(random));
        let mut model = ChipModel::compile(&config, &settings, &demand).unwrap();
        let made = model.programs().count();
        for _ in 0..100 {
            let step = model.step(&spans(random, demand.context)).unwrap();
            assert!(step.runs > 0 && step.time_ns > 0 && step.hbm_bytes > 0);
        }
        assert_eq!((model.made_after_warm_up(), model.programs().count()), (0, made));
        let beyond = model.step(&[Span { rows: 1, context: demand.context + 1 }]);
        assert_eq!(beyond, Err(ProgramError::Context { largest: demand.context, context: demand.context + 1 }));
    }
}

#[test]
fn a_program_that_is_not_there_is_counted() {
    let mut model = llama(|_| {}, 0).unwrap();
    let bucket = Bucket { batch: 1, query: 1, context: 512 };
    let before = model.walk_of(bucket).unwrap();
    assert_eq!(model.made_after_warm_up(), 0);
    model.programs.remove(&bucket);
    assert_eq!(model.walk_of(bucket).unwrap(), before);
    assert_eq!(model.made_after_warm_up(), 1);
}

#[test]
fn shares_add_up_and_follow_rows_and_context() {
    let random = &mut fastrand::Rng::with_seed(13);
    let mut model = llama(|_| {}, 0).unwrap();
    for _ in 0..200 {
        let step = model.step(&spans(random, 8_192)).unwrap();
        assert_eq!(step.shares_ns.iter().sum::<u64>(), step.time_ns);
        assert!((0.0..1.0).contains(&step.padding()), "{}", step.padding());
    }
    let step = model.step(&[Span { rows: 1, context: 300 }, Span { rows: 1, context: 500 }]).unwrap();
    assert!(step.shares_ns[0] < step.shares_ns[1], "who sees more pays more");
    let step = model.step(&[Span { rows: 1, context: 500 }, Span { rows: 1, context: 500 }]).unwrap();
    assert!(step.shares_ns[0].abs_diff(step.shares_ns[1]) <= 1, "like pays like");
}

#[test]
fn padding_is_what_the_buckets_have_and_the_step_has_not() {
    let mut model = llama(|s| s.buckets.batch = vec![1, 4], 0).unwrap();
    let step = model.step(&[Span { rows: 1, context: 512 }]).unwrap();
    assert_eq!(step.macs_needed, step.macs, "a full bucket has none");
    assert_eq!(step.padding(), 0.0);
    // Three sequences in a bucket of four.
    let step = model.step(&[Span { rows: 1, context: 512 }; 3]).unwrap();
    assert_eq!((step.runs, step.macs_needed * 4), (1, step.macs * 3));
    assert!((step.padding() - 0.25).abs() < 1e-12);
}

#[test]
fn more_is_never_cheaper() {
    let random = &mut fastrand::Rng::with_seed(14);
    for _ in 0..20 {
        let (config, settings, demand) = (decoder(random), settings(random), demand(random));
        let model = ChipModel::compile(&config, &settings, &demand).unwrap();
        let walks: BTreeMap<Bucket, Walk> = model.programs().map(|(program, walk)| (program.bucket, *walk)).collect();
        for (small, walk) in &walks {
            let larger = walks.iter().filter(|(bucket, _)| {
                (bucket.batch, bucket.query) == (small.batch, small.query) && bucket.context > small.context
            });
            for (large, more) in larger {
                assert!(more.time_s >= walk.time_s && more.hbm_bytes() >= walk.hbm_bytes(), "{large} below {small}");
            }
        }
        let mut model = model;
        let context = random.u32(1..=demand.context);
        let mut at = |context| model.step(&[Span { rows: 1, context }]).unwrap().time_ns;
        assert!(at(context) <= at(demand.context));
    }
}
