//! A world for the core: a language of bytes, an engine that repeats what it was told, a journal in memory.
//!
//! The toy model answers with the text of the last item before its generation prompt, so that a test says what is sampled by
//! what it sends; `^` in that text is sampled as the token that opens a tool call.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_docs)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use holdfast_engine::{Command, Effect as EngineEffect, FinishReason, Run, RunId};
use holdfast_journal::{Batch, JournalError, NewEntry, SessionHead};
use holdfast_model::{ParsedCall, ToolCallForm};
use holdfast_types::{
    Digest, Event, Failure, Item, ItemContent, Limits, NumericsClass, Precision, Role, SampledToken, SamplingOverrides,
    SessionConfig, SessionId, SessionState, TokenId, TokenMask, Tool, Turn, TurnNumber, Usage,
};
use holdfast_worker::core::{
    CoreSettings, Effect, Input, ReadEvents, Reply, Request, RequestId, ServedModel, Ticket, WorkerCore,
};
use holdfast_worker::guiding::Compilation;
use holdfast_worker::language::{CallForm, Language, LogEnd, Prompt, ReadCall};
use holdfast_worker_api::{Caller, CreateSession, ModelInfo, StartTurn, SubmitToolResults};

pub const STOP: TokenId = 256;
pub const ITEM: TokenId = 257;
pub const ANSWER: TokenId = 258;
pub const CALL: TokenId = 259;
pub const SYSTEM: TokenId = 260;

pub struct Toy {
    form: CallForm,
    /// Reads calls as a model of this form writes them; otherwise they are `name:arguments`.
    reader: Option<ToolCallForm>,
    bytes: Vec<Vec<u8>>,
    defaults: SamplingOverrides,
}

impl Toy {
    pub fn new(close: Option<&str>) -> Self {
        let form = CallForm {
            open: "<call>".into(),
            open_token: Some(CALL),
            close: close.map(str::to_owned),
            name_mark: Some(":".into()),
            ..CallForm::default()
        };
        Self::with(form, None)
    }

    /// Calls as in models whose chat template says this; [`CALL`] opens them.
    pub fn of_template(source: &str) -> Self {
        let mut form = ToolCallForm::of_template(source).unwrap();
        form.open_token = Some(CALL);
        Self::with(CallForm::from(&form), Some(form))
    }

    fn with(form: CallForm, reader: Option<ToolCallForm>) -> Self {
        let bytes = (0..=255_u8).map(|b| vec![b]).chain((256..261).map(|_| Vec::new())).collect();
        Self {
            form,
            reader,
            bytes,
            defaults: SamplingOverrides { max_output_tokens: Some(1000), ..Default::default() },
        }
    }
}

fn text_of(item: &Item) -> String {
    match &item.content {
        ItemContent::Message { parts, .. } | ItemContent::ToolResult { parts, .. } => {
            parts.iter().map(|part| part.text()).collect()
        }
        ItemContent::ToolCall { arguments, .. } => arguments.clone(),
        ItemContent::Reasoning { text } => text.clone(),
    }
}

impl Language for Toy {
    fn token_bytes(&self, id: TokenId) -> &[u8] {
        &self.bytes[id as usize]
    }
    fn is_special(&self, id: TokenId) -> bool {
        id >= 256
    }
    fn stop_tokens(&self) -> &[TokenId] {
        &[STOP]
    }
    fn vocab_size(&self) -> u32 {
        261
    }
    fn context_limit(&self) -> u32 {
        400
    }
    fn generation_defaults(&self) -> &SamplingOverrides {
        &self.defaults
    }
    fn revision(&self) -> (Digest, Digest, Digest) {
        (Digest([1; 32]), Digest([2; 32]), Digest([3; 32]))
    }
    fn has_template(&self, name: &str) -> bool {
        name.is_empty()
    }
    fn call_form(&self) -> Option<&CallForm> {
        Some(&self.form)
    }
    fn read_call(&self, body: &str) -> ReadCall {
        if let Some(reader) = &self.reader {
            let ParsedCall { name, arguments, parse_error } = reader.parse(body);
            return ReadCall { name, arguments, parse_error };
        }
        match body.split_once(':') {
            Some((name, arguments)) => ReadCall { name: name.into(), arguments: arguments.into(), parse_error: None },
            None => ReadCall { name: String::new(), arguments: body.into(), parse_error: Some("no colon".into()) },
        }
    }
    fn render(&self, prompt: &Prompt<'_>, end: LogEnd, items: &[Item], generate: bool) -> Result<Vec<TokenId>, String> {
        let mut ids = Vec::new();
        if end == LogEnd::Start && !prompt.instructions.is_empty() {
            ids.push(SYSTEM);
            ids.extend(prompt.instructions.bytes().map(TokenId::from));
            ids.push(STOP);
        }
        for item in items {
            let text = text_of(item);
            if text.contains("unspeakable") {
                return Err("unspeakable".into());
            }
            ids.push(ITEM);
            ids.extend(text.bytes().map(TokenId::from));
            ids.push(STOP);
        }
        ids.extend(generate.then_some(ANSWER));
        Ok(ids)
    }
    fn closing(&self, end: LogEnd) -> Vec<TokenId> {
        if end.is_open() { vec![STOP] } else { Vec::new() }
    }
}

