//! Packed weights kept on disk, for the next start.
//!
//! In: a directory with a bound, a model, its packed matrices. Out: the same matrices read back, or nothing where there is no file or one
//! that cannot be trusted. Deliberately not here: packing, and which matrices there are.
//!
//! A file begins with [`MAGIC`] and a key, the digest of everything that decides what packing gives: weights, config, revision. A record for
//! each matrix follows, in the order of packing: shape, digest, planes. Digests are BLAKE3 under that key, over pieces that
//! threads read and check side by side, so that a file that was cut, changed or put in another's place gives nothing and is packed anew.
//!
//! Planes are read into memory of their own, not mapped: every byte has to be read to be checked, and a file's pages are small, which costs
//! each step (see `memory`). Files are written under a name of their own and renamed when they are whole. One process may remove
//! what another reads: it reads on, and later packs.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use holdfast_model::{DecoderConfig, Weights};

use crate::memory::Memory;
use crate::nested::{Nested, Shape};
use crate::pool::{Pieces, Pool};
use crate::{NeuronError, PackingSettings};

const MAGIC: &[u8; 16] = b"holdfast packing";
/// What packing gives and how files hold it. Raise it with any change of either.
const REVISION: u32 = 2;
/// Ends of names: of whole files, and of those that are being written.
const WHOLE: &str = "packing";
const PARTIAL: &str = "partial";
/// A partial file that nobody has written to for so long was left by a process that ended.
const PARTIAL_MAX: Duration = Duration::from_secs(3_600);
/// Bytes that a thread reads and checks at once.
const PIECE: usize = 2 << 20;
const DIGEST: usize = 32;
/// Bytes of a shape in a record.
const SHAPE: usize = 24;

/// The packing of one model, on disk or not.
#[derive(Debug)]
pub(crate) struct Packing<'a> {
    settings: &'a PackingSettings,
    key: [u8; DIGEST],
}

/// A packing that is being read.
#[derive(Debug)]
pub(crate) struct Kept {
    file: File,
    path: PathBuf,
    key: [u8; DIGEST],
    /// Where the next record begins.
    at: u64,
    len: u64,
    /// Records so far.
    records: u64,
    /// Something was not as it should be: nothing more is read.
    broken: bool,
}

impl<'a> Packing<'a> {
    /// Of this model.
    pub(crate) fn of(settings: &'a PackingSettings, config: &DecoderConfig, weights: &Weights) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAGIC).update(&REVISION.to_le_bytes());
        // The order of the bytes of a number.
        hasher.update(&1u16.to_ne_bytes());
        hasher.update(&weights.digest().0).update(format!("{config:?}").as_bytes());
        Self { settings, key: *hasher.finalize().as_bytes() }
    }

    fn path(&self, end: &str) -> PathBuf {
        let name: String = self.key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        self.settings.directory.join(format!("{name}.{end}"))
    }

