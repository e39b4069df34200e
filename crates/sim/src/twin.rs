//! Whole histories, played again under other circumstances: alone, in small chunks, in a crowd, with too little memory, on a device
//! that gets lost, through restarts.
//!
//! In: a history (a seed that says what one agent does, each step decided by what came before) and circumstances. Out: tokens and
//! log probabilities as the journal has them, and what they cost. Equal histories must give equal outcomes in all circumstances.
//! Deliberately not here: anything whose outcome time decides (cancelling, deadlines, queues); [`crate::world`] has those.

use std::collections::BTreeMap;

use fastrand::Rng;
use holdfast_engine::{EngineConfig, SchedulerConfig};
use holdfast_journal::{Body, Journal};
use holdfast_types::{Reason, SessionId, TenantId, TokenId, ToolChoice, Turn, TurnState};
use holdfast_worker::core::{Reply, RequestId};
use holdfast_worker_api::{AppendItems, CancelTurn, SubmitToolResults};

use crate::clients::Operation;
use crate::device::{DeviceShape, Mishap, WindowShape};
use crate::node::{Node, NodeSettings};
use crate::script;
use crate::world::BEGINNING_US;

/// Most tokens of a context in a history.
const CONTEXT: u32 = 192;

/// Rounds that a history may need to its end.
const ROUNDS: u32 = 20_000;

/// Under which circumstances a history is played.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// Most rows of one prefill in one step.
    pub chunk: u32,
    /// The device.
    pub device: DeviceShape,
    /// How many other sessions play histories of their own at the same time.
    pub others: u32,
    /// One round in so many ends in a crash; 0 for none.
    pub crash_one_in: u32,
    /// One round in so many loses the device; 0 for none.
    pub loss_one_in: u32,
    /// A crash before each operation of the agent: every generation is computed from scratch.
    pub is_cold: bool,
}

impl Circumstances {
    /// Alone on a roomy device, without any trouble.
    pub fn calm() -> Self {
        Self {
            chunk: 256,
            device: DeviceShape::roomy(CONTEXT),
            others: 0,
            crash_one_in: 0,
            loss_one_in: 0,
            is_cold: false,
        }
    }

    /// On a device that holds one full context and a little more, which several sessions share.
    pub fn cramped(others: u32) -> Self {
        let roomy = DeviceShape::roomy(CONTEXT);
        // The window of one sequence takes six blocks of four tokens, the one in progress included.
        let window = roomy.window.map(|window| WindowShape { blocks: 30, ..window });
        let device = DeviceShape { blocks: CONTEXT / 4 + 6, window, slots: 8, rows: 48, ..roomy };
        Self { device, others, ..Self::calm() }
    }
}

/// One generation: turn, generation, tokens, and per token the log probabilities' bits.
pub type Sampled = (u32, u32, Vec<TokenId>, Vec<Vec<(TokenId, u32)>>);

/// What a history came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Every generation, in order.
    pub sampled: Vec<Sampled>,
    /// The token log at the end.
    pub log: Vec<TokenId>,
}

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Rows computed over all generations.
    pub rows: u64,
    /// Rows computed again.
    pub repeated: u64,
    /// Tokens left behind by a rebase, or never computed because nothing followed them.
    pub is_plain: bool,
    /// Times that a run lost its blocks to an older one.
    pub preemptions: u64,
    /// Crashes and losses.
    pub troubles: u64,
}

/// One agent whose every step is decided by what came before.
struct Player {
    session: SessionId,
    rng: Rng,
    turns_left: u32,
    serial: u32,
    has_tools: bool,
    is_created: bool,
    is_cold_due: bool,
    asked: Option<(RequestId, Operation)>,
    latest: Option<Turn>,
    has_looked: bool,
    is_stuck: bool,
}

impl Player {
    fn new(seed: u64, name: u32, turns: u32) -> Option<Self> {
        Some(Self {
            session: SessionId::parse(&format!("history-{name}")).ok()?,
            rng: Rng::with_seed(seed),
            turns_left: turns,
            serial: 0,
            has_tools: false,
            is_created: false,
            is_cold_due: false,
            asked: None,
            latest: None,
            has_looked: false,
            is_stuck: false,
        })
    }

    fn is_done(&self) -> bool {
        self.turns_left == 0
            && self.asked.is_none()
            && self.has_looked
            && self.latest.as_ref().is_none_or(|turn| turn.state.is_terminal())
    }

