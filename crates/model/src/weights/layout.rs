//! What the files of a model must hold, and how they hold it.
//!
//! In: open files, and the config that says which tensors there must be. Out: [`Weights`], each tensor checked: its name, shape, type and
//! finiteness, or the error that names the first that is wrong. Deliberately not here: bytes to f32 (`elements`, `experts`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use holdfast_types::Digest;

use super::elements::{self, Element, Unread};
use super::experts::{Alternating, BLOCK_BYTES};
use super::files::{File, Stored};
use super::matrix::{InFile, Values, interleaved_row};
use super::{OnRead, Weights};
use crate::error::some_names;
use crate::gguf::{self, ROPE_TENSORS};
use crate::{DecoderConfig, GgufForm, LayerPart, ModelError, Storage, TensorNames, TensorRole, TensorSpec};

/// Tensors by their names in the files.
type Found = BTreeMap<String, Arc<File>>;

/// How a kind of file keeps a config's tensors.
pub(super) struct Layout {
    names: &'static TensorNames,
    /// Where tensors may lie whose names begin with [`MODEL`]: beginnings of names, one of which holds for all.
    roots: &'static [&'static str],
    /// Ends of names that are passed over.
    ignored: &'static [&'static str],
    /// Beginnings of names that are passed over.
    foreign: &'static [&'static str],
    /// Tensors that the config was made of: no weights, but part of the digest.
    beside: &'static [&'static str],
    /// Heads of q and k whose rows are interleaved, and must be put in half-split order.
    interleaved: bool,
    /// Added to the weights of norms.
    norm_offset: f32,
    /// Types of elements that are read.
    read: &'static str,
}

/// How names begin that may have another root.
const MODEL: &str = "model.";

impl Layout {
    pub(super) fn safetensors(config: &DecoderConfig) -> Self {
        let row = config.row();
        Self {
            names: row.names,
            roots: row.roots,
            ignored: row.ignored,
            foreign: row.foreign,
            beside: &[],
            interleaved: false,
            norm_offset: row.norm_offset,
            read: "F32, F16 and BF16",
        }
    }

    pub(super) fn gguf(form: &GgufForm) -> Self {
        Self {
            names: form.names,
            roots: &[MODEL],
            ignored: &[],
            foreign: &[],
            beside: ROPE_TENSORS,
            interleaved: form.interleaved,
            norm_offset: 0.0,
            read: gguf::READ,
        }
    }

    /// Compares what there is with what there must be, and takes it.
    pub(super) fn check(
        &self,
        path: &Path,
        files: &[Arc<File>],
        config: &DecoderConfig,
        on_read: &mut OnRead<'_>,
    ) -> Result<Weights, ModelError> {
        let mut found = self.find(path, files)?;
        let root = self.roots.iter().find(|root| found.contains_key(rooted(self.names.embedding, root).as_ref()));
        let root = root.or(self.roots.first()).unwrap_or(&MODEL);
        let mut specs = config.tensors_by(self.names);
        for spec in &mut specs {
            spec.name = rooted(&spec.name, root).into_owned();
        }
        let mut missing: Vec<_> =
            specs.iter().flat_map(TensorSpec::in_files).filter(|name| !found.contains_key(name)).collect();
        missing.dedup();
        if !missing.is_empty() {
            return Err(ModelError::MissingTensors { path: path.to_owned(), names: some_names(&missing) });
        }
        // Some exporters write the tied matrix twice.
        let embedding = rooted(self.names.embedding, root);
        let [a, b] = [&embedding, self.names.lm_head].map(|name| found.get(name).and_then(|file| file.get(name)));
        let same = matches!((a, b), (Some(a), Some(b)) if a.bytes == b.bytes && a.element == b.element);
        if config.tied && same {
            found.remove(self.names.lm_head);
        }
        let wanted: BTreeSet<_> = specs
            .iter()
            .flat_map(TensorSpec::in_files)
            .chain(self.beside.iter().map(|name| (*name).to_owned()))
            .collect();
        let extra: Vec<_> = found.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        if !extra.is_empty() {
            return Err(ModelError::ExtraTensors { path: path.to_owned(), names: some_names(&extra) });
        }

        let rows = rows_of(&specs);
        let reader = Reader { layout: self, path, found: &found, config };
        let mut tensors = HashMap::with_capacity(specs.len());
        let bytes_of =
            |name: &str| found.get(name).and_then(|file| file.get(name)).map_or(0, |stored| stored.bytes.len() as u64);
        let bytes_total = found.keys().map(|name| bytes_of(name)).sum();
        let (mut parameters, mut bytes_read) = (0, 0);
        for (spec, rows) in specs.iter().zip(rows) {
            // A part of a tensor has its share of the bytes.
            let share = |bytes: u64| bytes * rows.0.len() as u64 / rows.1.max(1) as u64;
            bytes_read += spec.in_files().iter().map(|name| share(bytes_of(name))).sum::<u64>();
            let values = reader.read(spec, rows)?;
            parameters += values.len() as u64;
            on_read(bytes_read, bytes_total);
            tensors.insert(spec.role, values);
        }
        Ok(Weights { tensors, layers: config.layers.len(), digest: digest(&found), parameters })
    }