    /// Opens it, if it is there.
    pub(crate) fn open(&self) -> Option<Kept> {
        let path = self.path(WHOLE);
        let open = || -> io::Result<Option<Kept>> {
            let mut file = File::open(&path)?;
            let mut head = [0; MAGIC.len() + DIGEST];
            file.read_exact(&mut head)?;
            let (magic, key) = head.split_at(MAGIC.len());
            let len = file.metadata()?.len();
            let kept =
                Kept { file, path: path.clone(), key: self.key, at: head.len() as u64, len, records: 0, broken: false };
            Ok((magic == MAGIC && key == self.key).then_some(kept))
        };
        match open() {
            Ok(Some(kept)) => Some(kept),
            Ok(None) => {
                tracing::warn!(path = %path.display(), "not the packed weights of this model; packing them again");
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "packed weights cannot be read; packing them again");
                None
            }
        }
    }

    /// Packing is done: `kept` is what was read from, if anything. What is not on disk and took long is put there.
    pub(crate) fn done<'n>(
        &self,
        kept: Option<Kept>,
        took: Duration,
        matrices: impl Iterator<Item = &'n Nested> + Clone,
        pool: &Pool,
    ) {
        let path = self.path(WHOLE);
        if kept.is_some_and(|kept| kept.is_whole()) {
            touch(&path);
            return;
        }
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "packed weights that are of no use cannot be removed");
        }
        if took < self.settings.after {
            return;
        }
        match self.write(matrices, pool) {
            Ok(bytes) => tracing::info!(path = %path.display(), bytes, "packed weights are kept for the next start"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "packed weights could not be kept"),
        }
    }

    /// Writes all of it, and makes room for it. Returns its size, 0 where it is more than there may be.
    fn write<'n>(&self, matrices: impl Iterator<Item = &'n Nested> + Clone, pool: &Pool) -> io::Result<u64> {
        let records = matrices.clone().map(|matrix| (SHAPE + DIGEST + total(&matrix.bytes())) as u64);
        let bytes = (MAGIC.len() + DIGEST) as u64 + records.sum::<u64>();
        if bytes > self.settings.bytes_max {
            return Ok(0);
        }
        fs::create_dir_all(&self.settings.directory)?;
        self.make_room(bytes)?;
        let (path, partial) = (self.path(WHOLE), self.path(&format!("{}.{PARTIAL}", std::process::id())));
        let written = (|| {
            let mut file = BufWriter::new(File::create(&partial)?);
            file.write_all(MAGIC)?;
            file.write_all(&self.key)?;
            for (number, matrix) in matrices.enumerate() {
                let shape = shape_bytes(matrix.shape());
                let planes = matrix.bytes();
                let pieces = cut(planes.map(<[u8]>::len));
                let mut digests = vec![[0; DIGEST]; pieces.len()];
                let into = Pieces::new(&mut digests);
                pool.run(pieces.len(), total(&planes), |item| {
                    let (plane, at, len) = pieces[item];
                    // SAFETY: an item has a digest of its own.
                    let into = unsafe { into.piece(item, 1) };
                    into[0] = digest(&self.key, &planes[plane][at..at + len]);
                });
                file.write_all(&shape)?;
                file.write_all(&record_digest(&self.key, number as u64, &shape, &digests))?;
                planes.iter().try_for_each(|plane| file.write_all(plane))?;
            }
            file.into_inner().map_err(io::IntoInnerError::into_error)?;
            fs::rename(&partial, &path)
        })();
        if written.is_err() {
            // It may not even be there.
            let _ = fs::remove_file(&partial);
        }
        written.map(|()| bytes)
    }

    /// Removes what was not used for longest until so many bytes more are within the bound, and what others left half-written.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.settings.directory)? {
            let entry = entry?;
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|end| end.to_str()) {
                Some(PARTIAL) if age(used) > PARTIAL_MAX => fs::remove_file(&path)?,
                Some(WHOLE) => files.push((used, metadata.len(), path)),
                _ => {}
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total + bytes <= self.settings.bytes_max {
                break;
            }
            fs::remove_file(&path)?;
            total -= len;
            tracing::info!(path = %path.display(), "removed packed weights to make room");
        }
        Ok(())
    }
}

impl Kept {
    /// The next matrix, which must have this shape; `None` when it cannot be had, and from then on.
    pub(crate) fn next(
        &mut self,
        rows: usize,
        depth: usize,
        memory: &mut Memory,
        pool: &Pool,
    ) -> Result<Option<Nested>, NeuronError> {
        if self.broken {
            return Ok(None);
        }
        let read = self.read(rows, depth, memory, pool)?;
        self.broken = read.is_none();
        if self.broken {
            let (path, record) = (self.path.display(), self.records);
            tracing::warn!(%path, record, "packed weights are damaged; packing them again from here on");
        }
        self.records += 1;
        Ok(read)
    }

    fn read(
        &mut self,
        rows: usize,
        depth: usize,
        memory: &mut Memory,
        pool: &Pool,
    ) -> Result<Option<Nested>, NeuronError> {
        let mut head = [0; SHAPE + DIGEST];
        if self.file.read_exact_at(&mut head, self.at).is_err() {
            return Ok(None);
        }
        let (shape, want) = head.split_at(SHAPE);
        let Some(found) = shape_of(shape).filter(|found| (found.rows, found.depth) == (rows, depth)) else {
            return Ok(None);
        };
        let mut nested = Nested::blank(found, memory)?;
        let planes = nested.bytes_mut();
        let lens = planes.each_ref().map(|plane| plane.len());
        let first = self.at + head.len() as u64;
        let end = first + lens.iter().sum::<usize>() as u64;
        if end > self.len {
            return Ok(None);
        }
        let starts = [first, first + lens[0] as u64, first + (lens[0] + lens[1]) as u64];
        let pieces = cut(lens);
        let mut digests = vec![[0; DIGEST]; pieces.len()];
        let (planes, into) = (planes.map(Pieces::new), Pieces::new(&mut digests));
        let failed = AtomicBool::new(false);
        pool.run(pieces.len(), lens.iter().sum(), |item| {
            let (plane, at, len) = pieces[item];
            // SAFETY: an item is a piece of a plane, and pieces do not overlap; it has a digest of its own.
            let (bytes, into) = unsafe { (planes[plane].piece(at, len), into.piece(item, 1)) };
            if self.file.read_exact_at(bytes, starts[plane] + at as u64).is_err() {
                failed.store(true, Relaxed);
            }
            into[0] = digest(&self.key, bytes);
        });
        self.at = end;
        let is_same = !failed.into_inner() && record_digest(&self.key, self.records, shape, &digests) == want;
        Ok(is_same.then_some(nested))
    }

