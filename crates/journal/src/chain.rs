//! How an entry is stored: its body as JSON, and the hash that chains it to the entry before.
//!
//! In: new entries with their place. Out: stored entries, and entries again once hash, place and body hold. Both journals store
//! through this file, so a chain means the same in either. Deliberately not here: where stored entries lie.

use holdfast_types::{Digest, Principal, SessionId, TenantId, TimeUs};
use serde_json::Value;

use crate::{Batch, Body, Entry, FORMAT, JournalError, Lsn, NewEntry};

/// Domain of the chain's hashes (BLAKE3 key derivation context).
const CONTEXT: &str = "holdfast 2026-11-20 journal entry, format 1";

/// Key id of a body that is not encrypted; the only one that format 1 reads.
pub(crate) const NO_KEY: u32 = 0;

/// An entry as it lies in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) lsn: u64,
    pub(crate) index: u64,
    pub(crate) time_us: TimeUs,
    pub(crate) principal: String,
    pub(crate) traceparent: String,
    pub(crate) previous: Digest,
    pub(crate) hash: Digest,
    pub(crate) key_id: u32,
    pub(crate) body: String,
}

/// What a batch must be before it is stored, beside what its types say.
pub(crate) fn check_batch(batch: &Batch) -> Result<(), String> {
    let Some(first) = batch.entries.first() else {
        return Err("a batch holds at least one entry".to_owned());
    };
    if batch.entries.iter().any(|entry| (&entry.tenant, &entry.session) != (&first.tenant, &first.session)) {
        return Err("a batch is of one session".to_owned());
    }
    match &batch.head {
        Some(head) if (&head.tenant, &head.session) != (&first.tenant, &first.session) => {
            Err(format!("its batch carries the row of session {}", head.session))
        }
        _ => Ok(()),
    }
}

/// The answer to every command of a session after its first error: what is stored may lack what the caller believes.
pub(crate) fn refused(session: &SessionId) -> JournalError {
    JournalError::Io(format!("session {session} failed before; open the journal again"))
}

/// A body as JSON. What would not read back equal (a float that JSON cannot hold) is refused here, before it is stored.
pub(crate) fn encode(body: &Body) -> Result<String, String> {
    let text = serde_json::to_string(body).map_err(|e| format!("the body cannot be written: {e}"))?;
    match serde_json::from_str::<Body>(&text) {
        Ok(back) if back == *body => Ok(text),
        Ok(_) => Err("the body does not read back as it was written: a number that JSON cannot hold".to_owned()),
        Err(e) => Err(format!("the body does not read back: {e}")),
    }
}

/// A body from JSON. Unknown kinds are refused, and so are unknown fields at any depth, whether or not serde would: a body that
/// is written again must hold everything that was stored.
pub(crate) fn decode(text: &str) -> Result<Body, String> {
    let body: Body = serde_json::from_str(text).map_err(|e| format!("the body cannot be read: {e}"))?;
    let again = serde_json::to_string(&body).map_err(|e| format!("the body cannot be written: {e}"))?;
    if again == text {
        return Ok(body);
    }
    let parse = |text: &str| serde_json::from_str::<Value>(text).map_err(|e| format!("the body is not JSON: {e}"));
    match unknown_field(&parse(text)?, &parse(&again)?) {
        None => Ok(body),
        Some(path) => Err(format!("the body holds a field that format {FORMAT} does not know: {path}")),
    }
}

/// Path of the first field of `stored` that is not in `known`.
fn unknown_field(stored: &Value, known: &Value) -> Option<String> {
    match (stored, known) {
        (Value::Object(stored), Value::Object(known)) => {
            stored.iter().find_map(|(name, value)| match known.get(name) {
                Some(inner) => unknown_field(value, inner).map(|path| format!("{name}.{path}")),
                None => Some(name.clone()),
            })
        }
        (Value::Array(stored), Value::Array(known)) => {
            stored.iter().zip(known).find_map(|(stored, known)| unknown_field(stored, known))
        }
        _ => None,
    }
}

/// Stores an entry at its place; `body` is what [`encode`] made of the entry's body.
pub(crate) fn seal(entry: &NewEntry, body: String, lsn: u64, index: u64, previous: Digest) -> Stored {
    let mut stored = Stored {
        lsn,
        index,
        time_us: entry.time_us,
        principal: entry.principal.as_str().to_owned(),
        traceparent: entry.traceparent.clone(),
        previous,
        hash: Digest::default(),
        key_id: NO_KEY,
        body,
    };
    stored.hash = stored.compute_hash(&entry.tenant, &entry.session);
    stored
}

