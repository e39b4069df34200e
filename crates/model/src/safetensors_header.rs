//! The header of a safetensors file, looked at before the format's own library reads it.
//!
//! In: the start of a file. Out: nothing, or the error that names the tensor: names that are there twice, shapes whose product has no
//! number, places outside of the file or over one another, and sizes that are not those of the shape. The library refuses
//! most of them without a name, and takes the last of two. Deliberately not here: which tensors a model needs.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::limits::TENSORS_BYTES_MAX;
use crate::{ModelError, limits};

/// Bytes of the length before the header.
const LENGTH_BYTES: usize = 8;
/// The one entry that is no tensor.
const METADATA: &str = "__metadata__";
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 8;

/// Checks the header of a file on disk.
///
/// # Errors
/// [`ModelError::Read`], [`ModelError::Truncated`], or [`ModelError::Weights`] with the tensor.
pub(crate) fn check_file(path: &Path) -> Result<(), ModelError> {
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let mut file = limits::open(path)?;
    let bytes = file.metadata().map_err(read)?.len();
    let mut start = Vec::new();
    file.by_ref().take(LENGTH_BYTES as u64).read_to_end(&mut start).map_err(read)?;
    let header = length(path, &start, bytes)?;
    file.take(header).read_to_end(&mut start).map_err(read)?;
    check(path, &start[LENGTH_BYTES..], bytes - LENGTH_BYTES as u64 - header)
}

/// Checks the header of a file in memory. `path` is for messages.
///
/// # Errors
/// As for a file on disk.
pub(crate) fn check_bytes(path: &Path, file: &[u8]) -> Result<(), ModelError> {
    let header = length(path, file, file.len() as u64)?;
    let (header, data) = file[LENGTH_BYTES..].split_at(header as usize);
    check(path, header, data.len() as u64)
}

/// Bytes of the header, which are in the file.
fn length(path: &Path, start: &[u8], bytes: u64) -> Result<u64, ModelError> {
    let truncated = |problem: String| ModelError::Truncated { path: path.to_owned(), problem };
    let Some(length) = start.first_chunk::<LENGTH_BYTES>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Err(truncated(format!("it has {bytes} bytes, a header begins with {LENGTH_BYTES}")));
    };
    if length > TENSORS_BYTES_MAX {
        let problem = format!("the header has {length} bytes; at most {TENSORS_BYTES_MAX} are read");
        return Err(ModelError::Weights { path: path.to_owned(), problem });
    }
    match length > bytes - LENGTH_BYTES as u64 {
        true => Err(truncated(format!("the header has {length} bytes, the file {bytes}"))),
        false => Ok(length),
    }
}

/// Checks every entry of the header. `data` is how many bytes follow it.
fn check(path: &Path, header: &[u8], data: u64) -> Result<(), ModelError> {
    let wrong = |problem: String| ModelError::Weights { path: path.to_owned(), problem };
    let Tensors(tensors) =
        serde_json::from_slice(header).map_err(|e| wrong(format!("not a safetensors file: the header: {e}")))?;
    let mut places = Vec::with_capacity(tensors.len());
    for (name, tensor) in &tensors {
        let [start, end] = tensor.data_offsets;
        if end > data {
            let problem = format!("tensor {name} ends at byte {end} of the data, which has {data}");
            return Err(ModelError::Truncated { path: path.to_owned(), problem });
        }
        tensor.check().map_err(|problem| wrong(format!("tensor {name} {problem}")))?;
        if start < end {
            places.push((start, end, name));
        }
    }
    places.sort_unstable();
    match places.array_windows().find(|[a, b]| a.1 > b.0) {
        Some([(.., a), (.., b)]) => Err(wrong(format!("tensors {a} and {b} overlap"))),
        None => Ok(()),
    }
}

