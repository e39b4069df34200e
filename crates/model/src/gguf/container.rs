//! The container: a mapped file, its metadata, and where its tensors lie.
//!
//! In: a path. Out: [`Metadata`] and [`Tensors`]. candle reads the header; every length in it is held against the file before
//! anything is allocated for it, and every tensor's extent is checked here. Deliberately not here: what keys and
//! tensors mean.

use std::collections::BTreeMap;
use std::io::{Cursor, ErrorKind};
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use memmap2::Mmap;

use super::metadata::Metadata;
use crate::ModelError;
use crate::weights::{BLOCKS, Element, Stored, root};

/// The types of elements that are read.
pub(crate) const READ: &str = "F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1 and Q2_K to Q6_K";

/// Most bytes of a header: twice what a vocabulary of 256 thousand tokens with its merges takes. Bounds what its lists may
/// allocate, which is at most some tens of times as much.
const HEADER_BYTES_MAX: usize = 32 << 20;
/// Magic, version, and the numbers of tensors and keys.
const START_BYTES: usize = 24;
/// `general.alignment` when the file does not say.
const ALIGNMENT: usize = 32;

/// The tensors of a mapped file.
pub(crate) struct Tensors {
    map: Mmap,
    places: BTreeMap<String, Place>,
}

/// Where a tensor lies; inside of the map.
struct Place {
    element: Element,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Tensors {
    /// Every name, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// A tensor by its name.
    pub(crate) fn get(&self, name: &str) -> Option<Stored<'_>> {
        let place = self.places.get(name)?;
        let bytes = self.map.get(place.bytes.clone())?;
        Some(Stored { element: place.element.clone(), shape: place.shape.clone(), bytes })
    }
}

/// Maps a file and reads its header.
///
/// # Errors
/// [`ModelError::Read`], [`ModelError::Truncated`], or [`ModelError::Weights`] with what is wrong.
pub(super) fn open(path: &Path) -> Result<(Metadata, Tensors), ModelError> {
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let wrong = |problem: String| ModelError::Weights { path: path.to_owned(), problem };
    let truncated = |problem: String| ModelError::Truncated { path: path.to_owned(), problem };
    let file = std::fs::File::open(path).map_err(read)?;
    // SAFETY: the mapping is read only, and soundness needs that nobody changes the file while it is mapped. A model's file is
    // documented as immutable while it is served.
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    if map.len() < START_BYTES {
        return Err(truncated(format!("it has {} bytes, the start of a header has {START_BYTES}", map.len())));
    }
    let header = &map[..map.len().min(HEADER_BYTES_MAX)];
    let declared = check_start(header).map_err(wrong)?;
    let content = Content::read(&mut Cursor::new(header)).map_err(|e| match root(&e) {
        candle_core::Error::Io(e) if e.kind() == ErrorKind::UnexpectedEof && header.len() == map.len() => {
            truncated("inside of the header".to_owned())
        }
        other => {
            let text = other.to_string();
            // candle stops at a type that it does not know, and says its number alone.
            let hint = if text.contains("dtype") { format!(" ({READ} are read)") } else { String::new() };
            wrong(format!("the header cannot be read: {}{hint}", text.lines().next().unwrap_or_default()))
        }
    })?;
    if declared != (content.tensor_infos.len() as u64, content.metadata.len() as u64) {
        return Err(wrong("two tensors or two keys have the same name".to_owned()));
    }
    let metadata = Metadata(content.metadata);
    if let Some(parts @ 2..) = metadata.count("split.count").map_err(wrong)? {
        return Err(wrong(format!("split.count is {parts}; one file is read: merge them with llama-gguf-split")));
    }
    let alignment = alignment(&metadata).map_err(wrong)?;

    let data_start = usize::try_from(content.tensor_data_offset).unwrap_or(usize::MAX);
    let mut places = BTreeMap::new();
    for (name, info) in content.tensor_infos {
        let place = place(&info, data_start, alignment).map_err(|problem| wrong(format!("tensor {name} {problem}")))?;
        if place.bytes.end > map.len() {
            let problem = format!("tensor {name} ends at byte {}, the file at {}", place.bytes.end, map.len());
            return Err(truncated(problem));
        }
        places.insert(name, place);
    }
    let mut ranges: Vec<_> = places.iter().map(|(name, place)| (place.bytes.clone(), name)).collect();
    ranges.sort_by_key(|(bytes, _)| bytes.start);
    if let Some([(_, a), (_, b)]) = ranges.array_windows().find(|[(a, _), (b, _)]| a.end > b.start) {
        return Err(wrong(format!("tensors {a} and {b} overlap")));
    }
    Ok((metadata, Tensors { map, places }))
}

