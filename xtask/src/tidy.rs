//! What every file owes its reader: its first lines, a size that can be read in one sitting, a name that says something, no
//! path of somebody's machine; and where `unsafe` may stand.
//!
//! In: the files of the workspace, build outputs aside. Out: every finding as `path: what`. The rules read text, not syntax:
//! they are tripwires, and what they cannot see is a reviewer's to see.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::process;

/// A longer file is two rooms.
const LINES_MAX: usize = 600;

/// Files that may be longer, each with the reason.
const LONGER: &[(&str, &str)] = &[];

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc", "manager"];

/// Where `unsafe` may stand: kernels, device calls, and mapping weights into memory.
const UNSAFE_CRATES: &[&str] = &["crates/backend-neuron/", "crates/backend-cuda/", "crates/model/"];

/// Folders of Rust code, to which the rules of Rust files apply.
const RUST_FOLDERS: &[&str] = &["crates/", "benches/", "xtask/"];

/// Endings of the files that are read and searched for paths of a machine. Not JSON: vocabularies hold any text.
const TEXT: &[&str] = &["rs", "proto", "md", "toml", "py", "sh", "sql", "yaml", "yml", "service", "cu", "hpp"];

/// Where files without an ending are scripts and container files.
const TEXT_FOLDERS: &[&str] = &[".ci/", "deploy/"];

/// Build outputs, version control, environments: not files of the project.
const NOT_OURS: &[&str] = &["target", ".git", "__pycache__", ".venv", "node_modules"];

/// Where people keep their homes and checkouts. Written in two parts so that this file does not trip itself.
const HOMES: &[&str] = &[concat!("/", "work/"), concat!("/", "home/"), concat!("/", "root/"), concat!("/", "Users/")];

/// Fails with every finding.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = process::root();
    let paths = files(&root)?;
    let mut findings = Vec::new();
    for path in paths.iter().filter(|path| is_text(path)) {
        let bytes = fs::read(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        match String::from_utf8(bytes) {
            Ok(text) => inspect(path, &text, &mut findings),
            Err(_) => findings.push(format!("{path}: not UTF-8")),
        }
    }
    if !findings.is_empty() {
        bail!("{} findings in files:\n{}", findings.len(), findings.join("\n"));
    }
    println!("{} files", paths.iter().filter(|path| is_text(path)).count());
    Ok(())
}

