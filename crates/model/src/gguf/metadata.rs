//! The metadata of a GGUF file: typed looks at its keys.
//!
//! In: keys and values as the header holds them. Out: numbers, texts, flags and lists, or what a value is instead. Deliberately
//! not here: what a key means.

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// Keys and values. What is wrong is said as text that starts with the key.
pub(super) struct Metadata(pub(super) BTreeMap<String, Value>);

/// A value as the file has it.
pub(super) enum Value {
    /// Little-endian.
    Number(Scalar, Box<[u8]>),
    Text(String),
    List(List),
}

/// A list as the file has it; lists of lists are not read.
pub(super) enum List {
    /// Little-endian, one after the other.
    Numbers(Scalar, Box<[u8]>),
    Texts(Vec<String>),
}

/// A type of number, or a truth value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Scalar {
    /// By GGUF's number.
    pub(super) fn of_number(number: u32) -> Option<Self> {
        let all = [Self::U8, Self::I8, Self::U16, Self::I16, Self::U32, Self::I32, Self::F32, Self::Bool];
        match number {
            10 => Some(Self::U64),
            11 => Some(Self::I64),
            12 => Some(Self::F64),
            number => all.get(number as usize).copied(),
        }
    }

    /// Bytes of one.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// One of these bytes, as JSON. What is not finite becomes text, which no reader of a number takes; so does what is neither true nor
    /// false.
    fn json(self, bytes: &[u8]) -> Json {
        let mut all = [0; 8];
        let size = bytes.len().min(8);
        all[..size].copy_from_slice(&bytes[..size]);
        let bits = u64::from_le_bytes(all);
        // Moves the sign of a short number to the top, and back.
        let unused = 64 - 8 * size as u32;
        let signed = (bits << unused).cast_signed() >> unused;
        let float = |value: f64| if value.is_finite() { value.into() } else { Json::from(value.to_string()) };
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => bits.into(),
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => signed.into(),
            Self::F32 => float(f64::from(f32::from_bits(bits as u32))),
            Self::F64 => float(f64::from_bits(bits)),
            Self::Bool if bits <= 1 => (bits == 1).into(),
            Self::Bool => format!("the truth value {bits}").into(),
        }
    }
}

impl Metadata {
    /// Every key, sorted.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A number, text or flag as JSON.
    pub(super) fn scalar(&self, key: &str) -> Result<Option<Json>, String> {
        self.look(key, "a number, a text or a flag", |value| match value {
            Value::Number(scalar, bytes) => Some(scalar.json(bytes)),
            Value::Text(text) => Some(text.as_str().into()),
            Value::List(_) => None,
        })
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>, String> {
        match self.scalar(key)? {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("{key} is {value}, expected a whole number")),
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.look(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.scalar(key)? {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| format!("{key} is {value}, expected true or false")),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, String> {
        self.look(key, "a list of texts", |value| match value {
            Value::List(List::Texts(texts)) => Some(texts.iter().map(String::as_str).collect()),
            Value::List(List::Numbers(_, bytes)) if bytes.is_empty() => Some(Vec::new()),
            _ => None,
        })
    }

    /// A list of whole numbers that are not negative.
    pub(super) fn counts(&self, key: &str) -> Result<Option<Vec<u64>>, String> {
        self.look(key, "a list of whole numbers", |value| {
            let Value::List(List::Numbers(scalar, bytes)) = value else { return None };
            bytes.chunks_exact(scalar.bytes()).map(|bytes| scalar.json(bytes).as_u64()).collect()
        })
    }

    /// A list of numbers, each finite.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, String> {
        self.look(key, "a list of finite numbers", |value| {
            let Value::List(List::Numbers(scalar, bytes)) = value else { return None };
            bytes.chunks_exact(scalar.bytes()).map(|bytes| scalar.json(bytes).as_f64()).collect()
        })
    }

    /// Whether a key asks for something: it is there, and is not zero, false or empty.
    pub(super) fn asks(&self, key: &str) -> bool {
        match self.0.get(key) {
            None => false,
            Some(Value::List(List::Texts(texts))) => !texts.is_empty(),
            Some(Value::List(List::Numbers(_, bytes))) => !bytes.is_empty(),
            Some(_) => {
                let value = self.scalar(key).ok().flatten().unwrap_or_default();
                value != Json::Bool(false) && value != "" && value.as_f64() != Some(0.0)
            }
        }
    }

    fn look<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let found = match value {
            Value::Number(scalar, _) => format!("{scalar:?}"),
            Value::Text(_) => "String".to_owned(),
            Value::List(List::Texts(_)) => "Array of String".to_owned(),
            Value::List(List::Numbers(scalar, _)) => format!("Array of {scalar:?}"),
        };
        read(value).map(Some).ok_or_else(|| format!("{key} is of type {found}, expected {expected}"))
    }
}