/// What a model says, generation by generation; a generation that is interrupted goes on with its own.
#[derive(Default, Clone)]
pub struct Scripts {
    ahead: VecDeque<Vec<TokenId>>,
    /// By the log that they follow.
    begun: Vec<(Vec<TokenId>, Vec<TokenId>)>,
}

impl Scripts {
    pub fn new(scripts: impl IntoIterator<Item = Vec<TokenId>>) -> Self {
        Self { ahead: scripts.into_iter().collect(), begun: Vec::new() }
    }

    fn begin(&mut self, run: &Run) {
        let before = run.log.len() - run.resumed as usize;
        let before: Vec<_> = run.log[..before].iter().map(|token| token.id).collect();
        if !self.begun.iter().any(|(log, _)| *log == before) {
            let next = self.ahead.pop_front().expect("a script for every generation");
            self.begun.push((before, next));
        }
    }

    fn answer(&self, run: &Run, sampled: u32) -> TokenId {
        let log: Vec<_> = run.log.iter().map(|token| token.id).collect();
        let before = log.len() - run.resumed as usize;
        let (_, script) = self.begun.iter().find(|(other, _)| *other == log[..before]).expect("begun");
        script[(run.resumed + sampled) as usize]
    }
}

/// One token per run and step.
#[derive(Default)]
pub struct ToyEngine {
    /// What is sampled, instead of what the last item says.
    pub scripts: Option<Scripts>,
    runs: BTreeMap<RunId, (Run, u32, bool)>,
    pub seen: Vec<Run>,
}

impl ToyEngine {
    fn take(&mut self, command: Command) {
        match command {
            Command::Run(run) => {
                assert!(!run.log.is_empty());
                assert!(run.computed_before <= run.log.len() as u32);
                assert!(
                    !self.runs.values().any(|(other, ..)| other.sequence == run.sequence),
                    "two runs of a sequence"
                );
                if let Some(scripts) = self.scripts.as_mut().filter(|_| run.sample.is_some()) {
                    scripts.begin(&run);
                }
                self.seen.push((*run).clone());
                self.runs.insert(run.run, (*run, 0, false));
            }
            Command::Cancel { run } => {
                if let Some(entry) = self.runs.get_mut(&run) {
                    entry.2 = true;
                }
            }
            Command::Forget { .. } => {}
        }
    }

    /// Runs that have a place.
    pub fn running(&self) -> usize {
        self.runs.len()
    }

    /// Runs that will be gone with the next step.
    pub fn cancelled(&self) -> usize {
        self.runs.values().filter(|(.., cancelled)| *cancelled).count()
    }

    /// What is said where another token is not allowed: the end, an object's end, or the first letter that is.
    fn allowed(mask: &TokenMask, wanted: TokenId) -> TokenId {
        let letters = u32::from(b'!')..261;
        let mut choices = [wanted, STOP, u32::from(b'}')].into_iter().chain(letters).chain(0..33);
        choices.find(|&id| mask.allows(id)).expect("a mask allows something")
    }

