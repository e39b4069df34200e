//! `holdfast models`: models are added, listed, inspected, verified and removed here; `served` asks a runtime.
//!
//! Deliberately not here: what a name means (`find`), and entries and their files (`registry`).

mod inspect;
pub(crate) mod progress;
mod served;
mod verify;

use std::io::Write;

use anyhow::bail;
use holdfast_model::ModelSource;
use indicatif::HumanCount;
use serde_json::json;

use crate::cli::{ModelsArgs, ModelsCommand, RegistryArgs};
use crate::registry::{Entry, ModelName, Registry, RegistryError};
use crate::turn_view::plain;
use crate::{clock, find};

/// Runs one of the models commands.
///
/// # Errors
/// What the command could not do, with the next step.
pub(crate) async fn run(args: ModelsArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match args.command {
        None => served::run(args.served, &mut out).await,
        Some(ModelsCommand::Served(args)) => served::run(args, &mut out).await,
        Some(ModelsCommand::Add { path, name, replace, registry }) => {
            add(&of(&registry)?, &path, name.as_deref(), replace, &mut out)
        }
        Some(ModelsCommand::List { json, registry }) => list(&of(&registry)?, json, &mut out),
        Some(ModelsCommand::Inspect { model, json, registry }) => inspect::run(&of(&registry)?, &model, json, &mut out),
        Some(ModelsCommand::Verify { names, registry }) => verify::run(&of(&registry)?, &names, &mut out),
        Some(ModelsCommand::Remove { names, registry }) => remove(&of(&registry)?, &names, &mut out),
    }
}

/// The registry that the settings name.
fn of(args: &RegistryArgs) -> anyhow::Result<Registry> {
    Ok(Registry::new(crate::load_settings(&args.settings())?.settings.models_dir()))
}

fn add(registry: &Registry, path: &str, name: Option<&str>, replace: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let source = ModelSource::resolve(path)?;
    if let ModelSource::BuiltIn(name) = &source {
        bail!("{name} is built in and needs no adding; for a directory of that name write ./{name}");
    }
    let name = ModelName::parse(name.unwrap_or(&source.name()))?;
    registry.check_free(&name, replace)?;
    let model = progress::load(&source)?;
    let bar = progress::bytes("digesting");
    let facts = find::facts(&source, &model, |bytes| bar.set_length(bytes), |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let entry = Entry::new(&name, facts, now());
    registry.add(&name, &entry, replace)?;
    writeln!(
        out,
        "{name} is registered: {}, {} parameters, context {} tokens\n  at {}, where it must stay\n  `holdfast serve --model {name}` serves it, \
         `holdfast models inspect {name}` tells more",
        entry.architecture,
        HumanCount(entry.parameters),
        model.config().context_limit,
        entry.path.display(),
    )?;
    Ok(())
}

/// RFC 3339 in UTC, to the second.
fn now() -> String {
    let seconds = i64::try_from(clock::wall()() / 1_000_000).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: 0 }.to_string()
}

fn list(registry: &Registry, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let listing = registry.list()?;
    let problems: Vec<String> = listing.damaged.iter().map(RegistryError::to_string).collect();
    let is_there = |entry: &Entry| entry.path.exists();
    if json {
        let built_in = ModelSource::BUILT_IN.iter().map(|name| json!({"name": name, "built_in": true}));
        let registered = listing.entries.iter().map(|entry| {
            json!({"name": entry.name, "built_in": false, "path": entry.path, "is_there": is_there(entry),
                "architecture": entry.architecture, "parameters": entry.parameters, "added": entry.added,
                "weights_digest": entry.weights, "tokenizer_digest": entry.tokenizer, "template_digest": entry.template})
        });
        let models: Vec<_> = built_in.chain(registered).collect();
        writeln!(out, "{:#}", json!({"models": models, "problems": problems}))?;
    } else {
        writeln!(out, "{:<32} {:<24} {:>15}  {:<20}  where", "model", "architecture", "parameters", "added")?;
        for name in ModelSource::BUILT_IN {
            writeln!(out, "{name:<32} {:<24} {:>15}  {:<20}  in this program", "-", "-", "built in")?;
        }
        for entry in &listing.entries {
            let gone = if is_there(entry) { "" } else { "  (gone: bring it back, or `holdfast models remove` it)" };
            writeln!(
                out,
                "{:<32} {:<24} {:>15}  {:<20}  {}{gone}",
                entry.name,
                plain(&entry.architecture),
                HumanCount(entry.parameters).to_string(),
                plain(&entry.added),
                plain(&entry.path.display().to_string()),
            )?;
        }
    }
    for problem in &problems {
        warn(problem);
    }
    Ok(())
}

/// What is wrong beside a command's output.
#[expect(clippy::print_stderr, reason = "a list goes on behind an entry that it passes over")]
fn warn(problem: &str) {
    eprintln!("holdfast: {}", plain(problem));
}

fn remove(registry: &Registry, names: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    // All or none for what a person can mistype.
    let names: Vec<ModelName> = names.iter().map(|name| ModelName::parse(name)).collect::<Result<_, _>>()?;
    if let Some(missing) = names.iter().find(|name| registry.file(name).symlink_metadata().is_err()) {
        return Err(registry.not_registered(missing).into());
    }
    for name in names {
        registry.remove(&name)?;
        writeln!(out, "{name} is no longer registered; its files were not touched")?;
    }
    Ok(())
}
