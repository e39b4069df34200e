//! Who may import whom: the table of ARCHITECTURE.md as data, held against `cargo metadata`. What is not listed is
//! forbidden, and so is a crate that the table does not know.
//!
//! In: the packages of the workspace and what their manifests depend on. Out: every edge and every name that breaks a rule.
//! Deliberately not here: third-party crates, which are cargo-deny's to judge.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;
use cargo_metadata::{DependencyKind, Metadata};

use crate::process;

/// What a crate may import in its product code (dependencies and build dependencies).
#[derive(Debug, Clone, Copy)]
enum May {
    /// These of ours, by the names of their folders.
    Import(&'static [&'static str]),
    /// All of ours but these.
    ImportAllBut(&'static [&'static str]),
}

/// One row for each folder; xtask is held to its own, empty row.
const TABLE: &[(&str, May)] = &[
    ("types", May::Import(&[])),
    ("contracts", May::Import(&[])),
    ("telemetry", May::Import(&[])),
    ("model", May::Import(&["types"])),
    ("model-maker", May::Import(&["types", "model"])),
    ("guide", May::Import(&["types"])),
    ("kv", May::Import(&["types"])),
    ("backend", May::Import(&["types"])),
    ("scheduler", May::Import(&["types", "kv"])),
    ("backend-neuron", May::Import(&["types", "backend", "model"])),
    ("backend-cuda", May::Import(&["types", "backend", "model"])),
    ("backend-remote", May::Import(&["types", "backend", "contracts"])),
    ("tier", May::Import(&["types", "telemetry"])),
    ("journal", May::Import(&["types", "telemetry"])),
    ("engine", May::Import(&["types", "kv", "scheduler", "backend", "telemetry"])),
    ("worker-api", May::Import(&["types"])),
    ("worker", May::Import(&["types", "worker-api", "model", "guide", "kv", "engine", "tier", "journal", "telemetry"])),
    ("gateway", May::Import(&["types", "worker-api", "contracts", "telemetry"])),
    ("client", May::Import(&["contracts"])),
    ("holdfast", May::ImportAllBut(&["sim", "benches", "model-maker"])),
    ("sim", May::ImportAllBut(&["gateway", "client", "holdfast", "benches"])),
    ("benches", May::ImportAllBut(&[])),
    ("xtask", May::Import(&[])),
];

/// What only a crate's tests import beside its row, each with the reason. Tests may look further down the house, never up
/// to who imports them.
const TESTS_ONLY: &[(&str, &str, &str)] = &[
    ("backend", "model", "the conformance suite is tried on the oracle that it judges backends by"),
    ("backend-cuda", "backend-neuron", "with nested weights the CPU device is the oracle, to the last bit"),
    ("backend-remote", "backend-neuron", "what is lent in tests is a device that computes, not canned outputs"),
    ("backend-remote", "model", "the reference forward is the oracle of what a remote device computes"),
    ("engine", "backend-neuron", "steps are tested on a device that computes, not on canned outputs"),
    ("engine", "model", "the reference forward is the oracle of what a step computes"),
    ("worker", "backend", "a test chooses the device and makes it fail"),
    ("worker", "backend-neuron", "turns are tested on a device that computes, not on canned outputs"),
    ("worker", "scheduler", "settings of admission are the engine's to take and the test's to choose"),
    ("gateway", "backend-neuron", "the edge is tested over a worker that answers"),
    ("gateway", "engine", "the edge is tested over a worker that answers"),
    ("gateway", "journal", "the edge is tested over a worker that answers"),
    ("gateway", "model", "the edge is tested over a worker that answers"),
    ("gateway", "worker", "the edge is tested over a worker that answers"),
    ("gateway", "client", "a test speaks to the edge as a client does"),
];

/// A package of the workspace, with what the rules ask about.
#[derive(Debug, Clone)]
struct Crate {
    name: String,
    /// Relative to the workspace's root: `crates/kv`.
    folder: String,
    /// Ours only, by package name; build dependencies count as product code.
    imports: Vec<(String, Kind)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Product,
    Tests,
}

/// Fails with every edge and name that the table does not allow.
pub(crate) fn check() -> anyhow::Result<()> {
    let crates = crates_of(&process::metadata()?);
    let findings = findings(&crates);
    if !findings.is_empty() {
        bail!("{} forbidden edges or names:\n{}", findings.len(), findings.join("\n"));
    }
    let edges: usize = crates.iter().map(|found| found.imports.len()).sum();
    println!("{} crates, {edges} edges", crates.len());
    Ok(())
}

fn crates_of(metadata: &Metadata) -> Vec<Crate> {
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut crates: Vec<Crate> = metadata
        .packages
        .iter()
        .map(|package| {
            let folder = package.manifest_path.parent().unwrap_or(&package.manifest_path);
            let folder = folder.strip_prefix(&metadata.workspace_root).unwrap_or(folder);
            let imports: BTreeSet<(String, Kind)> = package
                .dependencies
                .iter()
                .filter(|dependency| ours.contains(dependency.name.as_str()))
                .map(|dependency| {
                    let tests = dependency.kind == DependencyKind::Development;
                    (dependency.name.clone(), if tests { Kind::Tests } else { Kind::Product })
                })
                .collect();
            Crate {
                name: package.name.to_string(),
                folder: folder.as_str().to_owned(),
                imports: imports.into_iter().collect(),
            }
        })
        .collect();
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    crates
}

