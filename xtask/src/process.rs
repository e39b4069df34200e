//! Running other programs from the workspace's root, with their output straight on the terminal.
//!
//! In: a program and its arguments. Out: success, or an error that repeats the command as one could type it. Deliberately
//! not here: any shell, and any parsing of what a program prints.

use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The workspace's root: the parent of this package.
pub(crate) fn root() -> PathBuf {
    // Cargo sets the variable for what it runs; the compiled-in value serves a binary that is started by hand.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let mut root = PathBuf::from(package);
    root.pop();
    root
}

/// The cargo that runs us, to be given arguments.
pub(crate) fn cargo() -> Command {
    program(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// A program that will start in the workspace's root.
pub(crate) fn program(name: impl Into<OsString>) -> Command {
    let mut command = Command::new(name.into());
    command.current_dir(root());
    command
}

/// Runs to the end. An error if the program cannot be started or does not succeed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = line_of(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Whether the program starts and succeeds; what it prints is thrown away. For asking whether a tool is installed.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Builds binaries in release, each (package, binary), in one go, so that what they share is built once; then the last one is
/// to be given arguments. It starts where the user stands: relative paths are theirs.
pub(crate) fn built(binaries: &[(&str, &str)]) -> anyhow::Result<Command> {
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    let selected = binaries.iter().flat_map(|(package, binary)| ["--package", package, "--bin", binary]);
    run(cargo().args(["build", "--release"]).args(selected))?;
    let name = binaries.last().map_or("", |(_, binary)| binary);
    let path = target_directory()?.join("release").join(format!("{name}{EXE_SUFFIX}"));
    let mut command = program(path);
    command.current_dir(here);
    Ok(command)
}

/// Where cargo puts what it builds, asked of cargo itself: settings and environment may move it.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    Ok(metadata()?.target_directory.into_std_path_buf())
}

/// The workspace as cargo sees it: its own packages, dependencies unresolved.
pub(crate) fn metadata() -> anyhow::Result<cargo_metadata::Metadata> {
    cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec().context("cannot read cargo metadata")
}

/// The command as one could type it: variables that were set for it, the program's name, its arguments.
fn line_of(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={:?}", name.to_string_lossy(), value?.to_string_lossy())));
    let program = PathBuf::from(command.get_program());
    let name = program.file_stem().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    variables.chain([name]).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn a_failing_program_is_named_with_its_arguments() {
        let error = run(cargo().args(["--no-such-flag"]).stderr(Stdio::null())).unwrap_err().to_string();
        assert!(error.starts_with("`cargo --no-such-flag` failed"), "{error}");
        let error = run(&mut program("holdfast-no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "cannot start `holdfast-no-such-program`");
    }

    #[test]
    fn a_line_shows_the_variables_that_were_set() {
        let mut command = cargo();
        command.env("RUSTDOCFLAGS", "-D warnings").arg("doc");
        assert_eq!(line_of(&command), "RUSTDOCFLAGS=\"-D warnings\" cargo doc");
    }

    #[test]
    fn a_tool_that_is_not_there_does_not_succeed() {
        assert!(!succeeds(&mut program("holdfast-no-such-program")));
        assert!(succeeds(cargo().arg("--version")));
    }
}
