//! UpdateSession and its mask.
//!
//! In: a session and the fields of it that count. Out: a patch that says of each field: leave, set or clear. Without a
//! mask every field that is set counts; a field of the mask that is absent in the session is cleared. Fields outside of an
//! explicit mask are not even read. Deliberately not here: whether a field may still change.

use std::collections::BTreeSet;

use holdfast_contracts::v1;
use holdfast_types::{Failure, Limits, SessionConfig};
use holdfast_worker_api::{ConfigPatch, SessionPatch, UpdateSession};

use super::session;
use crate::field::Field;
use crate::limits;
use crate::names;

/// Longest etag worth comparing, in bytes.
const ETAG_BYTES: usize = 128;

/// The fields of SessionConfig, in the order of the proto.
const CONFIG_FIELDS: [&str; 9] = [
    "model",
    "instructions",
    "tools",
    "template",
    "reasoning_retention",
    "sharing",
    "numerics_policy",
    "sampling",
    "reasoning_effort",
];

/// Reads UpdateSession.
pub(crate) fn update(limits: &Limits, request: v1::UpdateSessionRequest) -> Result<UpdateSession, Failure> {
    let field = Field::Root("session");
    let Some(session) = request.session else {
        return Err(field.invalid("is required"));
    };
    let id = names::parse_session(field.member("name"), &session.name)?;
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    let mask = if paths.is_empty() { Mask::of_set_fields(&session)? } else { Mask::of_paths(&paths)? };
    let etag = etag(field.member("etag"), session.etag)?;

    let mut patch = SessionPatch::default();
    if mask.has("display_name") {
        patch.display_name = Some(session::display_name(limits, field, session.display_name)?);
    }
    if mask.has("labels") {
        patch.labels = Some(session::labels(limits, field, session.labels)?);
    }
    if mask.has("expire_time") || mask.has("ttl") {
        (patch.expire_time_us, patch.ttl_s) = expiration(&mask, field, session.expiration)?;
    }
    if mask.has("idle_timeout") {
        patch.idle_timeout_s = Some(session::idle_timeout(field, session.idle_timeout)?);
    }
    let config = if mask.config.is_empty() {
        None
    } else {
        let values = mask.only(session.config.unwrap_or_default());
        let values: SessionConfig = session::config(limits, field.member("config"), values)?;
        Some(ConfigPatch { fields: mask.config.iter().map(|name| (*name).to_owned()).collect(), values })
    };
    Ok(UpdateSession { session: id, etag, patch, config })
}

/// Reads an etag; empty is none.
pub(crate) fn etag(field: Field<'_>, etag: String) -> Result<Option<String>, Failure> {
    if etag.len() > ETAG_BYTES {
        return Err(field.invalid(format!("is longer than {ETAG_BYTES} bytes: not an etag of ours")));
    }
    limits::plain(field, &etag)?;
    Ok((!etag.is_empty()).then_some(etag))
}

/// The fields that count.
#[derive(Default)]
struct Mask {
    session: BTreeSet<&'static str>,
    config: BTreeSet<&'static str>,
}

impl Mask {
    fn of_paths(paths: &[String]) -> Result<Self, Failure> {
        let mut mask = Self::default();
        for (at, path) in paths.iter().enumerate() {
            match path.as_str() {
                "display_name" => mask.session.insert("display_name"),
                "labels" => mask.session.insert("labels"),
                "expire_time" => mask.session.insert("expire_time"),
                "ttl" => mask.session.insert("ttl"),
                "idle_timeout" => mask.session.insert("idle_timeout"),
                "config" => {
                    mask.config.extend(CONFIG_FIELDS);
                    true
                }
                other => match other.strip_prefix("config.").and_then(config_field) {
                    Some(name) => mask.config.insert(name),
                    None => {
                        let problem = format!("{:?} is not a field that can be changed", limits::clip(other, 80));
                        return Err(Field::Root("update_mask").member("paths").element(at).invalid(problem));
                    }
                },
            };
        }
        Ok(mask)
    }

    fn of_set_fields(session: &v1::Session) -> Result<Self, Failure> {
        // Name and etag say which session is meant; they are not changed.
        if let Some(name) = session::output_only_fields(session).find(|name| !matches!(*name, "name" | "etag")) {
            let problem = "is output only; leave it empty, or name the fields to change in update_mask";
            return Err(Field::Root("session").member(name).invalid(problem));
        }
        let (expire_time, ttl) = match session.expiration {
            None => (false, false),
            Some(v1::session::Expiration::ExpireTime(_)) => (true, false),
            Some(v1::session::Expiration::Ttl(_)) => (false, true),
        };
        let set = [
            ("display_name", !session.display_name.is_empty()),
            ("labels", !session.labels.is_empty()),
            ("expire_time", expire_time),
            ("ttl", ttl),
            ("idle_timeout", session.idle_timeout.is_some()),
        ];
        let config = session.config.as_ref().map(set_config_fields).unwrap_or_default();
        Ok(Self { session: set.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect(), config })
    }

    fn has(&self, name: &str) -> bool {
        self.session.contains(name)
    }

    /// The config with only the fields of the mask; the others count as not sent.
    fn only(&self, config: v1::SessionConfig) -> v1::SessionConfig {
        let mut out = v1::SessionConfig::default();
        for name in &self.config {
            match *name {
                "model" => out.model.clone_from(&config.model),
                "instructions" => out.instructions.clone_from(&config.instructions),
                "tools" => out.tools.clone_from(&config.tools),
                "template" => out.template.clone_from(&config.template),
                "reasoning_retention" => out.reasoning_retention = config.reasoning_retention,
                "sharing" => out.sharing = config.sharing,
                "numerics_policy" => out.numerics_policy = config.numerics_policy,
                "reasoning_effort" => out.reasoning_effort = config.reasoning_effort,
                _ => out.sampling.clone_from(&config.sampling),
            }
        }
        out
    }
}

fn config_field(name: &str) -> Option<&'static str> {
    CONFIG_FIELDS.into_iter().find(|field| *field == name)
}

fn set_config_fields(config: &v1::SessionConfig) -> BTreeSet<&'static str> {
    let set = [
        !config.model.is_empty(),
        !config.instructions.is_empty(),
        !config.tools.is_empty(),
        !config.template.is_empty(),
        config.reasoning_retention != 0,
        config.sharing != 0,
        config.numerics_policy != 0,
        config.sampling.is_some(),
        config.reasoning_effort != 0,
    ];
    CONFIG_FIELDS.into_iter().zip(set).filter_map(|(name, is_set)| is_set.then_some(name)).collect()
}

/// What an update says of the expiration.
type Expiration = (Option<Option<holdfast_types::TimeUs>>, Option<u64>);

fn expiration(
    mask: &Mask,
    field: Field<'_>,
    expiration: Option<v1::session::Expiration>,
) -> Result<Expiration, Failure> {
    let Some(expiration) = expiration else {
        return Ok((Some(None), None));
    };
    let (set, other) = match expiration {
        v1::session::Expiration::ExpireTime(_) => ("expire_time", "ttl"),
        v1::session::Expiration::Ttl(_) => ("ttl", "expire_time"),
    };
    if !mask.has(set) {
        return Err(field.member(set).invalid(format!("is set, and update_mask names {other}")));
    }
    let (at, ttl_s) = session::read_expiration(field, expiration)?;
    Ok((at.map(Some), ttl_s))
}
