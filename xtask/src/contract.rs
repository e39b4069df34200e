//! `cargo xtask contract`: the public contract may grow and must not break. Compiles `proto/` with protox and compares the
//! result with the committed baseline, `proto/baseline.binpb`; a new baseline is accepted here and nowhere else.
//!
//! In: the proto files and the baseline (an encoded `FileDescriptorSet` of our own files, comments left out). Out: a list of
//! breaking changes, or the new baseline. What counts as breaking is said in [`compare`]; style is the contracts crate's
//! test.

mod compare;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::process;
use compare::Difference;

/// What the contract was when it was last accepted.
const BASELINE: &str = "proto/baseline.binpb";

/// Where a break that was accepted anyway is written down, with its reason.
const BREAKS: &str = "proto/BREAKING.md";

const BREAKS_HEADING: &str =
    "# Accepted breaks of the contract\n\nWritten by `cargo xtask contract --accept --breaking`.\n";

/// Compare proto/ with the baseline of the public contract, or accept it as the new baseline
///
/// Fails if a difference would break a client: something removed, renamed, renumbered, retyped or moved.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write what proto/ says now as the new baseline; refused if it would break a client
    #[arg(long)]
    accept: bool,

    /// Accept breaking changes too; the reason is kept in proto/BREAKING.md
    #[arg(long, value_name = "WHY", requires = "accept")]
    breaking: Option<String>,
}

/// Compares, and accepts where asked to.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.accept { accept(&process::root(), arguments.breaking.as_deref()) } else { check() }
}

/// Fails if `proto/` would break a client of the baseline, or if there is no baseline.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = process::root();
    let difference = compare::compare(&baseline(&root)?, &compile(&root)?);
    if !difference.additions.is_empty() {
        println!(
            "new since the baseline (`cargo xtask contract --accept` takes it in):{}",
            list(&difference.additions)
        );
    }
    if !difference.breaks.is_empty() {
        bail!("{}", refusal(&difference));
    }
    Ok(())
}

fn accept(root: &Path, why: Option<&str>) -> anyhow::Result<()> {
    let current = compile(root)?;
    let difference = match root.join(BASELINE).exists() {
        true => compare::compare(&baseline(root)?, &current),
        false => Difference::default(),
    };
    if !difference.breaks.is_empty() {
        let why = why.map(str::trim).filter(|why| !why.is_empty()).with_context(|| refusal(&difference))?;
        let path = root.join(BREAKS);
        let heading = if path.exists() { "" } else { BREAKS_HEADING };
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).context(BREAKS)?;
        writeln!(file, "{heading}\n## {why}\n{}", list(&difference.breaks)).context(BREAKS)?;
    }
    fs::write(root.join(BASELINE), current.encode_to_vec()).context(BASELINE)?;
    println!(
        "{BASELINE} written: {} breaking and {} other changes{}",
        difference.breaks.len(),
        difference.additions.len(),
        list(&[&difference.breaks[..], &difference.additions[..]].concat()),
    );
    Ok(())
}

fn baseline(root: &Path) -> anyhow::Result<FileDescriptorSet> {
    let bytes = fs::read(root.join(BASELINE)).with_context(|| {
        format!("no baseline of the contract: {BASELINE} (`cargo xtask contract --accept` writes it)")
    })?;
    FileDescriptorSet::decode(bytes.as_slice()).with_context(|| format!("{BASELINE} is not a FileDescriptorSet"))
}

/// Our own files only, in the order of their names: the well-known types are not ours to compare.
fn compile(root: &Path) -> anyhow::Result<FileDescriptorSet> {
    let include = root.join("proto");
    let mut files = Vec::new();
    let mut folders = vec![include.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                files.push(path);
            }
        }
    }
    if files.is_empty() {
        bail!("no .proto file under {}", include.display());
    }
    files.sort();
    let mut compiler = protox::Compiler::new([&include])?;
    compiler.include_imports(false).include_source_info(false).open_files(&files)?;
    Ok(compiler.file_descriptor_set())
}

fn refusal(difference: &Difference) -> String {
    format!(
        "{} breaking changes of the contract (if it must be: `cargo xtask contract --accept --breaking \"why\"`):{}",
        difference.breaks.len(),
        list(&difference.breaks)
    )
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n- {line}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn write_proto(root: &Path, field: &str) {
        fs::create_dir_all(root.join("proto/shop/v1")).unwrap();
        let text = format!("syntax = \"proto3\";\npackage shop.v1;\nmessage Cart {{ {field} }}\n");
        fs::write(root.join("proto/shop/v1/cart.proto"), text).unwrap();
    }

    #[test]
    fn a_missing_baseline_is_an_error_until_it_is_accepted() {
        let root = tempfile::tempdir().unwrap();
        write_proto(root.path(), "string name = 1;");
        assert!(baseline(root.path()).unwrap_err().to_string().contains("no baseline of the contract"));
        accept(root.path(), None).unwrap();
        assert_eq!(baseline(root.path()).unwrap(), compile(root.path()).unwrap());
        assert!(!root.path().join(BREAKS).exists());
    }

    #[test]
    fn a_damaged_baseline_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proto")).unwrap();
        fs::write(root.path().join(BASELINE), [0xff; 7]).unwrap();
        assert!(baseline(root.path()).unwrap_err().to_string().contains("is not a FileDescriptorSet"));
    }

    #[test]
    fn a_break_is_accepted_only_with_a_reason_and_the_reason_is_kept() {
        let root = tempfile::tempdir().unwrap();
        write_proto(root.path(), "string name = 1;");
        accept(root.path(), None).unwrap();
        let before = baseline(root.path()).unwrap();

        write_proto(root.path(), "int32 name = 1;");
        for why in [None, Some("  ")] {
            assert!(accept(root.path(), why).unwrap_err().to_string().contains("1 breaking changes"));
            assert_eq!(baseline(root.path()).unwrap(), before, "a refusal leaves the baseline alone");
        }
        accept(root.path(), Some("names are numbers now")).unwrap();
        assert_eq!(baseline(root.path()).unwrap(), compile(root.path()).unwrap());
        let kept = fs::read_to_string(root.path().join(BREAKS)).unwrap();
        assert!(kept.starts_with("# Accepted breaks") && kept.contains("## names are numbers now\n\n- "), "{kept}");

        write_proto(root.path(), "string name = 1;");
        accept(root.path(), Some("no, words")).unwrap();
        let kept = fs::read_to_string(root.path().join(BREAKS)).unwrap();
        assert_eq!(kept.matches("# Accepted breaks").count(), 1, "one heading: {kept}");
    }

    #[test]
    fn growth_is_accepted_without_a_reason() {
        let root = tempfile::tempdir().unwrap();
        write_proto(root.path(), "string name = 1;");
        accept(root.path(), None).unwrap();
        write_proto(root.path(), "string name = 1; optional int32 size = 2;");
        accept(root.path(), None).unwrap();
        assert!(!root.path().join(BREAKS).exists());
    }

    #[test]
    fn the_contract_of_this_workspace_compiles() {
        let set = compile(&process::root()).unwrap();
        assert!(set.file.iter().all(|file| file.name().starts_with("holdfast/")));
        assert!(compare::compare(&set, &set).breaks.is_empty());
    }
}