    fn answer(run: &Run, sampled: u32) -> TokenId {
        let log: Vec<_> = run.log.iter().map(|token| token.id).collect();
        let at = log.iter().rposition(|&id| id == ANSWER).expect("a generation prompt");
        let item = log[..at].iter().rposition(|&id| id == ITEM).expect("an item");
        let script: Vec<_> = log[item + 1..at - 1].iter().map(|&id| if id == 94 { CALL } else { id }).collect();
        let place = log.len() - at - 1 + sampled as usize;
        script.get(place).copied().unwrap_or(STOP)
    }

    pub fn step(&mut self) -> Vec<EngineEffect> {
        let mut effects = Vec::new();
        let scripts = self.scripts.as_ref();
        self.runs.retain(|&id, (run, sampled, cancelled)| {
            let answer =
                || scripts.map_or_else(|| Self::answer(run, *sampled), |scripts| scripts.answer(run, *sampled));
            let said = run.sample.is_some().then(answer);
            let len = run.log.len() as u64;
            let usage = |sampled: u32| {
                let input = len - u64::from(run.resumed);
                let computed = input.saturating_sub(u64::from(run.computed_before));
                let mut usage = Usage { input_tokens: input, computed_tokens: computed, ..Usage::default() };
                usage.cached.device = input - computed;
                usage.output_tokens = sampled.into();
                Box::new(usage)
            };
            let finished = |reason, sampled| EngineEffect::Finished { run: id, reason, usage: usage(sampled) };
            if *cancelled {
                effects.push(finished(FinishReason::Cancelled, *sampled));
                return false;
            }
            let Some(sample) = &mut run.sample else {
                effects.push(finished(FinishReason::Prefilled, 0));
                return false;
            };
            if *sampled == 0 {
                effects.push(EngineEffect::Progress { run: id, done: len as u32, total: len as u32 });
            }
            let token = said.expect("a run that samples");
            let token = sample.guide.as_mut().map_or(token, |guide| Self::allowed(&guide.mask().unwrap(), token));
            if let Some(guide) = sample.guide.as_mut().filter(|_| token != STOP) {
                guide.accept(token).unwrap();
            }
            let position = len as u32 + *sampled;
            effects.push(EngineEffect::Sampled {
                run: id,
                tokens: vec![SampledToken { id: token, position, logprobs: Vec::new() }],
            });
            *sampled += 1;
            if sample.stop_tokens.contains(&token) {
                effects.push(finished(FinishReason::StopToken, *sampled));
                return false;
            }
            if *sampled == sample.max_tokens {
                effects.push(finished(FinishReason::MaxTokens, *sampled));
                return false;
            }
            true
        });
        effects
    }
}

/// What is left after a crash.
#[derive(Default, Clone)]
pub struct Disk {
    pub entries: BTreeMap<SessionId, Vec<NewEntry>>,
    pub heads: BTreeMap<SessionId, SessionHead>,
    pub batches: usize,
}

pub struct World {
    pub core: WorkerCore,
    pub engine: ToyEngine,
    pub disk: Disk,
    pub now: u64,
    pub inflight: VecDeque<(Ticket, Batch)>,
    /// Batches that may still be committed; then the journal hangs.
    pub commits_left: usize,
    pub fail_commits: bool,
    replies: HashMap<u64, Result<Reply, Failure>>,
    next: u64,
    pub drained: bool,
    pub purged: Vec<SessionId>,
    /// What is to be compiled waits in `compiles`.
    pub holds_compiles: bool,
    pub compiles: Vec<(Ticket, Compilation)>,
}

pub fn settings() -> CoreSettings {
    CoreSettings {
        limits: Limits::default(),
        build: "test".into(),
        sessions_loaded: 8,
        requests_waiting: 8,
        recent_events: 10_000,
        attention_interval_us: 1_000_000,
        secret: [7; 32],
    }
}

pub fn model(close: Option<&str>, class: &str) -> ServedModel {
    speaking(Toy::new(close), class)
}

pub fn speaking(toy: Toy, class: &str) -> ServedModel {
    let info = ModelInfo {
        name: "toy".into(),
        architecture: "Toy".into(),
        parameters: 1,
        context_limit: 400,
        vocab_size: 261,
        weights: Digest([1; 32]),
        tokenizer: Digest([2; 32]),
        template: Digest([3; 32]),
        numerics_class: NumericsClass::new(class),
        tools: true,
        speech: holdfast_worker_api::ModelSpeech::default(),
        device: "toy:0".into(),
        kv_blocks: (1, 0),
        kv_bytes_per_token: 1,
        is_default: true,
    };
    ServedModel { info, language: Arc::new(toy), precision: Precision::Native }
}

