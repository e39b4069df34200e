//! Sessions of models with real templates: a script says what is sampled, and everything that is rendered is counted.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_docs)]

#[path = "../../../model/tests/spoken/mod.rs"]
pub mod spoken;

use std::sync::{Arc, Mutex};

use holdfast_model::{LogEnd as ModelEnd, ModelText, Next, Prompt as ModelPrompt};
use holdfast_types::{
    Digest, Item, ReasoningEffort, ReasoningRetention, SamplingOverrides, SessionConfig, TokenId, Tool,
};
use holdfast_worker::TextOfModel;
use holdfast_worker::core::{Request, ServedModel};
use holdfast_worker::fold::{Languages, SessionFold};
use holdfast_worker::language::{CallForm, Language, LogEnd, Prompt, ReadCall, ReasoningForm};
use holdfast_worker_api::{CreateSession, StartTurn, SubmitToolResults};

use crate::harness::{Disk, Scripts, Toy, World, session, settings, speaking, user};

/// A family's text, loaded once.
pub struct Family {
    pub text: Arc<ModelText>,
    pub counted: Arc<Counted>,
}

impl Family {
    pub fn new(template: &str, tokens: &[&str], stops: &[&str]) -> Self {
        let text = Arc::new(spoken::load(template, tokens, stops).unwrap());
        let inner = TextOfModel::new(text.clone());
        let stops = text.stop_tokens().to_vec();
        let counted = Arc::new(Counted { inner, stops, rendered: Mutex::default() });
        Self { text, counted }
    }

    /// The same, with generations that only this token ends.
    pub fn ended_by(self, stop: &str) -> Self {
        let inner = TextOfModel::new(self.text.clone());
        let stops = self.tokens(stop);
        let counted = Arc::new(Counted { inner, stops, rendered: Mutex::default() });
        Self { counted, ..self }
    }

    pub fn served(&self) -> ServedModel {
        let mut served = speaking(Toy::new(None), "toy/1");
        let (weights, tokenizer, template) = self.text.revision();
        (served.info.weights, served.info.tokenizer, served.info.template) = (weights, tokenizer, template);
        served.info.context_limit = self.text.context_limit();
        served.info.vocab_size = self.text.vocab_size();
        served.language = self.counted.clone();
        served
    }

    /// Text in which special tokens are spelt, as tokens.
    pub fn tokens(&self, text: &str) -> Vec<TokenId> {
        let specials = (0..self.text.vocab_size()).filter_map(|id| Some((id, self.text.special_text(id)?)));
        let specials: Vec<_> = specials.collect();
        let (mut out, mut rest) = (Vec::new(), text);
        while let Some((at, id, special)) =
            specials.iter().filter_map(|(id, special)| Some((rest.find(special)?, *id, *special))).min()
        {
            out.extend(self.text.encode(&rest[..at]));
            out.push(id);
            rest = &rest[at + special.len()..];
        }
        out.extend(self.text.encode(rest));
        out
    }

    /// What the model samples to say these items, as its template writes them: up to the last stop token.
    pub fn says(&self, config: &SessionConfig, items: &[Item]) -> Vec<TokenId> {
        let render = |items: &[Item], next| self.text.render(&prompt(config), ModelEnd::Closed, items, next).unwrap();
        let (whole, prompted) = (render(items, Next::Nothing), render(&[], Next::Generate));
        let said = match whole.strip_prefix(prompted.as_slice()) {
            Some(said) => said.to_vec(),
            // The micro tokenizer takes the prompt's last line breaks together with what follows.
            None => {
                self.tokens(self.spelt(&whole).strip_prefix(&self.spelt(&prompted)).expect("the prompt comes first"))
            }
        };
        let end = said.iter().rposition(|id| self.text.stop_tokens().contains(id)).unwrap();
        said[..=end].to_vec()
    }

    /// All of a history at once, up to where the model speaks.
    pub fn whole(&self, config: &SessionConfig, items: &[Item]) -> Vec<TokenId> {
        self.text.render(&prompt(config), ModelEnd::Start, items, Next::Generate).unwrap()
    }

    pub fn spelt(&self, tokens: &[TokenId]) -> String {
        spoken::spelt(&self.text, tokens)
    }
}

fn prompt(config: &SessionConfig) -> ModelPrompt<'_> {
    ModelPrompt {
        instructions: &config.instructions,
        tools: &config.tools,
        date: "1970-01-01",
        template: "",
        effort: config.reasoning_effort,
        calls: &[],
    }
}

/// A language that counts what it renders.
pub struct Counted {
    inner: TextOfModel,
    stops: Vec<TokenId>,
    /// Items and tokens of each rendering.
    pub rendered: Mutex<Vec<(usize, usize)>>,
}

