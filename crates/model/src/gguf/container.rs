//! The container: a mapped file, its metadata, and where its tensors lie.
//!
//! In: a path. Out: [`Metadata`] and [`Tensors`]. Every count and length of the header is held against the bytes that the file has
//! before anything is allocated for it, and every tensor's extent against the file and its neighbours. Deliberately not here:
//! what keys and tensors mean, and what lies in the tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use super::header::{Header, TensorEntry, Unread};
use super::metadata::Metadata;
use crate::ModelError;
use crate::weights::{Element, Stored};

/// The types of elements that are read.
pub(crate) const READ: &str = "F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, Q2_K to Q6_K and MXFP4";

/// `general.alignment` when the file does not say.
const ALIGNMENT: usize = 32;

/// A type of elements: ggml's number and name for it, and how it is read, if it is.
struct Kind {
    number: u32,
    name: &'static str,
    read: Option<Read>,
}

/// How elements of a type lie in the file.
struct Read {
    element: Element,
    /// Elements of a block.
    block: usize,
    /// Bytes of a block.
    bytes: usize,
}

/// Every type of `ggml.h`; what is not read is known by its name.
const KINDS: &[Kind] = &[
    plain(0, "F32", Element::F32, 4),
    plain(1, "F16", Element::F16, 2),
    blocks(2, "Q4_0", GgmlDType::Q4_0, 32, 18),
    blocks(3, "Q4_1", GgmlDType::Q4_1, 32, 20),
    blocks(6, "Q5_0", GgmlDType::Q5_0, 32, 22),
    blocks(7, "Q5_1", GgmlDType::Q5_1, 32, 24),
    blocks(8, "Q8_0", GgmlDType::Q8_0, 32, 34),
    unread(9, "Q8_1"),
    blocks(10, "Q2_K", GgmlDType::Q2K, 256, 84),
    blocks(11, "Q3_K", GgmlDType::Q3K, 256, 110),
    blocks(12, "Q4_K", GgmlDType::Q4K, 256, 144),
    blocks(13, "Q5_K", GgmlDType::Q5K, 256, 176),
    blocks(14, "Q6_K", GgmlDType::Q6K, 256, 210),
    unread(15, "Q8_K"),
    unread(16, "IQ2_XXS"),
    unread(17, "IQ2_XS"),
    unread(18, "IQ3_XXS"),
    unread(19, "IQ1_S"),
    unread(20, "IQ4_NL"),
    unread(21, "IQ3_S"),
    unread(22, "IQ2_S"),
    unread(23, "IQ4_XS"),
    unread(24, "I8"),
    unread(25, "I16"),
    unread(26, "I32"),
    unread(27, "I64"),
    unread(28, "F64"),
    unread(29, "IQ1_M"),
    plain(30, "BF16", Element::Bf16, 2),
    unread(34, "TQ1_0"),
    unread(35, "TQ2_0"),
    Kind { number: 39, name: "MXFP4", read: Some(Read { element: Element::Mxfp4, block: 32, bytes: 17 }) },
    unread(40, "NVFP4"),
    unread(41, "Q1_0"),
    unread(42, "Q2_0"),
];

const fn plain(number: u32, name: &'static str, element: Element, bytes: usize) -> Kind {
    Kind { number, name, read: Some(Read { element, block: 1, bytes }) }
}

const fn blocks(number: u32, name: &'static str, dtype: GgmlDType, block: usize, bytes: usize) -> Kind {
    Kind { number, name, read: Some(Read { element: Element::Blocks(dtype), block, bytes }) }
}

const fn unread(number: u32, name: &'static str) -> Kind {
    Kind { number, name, read: None }
}

/// The tensors of a mapped file.
pub(crate) struct Tensors {
    map: Arc<Mmap>,
    places: BTreeMap<String, Place>,
}

