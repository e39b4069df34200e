//! What is checked before anything is written: configuration, sampling, tools, items, and what they become.
//!
//! In: requests and a fold. Out: resolved settings, rendered runs, or the failure that says which field is wrong.
//! Deliberately not here: shapes and sizes of a request alone (the gateway's).

use std::collections::{BTreeSet, HashMap};

use holdfast_types::{
    Failure, FailureDetail, GenerationSettings, Item, ItemContent, ItemNumber, Limits, ModelRevision, NumberedItem,
    NumericsPolicy, Origin, Reason, SamplingOverrides, SessionConfig, TokenRange, TokenRun, TurnNumber,
};

use super::retention::left_out;
use super::{ServedModel, Shared};
use crate::fold::SessionFold;
use crate::language::{LogEnd, Prompt};

/// Items at their places, with the tokens that they become.
pub(super) struct Rendered {
    pub(super) items: Vec<NumberedItem>,
    pub(super) runs: Vec<TokenRun>,
}

/// Where rendering goes on from.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub(super) tokens: u32,
    pub(super) items: u32,
    pub(super) end: LogEnd,
}

impl Base {
    pub(super) fn of(fold: &SessionFold) -> Self {
        Self { tokens: fold.tokens(), items: fold.items().len() as u32, end: fold.end() }
    }
}

impl Shared {
    /// Checks a configuration and puts the model's name in. `path` is where it stands in the request, with its last dot.
    pub(super) fn check_config(&self, path: &str, config: &mut SessionConfig) -> Result<usize, Failure> {
        let device = self.model(&config.model)?;
        let model = &self.models[device];
        config.model.clone_from(&model.info.name);
        if !model.language.has_template(&config.template) {
            let problem = format!("model {} has no template {:?}", model.info.name, config.template);
            return Err(Failure::field(Reason::InvalidArgument, format!("{path}template"), problem));
        }
        if !config.tools.is_empty() && model.language.call_form().is_none() {
            let problem = format!("model {} cannot call tools", model.info.name);
            return Err(Failure::field(Reason::InvalidTool, format!("{path}tools"), problem));
        }
        if let Some(effort) = config.reasoning_effort {
            let known = model.language.efforts(&Prompt::of(config, ""));
            if !known.contains(&effort) {
                let known: Vec<_> = known.iter().map(|effort| effort.name().to_uppercase()).collect();
                let known = if known.is_empty() { "none can be set".to_owned() } else { known.join(", ") };
                let (name, asked) = (&model.info.name, effort.name().to_uppercase());
                let problem = format!("the template of model {name} knows no effort {asked}; known: {known}");
                return Err(Failure::field(Reason::InvalidArgument, format!("{path}reasoning_effort"), problem));
            }
        }
        let mut names = BTreeSet::new();
        for (i, tool) in config.tools.iter().enumerate() {
            if !names.insert(tool.name.as_str()) {
                let problem = format!("tool {:?} is there twice", tool.name);
                return Err(Failure::field(Reason::InvalidTool, format!("{path}tools[{i}].function.name"), problem));
            }
            self.guides[device].check_strict(&*model.language, tool, &format!("{path}tools[{i}]"))?;
        }
        check_sampling(&format!("{path}sampling"), &config.sampling, &self.settings.limits, model)?;
        Ok(device)
    }

    /// The revision that a session of this model is pinned to.
    pub(super) fn revision(&self, device: usize) -> ModelRevision {
        let info = &self.models[device].info;
        ModelRevision {
            weights: info.weights,
            tokenizer: info.tokenizer,
            template: info.template,
            numerics_class: info.numerics_class.clone(),
            build: self.settings.build.clone(),
        }
    }