impl Language for Counted {
    fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.inner.token_bytes(id)
    }
    fn is_special(&self, id: TokenId) -> bool {
        self.inner.is_special(id)
    }
    fn stop_tokens(&self) -> &[TokenId] {
        &self.stops
    }
    fn vocab_size(&self) -> u32 {
        self.inner.vocab_size()
    }
    fn context_limit(&self) -> u32 {
        self.inner.context_limit()
    }
    fn generation_defaults(&self) -> &SamplingOverrides {
        self.inner.generation_defaults()
    }
    fn revision(&self) -> (Digest, Digest, Digest) {
        self.inner.revision()
    }
    fn has_template(&self, name: &str) -> bool {
        self.inner.has_template(name)
    }
    fn call_form(&self) -> Option<&CallForm> {
        self.inner.call_form()
    }
    fn reasoning_form(&self) -> Option<&ReasoningForm> {
        self.inner.reasoning_form()
    }
    fn opens_reasoning(&self, prompt: &Prompt<'_>) -> bool {
        self.inner.opens_reasoning(prompt)
    }
    fn efforts(&self, prompt: &Prompt<'_>) -> &[ReasoningEffort] {
        self.inner.efforts(prompt)
    }
    fn read_call(&self, body: &str) -> ReadCall {
        self.inner.read_call(body)
    }
    fn render(&self, prompt: &Prompt<'_>, end: LogEnd, items: &[Item], generate: bool) -> Result<Vec<TokenId>, String> {
        let tokens = self.inner.render(prompt, end, items, generate)?;
        self.rendered.lock().unwrap().push((items.len(), tokens.len()));
        Ok(tokens)
    }
    fn closing(&self, end: LogEnd) -> Vec<TokenId> {
        self.inner.closing(end)
    }
}

/// What a client does.
#[derive(Clone)]
pub enum Step {
    Say(String),
    /// Texts of the results, in call order; they are sent the other way round.
    Answer(Vec<String>),
}

pub fn config(retention: ReasoningRetention, tools: bool) -> SessionConfig {
    let tool = |name: &str| Tool {
        name: name.to_owned(),
        description: "Does it.".to_owned(),
        parameters_json_schema: r#"{"properties": {"at": {"type": "string"}}}"#.to_owned(),
        strict: false,
    };
    SessionConfig {
        instructions: "Be brief.".to_owned(),
        tools: if tools { vec![tool("look"), tool("stop")] } else { Vec::new() },
        reasoning_retention: retention,
        ..SessionConfig::default()
    }
}

/// Plays steps to their end; the process dies after so many batches, one after the other.
pub fn play(
    family: &Family,
    config: &SessionConfig,
    scripts: &[Vec<TokenId>],
    steps: &[Step],
    crashes: &[usize],
) -> World {
    let mut crashes = crashes.iter().copied();
    let mut world = World::on(Disk::default(), settings(), family.served());
    world.engine.scripts = Some(Scripts::new(scripts.to_vec()));
    world.commits_left = crashes.next().unwrap_or(usize::MAX);
    let create = CreateSession {
        session: Some(session("a")),
        config: config.clone(),
        request_id: Some("create".into()),
        ..Default::default()
    };
    let mut requests: Vec<Box<dyn Fn() -> Request>> = vec![Box::new(move || Request::CreateSession(create.clone()))];
    let mut turn = 0;
    let mut round = 0;
    for step in steps.iter().cloned() {
        match step {
            Step::Say(text) => {
                (turn, round) = (turn + 1, 0);
                let request = StartTurn { request_id: Some(format!("turn {turn}")), ..user("a", &text) };
                requests.push(Box::new(move || Request::StartTurn(request.clone())));
            }
            Step::Answer(texts) => {
                for (i, text) in texts.into_iter().enumerate().rev() {
                    let result = Item::tool_result(format!("call_{turn}_{round}_{}", i + 1), text);
                    let request_id = Some(format!("result {turn} {round} {i}"));
                    requests.push(Box::new(move || {
                        Request::SubmitToolResults(SubmitToolResults {
                            session: session("a"),
                            turn: None,
                            results: vec![result.clone()],
                            request_id: request_id.clone(),
                        })
                    }));
                }
                round += 1;
            }
        }
    }
    for request in requests {
        loop {
            let id = world.send(request());
            world.settle();
            let reply = world.reply(id);
            let crashed = world.commits_left == 0;
            while world.commits_left == 0 {
                let scripts = world.engine.scripts.take();
                world = World::on(world.disk, settings(), family.served());
                world.engine.scripts = scripts;
                world.commits_left = crashes.next().unwrap_or(usize::MAX);
                world.settle();
            }
            match reply {
                Some(reply) => {
                    reply.unwrap();
                    break;
                }
                None => assert!(crashed, "a reply"),
            }
        }
    }
    world
}

/// The session as its journal has it.
pub fn folded(world: &World, family: &Family) -> SessionFold {
    let counted = family.counted.clone();
    let languages: Languages = Arc::new(move |_, _| Some(counted.clone()));
    let entries = &world.disk.entries[&session("a")];
    let mut fold = SessionFold::begin(&entries[0], languages).unwrap();
    entries[1..].iter().for_each(|entry| fold.apply(entry, &mut Vec::new()).unwrap());
    fold
}

pub fn log_of(fold: &SessionFold) -> Vec<TokenId> {
    fold.log().iter().map(|token| token.id).collect()
}