/// Where a tensor lies; inside of the map. One of a type that is not read has no bytes.
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
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(read)?);
    let Header { metadata, tensors, bytes } = Header::read(&map).map_err(|unread| match unread {
        Unread::Ends(problem) => truncated(problem),
        Unread::Wrong(problem) => wrong(problem),
    })?;
    if let Some(parts @ 2..) = metadata.count("split.count").map_err(wrong)? {
        return Err(wrong(format!("split.count is {parts}; one file is read: merge them with llama-gguf-split")));
    }
    let alignment = alignment(&metadata).map_err(wrong)?;
    // A header lies in the file, so this cannot overflow.
    let data_start = bytes.next_multiple_of(alignment);

    let mut places = BTreeMap::new();
    for (name, entry) in tensors {
        let place =
            place(&entry, data_start, alignment).map_err(|problem| wrong(format!("tensor {name} {problem}")))?;
        if place.bytes.end > map.len() {
            let problem = format!("tensor {name} ends at byte {}, the file at {}", place.bytes.end, map.len());
            return Err(truncated(problem));
        }
        places.insert(name, place);
    }
    let mut ranges: Vec<_> = places.iter().map(|(name, place)| (place.bytes.clone(), name)).collect();
    ranges.retain(|(bytes, _)| !bytes.is_empty());
    ranges.sort_by_key(|(bytes, _)| bytes.start);
    if let Some([(_, a), (_, b)]) = ranges.array_windows().find(|[(a, _), (b, _)]| a.end > b.start) {
        return Err(wrong(format!("tensors {a} and {b} overlap")));
    }
    Ok((metadata, Tensors { map, places }))
}

/// The specification asks for a multiple of 8 in 32 bits.
fn alignment(metadata: &Metadata) -> Result<usize, String> {
    const KEY: &str = "general.alignment";
    match metadata.count(KEY)? {
        None => Ok(ALIGNMENT),
        Some(n) if n > 0 && n.is_multiple_of(8) && n <= u64::from(u32::MAX) => Ok(n as usize),
        Some(other) => Err(format!("{KEY} is {other}, expected a multiple of 8")),
    }
}

/// A tensor's extent, which may end behind the file's.
fn place(entry: &TensorEntry, data_start: usize, alignment: usize) -> Result<Place, String> {
    let shape = &entry.shape;
    let too_large = || format!("of shape {shape:?} at {} is larger than any file", entry.offset);
    let kind = KINDS.iter().find(|kind| kind.number == entry.kind);
    let kind = kind.ok_or_else(|| format!("is of ggml's type {}, which is not known; {READ} are read", entry.kind))?;
    let shape = shape.iter().map(|n| usize::try_from(*n)).collect::<Result<Vec<_>, _>>().map_err(|_| too_large())?;
    let offset = usize::try_from(entry.offset).map_err(|_| too_large())?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("starts at {offset}, no multiple of general.alignment, {alignment}"));
    }
    let Some(read) = &kind.read else {
        // Refused as such, if anyone asks for the tensor.
        return Ok(Place { element: Element::Other(kind.name.to_owned()), shape, bytes: 0..0 });
    };
    if !shape.last().is_none_or(|row| row.is_multiple_of(read.block)) {
        return Err(format!("has rows of {} elements, and blocks of {}", shape.last().unwrap_or(&0), read.block));
    }
    let elements = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n)).ok_or_else(too_large)?;
    let bytes = (elements / read.block).checked_mul(read.bytes).ok_or_else(too_large)?;
    let start = data_start.checked_add(offset).ok_or_else(too_large)?;
    let end = start.checked_add(bytes).ok_or_else(too_large)?;
    Ok(Place { element: read.element.clone(), shape, bytes: start..end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::BLOCKS;

    #[test]
    fn the_table_of_types_is_that_of_the_reader_of_blocks() {
        for kind in KINDS {
            let Some(Read { element: Element::Blocks(dtype), block, bytes }) = &kind.read else { continue };
            assert_eq!((*block, *bytes), (dtype.block_size(), dtype.type_size()), "{}", kind.name);
            assert!(BLOCKS.contains(&(*dtype, kind.name)), "{}", kind.name);
        }
        let read = KINDS.iter().filter(|kind| matches!(&kind.read, Some(Read { element: Element::Blocks(_), .. })));
        assert_eq!(read.count(), BLOCKS.len());
    }
}