/// What the header says of a tensor.
#[derive(Deserialize)]
struct Tensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Tensor<'_> {
    fn check(&self) -> Result<(), String> {
        let ([start, end], shape) = (self.data_offsets, &self.shape);
        if start > end {
            return Err(format!("begins at byte {start} and ends at {end}"));
        }
        if shape.len() > DIMENSIONS_MAX {
            return Err(format!("has {} dimensions; up to {DIMENSIONS_MAX} are read", shape.len()));
        }
        let bits: u64 = match self.dtype.as_ref() {
            "F32" => 32,
            "F16" | "BF16" => 16,
            "U8" => 8,
            // Not read, and refused by its name if anyone asks for it.
            _ => return Ok(()),
        };
        let elements = shape.iter().try_fold(1_u64, |all, n| all.checked_mul(*n));
        let bytes = elements.and_then(|n| n.checked_mul(bits / 8));
        match bytes {
            None => Err(format!("of shape {shape:?} is larger than any file")),
            Some(bytes) if bytes == end - start => Ok(()),
            Some(bytes) => {
                Err(format!("of shape {shape:?} takes {bytes} bytes of {}, and has {}", self.dtype, end - start))
            }
        }
    }
}

/// The tensors by name; no name is there twice.
struct Tensors<'a>(BTreeMap<Cow<'a, str>, Tensor<'a>>);

impl<'de> Deserialize<'de> for Tensors<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Tensors<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error;
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<Name<'de>>()? {
            if name.0 == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.0.is_empty() || name.0.contains('\0') {
                return Err(A::Error::custom(format!("{:?} is no name of a tensor", name.0)));
            }
            let tensor = map.next_value().map_err(|e| A::Error::custom(format!("tensor {}: {e}", name.0)))?;
            if tensors.contains_key(&name.0) {
                return Err(A::Error::custom(format!("tensor {} is there twice", name.0)));
            }
            tensors.insert(name.0, tensor);
        }
        Ok(Tensors(tensors))
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn check(header: &str, data: usize) -> Result<(), String> {
        check_bytes(Path::new("m.safetensors"), &file(header, data)).map_err(|e| e.to_string())
    }

    #[test]
    fn bad_headers_are_refused_with_the_tensor() {
        let tensor = |shape: &str, start: u64, end: u64| {
            format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}")
        };
        let one = |name: &str, tensor: &str| format!("{{\"{name}\":{tensor}}}");
        assert!(check(&one("a", &tensor("[2,2]", 0, 16)), 16).is_ok());
        assert!(check("{\"__metadata__\":{\"format\":\"pt\"}}", 0).is_ok());
        let huge = format!("[{},{}]", u64::MAX, u64::MAX);
        for (header, words) in [
            (one("a", &tensor("[2,2]", 0, 12)), ["a", "takes 16"]),
            (one("a", &tensor("[2,2]", 16, 0)), ["a", "begins"]),
            (one("a", &tensor("[9,9]", 0, 324)), ["a", "ends at byte 324"]),
            (one("a", &tensor(&huge, 0, 16)), ["a", "larger than any file"]),
            (one("a", &tensor("[4294967296,4294967296]", 0, 16)), ["a", "larger than any file"]),
            (one("a", &tensor("[1,1,1,1,1,1,1,1,1,4]", 0, 16)), ["a", "dimensions"]),
            (one("a", &tensor("[-1]", 0, 16)), ["a", "invalid"]),
            (one("a\\u0000", &tensor("[4]", 0, 16)), ["a", "no name"]),
            (one("a", "{\"dtype\":\"F32\"}"), ["a", "missing field"]),
            (format!("{{\"a\":{0},\"a\":{0}}}", tensor("[4]", 0, 16)), ["a", "twice"]),
            (format!("{{\"a\":{},\"b\":{}}}", tensor("[4]", 0, 16), tensor("[3]", 4, 16)), ["a and b", "overlap"]),
            ("[".repeat(100_000), ["header", "safetensors"]),
        ] {
            let text = check(&header, 16).unwrap_err();
            assert!(words.iter().all(|word| text.contains(word)), "{header:.100}: {text}");
        }
        for length in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = file("{}", 0);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            let text = check_bytes(Path::new("m"), &bytes).unwrap_err().to_string();
            assert!(text.contains(&length.to_string()), "{text}");
        }
        assert!(check_bytes(Path::new("m"), b"1234567").is_err());
    }
}
