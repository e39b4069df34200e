//! Block keys: keyed BLAKE3 chains, one per KV group.
//!
//! In: what a device is, tokens with their precisions, and the secrets of their sharing domains. Out: a 256-bit [`BlockKey`]
//! per full block. Equal keys mean equal KV, bit for bit. Deliberately not here: where the blocks are.
//!
//! The format, pinned by the golden test below; changing it orphans every stored block:
//!
//! ```text
//! key(0)   = derive_key("holdfast kv chain 1", weights digest || field(kv_layout) || field(numerics class) || block_tokens
//!                       || group index || window + 1 or 0 || count of layers || layers… || bytes_per_block)
//! key(i+1) = keyed_hash(domain secret of the block's last token, key(i) || count || [token u32, precision u8]… || extra)
//! ```
//!
//! Integers are little endian; `field(x)` and `extra` are a u32 length and the bytes (`extra` is empty today: adapters, images).
//! The domain enters as the key of the hash: whoever lacks the secret can neither compute nor guess a key of that domain.

use std::fmt;

use holdfast_types::{DeviceDescription, LogToken};

/// Separates these keys from every other use of BLAKE3; a new format takes a new name.
const FORMAT: &str = "holdfast kv chain 1";

/// The content address of a full KV block: everything that its KV depends on, and the domain that may share it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// `key(0)` of one KV group of a device: the parent of every chain's first block.
    ///
    /// # Panics
    /// If `group` is not a group of the device.
    pub fn root(device: &DeviceDescription, group: u16) -> Self {
        let shape = &device.kv_groups[usize::from(group)];
        let mut hash = blake3::Hasher::new_derive_key(FORMAT);
        hash.update(&device.weights.0);
        for text in [device.kv_layout.as_str(), device.numerics_class.as_str()] {
            hash.update(&(text.len() as u32).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&device.block_tokens.to_le_bytes());
        hash.update(&group.to_le_bytes());
        hash.update(&shape.window.map_or(0, |window| u64::from(window) + 1).to_le_bytes());
        hash.update(&(shape.layers.len() as u32).to_le_bytes());
        for layer in &shape.layers {
            hash.update(&layer.to_le_bytes());
        }
        hash.update(&shape.bytes_per_block.to_le_bytes());
        Self(*hash.finalize().as_bytes())
    }

    /// The key of the block that follows `self` and holds `tokens`, in the domain of its last token.
    #[must_use]
    pub fn next(&self, secret: &DomainSecret, tokens: &[LogToken]) -> Self {
        let mut hash = blake3::Hasher::new_keyed(&secret.0);
        hash.update(&self.0);
        hash.update(&(tokens.len() as u32).to_le_bytes());
        let mut bytes = Vec::with_capacity(tokens.len() * 5 + 4);
        for token in tokens {
            bytes.extend_from_slice(&token.id.to_le_bytes());
            bytes.push(token.precision.code());
        }
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        hash.update(&bytes);
        Self(*hash.finalize().as_bytes())
    }

    /// The 256 bits.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({:02x}{:02x}{:02x}{:02x}…)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

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

    /// Whether the spans rise and cover every position: what [`ChainDomain::secret_at`] relies on.
    pub fn is_well_formed(&self) -> bool {
        self.spans.last().is_some_and(|span| span.until == u32::MAX)
            && self.spans.windows(2).all(|pair| pair[0].until < pair[1].until)
    }

    /// The secret in force at a position.
    ///
    /// # Panics
    /// If the domain is not well formed.
    pub fn secret_at(&self, position: u32) -> &DomainSecret {
        let span = self.spans.iter().find(|span| position < span.until).or(self.spans.last());
        &span.unwrap_or_else(|| panic!("a domain has at least one span")).secret
    }
}

/// The keys of the full blocks of one token log, per KV group. Grows with the log; never re-keyed.
#[derive(Debug, Clone)]
pub struct Chain {
    domain: ChainDomain,
    block_tokens: usize,
    /// Per group: the root, then one key per full block.
    keys: Vec<Vec<BlockKey>>,
}

impl Chain {
    pub(crate) fn new(roots: &[BlockKey], block_tokens: u32, domain: ChainDomain) -> Self {
        Self { domain, block_tokens: block_tokens as usize, keys: roots.iter().map(|root| vec![*root]).collect() }
    }