    /// Whether everything was read and nothing was wrong.
    fn is_whole(&self) -> bool {
        !self.broken && self.at == self.len
    }
}

/// Planes in pieces: of which, from where, how long.
fn cut(lens: [usize; 3]) -> Vec<(usize, usize, usize)> {
    let of = |(plane, len): (usize, usize)| (0..len).step_by(PIECE).map(move |at| (plane, at, PIECE.min(len - at)));
    lens.into_iter().enumerate().flat_map(of).collect()
}

fn digest(key: &[u8; DIGEST], bytes: &[u8]) -> [u8; DIGEST] {
    *blake3::keyed_hash(key, bytes).as_bytes()
}

/// Of the record with this number.
fn record_digest(key: &[u8; DIGEST], number: u64, shape: &[u8], pieces: &[[u8; DIGEST]]) -> [u8; DIGEST] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_le_bytes()).update(shape);
    for piece in pieces {
        hasher.update(piece);
    }
    *hasher.finalize().as_bytes()
}

fn shape_bytes(shape: Shape) -> [u8; SHAPE] {
    let mut bytes = [0; SHAPE];
    bytes[..8].copy_from_slice(&(shape.rows as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&(shape.depth as u64).to_le_bytes());
    bytes[16..20].copy_from_slice(&u32::from(shape.halves).to_le_bytes());
    bytes[20..].copy_from_slice(&shape.power.to_le_bytes());
    bytes
}

fn shape_of(bytes: &[u8]) -> Option<Shape> {
    let (fields, _) = bytes.as_chunks::<4>();
    let [rows, rows_above, depth, depth_above, halves, power] = *fields else { return None };
    if u32::from_le_bytes(rows_above) != 0 || u32::from_le_bytes(depth_above) != 0 {
        return None;
    }
    let halves = match u32::from_le_bytes(halves) {
        0 => false,
        1 => true,
        _ => return None,
    };
    let [rows, depth] = [rows, depth].map(|field| u32::from_le_bytes(field) as usize);
    Some(Shape { rows, depth, halves, power: f32::from_le_bytes(power) })
}

#[expect(
    clippy::disallowed_methods,
    reason = "files are told apart by when they were used; nothing is computed from it"
)]
fn touch(path: &Path) {
    let touched = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(path = %path.display(), %error, "packed weights do not tell when they were used");
    }
}

#[expect(clippy::disallowed_methods, reason = "what another process left is told by its age")]
fn age(since: SystemTime) -> Duration {
    SystemTime::now().duration_since(since).unwrap_or_default()
}

