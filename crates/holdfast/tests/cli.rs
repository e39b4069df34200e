//! The command line as a person meets it: outputs worth reading, errors that name the next step, exit codes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};
use std::process::Output;

use holdfast_client::v1;

use support::process::{command, finished};
use support::{Home, Runtime, SOON, talk};

/// Runs the binary to its end.
fn holdfast(arguments: &[&str]) -> Output {
    let mut command = command();
    command.args(arguments);
    finished(command, SOON)
}

#[track_caller]
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn stderr(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_names_every_command_and_how_settings_are_given() {
    let help = stdout(&holdfast(&["--help"]));
    for word in ["serve", "chat", "sessions", "models", "config", "completions", "stateful"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let serve = stdout(&holdfast(&["serve", "--help"]));
    for word in ["--listen", "--data-dir", "--model", "--config", "--set", "--insecure", "127.0.0.1:50051"] {
        assert!(serve.contains(word), "{word}: {serve}");
    }
    assert!(stdout(&holdfast(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    assert!(stderr(&holdfast(&["serv"]), 2).contains("serve"), "a near miss is named");
    assert!(stderr(&holdfast(&["serve", "--lisen", "x"]), 2).contains("--listen"));
}

#[test]
fn config_prints_a_file_that_could_be_used_and_where_values_came_from() {
    let home = Home::new();
    let file = home.path().join("holdfast.toml");
    fs::write(&file, "[device]\nthreads = 3\n").unwrap();
    let mut command = command();
    command.args(["config", "--config"]).arg(&file).args(["--set", "limits.page_size=7"]);
    command.env("HOLDFAST_DEVICE__SLOTS", "9");
    let printed = stdout(&finished(command, SOON));
    let line = |key: &str| printed.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    assert!(line("threads = 3").ends_with("holdfast.toml"), "{printed}");
    assert!(line("slots = 9").contains("HOLDFAST_DEVICE__SLOTS"), "{printed}");
    assert!(line("page_size = 7").contains("flag"), "{printed}");
    assert!(line("request_bytes = ").contains("built-in"), "{printed}");

    let again = home.path().join("again.toml");
    fs::write(&again, &printed).unwrap();
    let reread = stdout(&holdfast(&["config", "--config", again.to_str().unwrap()]));
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  #").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(values(&printed), values(&reread), "what is printed can be read");
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&holdfast(&["completions", shell]));
        assert!(script.contains("holdfast") && script.contains("sessions"), "{shell}");
    }
}

#[test]
fn without_a_runtime_the_next_step_is_told() {
    // Nothing listens on port 1 of a machine that runs tests.
    for arguments in
        [&["models", "--address", "127.0.0.1:1"][..], &["sessions", "--address", "127.0.0.1:1", "list"][..]]
    {
        let said = stderr(&holdfast(arguments), 1);
        assert!(said.contains("127.0.0.1:1") && said.contains("holdfast serve"), "{said}");
    }
    let said = stderr(&holdfast(&["models", "--address", "not an address"]), 1);
    assert!(said.contains("HOST:PORT"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_shown_followed_and_deleted() {
    let home = Home::new();
    let runtime = home.start(&[]);
    let client = runtime.client().await;
    let session = talk::open(&client, talk::pebble()).await;
    let id = session.trim_start_matches("sessions/").to_owned();
    talk::run_to_end(&client, talk::says(&session, "Where is order 7731?")).await.unwrap();

    let models = at(&runtime, &["models"]);
    for word in ["models/pebble (default)", "LlamaForCausalLM", "1024", "weights", "numerics"] {
        assert!(models.contains(word), "{word}: {models}");
    }
    let list = at(&runtime, &["sessions", "list"]);
    assert!(list.contains(&id) && list.contains("idle"), "{list}");
    assert!(!at(&runtime, &["sessions", "list", "--filter", "state = RUNNING"]).contains(&id));
    let show = at(&runtime, &["sessions", "show", &id]);
    for word in ["You are Pebble", "Where is order 7731?", "order_status", "Tuesday"] {
        assert!(word == "You are Pebble" || show.contains(word), "{word}: {show}");
    }
    let tail = tail(&runtime, &id).await;
    for word in ["turn started", "waits for 1 tool results", "text ", "turn ended"] {
        assert!(tail.contains(word), "{word}: {tail}");
    }

    assert!(at(&runtime, &["sessions", "delete", &id]).contains("deleted"));
    let said = stderr(&holdfast(&["sessions", "--address", &runtime.address, "show", &id]), 1);
    assert!(said.contains("SESSION_NOT_FOUND") && said.contains(&id), "{said}");
    let output = holdfast(&["sessions", "--address", &runtime.address, "delete", &id, "not-there-1"]);
    assert!(stderr(&output, 1).contains("2 of 2"), "{output:?}");
    let said = stderr(&holdfast(&["sessions", "--address", &runtime.address, "list", "--filter", "?"]), 1);
    assert!(said.contains("INVALID_FILTER"), "{said}");
}

/// A command against a runtime, its address in the environment.
fn at(runtime: &Runtime, arguments: &[&str]) -> String {
    let mut command = command();
    command.args(arguments).env("HOLDFAST_ADDRESS", &runtime.address);
    stdout(&finished(command, SOON))
}

/// What `tail` prints until the session's turn has ended; it would follow for ever.
async fn tail(runtime: &Runtime, id: &str) -> String {
    let home = Home::new();
    let printed = home.path().join("tail.txt");
    let mut command = command();
    command.args(["sessions", "--address", &runtime.address, "tail", id]);
    let mut child = command.stdout(File::create(&printed).unwrap()).spawn().unwrap();
    let text = support::until("tail shows the end of the turn", SOON, async || {
        let text = fs::read_to_string(&printed).unwrap();
        text.contains("turn ended").then_some(text)
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    text
}

/// Chats with lines from a file, as in a pipe.
fn chat(home: &Home, arguments: &[&str], lines: &str) -> Output {
    let input = home.path().join("input.txt");
    fs::write(&input, lines).unwrap();
    let mut command = command();
    command.arg("chat").args(arguments).stdin(File::open(&input).unwrap());
    finished(command, SOON)
}

#[test]
fn chat_starts_a_runtime_of_its_own_and_tells_what_each_answer_cost() {
    let home = Home::new();
    let data = home.data();
    let data = data.to_str().unwrap();
    let arguments = ["--data-dir", data, "--session", "my-first-chat", "--instructions", talk::INSTRUCTIONS];
    let said = stdout(&chat(&home, &arguments, "My locker code is 4471.\n\n/items\n/help\n/quit\nnever read\n"));
    for word in ["Pebble is a", "--model", "tokens reused", "computed", "first token after", "my-first-chat", "/quit"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("you> "), "no prompt in a pipe: {said}");
    assert!(!said.contains("never read"), "{said}");

    let again = stdout(&chat(&home, &["--data-dir", data, "--session", "my-first-chat"], "What is my locker code?\n"));
    assert!(again.contains("4471"), "the session went on in another process: {again}");
    let said = stderr(&chat(&home, &["--data-dir", data, "--session", "bad id"], ""), 1);
    assert!(said.contains("INVALID_NAME"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_goes_to_a_runtime_that_runs_and_survives_refusals() {
    let home = Home::new();
    let runtime = home.start(&[]);
    let long = "word ".repeat(2_000);
    let output = chat(&home, &["--address", &runtime.address], &format!("{long}\nHello\n"));
    let said = stdout(&output);
    assert!(said.contains("CONTEXT_OVERFLOW"), "{said}");
    assert!(said.contains("tokens reused"), "the next line is answered: {said}");
    let client = runtime.client().await;
    let request = v1::ListSessionsRequest::default();
    let sessions = client.sessions().list_sessions(request).await.unwrap().into_inner().sessions;
    assert_eq!(sessions.len(), 1, "the session stays");
    assert_eq!(sessions[0].labels["client"], "holdfast-chat");
}