impl World {
    pub fn new() -> Self {
        Self::on(Disk::default(), settings(), model(None, "toy/1"))
    }

    pub fn on(disk: Disk, settings: CoreSettings, model: ServedModel) -> Self {
        let mut world = Self::still(disk, settings, model);
        world.feed(Vec::new());
        world
    }

    /// One that was never polled.
    fn still(disk: Disk, settings: CoreSettings, model: ServedModel) -> Self {
        Self {
            core: WorkerCore::new(settings, vec![model]),
            engine: ToyEngine::default(),
            now: 1_000_000 + disk.batches as u64,
            disk,
            inflight: VecDeque::new(),
            commits_left: usize::MAX,
            fail_commits: false,
            replies: HashMap::new(),
            next: 0,
            drained: false,
            purged: Vec::new(),
            holds_compiles: false,
            compiles: Vec::new(),
        }
    }

    /// The same disk, a new process.
    pub fn restart(self) -> Self {
        Self::on(self.disk, settings(), model(None, "toy/1"))
    }

    /// As [`World::restart`]; what is to be compiled waits from the start.
    pub fn restart_with_compiles_held(self) -> Self {
        let mut world = Self::still(self.disk, settings(), model(None, "toy/1"));
        world.holds_compiles = true;
        world.feed(Vec::new());
        world
    }

    pub fn feed(&mut self, inputs: Vec<Input>) {
        let mut effects: VecDeque<_> = self.core.poll(self.now, inputs).into();
        while let Some(effect) = effects.pop_front() {
            let input = match effect {
                Effect::Reply { id, result } => {
                    assert!(self.replies.insert(id.0, result).is_none(), "two replies");
                    continue;
                }
                Effect::Append { ticket, batch } => {
                    self.inflight.push_back((ticket, batch));
                    continue;
                }
                Effect::Compile { ticket, work } => {
                    if self.holds_compiles {
                        self.compiles.push((ticket, work));
                        continue;
                    }
                    work.run();
                    Input::Compiled { ticket }
                }
                Effect::Engine { command, .. } => {
                    self.engine.take(command);
                    continue;
                }
                Effect::Load { tenant, session, .. } => {
                    let entries = Ok(self.disk.entries.get(&session).cloned().unwrap_or_default());
                    Input::Loaded { tenant, session, entries, tenant_sessions: Some(self.disk.entries.len() as u64) }
                }
                Effect::Attention { before_us } => {
                    let due = |head: &&SessionHead| {
                        matches!(head.state, SessionState::Running | SessionState::Deleting)
                            || head.expires_us.is_some_and(|at| at <= before_us)
                    };
                    Input::Attention { heads: self.disk.heads.values().filter(due).cloned().collect() }
                }
                Effect::Purge { tenant, session } => {
                    self.disk.entries.remove(&session);
                    self.disk.heads.remove(&session);
                    self.purged.push(session.clone());
                    Input::Purged { tenant, session, result: Ok(()) }
                }
                Effect::Announce { .. } => continue,
                Effect::Drained => {
                    self.drained = true;
                    continue;
                }
            };
            effects.extend(self.core.poll(self.now, vec![input]));
        }
    }

    /// Commits the oldest batch; whether there was one.
    pub fn commit(&mut self) -> bool {
        if self.commits_left == 0 {
            return false;
        }
        let Some((ticket, batch)) = self.inflight.pop_front() else { return false };
        if self.fail_commits {
            self.feed(vec![Input::Committed { ticket, result: Err(JournalError::Io("full".into())) }]);
            return true;
        }
        self.commits_left -= 1;
        self.disk.batches += 1;
        let session = batch.entries[0].session.clone();
        self.disk.entries.entry(session.clone()).or_default().extend(batch.entries);
        if let Some(head) = batch.head {
            self.disk.heads.insert(session, head);
        }
        self.feed(vec![Input::Committed { ticket, result: Ok(()) }]);
        true
    }

