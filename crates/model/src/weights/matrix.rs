//! Tensors as they are held: vectors in f32, matrices as their files have them, whose rows are converted when someone asks for them.
//!
//! In: a tensor's place in a file, checked. Out: [`WeightMatrix`] and its rows, as they are stored or in f32. Deliberately not here: what
//! elements mean (`elements`), and which tensors there must be (`layout`).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::quantized::GgmlDType;

use super::elements::{self, Element};
use super::files::{File, Stored};

/// One tensor's elements.
pub(super) enum Values {
    /// Converted.
    Owned { values: Vec<f32>, depth: usize },
    /// Where the file has them.
    InFile(InFile),
}

/// Rows of a matrix that lie in a file.
pub(super) struct InFile {
    file: Arc<File>,
    name: String,
    /// Of the tensor's bytes.
    place: Range<usize>,
    element: Element,
    depth: usize,
    /// Rows of a head that lie in interleaved order.
    interleaved: Option<usize>,
    /// All in f32, once somebody asked for that.
    converted: OnceLock<Vec<f32>>,
}

/// A matrix `[out, in]` of the model, or those of all experts under one another.
#[derive(Clone, Copy)]
pub struct WeightMatrix<'a> {
    rows: Rows<'a>,
    depth: usize,
    /// The rows that belong to it.
    first: usize,
    count: usize,
}

/// Where the rows are.
#[derive(Clone, Copy)]
enum Rows<'a> {
    F32(&'a [f32]),
    Stored { held: &'a InFile, bytes: &'a [u8], row_bytes: usize },
}

/// A row of a matrix as it is stored. All rows of a matrix are stored alike.
#[derive(Debug, Clone, Copy)]
pub enum WeightRow<'a> {
    /// Numbers.
    F32(&'a [f32]),
    /// The upper halves of f32, little-endian.
    Bf16(&'a [u8]),
    /// ggml's blocks of 34 bytes: an f16, little-endian, by which the 32 signed bytes behind it are multiplied.
    Q8_0(&'a [u8]),
    /// Anything else.
    Other(OtherRow<'a>),
}

/// A row of elements that only this crate knows.
#[derive(Debug, Clone, Copy)]
pub struct OtherRow<'a> {
    element: &'a Element,
    bytes: &'a [u8],
}

impl InFile {
    /// Rows of `stored`, which lie at `place` of its bytes. `interleaved` is the number of a head's rows where these are in interleaved order.
    pub(super) fn new(
        file: &Arc<File>,
        name: &str,
        stored: &Stored<'_>,
        place: Range<usize>,
        interleaved: Option<usize>,
    ) -> Self {
        Self {
            file: file.clone(),
            name: name.to_owned(),
            place,
            element: stored.element.clone(),
            depth: stored.shape.last().copied().unwrap_or(1),
            interleaved,
            converted: OnceLock::new(),
        }
    }

    fn matrix(&self) -> WeightMatrix<'_> {
        #[expect(clippy::expect_used, reason = "the tensor was found under this name when the value was made")]
        let stored = self.file.get(&self.name).expect("a tensor that was there");
        let bytes = &stored.bytes[self.place.clone()];
        let row_bytes = self.element.bytes_of(self.depth).max(1);
        let rows = match elements::as_f32(&self.element, bytes) {
            Some(values) if self.interleaved.is_none() => Rows::F32(values),
            _ => Rows::Stored { held: self, bytes, row_bytes },
        };
        WeightMatrix { rows, depth: self.depth, first: 0, count: bytes.len() / row_bytes }
    }

    /// All rows in f32.
    fn converted(&self) -> &[f32] {
        self.converted.get_or_init(|| {
            let matrix = self.matrix();
            let mut values = vec![0.0; matrix.count * matrix.depth];
            let rows = values.chunks_exact_mut(matrix.depth.max(1)).enumerate();
            rows.for_each(|(row, out)| matrix.row(row).read(out));
            values
        })
    }
}

impl Values {
    /// Elements of all rows.
    pub(super) fn len(&self) -> usize {
        let matrix = self.matrix();
        matrix.count * matrix.depth
    }

    /// In f32, all rows one after the other.
    pub(super) fn as_slice(&self) -> &[f32] {
        self.matrix().values()
    }

    /// As rows.
    pub(super) fn matrix(&self) -> WeightMatrix<'_> {
        match self {
            Self::Owned { values, depth } => WeightMatrix::of(values, *depth),
            Self::InFile(held) => held.matrix(),
        }
    }
}

impl<'a> WeightMatrix<'a> {
    /// Of numbers, row after row.
    pub fn of(values: &'a [f32], depth: usize) -> Self {
        Self { rows: Rows::F32(values), depth, first: 0, count: values.len() / depth.max(1) }
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.count
    }

    /// Elements of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// When it does not have them all, as for a slice.
    #[must_use]
    pub fn part(self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.count, "rows {rows:?} of {}", self.count);
        Self { first: self.first + rows.start, count: rows.len(), ..self }
    }

    /// One row.
    ///
    /// # Panics
    /// When it has fewer, as for a slice.
    pub fn row(&self, row: usize) -> WeightRow<'a> {
        assert!(row < self.count, "row {row} of {}", self.count);
        let row = self.first + row;
        match self.rows {
            Rows::F32(values) => WeightRow::F32(&values[row * self.depth..(row + 1) * self.depth]),
            Rows::Stored { held, bytes, row_bytes } => {
                let row = held.interleaved.map_or(row, |head| interleaved_row(row, head));
                let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
                match &held.element {
                    Element::Bf16 => WeightRow::Bf16(bytes),
                    Element::Blocks(GgmlDType::Q8_0) => WeightRow::Q8_0(bytes),
                    element => WeightRow::Other(OtherRow { element, bytes }),
                }
            }
        }
    }

    /// All rows in f32, `[rows, depth]`. Where the file holds another type they are converted at the first call and kept, which takes four
    /// bytes for each: whoever can should take row by row.
    pub fn values(&self) -> &'a [f32] {
        let all = match self.rows {
            Rows::F32(values) => values,
            Rows::Stored { held, .. } => held.converted(),
        };
        &all[self.first * self.depth..(self.first + self.count) * self.depth]
    }
}

impl std::fmt::Debug for WeightMatrix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightMatrix({} x {})", self.count, self.depth)
    }
}

impl WeightRow<'_> {
    /// Writes the row in f32; `out` is as long as the row.
    pub fn read(self, out: &mut [f32]) {
        match self {
            Self::F32(values) => out.copy_from_slice(values),
            Self::Bf16(bytes) => elements::read_bf16(bytes, out),
            Self::Q8_0(bytes) => elements::read_q8_0(bytes, out),
            Self::Other(OtherRow { element, bytes }) => {
                #[expect(clippy::expect_used, reason = "the check at load converted these very bytes")]
                elements::read(element, bytes, out).expect("elements that were converted before");
            }
        }
    }
}

/// Where llama.cpp's `LlamaModel.permute` put a row: of each head, rows i and i + half of it lie side by side.
pub(super) fn interleaved_row(row: usize, head: usize) -> usize {
    let (inside, half) = (row % head, head / 2);
    row - inside + 2 * (inside % half) + inside / half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_heads_become_half_split() {
        // Two heads of four rows: row i of the model is row `[i]` of the file.
        let rows: Vec<_> = (0..8).map(|row| interleaved_row(row, 4)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        // One of six, and what is in each row of the file.
        let stored = [0, 3, 1, 4, 2, 5];
        assert_eq!((0..6).map(|row| stored[interleaved_row(row, 6)]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }
}
