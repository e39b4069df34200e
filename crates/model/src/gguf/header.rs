//! The header of a GGUF file: bytes to keys, values, and the entries of tensors.
//!
//! In: the bytes of a file, which may be anyone's. Out: [`Header`], or what is wrong with it: nothing is taken for granted. A count
//! or length that the rest of the file could not hold is refused before anything is allocated for it, so that what is
//! allocated is at most some times the header; texts are UTF-8, names are there once and hold no NUL. Deliberately not here:
//! what keys mean, and where tensors lie.

use std::collections::BTreeMap;

use super::metadata::{List, Metadata, Scalar, Value};

/// Most bytes of a header: three times what a vocabulary of 256 thousand tokens with its merges takes.
const HEADER_BYTES_MAX: usize = 48 << 20;
/// Most keys; published files have some dozens.
const KEYS_MAX: u64 = 1 << 16;
/// Most tensors: 4,096 layers of 32.
const TENSORS_MAX: u64 = 1 << 17;
/// Most bytes of a key or of a tensor's name. The specification has 2^16 - 1 and 64.
const NAME_BYTES_MAX: u64 = (1 << 16) - 1;
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;
/// The magic number, the version, and the numbers of tensors and of keys.
const START_BYTES: usize = 24;
/// GGUF's number for a text.
const TEXT: u32 = 8;
/// GGUF's number for a list.
const LIST: u32 = 9;
/// Bytes of the length before a text.
const LENGTH_BYTES: usize = 8;

/// What stands before the tensors.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    /// By name.
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    /// Where it ends; tensors begin at the next multiple of the alignment.
    pub(super) bytes: usize,
}

/// What the header says about a tensor.
pub(super) struct TensorEntry {
    /// The slowest dimension first, as everywhere here; files have it last.
    pub(super) shape: Vec<u64>,
    /// ggml's number.
    pub(super) kind: u32,
    /// From the start of the tensors.
    pub(super) offset: u64,
}

/// Why a header cannot be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The file ends in it.
    Ends(String),
    /// Anything else.
    Wrong(String),
}

impl Header {
    /// Reads the start of a file. `file` is all of it.
    pub(super) fn read(file: &[u8]) -> Result<Self, Unread> {
        if file.len() < START_BYTES {
            let problem = format!("it has {} bytes, the start of a header has {START_BYTES}", file.len());
            return Err(Unread::Ends(problem));
        }
        let mut reader = Reader { bytes: &file[..file.len().min(HEADER_BYTES_MAX)], at: 0, whole: file.len() };
        if reader.take(4)? != b"GGUF" {
            return Err(Unread::Wrong("not a GGUF file".to_owned()));
        }
        let version = reader.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(Unread::Wrong(format!("GGUF version {version}; 2 and 3 are read")));
        }
        let (tensors, keys) = (reader.u64()?, reader.u64()?);
        for (what, count, max) in [("tensors", tensors, TENSORS_MAX), ("keys", keys, KEYS_MAX)] {
            if count > max {
                return Err(Unread::Wrong(format!(
                    "the header says that there are {count} {what}; at most {max} are read"
                )));
            }
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = reader.name("a key")?;
            let kind = reader.u32()?;
            let value = reader.value(&key, kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(Unread::Wrong(format!("key {key} is there twice")));
            }
        }
        let mut entries = BTreeMap::new();
        for _ in 0..tensors {
            let name = reader.name("a tensor's name")?;
            let entry = reader.tensor(&name)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(Unread::Wrong(format!("two tensors have the name {name}")));
            }
        }
        Ok(Self { metadata: Metadata(metadata), tensors: entries, bytes: reader.at })
    }
}

/// Reads on from a place in the header.
struct Reader<'a> {
    /// As much of the file as a header may take.
    bytes: &'a [u8],
    at: usize,
    /// Bytes of the file.
    whole: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Unread> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else { return Err(self.ends()) };
        self.at += count;
        Ok(taken)
    }

    /// There are fewer bytes than are asked for.
    fn ends(&self) -> Unread {
        match self.bytes.len() == self.whole {
            true => Unread::Ends("inside of the header".to_owned()),
            false => Unread::Wrong(format!("the header has more than {HEADER_BYTES_MAX} bytes")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unread> {
        let taken = self.take(N)?;
        taken.first_chunk().copied().ok_or_else(|| self.ends())
    }

    fn u32(&mut self) -> Result<u32, Unread> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Unread> {
        self.array().map(u64::from_le_bytes)
    }

    /// As many things of at least `size` bytes as the header has room for, or the error with `what`.
    fn count(&mut self, size: usize, what: &str) -> Result<usize, Unread> {
        let count = self.u64()?;
        let fits = usize::try_from(count).ok().filter(|n| n.checked_mul(size).is_some_and(|all| all <= self.left()));
        fits.ok_or_else(|| {
            let left = self.left();
            Unread::Wrong(format!(
                "the header says that {what} has {count} of {size} bytes or more, and {left} bytes are left"
            ))
        })
    }

    fn name(&mut self, what: &str) -> Result<String, Unread> {
        let length = self.count(1, what)?;
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && length as u64 <= NAME_BYTES_MAX && !name.contains('\0') => {
                Ok(name.to_owned())
            }
            _ => {
                let start = String::from_utf8_lossy(&bytes[..length.min(40)]).into_owned();
                Err(Unread::Wrong(format!(
                    "the header has {what} that is empty, too long, not UTF-8 or holds a NUL: {start:?}"
                )))
            }
        }
    }

    fn text(&mut self, key: &str) -> Result<String, Unread> {
        let length = self.count(1, key)?;
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_owned).map_err(|_| Unread::Wrong(format!("key {key} holds text that is not UTF-8")))
    }

    /// The value of a key.
    fn value(&mut self, key: &str, kind: u32) -> Result<Value, Unread> {
        match kind {
            TEXT => self.text(key).map(Value::Text),
            LIST => self.list(key).map(Value::List),
            kind => {
                let scalar = Scalar::of_number(kind).ok_or_else(|| unknown(key, kind))?;
                let bytes = self.take(scalar.bytes())?;
                Ok(Value::Number(scalar, bytes.into()))
            }
        }
    }

    /// Elements of a list, which are no lists themselves.
    fn list(&mut self, key: &str) -> Result<List, Unread> {
        match self.u32()? {
            TEXT => {
                let count = self.count(LENGTH_BYTES, key)?;
                let mut texts = Vec::with_capacity(count);
                for _ in 0..count {
                    texts.push(self.text(key)?);
                }
                Ok(List::Texts(texts))
            }
            kind => {
                let scalar = Scalar::of_number(kind).ok_or_else(|| unknown(key, kind))?;
                let count = self.count(scalar.bytes(), key)?;
                Ok(List::Numbers(scalar, self.take(count * scalar.bytes())?.into()))
            }
        }
    }

    fn tensor(&mut self, name: &str) -> Result<TensorEntry, Unread> {
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(Unread::Wrong(format!(
                "tensor {name} has {dimensions} dimensions; up to {DIMENSIONS_MAX} are read"
            )));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        shape.reverse();
        Ok(TensorEntry { shape, kind: self.u32()?, offset: self.u64()? })
    }
}

fn unknown(key: &str, kind: u32) -> Unread {
    Unread::Wrong(format!("key {key} has a value of type {kind}, which is not read"))
}
