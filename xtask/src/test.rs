//! `cargo xtask test`: the workspace's tests. The runner is cargo's own, because a machine with nothing but a Rust toolchain
//! has it and it runs documentation examples too. Last come its plain closing lines, so the Python examples go first.
//!
//! Deliberately not here: any selection of tests by name. How much work a test does is the test's own decision, from
//! `TEST_EFFORT`.

use std::env::consts::EXE_SUFFIX;
use std::process::Command;

use anyhow::bail;

use crate::process;

/// Read by the long suites (property tests, crash points, soak runs): `quick` or `full`.
const EFFORT: &str = "TEST_EFFORT";

/// The Python example's own test, told which binary to run it against.
const PYTHON_EXAMPLE: &str = "examples/python/check.py";

/// The Python device's own test.
const PYTHON_DEVICE: [&str; 8] =
    ["test", "--workspace", "--test", "python", "--", "--ignored", "--exact", "the_example_in_python_passes_the_suite"];

/// The workspace's tests, documentation examples and the Python examples included
///
/// Runs `cargo test --workspace` after the Python examples, where Python has what they need. One failing suite does not stop the
/// others.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A few cases of the long suites instead of all (sets TEST_EFFORT=quick; otherwise full)
    #[arg(long)]
    quick: bool,

    /// Only this package, repeatable; the Python examples are left out
    #[arg(short, long, value_name = "NAME")]
    package: Vec<String>,

    /// Handed to `cargo test` as they are, e.g. `-- --test sessions` or `-- -- --nocapture`
    #[arg(last = true, value_name = "ARGS")]
    passed_on: Vec<String>,
}

/// Runs everything, then fails if anything did.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let whole = arguments.package.is_empty() && arguments.passed_on.is_empty();
    let example = if whole { python_example().and_then(|()| python_device()) } else { Ok(()) };
    let tests = process::run(&mut cargo_test(arguments));
    match (example, tests) {
        (Ok(()), tests) => tests,
        (Err(example), Ok(())) => Err(example),
        (Err(example), Err(tests)) => bail!("{tests}; and before it {example}"),
    }
}

fn effort(arguments: &Arguments) -> &'static str {
    if arguments.quick { "quick" } else { "full" }
}

fn cargo_test(arguments: &Arguments) -> Command {
    let mut command = process::cargo();
    command.env(EFFORT, effort(arguments)).args(["test", "--no-fail-fast"]);
    if arguments.package.is_empty() {
        command.arg("--workspace");
    }
    for package in &arguments.package {
        command.args(["--package", package]);
    }
    command.args(&arguments.passed_on);
    command
}

fn python_example() -> anyhow::Result<()> {
    if !process::root().join(PYTHON_EXAMPLE).is_file() {
        return Ok(());
    }
    if !process::succeeds(process::program("python3").args(["-c", "import grpc_tools.protoc"])) {
        println!("skipped: examples/python (pip install grpcio-tools)");
        return Ok(());
    }
    // Building the tests builds the binary, with the features that the tests will find it with.
    process::run(process::cargo().args(["test", "--workspace", "--no-run"]))?;
    let binary = process::target_directory()?.join("debug").join(format!("holdfast{EXE_SUFFIX}"));
    println!("running {PYTHON_EXAMPLE}");
    // Without the variable of the suites: to the runtime that the example starts, HOLDFAST_… names settings.
    process::run(process::program("python3").env_remove(EFFORT).arg(PYTHON_EXAMPLE).arg("--binary").arg(binary))?;
    println!("{PYTHON_EXAMPLE} ... ok\n");
    Ok(())
}

fn python_device() -> anyhow::Result<()> {
    if !process::succeeds(process::program("python3").args(["-c", "import grpc_tools.protoc, numpy"])) {
        println!("skipped: examples/python-device (pip install grpcio-tools numpy)");
        return Ok(());
    }
    println!("running examples/python-device");
    process::run(process::cargo().args(PYTHON_DEVICE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(arguments: &Arguments) -> (Vec<String>, Option<String>) {
        let command = cargo_test(arguments);
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let effort = command.get_envs().find(|(name, _)| *name == EFFORT).and_then(|(_, value)| value);
        (words, effort.map(|value| value.to_string_lossy().into_owned()))
    }

    #[test]
    fn all_of_the_workspace_with_full_effort_by_default() {
        let (words, effort) = typed(&Arguments { quick: false, package: vec![], passed_on: vec![] });
        assert_eq!(words, ["test", "--no-fail-fast", "--workspace"]);
        assert_eq!(effort.as_deref(), Some("full"));
    }

    #[test]
    fn packages_and_arguments_are_passed_on() {
        let passed_on = vec!["--test".to_owned(), "pool".to_owned()];
        let (words, effort) = typed(&Arguments { quick: true, package: vec!["holdfast-kv".to_owned()], passed_on });
        assert_eq!(words, ["test", "--no-fail-fast", "--package", "holdfast-kv", "--test", "pool"]);
        assert_eq!(effort.as_deref(), Some("quick"));
    }
}
