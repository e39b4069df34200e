//! Sessions and what they are made of.
//!
//! In: CreateSession's session, a config, labels, expiry. Out: the worker's words for them; sessions back. Deliberately
//! not here: UpdateSession and its mask (`update`).

use std::collections::{BTreeMap, HashMap};

use holdfast_contracts::v1;
use holdfast_types::{
    Failure, Limits, NumericsPolicy, ReasoningEffort, ReasoningRetention, SessionConfig, SessionState, Sharing, TimeUs,
};
use holdfast_worker_api::{CreateSession, Session, SessionPatch};

use super::{enumeration, item, model, sampling, time, tool};
use crate::field::Field;
use crate::limits::{self, at_most};
use crate::names;

/// Longest name of a template, in bytes.
const TEMPLATE_NAME_BYTES: usize = 256;

/// Reads CreateSession.
pub(crate) fn create(limits: &Limits, request: v1::CreateSessionRequest) -> Result<CreateSession, Failure> {
    let id = request.session_id;
    let session = if id.is_empty() { None } else { Some(names::parse_session_id(Field::Root("session_id"), &id)?) };
    let field = Field::Root("session");
    let made = request.session.unwrap_or_default();
    if let Some(name) = output_only_fields(&made).next() {
        return Err(field.member(name).invalid("is output only; leave it empty"));
    }
    let (expire_time_us, ttl_s) = match made.expiration {
        None => (None, None),
        Some(expiration) => read_expiration(field, expiration)?,
    };
    let patch = SessionPatch {
        display_name: Some(display_name(limits, field, made.display_name)?).filter(|name| !name.is_empty()),
        labels: Some(labels(limits, field, made.labels)?).filter(|labels| !labels.is_empty()),
        expire_time_us: expire_time_us.map(Some),
        ttl_s,
        idle_timeout_s: idle_timeout(field, made.idle_timeout)?.map(Some),
    };
    Ok(CreateSession {
        session,
        config: config(limits, field.member("config"), made.config.unwrap_or_default())?,
        items: item::items(limits, Field::Root("initial_items"), request.initial_items)?,
        patch,
        request_id: limits::request_id(limits, request.request_id)?,
    })
}

/// Reads a config.
pub(crate) fn config(limits: &Limits, field: Field<'_>, config: v1::SessionConfig) -> Result<SessionConfig, Failure> {
    let reasoning_retention = match enumeration(field.member("reasoning_retention"), config.reasoning_retention)? {
        v1::ReasoningRetention::Unspecified | v1::ReasoningRetention::Keep => ReasoningRetention::Keep,
        v1::ReasoningRetention::DropAtNextUserMessage => ReasoningRetention::DropAtNextUserMessage,
    };
    let sharing = match enumeration(field.member("sharing"), config.sharing)? {
        v1::Sharing::Unspecified | v1::Sharing::Tenant => Sharing::Tenant,
        v1::Sharing::Private => Sharing::Private,
    };
    let numerics_policy = match enumeration(field.member("numerics_policy"), config.numerics_policy)? {
        v1::NumericsPolicy::Unspecified | v1::NumericsPolicy::AllowRecorded => NumericsPolicy::AllowRecorded,
        v1::NumericsPolicy::RequireSame => NumericsPolicy::RequireSame,
    };
    Ok(SessionConfig {
        reasoning_retention,
        sharing,
        numerics_policy,
        sampling: sampling::overrides(limits, field.member("sampling"), config.sampling)?,
        ..start(
            limits,
            field,
            v1::ConversationStart {
                model: config.model,
                instructions: config.instructions,
                tools: config.tools,
                template: config.template,
                reasoning_effort: config.reasoning_effort,
            },
        )?
    })
}

/// Reads what stands before the items of a conversation; the rest of the config is the default. `field` holds the fields
/// `model`, `instructions`, `tools`, `template` and `reasoning_effort`.
pub(crate) fn start(limits: &Limits, field: Field<'_>, start: v1::ConversationStart) -> Result<SessionConfig, Failure> {
    let model = names::parse_model(field.member("model"), &start.model)?;
    at_most!(limits.instructions_bytes, start.instructions.len(), field.member("instructions"))?;
    let template = field.member("template");
    if start.template.len() > TEMPLATE_NAME_BYTES {
        return Err(template.invalid(format!("is longer than {TEMPLATE_NAME_BYTES} bytes")));
    }
    limits::plain(template, &start.template)?;
    let tools = tool::tools(limits, field.member("tools"), start.tools)?;
    let reasoning_effort = match enumeration(field.member("reasoning_effort"), start.reasoning_effort)? {
        v1::ReasoningEffort::Unspecified => None,
        v1::ReasoningEffort::None => Some(ReasoningEffort::None),
        v1::ReasoningEffort::Low => Some(ReasoningEffort::Low),
        v1::ReasoningEffort::Medium => Some(ReasoningEffort::Medium),
        v1::ReasoningEffort::High => Some(ReasoningEffort::High),
    };
    Ok(SessionConfig {
        model,
        instructions: start.instructions,
        tools,
        template: start.template,
        reasoning_effort,
        ..SessionConfig::default()
    })
}

/// Reads a display name, which has the bound of a label's value.
pub(crate) fn display_name(limits: &Limits, session: Field<'_>, name: String) -> Result<String, Failure> {
    let field = session.member("display_name");
    at_most!(limits.label_value_chars, name.chars().count(), field)?;
    limits::plain(field, &name)?;
    Ok(name)
}

