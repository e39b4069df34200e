//! `holdfast models verify`: whether models still are what was added, by every byte of their files.

use std::io::Write;

use anyhow::bail;
use holdfast_model::ModelSource;

use super::progress::{self, load};
use crate::find::{changed_parts, differences, digest_files, registered};
use crate::registry::{Entry, ModelName, Registry, RegistryError};
use crate::turn_view::plain;

/// Verifies models by name. A built-in one is held against the digest that is compiled in.
///
/// # Errors
/// For a name that is not registered, before anything is read; and when a model is not what was added: what differs was
/// printed then.
pub(super) fn run(registry: &Registry, names: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    let entries: Vec<Option<Entry>> = names.iter().map(|name| entry(registry, name)).collect::<Result<_, _>>()?;
    let mut failed = 0;
    for (name, entry) in names.iter().zip(entries) {
        let findings = match entry {
            Some(entry) => findings(&entry),
            None => load(&ModelSource::BuiltIn(name.clone())).map(|_| Vec::new()).map_err(Into::into),
        };
        let findings = findings.unwrap_or_else(|error| vec![format!("{error:#}")]);
        match findings.is_empty() {
            true => writeln!(out, "{name}: as it was added")?,
            false => {
                failed += 1;
                writeln!(out, "{name}: not what was added")?;
                for finding in findings {
                    writeln!(out, "  {}", plain(&finding))?;
                }
            }
        }
    }
    if failed > 0 {
        bail!(
            "MODEL_REVISION_UNAVAILABLE: {failed} of {} models are not what was added; bring the files back, or accept them with \
             `holdfast models add PATH --name NAME --replace`",
            names.len()
        );
    }
    Ok(())
}

/// The entry of a name; none for a built-in model.
fn entry(registry: &Registry, name: &str) -> Result<Option<Entry>, RegistryError> {
    if ModelSource::BUILT_IN.contains(&name) {
        return Ok(None);
    }
    let name = ModelName::parse(name)?;
    registry.get(&name)?.map(Some).ok_or_else(|| registry.not_registered(&name))
}

/// What differs: files first, then what that means for the parts of the model.
fn findings(entry: &Entry) -> anyhow::Result<Vec<String>> {
    let source = registered(entry.clone())?.source;
    let bar = progress::bytes("digesting");
    let now = digest_files(&source, |bytes| bar.set_length(bytes), |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let now = now?;
    let mut findings: Vec<String> =
        differences(&entry.files, &now).into_iter().map(|(file, what)| format!("{file} {what}")).collect();
    if findings.is_empty() {
        // The same bytes are the same model.
        return Ok(findings);
    }
    findings.push(match load(&source) {
        Err(error) => format!("it no longer loads: {error:#}"),
        Ok(model) => match changed_parts(entry, &model).as_slice() {
            [] => "weights, tokenizer and template are the same".to_owned(),
            parts => format!("its parts that changed: {}", parts.join(", ")),
        },
    });
    Ok(findings)
}
