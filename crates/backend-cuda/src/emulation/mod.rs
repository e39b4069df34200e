//! A card that runs the kernels on the CPU, for tests: their sources, compiled by the C++ compiler of the machine, with every thread of a block as
//! a fiber (`threads.hpp`).
//!
//! In: what [`Card`] asks for. Out: the same, slowly. `None` where there is no C++ compiler, which tests say visibly. Deliberately not here: how a tensor core
//! rounds inside of one instruction, races that only several blocks at once have, and time.

#![allow(clippy::expect_used, clippy::print_stderr)]

mod conformance;
mod kernels;

use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

use crate::card::{Address, Card, CardError, CopyId, Launch};
use crate::kernels::{FILES, Kernel};

const THREADS: &str = include_str!("threads.hpp");
/// Signs of errors in kernels are traps: accesses off their alignment, shifts and indices out of range.
const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fsanitize=alignment,bounds,shift",
    "-fsanitize-undefined-trap-on-error",
    "-fPIC",
    "-shared",
];
/// What a card of the tests says that it holds.
const MEMORY: u64 = 1 << 30;

/// A card on the CPU.
pub(crate) struct Emulated {
    library: &'static Library,
    memory: Vec<(*mut c_void, u64)>,
    copies: Vec<(CopyId, Vec<u8>)>,
    next_copy: u64,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for Emulated {}

/// The kernels as a library of this machine, made once; `None` without a C++ compiler.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<(tempfile::TempDir, Library)>> = OnceLock::new();
    LIBRARY.get_or_init(build).as_ref().map(|(_, library)| library)
}

fn build() -> Option<(tempfile::TempDir, Library)> {
    let named = std::env::var("CXX").ok();
    let is_there =
        |compiler: &&str| Command::new(compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    let Some(compiler) = named.as_deref().into_iter().chain(["g++", "clang++", "c++"]).find(is_there) else {
        eprintln!("skipped: no C++ compiler, so kernels are not run on the CPU");
        return None;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (source, target) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
    let text = [&[THREADS], &FILES[..]].concat().join("\n");
    std::fs::write(&source, text).expect("a file");
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(fused_flags()).arg("-w").arg("-o").arg(&target).arg(&source);
    let out = command.output().expect("a compiler that answered before");
    assert!(out.status.success(), "{compiler} does not compile the kernels:\n{}", String::from_utf8_lossy(&out.stderr));
    // SAFETY: the library was made above and has no initialisers.
    let library = unsafe { Library::new(Path::new(&target)) }.expect("a library");
    Some((folder, library))
}

/// One instruction for `fmaf`, where the machine has it: the function of the C library has the same bits and is slow.
fn fused_flags() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        return &["-mfma"];
    }
    &[]
}

impl Emulated {
    pub(crate) fn new() -> Option<Self> {
        Some(Self { library: library()?, memory: Vec::new(), copies: Vec::new(), next_copy: 1 })
    }

    /// The size of the structure that a kernel takes, as the sources have it.
    fn size_of_params(&self, kernel: Kernel) -> usize {
        let name = format!("size_of_{}", kernel.name());
        // SAFETY: every kernel has such a function.
        let size: Symbol<'_, unsafe extern "C" fn() -> u32> =
            unsafe { self.library.get(name.as_bytes()) }.expect("a kernel");
        // SAFETY: as above.
        unsafe { size() as usize }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        // SAFETY: as in `allocate`.
        let free: Symbol<'_, unsafe extern "C" fn(*mut c_void, u64)> =
            unsafe { self.library.get(b"emulated_memory_free") }.expect("a function");
        for (start, bytes) in self.memory.drain(..) {
            // SAFETY: taken with the same size.
            unsafe { free(start, bytes) };
        }
    }
}

impl Card for Emulated {
    fn memory(&self) -> Result<(u64, u64), CardError> {
        let taken: u64 = self.memory.iter().map(|(_, bytes)| bytes).sum();
        Ok((MEMORY.saturating_sub(taken), MEMORY))
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, CardError> {
        if bytes > self.memory()?.0 {
            return Err(CardError::OutOfMemory(format!("{bytes} bytes")));
        }
        // SAFETY: the function is in the library.
        let take: Symbol<'_, unsafe extern "C" fn(u64) -> *mut c_void> =
            unsafe { self.library.get(b"emulated_memory") }.expect("a function");
        let bytes = bytes.max(16);
        // SAFETY: gives memory or null.
        let start = unsafe { take(bytes) };
        assert!(!start.is_null(), "{bytes} bytes");
        self.memory.push((start, bytes));
        Ok(Address(start as u64))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), CardError> {
        // SAFETY: memory of this card that is large enough, which an unreadable page behind it guards.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), CardError> {
        if !bytes.is_empty() {
            // SAFETY: as for an upload.
            unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        }
        Ok(())
    }

    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), CardError> {
        // SAFETY: as for an upload; the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes as usize) };
        Ok(())
    }

    unsafe fn launch_raw(&mut self, kernel: Kernel, launch: Launch, params: *const c_void) -> Result<(), CardError> {
        type Entry = unsafe extern "C" fn(*const c_void, *const u32, u32);
        // SAFETY: every kernel has an entry of this type.
        let entry: Symbol<'_, Entry> = unsafe { self.library.get(kernel.name().as_bytes()) }.expect("a kernel");
        // SAFETY: by the caller's promise.
        unsafe { entry(params, launch.grid.as_ptr(), launch.shared_bytes) };
        Ok(())
    }

    fn begin_export(&mut self, from: Address, bytes: u64) -> Result<CopyId, CardError> {
        let mut out = vec![0; bytes as usize];
        self.download(from, &mut out)?;
        self.next_copy += 1;
        self.copies.push((CopyId(self.next_copy), out));
        Ok(CopyId(self.next_copy))
    }

    fn begin_import(&mut self, to: Address, bytes: &[u8]) -> Result<CopyId, CardError> {
        self.upload(to, bytes)?;
        self.next_copy += 1;
        self.copies.push((CopyId(self.next_copy), Vec::new()));
        Ok(CopyId(self.next_copy))
    }

    fn poll_copy(&mut self, copy: CopyId) -> Result<Option<Vec<u8>>, CardError> {
        let at = self.copies.iter().position(|(id, _)| *id == copy);
        at.map(|at| Some(self.copies.swap_remove(at).1)).ok_or_else(|| CardError::Fault("no such copy".to_owned()))
    }

    fn order_after(&mut self, _: CopyId) -> Result<(), CardError> {
        Ok(())
    }
}