    fn act(&mut self) -> Option<Operation> {
        if self.asked.is_some() || self.is_done() {
            return None;
        }
        let session = self.session.clone();
        if !self.is_created {
            let mut rng = self.rng.clone();
            let create = script::create(&mut rng, session);
            self.has_tools = !create.config.tools.is_empty();
            return Some(Operation::Create(Box::new(create)));
        }
        if !self.has_looked {
            return Some(Operation::Turns(session));
        }
        self.has_looked = false;
        let latest = self.latest.clone();
        match latest.as_ref().map(|turn| turn.state) {
            Some(TurnState::Queued | TurnState::Running) => return Some(Operation::Turns(session)),
            Some(TurnState::RequiresAction) if self.is_stuck => {
                self.is_stuck = false;
                return Some(Operation::Cancel(CancelTurn { session, turn: None }));
            }
            Some(TurnState::RequiresAction) => {
                let mut calls = latest.map(|turn| turn.required_calls).unwrap_or_default();
                calls.retain(|call| !call.answered);
                if calls.len() > 1 && self.rng.bool() {
                    calls.swap(0, 1);
                    calls.truncate(1);
                }
                let results = calls.iter().map(|call| script::result(&mut self.rng, &call.call_id)).collect();
                let request_id = self.request_id();
                return Some(Operation::Results(SubmitToolResults { session, turn: None, results, request_id }));
            }
            _ => {}
        }
        self.turns_left -= 1;
        if self.rng.u8(..8) == 0 && self.turns_left > 0 {
            let (items, request_id) = (script::items(&mut self.rng), self.request_id());
            return Some(Operation::Append(AppendItems { session, items, prefill: false, request_id }));
        }
        let mut turn = script::turn(&mut self.rng, session, self.has_tools, 30);
        turn.sampling.seed = Some(self.rng.u64(..));
        turn.request_id = self.request_id();
        if latest.is_some_and(|turn| turn.state == TurnState::Incomplete) {
            match self.rng.u8(..4) {
                0 => turn.discard_partial = true,
                1 => {
                    turn.continue_last = true;
                    // What was said before need not follow a form that comes later.
                    (turn.constraint, turn.allowed_tools, turn.single_call) = (None, None, false);
                    turn.tool_choice = ToolChoice::Auto;
                    turn.input.clear();
                }
                _ => {}
            }
        }
        Some(Operation::Turn(Box::new(turn), false))
    }

    fn request_id(&mut self) -> Option<String> {
        self.serial += 1;
        Some(format!("request-{}", self.serial))
    }

    fn hear(&mut self, result: Result<Reply, holdfast_types::Failure>) -> Result<(), String> {
        let Some((_, operation)) = self.asked.take() else { return Err("an answer to nothing".to_owned()) };
        match (&operation, result) {
            (Operation::Create(_), Ok(_)) => {
                self.is_created = true;
                self.has_looked = true;
            }
            (Operation::Turns(_), Ok(Reply::Turns(page))) => {
                let before = self.latest.as_ref().is_none_or(|turn| turn.state.is_terminal());
                self.latest = page.elements.last().cloned();
                self.has_looked = true;
                self.is_cold_due = !before && self.latest.as_ref().is_none_or(|turn| turn.state.is_terminal());
            }
            (_, Ok(_)) => {}
            (Operation::Results(_), Err(failure)) if failure.reason == Reason::ContextOverflow => self.is_stuck = true,
            (Operation::Turn(..) | Operation::Append(_), Err(failure))
                if matches!(failure.reason, Reason::ContextOverflow | Reason::InvalidArgument | Reason::EmptyTurn) => {}
            // Asked again after a crash that came between its commit and its answer.
            (Operation::Cancel(_), Err(failure)) if failure.reason == Reason::TurnNotRunning => {}
            (operation, Err(failure)) => return Err(format!("{} was refused: {failure}", operation.name())),
        }
        Ok(())
    }
}