/// Paths relative to the root, with `/`, sorted.
fn files(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let listed = root.join(&folder);
        for entry in fs::read_dir(&listed).with_context(|| format!("cannot read {}", listed.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            let path = folder.join(&name);
            if kind.is_dir() && !NOT_OURS.iter().any(|not_ours| name == *not_ours) {
                folders.push(path);
            } else if kind.is_file() {
                let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
                found.push(parts.join("/"));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn inspect(path: &str, text: &str, findings: &mut Vec<String>) {
    let mut find = |what: String| findings.push(format!("{path}: {what}"));
    let extension = extension(path);
    let rust = extension == "rs" && RUST_FOLDERS.iter().any(|folder| path.starts_with(folder));

    if rust && !text.starts_with("//!") {
        find("does not begin with `//!`: what lives here, what flows in and out, what is not here".to_owned());
    }
    if rust || extension == "proto" {
        let lines = text.lines().count();
        if lines > LINES_MAX && !LONGER.iter().any(|(longer, _)| *longer == path) {
            find(format!("{lines} lines, at most {LINES_MAX}: a longer file is two rooms"));
        }
        for word in path.split('/').flat_map(|part| part.split(['_', '-', '.'])) {
            if EMPTY_NAMES.contains(&word) {
                find(format!("`{word}` says nothing of what is inside"));
            }
        }
    }
    if rust && !UNSAFE_CRATES.iter().any(|allowed| path.starts_with(allowed)) {
        if is_root_of_a_crate(path) && !text.contains("#![forbid(unsafe_code)]") {
            find("lacks `#![forbid(unsafe_code)]`".to_owned());
        }
        for (number, _) in text.lines().enumerate().filter(|(_, line)| has_unsafe(line)) {
            find(format!("line {}: `unsafe` outside {}", number + 1, UNSAFE_CRATES.join(", ")));
        }
    }
    for (number, line) in text.lines().enumerate() {
        if let Some(home) = HOMES.iter().find(|home| names_path(line, home)) {
            find(format!("line {}: `{home}` is a path of one machine", number + 1));
        }
    }
}

fn extension(path: &str) -> &str {
    Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

/// By its ending, or without one where scripts and container files are.
fn is_text(path: &str) -> bool {
    let extension = extension(path);
    TEXT.contains(&extension) || (extension.is_empty() && TEXT_FOLDERS.iter().any(|folder| path.starts_with(folder)))
}

/// Where crate-wide attributes live: the library, the binaries and the build script of a package.
fn is_root_of_a_crate(path: &str) -> bool {
    path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs") || path.contains("/src/bin/")
}

/// `unsafe` as code: before a block or an item, not in a comment. An attribute such as `unsafe_code` is another word.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '{'));
    words.any(|word| word == "unsafe" || word == "unsafe{") && !code.contains('"') && !code.contains('`')
}

/// Whether `home` begins a path in the line, rather than standing inside a longer one or a URL.
fn names_path(line: &str, home: &str) -> bool {
    line.match_indices(home).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "._-~}*)>/".contains(c)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        inspect(path, text, &mut findings);
        findings
    }

    #[test]
    fn a_tidy_file_has_no_findings() {
        assert_eq!(found("crates/kv/src/lib.rs", "//! Blocks.\n#![forbid(unsafe_code)]\n"), Vec::<String>::new());
        assert_eq!(found("README.md", "See `~/models` and https://example.org/home/page.\n"), Vec::<String>::new());
    }

    #[test]
    fn a_file_begins_with_what_it_is() {
        for path in ["crates/kv/src/pool.rs", "crates/kv/tests/pool.rs", "benches/src/kv.rs", "xtask/src/fmt.rs"] {
            let findings = found(path, "use std::fs;\n//! Late.\n");
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].contains("does not begin with `//!`"));
        }
        assert_eq!(found("examples/python/agent.py", "import grpc\n"), Vec::<String>::new());
    }

    #[test]
    fn a_file_has_a_size() {
        let text = |lines: usize| "//! x\n".repeat(lines);
        assert_eq!(found("crates/kv/src/pool.rs", &text(LINES_MAX)), Vec::<String>::new());
        let findings = found("proto/holdfast/v1/turn.proto", &text(LINES_MAX + 1));
        assert_eq!(findings, ["proto/holdfast/v1/turn.proto: 601 lines, at most 600: a longer file is two rooms"]);
        assert_eq!(found("docs/errors.md", &text(LINES_MAX + 1)), Vec::<String>::new());
    }

    #[test]
    fn a_name_says_something() {
        for path in ["crates/kv/src/utils.rs", "crates/kv/tests/common/mod.rs", "crates/kv/src/block_manager.rs"] {
            let findings = found(path, "//! x\n");
            assert_eq!(findings.len(), 1, "{path}: {findings:?}");
            assert!(findings[0].contains("says nothing"));
        }
        assert_eq!(found("crates/kv/src/commonality.rs", "//! x\n"), Vec::<String>::new());
    }

    #[test]
    fn unsafe_stays_where_it_belongs() {
        let block = concat!("//! x\n    let x = uns", "afe { read(p) };\n");
        let item = concat!("//! x\nuns", "afe impl Send for P {}\n");
        for text in [block, item] {
            assert_eq!(found("crates/backend-neuron/src/dot.rs", text), Vec::<String>::new());
            let findings = found("crates/kv/tests/pool.rs", text);
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].starts_with("crates/kv/tests/pool.rs: line 2: `unsafe` outside"));
        }
        let harmless = "//! x\n// unsafe { } in a comment\n#![deny(unsafe_op_in_unsafe_fn)]\nlet s = \"unsafe {\";\n";
        assert_eq!(found("crates/kv/tests/pool.rs", harmless), Vec::<String>::new());
    }

    #[test]
    fn roots_forbid_unsafe_code() {
        for path in
            ["crates/kv/src/lib.rs", "crates/holdfast/src/main.rs", "benches/src/lib.rs", "crates/kv/src/bin/x.rs"]
        {
            assert_eq!(found(path, "//! x\n"), [format!("{path}: lacks `#![forbid(unsafe_code)]`")]);
        }
        assert_eq!(found("crates/model/src/lib.rs", "//! x\n"), Vec::<String>::new());
        assert_eq!(found("crates/kv/src/pool.rs", "//! x\n"), Vec::<String>::new());
    }

    #[test]
    fn paths_of_a_machine_are_found_wherever_a_path_may_begin() {
        for home in HOMES {
            for line in
                [format!("{home}x"), format!("path = \"{home}x\""), format!("see `{home}x`"), format!("A={home}x")]
            {
                let findings = found("docs/x.md", &line);
                assert_eq!(findings.len(), 1, "{line}");
                assert!(findings[0].contains("line 1"), "{findings:?}");
            }
            for line in [format!("https://example.org{home}"), format!("crates{home}"), format!("${{ROOT}}{home}")] {
                assert_eq!(found("docs/x.md", &line), Vec::<String>::new(), "{line}");
            }
        }
        assert!(is_text(".ci/run") && is_text("deploy/Containerfile") && is_text("README.md"));
        assert!(!is_text("models/weights.safetensors") && !is_text("models/weights"));
    }

    #[test]
    fn exceptions_have_reasons_and_exist() {
        for (path, reason) in LONGER {
            assert!(reason.len() > 20, "{path}");
            assert!(process::root().join(path).exists(), "{path}");
        }
    }

    #[test]
    fn build_outputs_and_version_control_are_not_ours() {
        let root = tempfile::tempdir().unwrap();
        for path in ["target/debug/x.rs", ".git/config", "crates/kv/src/lib.rs", ".ci/run", "README.md"] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        assert_eq!(files(root.path()).unwrap(), [".ci/run", "README.md", "crates/kv/src/lib.rs"]);
    }
}