/// Reads labels.
pub(crate) fn labels(
    limits: &Limits,
    session: Field<'_>,
    labels: HashMap<String, String>,
) -> Result<BTreeMap<String, String>, Failure> {
    let field = session.member("labels");
    at_most!(limits.labels_per_session, labels.len(), field)?;
    let labels: BTreeMap<_, _> = labels.into_iter().collect();
    for (key, value) in &labels {
        if key.is_empty() {
            return Err(field.invalid("a key is empty"));
        }
        at_most!(limits.label_key_chars, key.chars().count(), field)?;
        let pair = field.member(key);
        at_most!(limits.label_value_chars, value.chars().count(), pair)?;
        limits::plain(field, key)?;
        limits::plain(pair, value)?;
    }
    Ok(labels)
}

/// Reads an expiration: an absolute time, or seconds from now.
pub(crate) fn read_expiration(
    session: Field<'_>,
    expiration: v1::session::Expiration,
) -> Result<(Option<TimeUs>, Option<u64>), Failure> {
    match expiration {
        v1::session::Expiration::ExpireTime(at) => Ok((Some(time::time_us(session.member("expire_time"), &at)?), None)),
        v1::session::Expiration::Ttl(ttl) => Ok((None, Some(time::whole_seconds(session.member("ttl"), &ttl)?))),
    }
}

/// Reads an idle timeout.
pub(crate) fn idle_timeout(session: Field<'_>, timeout: Option<prost_types::Duration>) -> Result<Option<u64>, Failure> {
    timeout.map(|timeout| time::whole_seconds(session.member("idle_timeout"), &timeout)).transpose()
}

/// Output-only fields that are set.
pub(crate) fn output_only_fields(session: &v1::Session) -> impl Iterator<Item = &'static str> + use<> {
    [
        ("name", !session.name.is_empty()),
        ("state", session.state != 0),
        ("revision", session.revision.is_some()),
        ("etag", !session.etag.is_empty()),
        ("create_time", session.create_time.is_some()),
        ("update_time", session.update_time.is_some()),
        ("purge_time", session.purge_time.is_some()),
        ("last_turn", session.last_turn != 0),
        ("last_item", session.last_item != 0),
        ("last_sequence", session.last_sequence != 0),
        ("context_used_tokens", session.context_used_tokens != 0),
        ("context_limit_tokens", session.context_limit_tokens != 0),
    ]
    .into_iter()
    .filter_map(|(name, is_set)| is_set.then_some(name))
}

/// The state of a word in a filter. Deleted sessions are in no list.
pub(crate) fn state_by_word(word: &str) -> Option<SessionState> {
    match word {
        "IDLE" => Some(SessionState::Idle),
        "RUNNING" => Some(SessionState::Running),
        "REQUIRES_ACTION" => Some(SessionState::RequiresAction),
        "SUSPENDED" => Some(SessionState::Suspended),
        _ => None,
    }
}

/// Writes a session.
pub(crate) fn session(session: &Session) -> v1::Session {
    let state = match session.state {
        SessionState::Idle => v1::SessionState::Idle,
        SessionState::Running => v1::SessionState::Running,
        SessionState::RequiresAction => v1::SessionState::RequiresAction,
        SessionState::Suspended => v1::SessionState::Suspended,
        SessionState::Deleting => v1::SessionState::Deleting,
    };
    let expiration = session.expire_time_us.map(|at| v1::session::Expiration::ExpireTime(time::timestamp(at)));
    v1::Session {
        name: names::session(&session.id),
        state: state as i32,
        config: Some(config_out(&session.config)),
        revision: Some(model::revision(&session.config.model, &session.revision)),
        display_name: session.display_name.clone(),
        labels: session.labels.clone().into_iter().collect(),
        etag: session.etag.clone(),
        create_time: Some(time::timestamp(session.created_us)),
        update_time: Some(time::timestamp(session.updated_us)),
        expiration,
        idle_timeout: session.idle_timeout_s.map(time::seconds),
        purge_time: session.purge_time_us.map(time::timestamp),
        last_turn: session.turns,
        last_item: session.items,
        last_sequence: session.last_sequence,
        context_used_tokens: u64::from(session.context_tokens),
        context_limit_tokens: u64::from(session.context_limit),
    }
}

/// Writes a config.
pub(crate) fn config_out(config: &SessionConfig) -> v1::SessionConfig {
    let reasoning_retention = match config.reasoning_retention {
        ReasoningRetention::Keep => v1::ReasoningRetention::Keep,
        ReasoningRetention::DropAtNextUserMessage => v1::ReasoningRetention::DropAtNextUserMessage,
    };
    let sharing = match config.sharing {
        Sharing::Tenant => v1::Sharing::Tenant,
        Sharing::Private => v1::Sharing::Private,
    };
    let numerics_policy = match config.numerics_policy {
        NumericsPolicy::AllowRecorded => v1::NumericsPolicy::AllowRecorded,
        NumericsPolicy::RequireSame => v1::NumericsPolicy::RequireSame,
    };
    v1::SessionConfig {
        model: names::model(&config.model),
        instructions: config.instructions.clone(),
        tools: tool::tools_out(&config.tools),
        template: config.template.clone(),
        reasoning_retention: reasoning_retention as i32,
        sharing: sharing as i32,
        numerics_policy: numerics_policy as i32,
        sampling: sampling::overrides_out(&config.sampling),
        reasoning_effort: effort_out(config.reasoning_effort) as i32,
    }
}

/// Writes an effort.
pub(crate) fn effort_out(effort: Option<ReasoningEffort>) -> v1::ReasoningEffort {
    match effort {
        None => v1::ReasoningEffort::Unspecified,
        Some(ReasoningEffort::None) => v1::ReasoningEffort::None,
        Some(ReasoningEffort::Low) => v1::ReasoningEffort::Low,
        Some(ReasoningEffort::Medium) => v1::ReasoningEffort::Medium,
        Some(ReasoningEffort::High) => v1::ReasoningEffort::High,
    }
}