/// Plays the history of a seed.
///
/// # Errors
/// A refusal that no circumstances excuse, an engine that does not pass its audit, or a history without an end.
pub fn play(seed: u64, turns: u32, circumstances: &Circumstances) -> Result<(Outcome, Cost), String> {
    let settings = NodeSettings {
        device: circumstances.device,
        engine: EngineConfig {
            scheduler: SchedulerConfig { prefill_chunk_tokens: circumstances.chunk, step_budget_us: 100_000 },
            losses_max: u32::MAX,
        },
        sessions_loaded: 64,
        recent_events: 64,
        context_limit: CONTEXT,
    };
    let mut node = Node::new(settings, BEGINNING_US);
    let mut rng = Rng::with_seed(seed ^ 0x5eed);
    let mut players: Vec<_> = Player::new(seed, 0, turns).into_iter().collect();
    players.extend((1..=circumstances.others).filter_map(|n| Player::new(seed.wrapping_mul(31) + u64::from(n), n, 2)));
    let (mut next_id, mut owners, mut troubles, mut preemptions) = (0, BTreeMap::new(), 0, 0);
    for round in 0..ROUNDS {
        for (at, player) in players.iter_mut().enumerate() {
            if let Some(operation) = player.act() {
                next_id += 1;
                node.ask(RequestId(next_id), operation.request(), u128::from(seed));
                owners.insert(RequestId(next_id), at);
                player.asked = Some((RequestId(next_id), operation));
            }
        }
        let one_in = |n: u32, rng: &mut Rng| n > 0 && rng.u32(..n) == 0;
        if one_in(circumstances.loss_one_in, &mut rng) {
            troubles += 1;
            let blocks = circumstances.device.blocks;
            node.faults().next(if rng.bool() { Mishap::LostAtSubmit(blocks) } else { Mishap::LostAtCollect(blocks) });
        }
        let is_cold_due = players.first_mut().is_some_and(|player| std::mem::take(&mut player.is_cold_due));
        if one_in(circumstances.crash_one_in, &mut rng) || (circumstances.is_cold && is_cold_due) {
            troubles += 1;
            node.poll_core();
            node.poll_engine();
            node.deliver_report();
            node.poll_core();
            node.commit(rng.usize(..3));
            preemptions += node.engine().snapshot().preemptions;
            node.crash(false);
            owners.clear();
            for (at, player) in players.iter_mut().enumerate() {
                if let Some((id, operation)) = &mut player.asked {
                    next_id += 1;
                    *id = RequestId(next_id);
                    node.ask(*id, operation.request(), u128::from(seed));
                    owners.insert(*id, at);
                }
            }
        }
        node.advance(1_000);
        let busy = node.turn_over();
        for (id, result) in node.answers() {
            if let Some(player) = owners.remove(&id).and_then(|at| players.get_mut(at)) {
                player.hear(result).map_err(|problem| format!("round {round}, {}: {problem}", player.session))?;
            }
        }
        if !busy && players.iter().all(Player::is_done) {
            if let Some(problem) = node.audit().first() {
                return Err(format!("audit: {problem}"));
            }
            preemptions += node.engine().snapshot().preemptions;
            let (outcome, cost) = read(&node)?;
            return Ok((outcome, Cost { troubles, preemptions, ..cost }));
        }
    }
    Err(format!("no end after {ROUNDS} rounds, engine {:?}", node.engine().snapshot()))
}

fn read(node: &Node) -> Result<(Outcome, Cost), String> {
    let session = SessionId::parse("history-0").map_err(|error| error.to_string())?;
    let entries =
        node.journal().read(&TenantId::default(), &session, 0, usize::MAX).map_err(|error| error.to_string())?;
    let (mut sampled, mut log): (Vec<Sampled>, Vec<TokenId>) = (Vec::new(), Vec::new());
    let mut cost = Cost { is_plain: true, ..Cost::default() };
    let mut ends_sampled = false;
    for entry in entries {
        match entry.entry.body {
            Body::ItemsAppended { runs, .. } => {
                log.extend(runs.iter().flat_map(|run| run.ids.iter()));
                ends_sampled = false;
            }
            Body::Rebase { keep_until, replacement, .. } => {
                log.truncate(keep_until as usize);
                log.extend(replacement.iter().flat_map(|run| run.ids.iter()));
                cost.is_plain = false;
            }
            Body::Sampled { turn, generation, run } => {
                log.extend(&run.ids);
                ends_sampled = true;
                let bits = run.logprobs.iter().map(|of| of.iter().map(|p| (p.id, p.logprob.to_bits())).collect());
                match sampled.last_mut().filter(|last| (last.0, last.1) == (turn.0, generation)) {
                    Some(last) => {
                        last.2.extend(&run.ids);
                        last.3.extend(bits);
                    }
                    None => sampled.push((turn.0, generation, run.ids.clone(), bits.collect())),
                }
            }
            Body::GenerationEnded { usage, .. } => {
                cost.rows += usage.by_precision.total();
                cost.repeated += usage.recomputed_tokens + usage.preempted_tokens;
            }
            Body::TurnEnded { state: TurnState::Failed, failure, .. } => {
                return Err(format!("a turn failed: {failure:?}"));
            }
            _ => {}
        }
    }
    cost.is_plain &= ends_sampled;
    Ok((Outcome { sampled, log }, cost))
}