impl Stored {
    /// BLAKE3 over everything but the position in the journal, which an export does not carry along: previous hash, format,
    /// place, time, key id as little-endian integers, then the texts, each after its length.
    fn compute_hash(&self, tenant: &TenantId, session: &SessionId) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.previous.0);
        hasher.update(&FORMAT.to_le_bytes());
        hasher.update(&self.index.to_le_bytes());
        hasher.update(&self.time_us.to_le_bytes());
        hasher.update(&self.key_id.to_le_bytes());
        for text in [tenant.as_str(), session.as_str(), &self.principal, &self.traceparent, &self.body] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// The entry, once everything holds. `tenant` and `session` are those that wrote it.
    pub(crate) fn open(
        self,
        tenant: &TenantId,
        session: &SessionId,
        index: u64,
        previous: Digest,
    ) -> Result<Entry, String> {
        if self.index != index {
            return Err(format!("entry {} lies in its place", self.index));
        }
        if self.key_id != NO_KEY {
            return Err(format!("it is encrypted with key {}, this build reads none", self.key_id));
        }
        if self.previous != previous {
            return Err(format!("it follows {}, the entry before it is {previous}", self.previous));
        }
        let computed = self.compute_hash(tenant, session);
        if self.hash != computed {
            return Err(format!("its hash is {}, its bytes have {computed}", self.hash));
        }
        let principal = Principal::parse(&self.principal).map_err(|e| e.to_string())?;
        let body = decode(&self.body)?;
        Ok(Entry {
            lsn: Lsn(self.lsn),
            index,
            hash: self.hash,
            previous,
            key_id: self.key_id,
            entry: NewEntry {
                tenant: tenant.clone(),
                session: session.clone(),
                time_us: self.time_us,
                principal,
                traceparent: self.traceparent,
                body,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{SessionMutable, TurnRequest};
    use holdfast_types::{
        Digest, GenerationSettings, Item, ModelRevision, NumericsClass, OnDisconnect, Origin, Precision, Role,
        SamplingParams, SessionConfig, TokenLogprob, TokenRun, ToolChoice, TurnNumber, UnresolvedCalls,
    };
    use proptest::prelude::*;

    fn accepted(bias: Vec<(u32, f32)>) -> Body {
        Body::TurnAccepted {
            turn: TurnNumber(1),
            request: Box::new(TurnRequest {
                request: None,
                input: vec![Item::message(Role::User, "hello")],
                continue_last: false,
                discard_partial: false,
                unresolved_calls: UnresolvedCalls::Reject,
                settings: GenerationSettings {
                    sampling: SamplingParams { logit_bias: bias, ..SamplingParams::default() },
                    seed: u64::MAX,
                    max_output_tokens: 16,
                    stop: vec!["\u{0}\"\\\u{1F600}".to_owned()],
                },
                allowed_tools: None,
                tool_choice: ToolChoice::Name("clock".to_owned()),
                single_call: false,
                constraint: None,
                deadline_us: None,
                on_disconnect: OnDisconnect::Continue,
            }),
        }
    }

    fn created(bias: Option<Vec<(u32, f32)>>) -> Body {
        let mut config = SessionConfig { model: "pebble".to_owned(), ..SessionConfig::default() };
        config.sampling.logit_bias = bias;
        Body::SessionCreated {
            config: Box::new(config),
            revision: Box::new(ModelRevision {
                weights: Digest([1; 32]),
                tokenizer: Digest([2; 32]),
                template: Digest([3; 32]),
                numerics_class: NumericsClass::new("neuron/f32/r1"),
                build: "0.1.0".to_owned(),
            }),
            mutable: SessionMutable::default(),
            request: None,
            pinned_date: "2026-11-20".to_owned(),
        }
    }

    #[test]
    fn a_banned_token_stays_banned() {
        for body in
            [accepted(vec![(7, f32::NEG_INFINITY), (8, -0.0), (9, 0.1)]), created(Some(vec![(7, f32::NEG_INFINITY)]))]
        {
            let text = encode(&body).unwrap();
            assert_eq!(decode(&text).unwrap(), body);
            assert!(text.contains("-3.4028235e+38"), "{text}");
        }
    }

    #[test]
    fn what_json_cannot_hold_is_refused_before_it_is_stored() {
        for value in [f32::NAN, f32::INFINITY, f32::MIN] {
            assert!(encode(&accepted(vec![(7, value)])).is_err(), "{value}");
            assert!(encode(&created(Some(vec![(7, value)]))).is_err(), "{value}");
        }
    }

    #[test]
    fn unknown_kinds_and_unknown_fields_at_any_depth_are_refused() {
        let text = encode(&accepted(Vec::new())).unwrap();
        assert!(decode(&text).is_ok());
        assert!(decode(r#"{"session_paused":{}}"#).unwrap_err().contains("session_paused"));
        assert!(decode(r#"{"session_deleted":{"why":"none"}}"#).is_err());
        assert!(decode(r#"{"session_deleted":{},"turn_started":{"turn":1}}"#).is_err());
        for (at, with) in [
            (r#"{"turn_accepted":{"#, r#"{"turn_accepted":{"extra":1,"#),
            (r#""request":{"#, r#""request":{"extra":1,"#),
            (r#""settings":{"#, r#""settings":{"extra":1,"#),
            (r#""sampling":{"#, r#""sampling":{"extra":1,"#),
            (r#""content":{"#, r#""content":{"extra":1,"#),
            (r#"{"content""#, r#"{"extra":null,"content""#),
        ] {
            assert!(text.contains(at), "{at} is not in {text}");
            let damaged = text.replacen(at, with, 1);
            assert!(decode(&damaged).unwrap_err().contains("extra"), "{damaged}");
        }
    }

    #[test]
    fn a_missing_field_is_refused() {
        assert!(decode(r#"{"turn_started":{}}"#).unwrap_err().contains("turn"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_finite_f32_comes_back_bit_for_bit(bits in any::<[u32; 8]>()) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).filter(|v| v.is_finite()).collect();
            let body = Body::Sampled {
                turn: TurnNumber(1),
                generation: 0,
                run: TokenRun {
                    origin: Origin::Sampled,
                    precision: Precision::Native,
                    numerics_class: NumericsClass::new("neuron/f32/r1"),
                    ids: (0..values.len() as u32).collect(),
                    logprobs: values.iter().map(|&logprob| vec![TokenLogprob { id: 1, logprob }]).collect(),
                },
            };
            let Body::Sampled { run, .. } = decode(&encode(&body).unwrap()).unwrap() else { unreachable!() };
            let back: Vec<u32> = run.logprobs.iter().map(|of| of[0].logprob.to_bits()).collect();
            prop_assert_eq!(back, values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
    }
}
