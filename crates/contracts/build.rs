//! Compiles the packages of `proto/` with protox (no installed protoc) and generates messages, clients and servers into
//! `OUT_DIR`, beside the descriptor sets that reflection serves, one for each package. A set keeps its comments, so that a client that
//! knows only reflection can read the documentation.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

/// Folders of packages, and the names of their descriptor sets.
const PACKAGES: [(&str, &str); 2] =
    [("holdfast/v1", "descriptor.bin"), ("holdfast/device/v1", "device_descriptor.bin")];

fn main() -> Result<(), Box<dyn Error>> {
    // Asked when it runs, not when it is compiled: checkouts that share a target directory must not read each other.
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (package, set) in PACKAGES {
        compile(&root, package, &out.join(set))?;
    }
    Ok(())
}

fn compile(root: &Path, package: &str, set: &Path) -> Result<(), Box<dyn Error>> {
    let package = root.join(package);
    println!("cargo:rerun-if-changed={}", package.display());

    let mut files = Vec::new();
    for entry in fs::read_dir(&package)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            println!("cargo:rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
    // The order of a directory is not defined, that of the descriptor set should be.
    files.sort();

    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_source_info(true).include_imports(true).open_files(&files)?;
    let descriptors = compiler.file_descriptor_set();

    fs::write(set, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