/// Bytes of all planes.
fn total(planes: &[&[u8]; 3]) -> usize {
    planes.iter().map(|plane| plane.len()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use holdfast_model::Model;
    use holdfast_model::random::MicroShape;

    use super::*;
    use crate::decoder::Decoder;
    use crate::{NeuronSettings, WeightFormat};

    struct Place {
        directory: tempfile::TempDir,
        pool: Pool,
    }

    impl Place {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), pool: Pool::new(2, 0).unwrap() }
        }

        fn settings(&self, bytes_max: u64, after_s: u64) -> NeuronSettings {
            let (directory, after) = (self.directory.path().join("packings"), Duration::from_secs(after_s));
            let packings = Some(PackingSettings { directory, bytes_max, after });
            NeuronSettings { weights: WeightFormat::Nested, packings, ..NeuronSettings::default() }
        }

        fn decoder(&self, model: &Model, settings: &NeuronSettings) -> Vec<[Vec<u8>; 3]> {
            let decoder = Decoder::new(model.config(), model.weights(), settings, &self.pool).unwrap();
            decoder.nested().map(|nested| nested.bytes().map(<[u8]>::to_vec)).collect()
        }

        /// Files, by name.
        fn files(&self) -> Vec<PathBuf> {
            let Ok(files) = fs::read_dir(self.directory.path().join("packings")) else { return Vec::new() };
            let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
        }

        /// What can be read of a model's packing: how many matrices, and whether that is all.
        fn readable(&self, model: &Model, settings: &NeuronSettings) -> Option<(usize, bool)> {
            let packing = Packing::of(settings.packings.as_ref().unwrap(), model.config(), model.weights());
            let mut kept = packing.open()?;
            let decoder = Decoder::new(model.config(), model.weights(), &without(settings), &self.pool).unwrap();
            let mut memory = Memory::default();
            let same = |nested: &&Nested| {
                let Shape { rows, depth, .. } = nested.shape();
                let read = kept.next(rows, depth, &mut memory, &self.pool).unwrap();
                read.is_some_and(|read| (read.shape(), read.bytes()) == (nested.shape(), nested.bytes()))
            };
            let count = decoder.nested().take_while(same).count();
            Some((count, kept.is_whole()))
        }
    }

    fn without(settings: &NeuronSettings) -> NeuronSettings {
        NeuronSettings { packings: None, ..settings.clone() }
    }

    fn model(seed: u64) -> Model {
        MicroShape { seed, layers: 2, ..MicroShape::default() }.build().unwrap()
    }

    /// Matrices of such a model: five of each layer, and the embedding.
    const MATRICES: usize = 2 * 5 + 1;

    #[test]
    fn what_was_packed_is_read_back_bit_for_bit() {
        let place = Place::new();
        let settings = place.settings(1 << 30, 0);
        let model = model(1);
        let fresh = place.decoder(&model, &without(&settings));
        assert!(place.files().is_empty());
        assert_eq!(place.decoder(&model, &settings), fresh);
        assert_eq!(place.files().len(), 1);
        assert_eq!(place.readable(&model, &settings), Some((MATRICES, true)));
        assert_eq!(place.decoder(&model, &settings), fresh);
    }

    #[test]
    fn a_file_that_was_harmed_is_never_used_and_is_written_again() {
        let place = Place::new();
        let settings = place.settings(1 << 30, 0);
        let model = model(1);
        let fresh = place.decoder(&model, &settings);
        let [path] = &place.files()[..] else { panic!("one file") };
        let whole = fs::read(path).unwrap();
        let mut rng = fastrand::Rng::with_seed(8);
        let cut = [0, 10, 48, 60, whole.len() / 2, whole.len() - 1].map(|len| whole[..len].to_vec());
        let longer = [whole.clone(), vec![0]].concat();
        let changed = (0..60).map(|number| {
            let mut bytes = whole.clone();
            let at = if number < 30 { rng.usize(0..140) } else { rng.usize(0..whole.len()) };
            bytes[at] ^= 1 << rng.u8(0..8);
            bytes
        });
        for bytes in cut.into_iter().chain([longer]).chain(changed) {
            fs::write(path, &bytes).unwrap();
            assert!(place.readable(&model, &settings).is_none_or(|(_, is_whole)| !is_whole));
            assert_eq!(place.decoder(&model, &settings), fresh);
            assert_eq!(fs::read(path).unwrap(), whole, "mended");
        }
    }

    #[test]
    fn another_models_file_is_found_out() {
        let place = Place::new();
        let settings = place.settings(1 << 30, 0);
        let (a, b) = (model(1), model(2));
        let fresh = place.decoder(&b, &settings);
        let of_b = place.files()[0].clone();
        place.decoder(&a, &settings);
        let of_a = place.files().into_iter().find(|path| *path != of_b).unwrap();
        // With its own head, and with the right one before its records.
        for keep in [0, MAGIC.len() + DIGEST] {
            let bytes = [&fs::read(&of_b).unwrap()[..keep], &fs::read(&of_a).unwrap()[keep..]].concat();
            fs::write(&of_b, bytes).unwrap();
            assert!(place.readable(&b, &settings).is_none_or(|read| read == (0, false)));
            assert_eq!(place.decoder(&b, &settings), fresh);
            assert_eq!(place.readable(&b, &settings), Some((MATRICES, true)));
        }
    }

    #[test]
    fn only_what_takes_long_is_kept_within_a_bound() {
        let place = Place::new();
        let models = [model(1), model(2), model(3)];
        place.decoder(&models[0], &place.settings(1 << 30, 3_600));
        assert!(place.files().is_empty(), "quick to pack");
        place.decoder(&models[0], &place.settings(1 << 10, 0));
        assert!(place.files().is_empty(), "larger than everything may be");

        place.decoder(&models[0], &place.settings(1 << 30, 0));
        let size = fs::metadata(&place.files()[0]).unwrap().len();
        let settings = place.settings(2 * size, 0);
        let set_used = |model: &Model, at_s| {
            let path = Packing::of(settings.packings.as_ref().unwrap(), model.config(), model.weights()).path(WHOLE);
            File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at_s)).unwrap();
        };
        place.decoder(&models[1], &settings);
        set_used(&models[0], 10);
        set_used(&models[1], 20);
        // The first is used once more, so that the second makes room.
        place.decoder(&models[0], &settings);
        let left = place.directory.path().join("packings").join(format!("x.1.{PARTIAL}"));
        fs::write(&left, "what a process left").unwrap();
        File::open(&left).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        place.decoder(&models[2], &settings);
        let there = models.each_ref().map(|model| place.readable(model, &settings).is_some());
        assert_eq!(there, [true, false, true]);
        assert_eq!(place.files().len(), 2, "and what was left half-written is gone");
    }
}