    /// Whether the served model is the one that the session is pinned to; the new numerics class if it changed and may.
    pub(super) fn check_revision(&self, fold: &SessionFold) -> Result<(usize, bool), Failure> {
        let pinned = fold.revision();
        let gone = |problem: String| {
            Failure::new(Reason::ModelRevisionUnavailable, problem)
                .with(FailureDetail::Resource { name: format!("models/{}", fold.config().model) })
        };
        let name = &fold.config().model;
        let device = self
            .model(name)
            .map_err(|_| gone(format!("model {name}, which the session is pinned to, is not served")))?;
        let info = &self.models[device].info;
        for (what, pinned, served) in [
            ("weights", pinned.weights, info.weights),
            ("tokenizer", pinned.tokenizer, info.tokenizer),
            ("template", pinned.template, info.template),
        ] {
            if pinned != served {
                return Err(gone(format!(
                    "the session is pinned to {what} {pinned} of model {name}, served is {served}"
                )));
            }
        }
        let changed = pinned.numerics_class != info.numerics_class;
        if changed && fold.config().numerics_policy == NumericsPolicy::RequireSame {
            let message = format!(
                "the session requires numerics class {}, the device computes in {}; serve that class or set numerics_policy to ALLOW_RECORDED",
                pinned.numerics_class, info.numerics_class
            );
            return Err(Failure::new(Reason::NumericsClassChanged, message));
        }
        Ok((device, changed))
    }

    /// Sampling settings in force, from all layers. `path` is where the request has its own.
    pub(super) fn settings(
        &self,
        device: usize,
        config: &SessionConfig,
        (path, request): (&str, &SamplingOverrides),
        seed: u64,
    ) -> Result<GenerationSettings, Failure> {
        let model = &self.models[device];
        let layers = request.clone().over(&config.sampling).over(model.language.generation_defaults());
        // All layers: the model's own was never checked, and limits may have fallen since the session's was. Whatever is wrong
        // with them, the request can say it better.
        check_sampling(path, &layers, &self.settings.limits, model)?;
        Ok(layers.resolve(seed, self.settings.limits.default_max_output_tokens))
    }

    /// Renders items after `base`. Closing tokens of what ended early come first.
    pub(super) fn render(
        &self,
        fold: &SessionFold,
        device: usize,
        base: Base,
        (turn, items): (Option<TurnNumber>, Vec<Item>),
    ) -> Result<Rendered, Failure> {
        let model = &self.models[device];
        let left_out = left_out(fold.config().reasoning_retention, &items);
        let said: Vec<Item> =
            items.iter().zip(&left_out).filter(|(_, left_out)| !**left_out).map(|(item, _)| item.clone()).collect();
        let runs = self.runs_of(fold, device, base, &said, turn.is_some())?;
        let closing = runs.iter().filter(|run| run.origin == Origin::Closing).map(|run| run.ids.len() as u32);
        let start = base.tokens + closing.sum::<u32>();
        let tokens = TokenRange { start, end: base.tokens + runs.iter().map(|run| run.ids.len() as u32).sum::<u32>() };
        let limit = model.info.context_limit;
        // One token of room, so that a turn can say something.
        let needed = u64::from(tokens.end) + u64::from(turn.is_some());
        if needed > u64::from(limit) {
            return Err(overflow(base.tokens, needed, limit));
        }
        let nowhere = TokenRange { start, end: start };
        let numbered = items.into_iter().zip(left_out).zip(base.items + 1..);
        let items = numbered
            .map(|((item, left_out), n)| {
                let tokens = if left_out { nowhere } else { tokens };
                NumberedItem { number: ItemNumber(n), turn, tokens, item }
            })
            .collect::<Vec<_>>();
        // Here too room for one, for what the turn says.
        let count = base.items as usize + items.len() + usize::from(turn.is_some());
        let most = self.settings.limits.items_per_session;
        if count > most as usize {
            return Err(Failure::limit("items_per_session", most.into(), count as u64));
        }
        Ok(Rendered { items, runs })
    }

