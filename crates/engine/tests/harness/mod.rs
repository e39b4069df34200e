//! Drives an engine over a [`TokenBackend`] by hand: a clock that counts, an audit after every poll, and a record of every run.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_engine::testing::{Faults, TokenBackend, expected_tokens};
use holdfast_engine::{
    Command, Effect, Engine, EngineConfig, FinishReason, Run, RunId, SampleRequest, SchedulerConfig, TokenGuide,
};
use holdfast_kv::{ChainDomain, DomainSecret};
use holdfast_types::{
    DeviceDescription, Failure, LogToken, Precision, Reason, SamplingParams, SequenceId, TimeUs, TokenId, TokenMask,
    Usage,
};

/// What is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Record {
    pub tokens: Vec<TokenId>,
    pub progress: Vec<(u32, u32)>,
    pub end: Option<Result<FinishReason, Failure>>,
    pub usage: Usage,
    /// What its generation had sampled before it was interrupted.
    pub resumed: u32,
}

pub struct Host {
    pub engine: Engine,
    pub faults: Faults,
    pub device: DeviceDescription,
    pub now: TimeUs,
    pub records: BTreeMap<RunId, Record>,
}

pub fn config(chunk: u32) -> EngineConfig {
    let scheduler = SchedulerConfig { prefill_chunk_tokens: chunk, step_budget_us: 20_000 };
    EngineConfig { scheduler, ..EngineConfig::default() }
}

impl Host {
    pub fn new(device: DeviceDescription, config: EngineConfig) -> Self {
        let backend = TokenBackend::new(device.clone());
        let faults = backend.faults();
        let engine = Engine::new(Box::new(backend), config);
        Self { engine, faults, device, now: 1_000_000, records: BTreeMap::new() }
    }

    pub fn poll(&mut self, commands: Vec<Command>) {
        self.now += 1_000;
        for command in &commands {
            if let Command::Run(run) = command {
                self.records.entry(run.run).or_default().resumed = run.resumed;
            }
        }
        let effects = self.engine.poll(self.now, commands);
        self.now += self.engine.snapshot().step_time_us;
        let problems = self.engine.audit();
        assert!(problems.is_empty(), "{problems:#?}");
        for effect in effects {
            self.record(effect);
        }
    }

    fn record(&mut self, effect: Effect) {
        let run = match &effect {
            Effect::Progress { run, .. } | Effect::Sampled { run, .. } => *run,
            Effect::Finished { run, .. } | Effect::Failed { run, .. } => *run,
        };
        let record = self.records.entry(run).or_default();
        assert!(record.end.is_none(), "{effect:?} after the end");
        match effect {
            Effect::Progress { done, total, .. } => {
                assert!(record.progress.last().is_none_or(|(before, _)| *before < done), "progress rises");
                record.progress.push((done, total));
            }
            Effect::Sampled { tokens, .. } => record.tokens.extend(tokens.iter().map(|token| token.id)),
            Effect::Finished { reason, usage, .. } => {
                record.end = Some(Ok(reason));
                record.usage = *usage;
            }
            Effect::Failed { failure, usage, .. } => {
                record.end = Some(Err(failure));
                record.usage = *usage;
            }
        }
        if record.end.is_some() {
            check_usage(record);
        }
    }

    /// Polls until nothing is left.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.engine.has_work() {
                let blocks = self.engine.snapshot().blocks;
                assert_eq!(blocks.used, 0, "a block leaked: {blocks:?}");
                return;
            }
            self.poll(Vec::new());
        }
        panic!("the engine does not come to an end");
    }

    /// Runs one run alone and returns its record.
    pub fn complete(&mut self, run: Run) -> Record {
        let id = run.run;
        self.poll(vec![Command::Run(Box::new(run))]);
        self.settle();
        self.records[&id].clone()
    }

    pub fn expected(&self, run: &Run) -> Vec<TokenId> {
        expected_tokens(&self.device, run, self.engine.context_limit()).expect("settings in range")
    }

    pub fn reason(&self, run: u64) -> FinishReason {
        self.records[&RunId(run)].end.clone().expect("ended").expect("finished")
    }

    pub fn failure(&self, run: u64) -> Failure {
        self.records[&RunId(run)].end.clone().expect("ended").expect_err("failed")
    }
}