/// Looks at what candle takes for granted, and returns the numbers of tensors and of keys that the header declares.
fn check_start(header: &[u8]) -> Result<(u64, u64), String> {
    let (Some((magic, rest)), Some(counts)) = (header.split_at_checked(4), header.get(8..START_BYTES)) else {
        return Err("no header".to_owned());
    };
    if magic != b"GGUF" {
        return Err("not a GGUF file".to_owned());
    }
    let version = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    if !matches!(version, Some(2 | 3)) {
        return Err(format!("GGUF version {}; 2 and 3 are read", version.unwrap_or_default()));
    }
    if has_zero_alignment(header) {
        return Err("general.alignment is 0".to_owned());
    }
    let count = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Ok((count(counts), count(&counts[8..])))
}

/// Whether a key `general.alignment` has a whole number of 0, by which candle would divide.
fn has_zero_alignment(header: &[u8]) -> bool {
    const KEY: &[u8] = b"general.alignment";
    let is_zero = |at: usize| {
        // The length may count zero bytes after the key, which readers drop.
        let length = u64::from_le_bytes(*header.get(at.checked_sub(8)?..)?.first_chunk()?);
        let after = header.get(at..)?.get(usize::try_from(length).ok()?..)?;
        let size = match u32::from_le_bytes(*after.first_chunk()?) {
            0 | 1 => 1,
            2 | 3 => 2,
            4 | 5 => 4,
            _ => return None,
        };
        Some(after.get(4..4 + size)?.iter().all(|byte| *byte == 0))
    };
    let starts = header.windows(KEY.len()).enumerate().filter(|(_, bytes)| bytes[0] == KEY[0] && *bytes == KEY);
    starts.into_iter().any(|(at, _)| is_zero(at) == Some(true))
}

/// The specification asks for a multiple of 8; candle looks at 32-bit numbers.
fn alignment(metadata: &Metadata) -> Result<usize, String> {
    match metadata.0.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if *n > 0 && n.is_multiple_of(8) => Ok(*n as usize),
        Some(other) => Err(format!("general.alignment is {other:?}, expected a 32-bit multiple of 8")),
    }
}

/// A tensor's extent, which may end behind the file's.
fn place(info: &TensorInfo, data_start: usize, alignment: usize) -> Result<Place, String> {
    let shape = info.shape.dims().to_vec();
    let too_large = || format!("of shape {shape:?} at {} is larger than any file", info.offset);
    let element = match info.ggml_dtype {
        GgmlDType::F32 => Element::F32,
        GgmlDType::F16 => Element::F16,
        GgmlDType::BF16 => Element::Bf16,
        dtype if BLOCKS.iter().any(|(known, _)| *known == dtype) => Element::Blocks(dtype),
        other => Element::Other(format!("{other:?}")),
    };
    let (block, size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
    let whole_blocks = shape.last().is_none_or(|row| row.is_multiple_of(block));
    // A type that is not read is refused as such, if anyone asks for the tensor.
    if !whole_blocks && !matches!(element, Element::Other(_)) {
        return Err(format!("has rows of {} elements, and blocks of {block}", shape.last().unwrap_or(&0)));
    }
    let offset = usize::try_from(info.offset).map_err(|_| too_large())?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("starts at {offset}, no multiple of general.alignment, {alignment}"));
    }
    let elements = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n)).ok_or_else(too_large)?;
    let bytes = (elements / block).checked_mul(size).ok_or_else(too_large)?;
    let start = data_start.checked_add(offset).ok_or_else(too_large)?;
    let end = start.checked_add(bytes).ok_or_else(too_large)?;
    Ok(Place { element, shape, bytes: start..end })
}

#[cfg(test)]
mod tests {
    use super::has_zero_alignment;

    #[test]
    fn a_zero_alignment_is_seen_before_it_divides() {
        let entry = |padding: u64, kind: u32, value: &[u8]| {
            let mut bytes = b"before".to_vec();
            bytes.extend((17 + padding).to_le_bytes());
            bytes.extend(b"general.alignment");
            bytes.extend(vec![0; padding as usize]);
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
            bytes
        };
        assert!(has_zero_alignment(&entry(0, 4, &[0; 4])));
        assert!(has_zero_alignment(&entry(3, 0, &[0, 7])));
        assert!(!has_zero_alignment(&entry(0, 4, &[32, 0, 0, 0])));
        assert!(!has_zero_alignment(&entry(0, 4, &[0; 3])));
        assert!(!has_zero_alignment(&entry(0, 8, &[0; 8])));
        assert!(!has_zero_alignment(b"general.alignment"));
    }
}