    /// Keys the blocks of `log` that became full since the last call. `log` only ever grows.
    pub fn extend(&mut self, log: &[LogToken]) {
        let blocks = log.len() / self.block_tokens;
        for keys in &mut self.keys {
            for index in keys.len() - 1..blocks {
                let tokens = &log[index * self.block_tokens..(index + 1) * self.block_tokens];
                let last = ((index + 1) * self.block_tokens - 1) as u32;
                let key = keys[index].next(self.domain.secret_at(last), tokens);
                keys.push(key);
            }
        }
    }

    /// Full blocks that are keyed.
    pub fn blocks(&self) -> u32 {
        self.keys.first().map_or(0, |keys| keys.len() as u32 - 1)
    }

    /// The keys of the full blocks, in order.
    pub(crate) fn full(&self, group: usize) -> &[BlockKey] {
        &self.keys[group][1..]
    }

    /// The key of full block `index`; `None` beyond the end.
    pub fn key(&self, group: usize, index: u32) -> Option<BlockKey> {
        self.keys[group].get(index as usize + 1).copied()
    }

    /// The key that block `index` hangs on: the root for the first.
    pub fn parent(&self, group: usize, index: u32) -> Option<BlockKey> {
        self.keys[group].get(index as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::device;
    use holdfast_types::Precision;

    fn tokens(ids: &[u32]) -> Vec<LogToken> {
        ids.iter().map(|&id| LogToken { id, precision: Precision::Native }).collect()
    }

    /// The format is on disk and on wires one day: a change of these digits is a new format and takes a new name.
    #[test]
    fn golden_keys() {
        let root = BlockKey::root(&device(4, &[8]), 0);
        let next = root.next(&DomainSecret([7; 32]), &tokens(&[1, 2, 3, 70_000]));
        assert_eq!(root.to_string(), "daa6f45626a8e373d695c8f4fbe43e9bdeb16902f42f79d39ad5394845b46349");
        assert_eq!(next.to_string(), "a0397e65c69c68175ec42a9b6eb2b78651f1191474384eacbed983abc8954157");
    }

    #[test]
    fn everything_that_kv_depends_on_changes_the_key() {
        let base = device(4, &[8, 8]);
        let root = BlockKey::root(&base, 0);
        let mut other = base.clone();
        other.weights.0[31] ^= 1;
        let mut layout = base.clone();
        layout.kv_layout.push('x');
        let mut class = base.clone();
        class.numerics_class = holdfast_types::NumericsClass::new("other/f32/r1");
        let mut window = base.clone();
        window.kv_groups[0].window = Some(0);
        let mut tokens_per_block = base.clone();
        tokens_per_block.block_tokens = 8;
        for changed in [other, layout, class, window, tokens_per_block] {
            assert_ne!(BlockKey::root(&changed, 0), root);
        }
        assert_ne!(BlockKey::root(&base, 1), root, "groups have chains of their own");

        let (secret, log) = (DomainSecret([1; 32]), tokens(&[1, 2, 3, 4]));
        let key = root.next(&secret, &log);
        let mut int8 = log.clone();
        int8[3].precision = Precision::Int8;
        assert_ne!(root.next(&secret, &int8), key);
        assert_ne!(root.next(&secret, &tokens(&[1, 2, 4, 3])), key);
        assert_ne!(root.next(&DomainSecret([2; 32]), &log), key);
        assert_ne!(key.next(&secret, &log), key);
    }

    #[test]
    fn a_block_belongs_to_the_domain_of_its_last_token() {
        let (public, tenant) = (DomainSecret([1; 32]), DomainSecret([2; 32]));
        let spans = vec![
            DomainSpan { until: 6, secret: public.clone() },
            DomainSpan { until: u32::MAX, secret: tenant.clone() },
        ];
        let domain = ChainDomain { spans };
        assert!(domain.is_well_formed());
        let root = BlockKey::root(&device(4, &[8]), 0);
        let log = tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut chain = Chain::new(&[root], 4, domain);
        chain.extend(&log[..5]);
        chain.extend(&log);
        let first = root.next(&public, &log[..4]);
        assert_eq!(chain.key(0, 0), Some(first));
        assert_eq!(chain.key(0, 1), Some(first.next(&tenant, &log[4..8])));
        assert_eq!(chain.key(0, 2), None);
        assert_eq!(chain.parent(0, 0), Some(root));
        assert_eq!(chain.blocks(), 2);
    }

    #[test]
    fn malformed_domains_are_told_apart() {
        assert!(!ChainDomain { spans: Vec::new() }.is_well_formed());
        assert!(!ChainDomain { spans: vec![DomainSpan { until: 5, secret: DomainSecret([0; 32]) }] }.is_well_formed());
        assert_eq!(format!("{:?}", DomainSecret([7; 32])), "DomainSecret(..)");
    }
}