/// What holds for the usage of every run, however it ended.
fn check_usage(record: &Record) {
    let usage = &record.usage;
    assert_eq!(usage.input_tokens, usage.cached.total() + usage.computed_tokens + usage.recomputed_tokens);
    assert_eq!(usage.output_tokens, record.tokens.len() as u64);
    // The last sample of a run that finished is not computed; one that failed may have got that far.
    let finished = record.end.as_ref().is_some_and(Result::is_ok);
    let fed_back = usage.output_tokens.saturating_sub(finished.into());
    let rows = usage.computed_tokens + usage.recomputed_tokens + usage.preempted_tokens;
    assert!(usage.by_precision.total() <= rows + fed_back + u64::from(record.resumed), "{usage:?}");
    assert!(usage.by_precision.total() >= rows, "{usage:?}");
    assert!(usage.time_to_first_token_us <= usage.duration_us && usage.queue_time_us <= usage.duration_us, "{usage:?}");
    assert_eq!(usage.time_to_first_token_us > 0, usage.output_tokens > 0);
    assert!(usage.context_used <= usage.context_limit || record.end.as_ref().is_some_and(Result::is_err));
}

pub fn log(ids: impl IntoIterator<Item = TokenId>) -> Vec<LogToken> {
    ids.into_iter().map(|id| LogToken { id: id % 61, precision: Precision::Native }).collect()
}

pub fn domain() -> ChainDomain {
    ChainDomain::single(DomainSecret([5; 32]))
}

/// A greedy run of sequence `id` and flow `id`.
pub fn run(id: u64, log: Vec<LogToken>, max_tokens: u32) -> Run {
    Run {
        run: RunId(id),
        sequence: SequenceId(id),
        log,
        computed_before: 0,
        domain: domain(),
        flow: id,
        accepted_us: 1_000_000,
        transient: false,
        resumed: 0,
        sample: Some(SampleRequest {
            params: SamplingParams::default(),
            seed: id,
            max_tokens,
            stop_tokens: Vec::new(),
            precision: Precision::Native,
            guide: None,
            sampled_before: Vec::new(),
        }),
    }
}

/// Spells these tokens, then leaves the rest free, or fails.
#[derive(Debug, Clone)]
pub struct Spells {
    pub tokens: Vec<TokenId>,
    pub said: usize,
    /// Fails in the middle of the n-th mask or token.
    pub breaks_at: Option<usize>,
    /// Masks that were computed.
    pub masks: Arc<AtomicUsize>,
}

impl Spells {
    pub fn new(tokens: &[TokenId]) -> Self {
        Self { tokens: tokens.to_vec(), said: 0, breaks_at: None, masks: Arc::default() }
    }

    pub fn guide(self) -> Option<Box<dyn TokenGuide>> {
        Some(Box::new(self))
    }
}

impl TokenGuide for Spells {
    fn mask(&mut self) -> Result<TokenMask, Failure> {
        self.masks.fetch_add(1, Ordering::Relaxed);
        if self.breaks_at == Some(self.said) {
            return Err(Failure::new(Reason::InvalidArgument, "planted"));
        }
        Ok(match self.tokens.get(self.said) {
            Some(&token) => TokenMask::Only(vec![token]),
            None => TokenMask::Bits(vec![(1 << 61) - 1]),
        })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), Failure> {
        assert!(self.tokens.get(self.said).is_none_or(|&spelt| spelt == token));
        self.said += 1;
        Ok(())
    }

    fn fork(&self) -> Box<dyn TokenGuide> {
        Box::new(Self { masks: Arc::default(), ..self.clone() })
    }
}

pub fn prefill(id: u64, log: Vec<LogToken>) -> Run {
    Run { sample: None, ..run(id, log, 1) }
}

pub fn start(run: Run) -> Command {
    Command::Run(Box::new(run))
}