    /// One step of the engine, and every commit that is possible; whether anything happened.
    pub fn step(&mut self) -> bool {
        self.now += 1;
        let mut moved = false;
        while self.commit() {
            moved = true;
        }
        let effects = self.engine.step();
        if !effects.is_empty() {
            moved = true;
            self.feed(vec![Input::Engine { effects }]);
        }
        while self.commit() {
            moved = true;
        }
        moved
    }

    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("never comes to rest");
    }

    pub fn send(&mut self, request: Request) -> u64 {
        self.next += 1;
        let id = self.next;
        let (caller, entropy) = (Caller::default(), u128::from(id) << 20);
        self.feed(vec![Input::Request { id: RequestId(id), caller, request: Box::new(request), entropy }]);
        id
    }

    pub fn reply(&mut self, id: u64) -> Option<Result<Reply, Failure>> {
        self.replies.remove(&id)
    }

    /// Asks, lets the journal commit, and takes the reply; the engine stands still.
    pub fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        let id = self.send(request);
        while self.commit() {}
        self.reply(id).expect("a reply")
    }

    pub fn create(&mut self, name: &str, config: SessionConfig) {
        let request = CreateSession { session: Some(session(name)), config, ..Default::default() };
        self.ask(Request::CreateSession(request)).unwrap();
    }

    pub fn start(&mut self, turn: StartTurn) -> Result<Turn, Failure> {
        match self.ask(Request::StartTurn(turn))? {
            Reply::Turn(turn, _) => Ok(*turn),
            other => panic!("{other:?}"),
        }
    }

    /// Says something and waits until all is quiet.
    pub fn say(&mut self, name: &str, text: &str) -> Turn {
        let turn = self.start(user(name, text)).unwrap();
        self.settle();
        self.turn(name, turn.number.0)
    }

    pub fn results(&mut self, name: &str, results: &[(&str, &str)]) -> Result<Turn, Failure> {
        let results = results.iter().map(|(id, text)| Item::tool_result(*id, *text)).collect();
        let request = SubmitToolResults { session: session(name), turn: None, results, request_id: None };
        match self.ask(Request::SubmitToolResults(request))? {
            Reply::Turn(turn, _) => Ok(*turn),
            other => panic!("{other:?}"),
        }
    }

    pub fn turn(&mut self, name: &str, turn: u32) -> Turn {
        let request = Request::GetTurn { session: session(name), turn: TurnNumber(turn), from_sequence: 0 };
        match self.ask(request).unwrap() {
            Reply::Turn(turn, _) => *turn,
            other => panic!("{other:?}"),
        }
    }

    pub fn show(&mut self, name: &str) -> holdfast_worker_api::Session {
        match self.ask(Request::GetSession(session(name))).unwrap() {
            Reply::Session(session) => *session,
            other => panic!("{other:?}"),
        }
    }

    /// Every committed event.
    pub fn events(&mut self, name: &str) -> Vec<Event> {
        let read = ReadEvents { session: session(name), turn: None, from: 1, limit: usize::MAX, seen: u64::MAX };
        match self.ask(Request::ReadEvents(read)).unwrap() {
            Reply::Events(batch) => {
                assert!(!batch.older);
                batch.events
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn items(&mut self, name: &str) -> Vec<Item> {
        let list = holdfast_worker_api::ListItems {
            session: session(name),
            page_size: 1000,
            page_token: String::new(),
            descending: false,
        };
        match self.ask(Request::ListItems(list)).unwrap() {
            Reply::Items(page) => page.elements.into_iter().map(|item| item.item).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Texts of the session's items, incomplete ones with `…`.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        let mark = |item: &Item| {
            let open = if item.state == holdfast_types::ItemState::Incomplete { "…" } else { "" };
            format!("{}{open}", text_of(item))
        };
        self.items(name).iter().map(mark).collect()
    }
}

pub fn session(name: &str) -> SessionId {
    SessionId::parse(&format!("session-{name}")).unwrap()
}

pub fn user(name: &str, text: &str) -> StartTurn {
    StartTurn::new(session(name), vec![Item::message(Role::User, text)])
}

pub fn with_tools(names: &[&str]) -> SessionConfig {
    let tool = |name: &&str| Tool { name: (*name).into(), ..Tool::default() };
    SessionConfig { tools: names.iter().map(tool).collect(), ..SessionConfig::default() }
}
