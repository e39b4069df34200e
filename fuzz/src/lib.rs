//! What every target shares: a bound on memory, and a directory that a model is loaded from.
//!
//! In: bytes of the fuzzer's. Out: a load or a refusal; a panic when more was allocated than the documentation allows. Deliberately
//! not here: which bytes, and what they stand for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use holdfast_model::TextFiles;
use holdfast_model::random::MicroShape;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(change: isize) {
    // A thread that ends frees what it held after its cells are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting touches thread-local cells that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s rules.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps `dealloc`'s rules.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that any load may hold: `docs/models.md`, "Hostile files".
const BASE_BYTES: usize = 64 << 20;
/// Bytes that the rendering of a template may hold besides.
pub const TEMPLATE_BYTES: usize = 256 << 20;
/// Bytes that a load may hold for each byte of the files.
const BYTES_PER_BYTE: usize = 128;

/// Does the work, and panics when it held more than is allowed for `input` bytes.
pub fn bounded<T>(input: usize, work: impl FnOnce() -> T) -> T {
    bounded_beyond(0, input, work)
}

/// The same, with `more` bytes allowed.
pub fn bounded_beyond<T>(more: usize, input: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    let held = usize::try_from(PEAK.get() - before).unwrap_or(0);
    let allowed = more + BASE_BYTES + BYTES_PER_BYTE * input;
    assert!(held <= allowed, "{held} bytes held for an input of {input}; {allowed} are allowed");
    result
}

/// The smallest model that is whole.
pub fn micro() -> MicroShape {
    MicroShape { hidden: 8, layers: 1, heads: 2, kv_heads: 1, head_dim: 4, ffn: 8, ..MicroShape::default() }
}

/// The text files of it.
pub fn micro_texts() -> TextFiles {
    micro().text_files()
}

/// A directory in memory, where the system has one, for the files of one process.
pub struct Place(tempfile::TempDir);

impl Place {
    /// An empty directory.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self(place.expect("a directory for the files of a target"))
    }

    /// One that holds the micro model.
    pub fn with_micro() -> Self {
        let place = Self::new();
        micro().write(place.path()).expect("the micro model in a directory");
        place
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and tells where.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).expect("a file of a target");
        path
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}
