//! Block keys: keyed BLAKE3 chains, one per KV group.

use std::fmt;

/// The secret of one sharing domain: keys of different domains never meet.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainSecret(pub [u8; 32]);

impl fmt::Debug for DomainSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DomainSecret(..)")
    }
}

/// The domain of the tokens up to a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainSpan {
    /// The span ends before this position; the last span of a [`ChainDomain`] has `u32::MAX`.
    pub until: u32,
    /// Its secret.
    pub secret: DomainSecret,
}

/// Which domain each position of a sequence hashes under: a public context's while every token so far comes from it, then
/// the tenant's. A block belongs to the domain of its last token. Spans are in rising order and cover everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainDomain {
    /// At least one span.
    pub spans: Vec<DomainSpan>,
}

impl ChainDomain {
    /// Everything in one domain.
    pub fn single(secret: DomainSecret) -> Self {
        Self { spans: vec![DomainSpan { until: u32::MAX, secret }] }
    }
}
