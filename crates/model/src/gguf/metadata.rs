//! The metadata of a GGUF file: typed looks at its keys.
//!
//! In: keys and values as the container holds them. Out: numbers, texts, flags and lists, or what a value is instead.
//! Deliberately not here: what a key means.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

/// Keys and values. What is wrong is said as text that starts with the key.
pub(super) struct Metadata(pub(super) HashMap<String, Value>);

impl Metadata {
    /// Every key, in no order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A number, text or flag as JSON.
    pub(super) fn scalar(&self, key: &str) -> Result<Option<Json>, String> {
        self.look(key, "a number, a text or a flag", |value| match value {
            Value::U8(n) => Some((*n).into()),
            Value::I8(n) => Some((*n).into()),
            Value::U16(n) => Some((*n).into()),
            Value::I16(n) => Some((*n).into()),
            Value::U32(n) => Some((*n).into()),
            Value::I32(n) => Some((*n).into()),
            Value::U64(n) => Some((*n).into()),
            Value::I64(n) => Some((*n).into()),
            // What is not finite becomes text, which no reader of a number takes.
            Value::F32(n) if n.is_finite() => Some(f64::from(*n).into()),
            Value::F64(n) if n.is_finite() => Some((*n).into()),
            Value::F32(n) => Some(n.to_string().into()),
            Value::F64(n) => Some(n.to_string().into()),
            Value::Bool(flag) => Some((*flag).into()),
            Value::String(text) => Some(text.as_str().into()),
            Value::Array(_) => None,
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
        self.look(key, "a text", |value| value.to_string().ok().map(String::as_str))
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.look(key, "true or false", |value| value.to_bool().ok())
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, String> {
        self.look(key, "a list of texts", |value| {
            value.to_vec().ok()?.iter().map(|text| text.to_string().ok().map(String::as_str)).collect()
        })
    }

    /// A list of whole numbers that are not negative.
    pub(super) fn counts(&self, key: &str) -> Result<Option<Vec<u64>>, String> {
        self.look(key, "a list of whole numbers", |value| {
            let number = |value: &Value| match value {
                Value::I32(n) => u64::try_from(*n).ok(),
                other => other.to_u64().ok(),
            };
            value.to_vec().ok()?.iter().map(number).collect()
        })
    }

    /// Whether a key asks for something: it is there, and is not zero, false or empty.
    pub(super) fn asks(&self, key: &str) -> bool {
        match self.0.get(key) {
            None => false,
            Some(Value::Array(list)) => !list.is_empty(),
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
        let wrong = || format!("{key} is of type {:?}, expected {expected}", value.value_type());
        read(value).map(Some).ok_or_else(wrong)
    }
}