    /// Every tensor that is not passed over.
    fn find(&self, path: &Path, files: &[Arc<File>]) -> Result<Found, ModelError> {
        let passed = |name: &str| {
            self.ignored.iter().any(|end| name.ends_with(end))
                || self.foreign.iter().any(|start| name.starts_with(start))
        };
        let mut found = Found::new();
        for file in files {
            for name in file.names().into_iter().filter(|name| !passed(name)) {
                if found.insert(name.clone(), file.clone()).is_some() {
                    let problem = format!("tensor {name} is in two files");
                    return Err(ModelError::Weights { path: path.to_owned(), problem });
                }
            }
        }
        Ok(found)
    }
}

/// A name under another root.
fn rooted<'a>(name: &'a str, root: &str) -> Cow<'a, str> {
    match name.strip_prefix(MODEL) {
        Some(rest) if root != MODEL => Cow::Owned(format!("{root}{rest}")),
        _ => Cow::Borrowed(name),
    }
}

impl TensorSpec {
    /// The names of the tensors in the files.
    fn in_files(&self) -> Vec<String> {
        match self.storage {
            Storage::Rows | Storage::Transposed { .. } => vec![self.name.clone()],
            Storage::Packed { .. } => [BLOCKS, SCALES].map(|end| format!("{}{end}", self.name)).into(),
        }
    }

    /// As one of `of` matrices of experts whose outputs alternate.
    fn alternating(&self, from: usize, of: usize) -> Alternating {
        let depth = self.shape.get(2).copied().unwrap_or(1);
        Alternating { experts: self.shape[0], outputs: self.shape[1], depth, from, of }
    }
}

/// Ends of the names of the two tensors of a packed one.
const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";

/// Takes tensors that are there.
struct Reader<'a> {
    layout: &'a Layout,
    path: &'a Path,
    found: &'a Found,
    config: &'a DecoderConfig,
}