    /// The tokens that items become after `base`, and the generation prompt if the model speaks next.
    pub(super) fn runs_of(
        &self,
        fold: &SessionFold,
        device: usize,
        base: Base,
        items: &[Item],
        generate: bool,
    ) -> Result<Vec<TokenRun>, Failure> {
        let model = &self.models[device];
        let language = &*model.language;
        let run = |origin, ids| TokenRun {
            origin,
            precision: model.precision,
            numerics_class: model.info.numerics_class.clone(),
            ids,
            logprobs: Vec::new(),
        };
        let (mut runs, mut end) = (Vec::new(), base.end);
        if end.is_open() {
            let closing = language.closing(end);
            runs.extend((!closing.is_empty()).then(|| run(Origin::Closing, closing)));
            end = LogEnd::Closed;
        }
        let calls = answered_calls(fold, items);
        let prompt = Prompt { calls: &calls, ..Prompt::of(fold.config(), fold.pinned_date()) };
        let ids = language.render(&prompt, end, items, generate).map_err(|problem| {
            let message = format!("the template of model {} cannot express the items: {problem}", model.info.name);
            Failure::new(Reason::TemplateRejectedItems, message)
        })?;
        runs.extend((!ids.is_empty()).then(|| run(Origin::Rendered, ids)));
        Ok(runs)
    }
}

/// Calls of the session that results among these items answer.
fn answered_calls(fold: &SessionFold, items: &[Item]) -> Vec<Item> {
    let answered = |id: &str| {
        items.iter().any(|item| matches!(&item.content, ItemContent::ToolResult { call_id, .. } if call_id == id))
    };
    if !items.iter().any(|item| matches!(item.content, ItemContent::ToolResult { .. })) {
        return Vec::new();
    }
    let calls = fold.items().iter().map(|item| &item.item).filter(|item| match &item.content {
        ItemContent::ToolCall { call_id, .. } => answered(call_id),
        _ => false,
    });
    calls.cloned().collect()
}

fn overflow(used: u32, needed: u64, limit: u32) -> Failure {
    let message = format!(
        "the context holds {limit} tokens; {used} are used, and with the new items {needed} are needed: shorten the items or begin a new session"
    );
    let fact = |key: &str, value: u64| FailureDetail::Metadata { key: key.to_owned(), value: value.to_string() };
    Failure::new(Reason::ContextOverflow, message)
        .with(fact("usedTokens", used.into()))
        .with(fact("wantedTokens", needed))
        .with(fact("limitTokens", limit.into()))
}

/// Checks call ids of items that are about to follow; `known` says of a call id whether it was answered.
pub(super) fn check_items(path: &str, items: &[Item], known: impl Fn(&str) -> Option<bool>) -> Result<(), Failure> {
    let mut calls: HashMap<&str, bool> = HashMap::new();
    for (i, item) in items.iter().enumerate() {
        match &item.content {
            ItemContent::ToolCall { call_id, .. } => {
                if known(call_id).is_some() || calls.insert(call_id, false).is_some() {
                    let problem = format!("call id {call_id:?} is in use in this session");
                    return Err(Failure::field(
                        Reason::DuplicateCallId,
                        format!("{path}[{i}].tool_call.call_id"),
                        problem,
                    ));
                }
            }
            ItemContent::ToolResult { call_id, .. } => {
                let at = format!("{path}[{i}].tool_result.call_id");
                match calls.get(call_id.as_str()).copied().or_else(|| known(call_id)) {
                    None => {
                        let problem = format!("no call {call_id:?} was made in this session");
                        return Err(Failure::field(Reason::UnknownCallId, at, problem));
                    }
                    Some(true) => {
                        let problem = format!("call {call_id:?} was answered already");
                        return Err(Failure::field(Reason::DuplicateCallId, at, problem));
                    }
                    Some(false) => {
                        calls.insert(call_id, true);
                    }
                }
            }
            ItemContent::Message { .. } | ItemContent::Reasoning { .. } => {}
        }
    }
    Ok(())
}