fn findings(crates: &[Crate]) -> Vec<String> {
    let mut findings = Vec::new();
    for found in crates {
        let short = short_name(&found.folder);
        let expected = package_name(short);
        if found.name != expected {
            findings.push(format!("{}: the package is named {}, it should be {expected}", found.folder, found.name));
        }
        let Some((_, may)) = TABLE.iter().find(|(name, _)| *name == short) else {
            findings.push(format!("{}: not in the table of ARCHITECTURE.md (xtask/src/edges.rs)", found.folder));
            continue;
        };
        for (import, kind) in &found.imports {
            let Some(target) = crates.iter().find(|other| other.name == *import) else { continue };
            let target = short_name(&target.folder);
            let row = match may {
                May::Import(list) => list.contains(&target),
                May::ImportAllBut(list) => !list.contains(&target),
            };
            let for_tests = || TESTS_ONLY.iter().any(|(from, to, _)| *from == short && *to == target);
            match kind {
                Kind::Product if !row => findings.push(format!("{short} may not import {target}")),
                Kind::Tests if !row && !for_tests() => {
                    findings.push(format!("the tests of {short} may not import {target}"));
                }
                Kind::Product | Kind::Tests => {}
            }
        }
    }
    findings
}

fn short_name(folder: &str) -> &str {
    Path::new(folder).file_name().and_then(|name| name.to_str()).unwrap_or(folder)
}

fn package_name(short: &str) -> String {
    match short {
        "holdfast" | "xtask" => short.to_owned(),
        _ => format!("holdfast-{short}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn house(rows: &[(&str, &[(&str, Kind)])]) -> Vec<Crate> {
        let folder = |short: &str| match short {
            "xtask" | "benches" => short.to_owned(),
            _ => format!("crates/{short}"),
        };
        rows.iter()
            .map(|(short, imports)| Crate {
                name: package_name(short),
                folder: folder(short),
                imports: imports.iter().map(|(name, kind)| (package_name(name), *kind)).collect(),
            })
            .collect()
    }

    #[test]
    fn listed_edges_pass_and_others_do_not() {
        use Kind::Product;
        let good = house(&[("types", &[]), ("kv", &[("types", Product)]), ("scheduler", &[("kv", Product)])]);
        assert_eq!(findings(&good), Vec::<String>::new());
        let bad =
            house(&[("types", &[("kv", Product)]), ("kv", &[]), ("worker", &[]), ("engine", &[("worker", Product)])]);
        assert_eq!(findings(&bad), ["types may not import kv", "engine may not import worker"]);
    }

    #[test]
    fn all_but_rows_forbid_what_they_name() {
        use Kind::Product;
        let bad = house(&[("sim", &[("gateway", Product), ("worker", Product)]), ("gateway", &[]), ("worker", &[])]);
        assert_eq!(findings(&bad), ["sim may not import gateway"]);
        let bad = house(&[("holdfast", &[("sim", Product), ("client", Product)]), ("sim", &[]), ("client", &[])]);
        assert_eq!(findings(&bad), ["holdfast may not import sim"]);
    }

    #[test]
    fn an_edge_for_tests_is_no_edge_for_the_product() {
        let for_tests = house(&[("engine", &[("model", Kind::Tests)]), ("model", &[])]);
        assert_eq!(findings(&for_tests), Vec::<String>::new());
        let for_product = house(&[("engine", &[("model", Kind::Product)]), ("model", &[])]);
        assert_eq!(findings(&for_product), ["engine may not import model"]);
        let unlisted = house(&[("kv", &[("model", Kind::Tests)]), ("model", &[])]);
        assert_eq!(findings(&unlisted), ["the tests of kv may not import model"]);
    }

    #[test]
    fn xtask_imports_nothing_of_ours() {
        let bad = house(&[("xtask", &[("types", Kind::Product)]), ("types", &[])]);
        assert_eq!(findings(&bad), ["xtask may not import types"]);
    }

    #[test]
    fn an_unknown_crate_and_a_wrong_name_fail() {
        let mut crates = house(&[("cellar", &[]), ("kv", &[])]);
        crates[1].name = "kv".to_owned();
        assert_eq!(
            findings(&crates),
            [
                "crates/cellar: not in the table of ARCHITECTURE.md (xtask/src/edges.rs)",
                "crates/kv: the package is named kv, it should be holdfast-kv"
            ]
        );
    }

    #[test]
    fn the_table_has_no_cycle_and_names_only_its_own_rows() {
        let rows: BTreeSet<&str> = TABLE.iter().map(|(name, _)| *name).collect();
        assert_eq!(rows.len(), TABLE.len(), "a crate has one row");
        let mut settled = BTreeSet::new();
        while settled.len() < TABLE.len() {
            let before = settled.len();
            for (name, may) in TABLE {
                let imports: Vec<&str> = match may {
                    May::Import(list) => list.to_vec(),
                    // Nothing imports these three, so they close no cycle.
                    May::ImportAllBut(_) => vec![],
                };
                assert!(imports.iter().all(|import| rows.contains(import)), "{name}");
                if imports.iter().all(|import| settled.contains(import)) {
                    settled.insert(*name);
                }
            }
            assert!(settled.len() > before, "a cycle among the rest of {settled:?}");
        }
    }

    #[test]
    fn every_edge_for_tests_has_a_reason_and_is_needed() {
        for (from, to, reason) in TESTS_ONLY {
            assert!(reason.len() > 20, "{from} -> {to}");
            let (_, may) = TABLE.iter().find(|(name, _)| name == from).unwrap();
            let May::Import(list) = may else { panic!("{from} may import almost everything") };
            assert!(!list.contains(to), "{from} -> {to} is in the table already");
            assert!(TABLE.iter().any(|(name, _)| name == to), "{to}");
        }
    }
}