impl Reader<'_> {
    /// One tensor of the config. `rows` are its rows of the tensor with its name, and how many that one has.
    fn read(&self, spec: &TensorSpec, (rows, rows_in_all): (Range<usize>, usize)) -> Result<Values, ModelError> {
        match spec.storage {
            Storage::Rows => self.rows(spec, rows, rows_in_all),
            Storage::Transposed { from, of } => {
                let part = spec.alternating(from, of);
                let depth = spec.shape.get(2).copied();
                let shape: Vec<_> = [part.experts].into_iter().chain(depth).chain([of * part.outputs]).collect();
                let values = part.transposed(&self.values(&spec.name, &shape, 0..part.experts)?);
                self.finite(&spec.name, &values, |index| part.place(index))?;
                Ok(Values::Owned { values, depth: part.depth })
            }
            Storage::Packed { from, of } => {
                let part = spec.alternating(from, of);
                let per_row = part.depth / (2 * BLOCK_BYTES);
                let names = [BLOCKS, SCALES].map(|end| format!("{}{end}", spec.name));
                let blocks = self.bytes(&names[0], &[part.experts, of * part.outputs, per_row, BLOCK_BYTES])?;
                let scales = self.bytes(&names[1], &[part.experts, of * part.outputs, per_row])?;
                let values = part.packed(blocks, scales);
                // Only a scale can be what is not a number.
                let scale_of = |index: usize| {
                    let (row, element) = (index / part.depth, index % part.depth);
                    (row * of + from) * per_row + element / (2 * BLOCK_BYTES)
                };
                self.finite(&names[1], &values, scale_of)?;
                Ok(Values::Owned { values, depth: part.depth })
            }
        }
    }

    /// Rows of a tensor: a matrix stays in the file, anything else is converted.
    fn rows(&self, spec: &TensorSpec, rows: Range<usize>, rows_in_all: usize) -> Result<Values, ModelError> {
        let (name, mut shape) = (&spec.name, spec.shape.clone());
        shape[0] = rows_in_all;
        let head = (self.layout.interleaved && is_turned(spec.role)).then_some(self.config.head_dim);
        if let [_, .., _] = *shape {
            let (file, stored) = self.stored(name, &shape)?;
            let (place, depth) = (stored.rows(rows.start, rows.len()), shape[shape.len() - 1]);
            let first = rows.start * shape[1..].iter().product::<usize>();
            let bad = elements::first_not_finite(&stored.element, &stored.bytes[place.clone()], depth);
            return match bad.map_err(|unread| self.unread(name, &stored, unread))? {
                Some((index, value)) => Err(self.not_finite(name, first + index, value)),
                None => Ok(Values::InFile(InFile::new(file, name, &stored, place, head))),
            };
        }
        let first = rows.start;
        let mut values = self.values(name, &shape, rows)?;
        self.finite(name, &values, |index| first + index)?;
        if let Some(head) = head {
            values = (0..values.len()).map(|row| values[interleaved_row(row, head)]).collect();
        }
        if spec.role.is_norm() {
            values.iter_mut().for_each(|weight| *weight += self.layout.norm_offset);
        }
        Ok(Values::Owned { values, depth: 1 })
    }

    /// Rows of a tensor of this shape, in f32.
    fn values(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let (_, stored) = self.stored(name, shape)?;
        let mut values = vec![0.0; rows.len() * shape[1..].iter().product::<usize>()];
        let place = stored.rows(rows.start, rows.len());
        let read = elements::read(&stored.element, &stored.bytes[place], &mut values);
        read.map_err(|unread| self.unread(name, &stored, unread))?;
        Ok(values)
    }

    /// The bytes of a tensor of this shape.
    fn bytes(&self, name: &str, shape: &[usize]) -> Result<&[u8], ModelError> {
        let (_, stored) = self.stored(name, shape)?;
        if stored.element != Element::U8 {
            return Err(self.wrong_dtype(name, &stored, "U8 elements of MXFP4"));
        }
        Ok(stored.bytes)
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<(&Arc<File>, Stored<'_>), ModelError> {
        let path = || self.path.to_owned();
        let Some((file, stored)) = self.found.get(name).and_then(|file| Some((file, file.get(name)?))) else {
            return Err(ModelError::MissingTensors { path: path(), names: name.to_owned() });
        };
        if stored.shape != shape {
            let (expected, found) = (shape.to_vec(), stored.shape);
            return Err(ModelError::WrongShape { path: path(), name: name.to_owned(), expected, found });
        }
        Ok((file, stored))
    }

    fn unread(&self, name: &str, stored: &Stored<'_>, why: Unread) -> ModelError {
        match why {
            Unread::Dtype => self.wrong_dtype(name, stored, self.layout.read),
            Unread::Blocks(problem) => {
                ModelError::Weights { path: self.path.to_owned(), problem: format!("tensor {name}: {problem}") }
            }
        }
    }

    fn wrong_dtype(&self, name: &str, stored: &Stored<'_>, read: &'static str) -> ModelError {
        let found = stored.element.name().to_owned();
        ModelError::WrongDtype { path: self.path.to_owned(), name: name.to_owned(), found, read }
    }

    /// Refuses what is not finite; `place` says where in the file an element lies.
    fn finite(&self, name: &str, values: &[f32], place: impl Fn(usize) -> usize) -> Result<(), ModelError> {
        match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((index, &value)) => Err(self.not_finite(name, place(index), value)),
            None => Ok(()),
        }
    }

    fn not_finite(&self, name: &str, index: usize, value: f32) -> ModelError {
        ModelError::NonFinite { path: self.path.to_owned(), name: name.to_owned(), index, value }
    }
}

/// For each spec, its rows of the tensor that holds it, and how many that tensor has.
fn rows_of(specs: &[TensorSpec]) -> Vec<(Range<usize>, usize)> {
    let mut in_all: HashMap<&str, usize> = HashMap::new();
    let mut places = Vec::with_capacity(specs.len());
    for spec in specs {
        let end = in_all.entry(&spec.name).or_default();
        places.push(*end..*end + spec.shape[0]);
        *end += spec.shape[0];
    }
    places.into_iter().zip(specs).map(|(rows, spec)| (rows, in_all[spec.name.as_str()])).collect()
}

/// Whether rotary embedding turns what this tensor makes.
fn is_turned(role: TensorRole) -> bool {
    use LayerPart::{K, KBias, Q, QBias};
    matches!(role, TensorRole::Layer(_, Q | K | QBias | KBias))
}

fn digest(found: &Found) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"holdfast weights 1\n");
    for (name, file) in found {
        if let Some(stored) = file.get(name) {
            hasher.update(format!("{name} {} {:?}\n", stored.element.name(), stored.shape).as_bytes());
            hasher.update_rayon(stored.bytes);
        }
    }
    Digest(*hasher.finalize().as_bytes())
}