/// Refuses a history with calls whose results are missing: nobody would ever send them.
pub(super) fn check_answered(path: &str, items: &[Item]) -> Result<(), Failure> {
    let answers = |id: &str| {
        items.iter().any(|item| matches!(&item.content, ItemContent::ToolResult { call_id, .. } if call_id == id))
    };
    let calls = items.iter().filter_map(|item| match &item.content {
        ItemContent::ToolCall { call_id, .. } => Some(call_id),
        _ => None,
    });
    let call_ids: Vec<String> = calls.filter(|id| !answers(id)).cloned().collect();
    if call_ids.is_empty() {
        return Ok(());
    }
    Err(Failure::field(Reason::InvalidArgument, path, "holds calls without results; add a result for each")
        .with(FailureDetail::PendingCalls { call_ids }))
}

/// Checks one layer of sampling settings.
pub(super) fn check_sampling(
    path: &str,
    sampling: &SamplingOverrides,
    limits: &Limits,
    model: &ServedModel,
) -> Result<(), Failure> {
    let wrong =
        |field: &str, problem: String| Err(Failure::field(Reason::InvalidSampling, format!("{path}.{field}"), problem));
    type Range<'a> = (&'a str, Option<f32>, fn(f32) -> bool, &'a str);
    let floats: [Range<'_>; 6] = [
        ("temperature", sampling.temperature, |v| (0.0..=2.0).contains(&v), "0 to 2"),
        ("top_p", sampling.top_p, |v| v > 0.0 && v <= 1.0, "above 0, up to 1"),
        ("min_p", sampling.min_p, |v| (0.0..=1.0).contains(&v), "0 to 1"),
        ("frequency_penalty", sampling.frequency_penalty, |v| (-2.0..=2.0).contains(&v), "-2 to 2"),
        ("presence_penalty", sampling.presence_penalty, |v| (-2.0..=2.0).contains(&v), "-2 to 2"),
        ("repetition_penalty", sampling.repetition_penalty, |v| v > 0.0 && v <= 10.0, "above 0, up to 10"),
    ];
    for (field, value, holds, range) in floats {
        if let Some(value) = value
            && !holds(value)
        {
            return wrong(field, format!("{value} is outside of {range}"));
        }
    }
    if sampling.max_output_tokens == Some(0) {
        return wrong("max_output_tokens", "at least 1".to_owned());
    }
    if let Some(count) = sampling.logprobs.filter(|&count| count > limits.top_logprobs) {
        return wrong("logprobs", format!("{count} is above the limit top_logprobs of {}", limits.top_logprobs));
    }
    let vocab = model.language.vocab_size();
    let bias = sampling.logit_bias.as_deref().unwrap_or_default();
    if bias.len() > limits.logit_bias_entries as usize {
        return wrong(
            "logit_bias",
            format!("{} entries, the limit logit_bias_entries is {}", bias.len(), limits.logit_bias_entries),
        );
    }
    for &(id, value) in bias {
        if id >= vocab {
            return wrong("logit_bias", format!("token {id} is outside of the vocabulary of {vocab}"));
        }
        // The journal writes negative infinity as the lowest number, which is therefore no bias of its own.
        if value.is_nan() || value == f32::INFINITY || value == f32::MIN {
            let problem =
                format!("{value} for token {id}; a bias is a number above {}, or negative infinity", f32::MIN);
            return wrong("logit_bias", problem);
        }
    }
    let stop = sampling.stop.as_deref().unwrap_or_default();
    if stop.len() > limits.stop_strings as usize {
        return wrong("stop", format!("{} strings, the limit stop_strings is {}", stop.len(), limits.stop_strings));
    }
    for text in stop {
        if text.is_empty() || text.len() > limits.stop_string_bytes as usize {
            return wrong(
                "stop",
                format!("a stop string has 1 to {} bytes, got {}", limits.stop_string_bytes, text.len()),
            );
        }
    }
    Ok(())
}
