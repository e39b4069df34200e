//! The command line as a person meets it: outputs worth reading, errors that name the next step, exit codes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use holdfast_client::v1;
use holdfast_model::random::MicroShape;
use serde_json::Value;

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
    for arguments in [
        &["models", "--address", "127.0.0.1:1"][..],
        &["models", "served", "--address", "127.0.0.1:1"][..],
        &["sessions", "--address", "127.0.0.1:1", "list"][..],
    ] {
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
    for word in ["models/pebble (default)", "LlamaForCausalLM", "2048", "weights", "numerics"] {
        assert!(models.contains(word), "{word}: {models}");
    }
    assert_eq!(models, at(&runtime, &["models", "served"]));
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

/// A micro model in a directory of this home.
fn micro(home: &Home, name: &str, seed: u64) -> PathBuf {
    let directory = home.path().join(name);
    fs::create_dir(&directory).unwrap();
    MicroShape { seed, ..MicroShape::default() }.write(&directory).unwrap();
    directory
}

/// `holdfast models …` on this home's data directory.
fn models(home: &Home, arguments: &[&str]) -> Output {
    let mut command = command();
    command.arg("models").args(arguments).arg("--data-dir").arg(home.data());
    finished(command, SOON)
}

/// Changes the lowest bit of the last number in a file of little-endian f32.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_model_is_added_listed_served_by_its_name_verified_and_removed() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    let path = path.to_str().unwrap();
    let said = stdout(&models(&home, &["add", path]));
    for word in ["micro-1 is registered", "LlamaForCausalLM", path, "serve --model micro-1"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let said = stderr(&models(&home, &["add", path]), 1);
    assert!(said.contains("INVALID_ARGUMENT") && said.contains("--replace") && said.contains("--name"), "{said}");
    stdout(&models(&home, &["add", path, "--replace"]));
    stdout(&models(&home, &["add", path, "--name", "another.name"]));

    let listed = stdout(&models(&home, &["list"]));
    for word in ["pebble", "built in", "another.name", "micro-1", path] {
        assert!(listed.contains(word), "{word}: {listed}");
    }
    let listed: Value = serde_json::from_str(&stdout(&models(&home, &["list", "--json"]))).unwrap();
    let names: Vec<_> =
        listed["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pebble", "another.name", "micro-1"]);
    assert_eq!(listed["models"][2]["is_there"], true);

    assert!(stdout(&models(&home, &["verify", "micro-1", "pebble"])).contains("micro-1: as it was added"));
    let runtime = home.start(&["--model", "micro-1", "--model", "alias=another.name", "--model", "pebble"]);
    let served = at(&runtime, &["models"]);
    for word in ["models/micro-1 (default)", "models/alias", "models/pebble"] {
        assert!(served.contains(word), "{word}: {served}");
    }
    assert_eq!(stdout(&models(&home, &["list"])).lines().count(), 4, "a registry does not wait for a runtime");
    drop(runtime);
    let said = stdout(&chat(&home, &["--data-dir", home.data().to_str().unwrap(), "--model", "micro-1"], "Hello\n"));
    assert!(said.contains("models/micro-1") && said.contains("tokens reused"), "{said}");

    let said = stdout(&models(&home, &["remove", "micro-1"]));
    assert!(said.contains("not touched"), "{said}");
    assert!(Path::new(path).join("model.safetensors").is_file());
    for arguments in [["verify", "micro-1"], ["remove", "micro-1"]] {
        let said = stderr(&models(&home, &arguments), 1);
        assert!(said.contains("MODEL_NOT_FOUND") && said.contains("another.name"), "{said}");
    }
    let said = stderr(&models(&home, &["inspect", "micro-1"]), 1);
    assert!(said.contains("MODEL_NOT_FOUND") && said.contains("registered are another.name"), "{said}");
}

#[test]
fn inspect_tells_what_serving_would_depend_on() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    stdout(&models(&home, &["add", path.to_str().unwrap()]));
    let said = stdout(&models(&home, &["inspect", "micro-1"]));
    for word in [
        "registered 20",
        "LlamaForCausalLM",
        "512 tokens",
        "256 B",
        "BPE (ByteLevel)",
        "chat_template.jinja",
        "default: as published",
        "<tool_call> … </tool_call>",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(said.lines().any(|line| line.contains("model.safetensors") && line.contains("20 of F32")), "{said}");

    let by_path = ["inspect", path.to_str().unwrap(), "--json"];
    let told: Value = serde_json::from_str(&stdout(&models(&home, &by_path))).unwrap();
    assert_eq!((&told["kind"], &told["name"]), (&"path".into(), &"micro-1".into()));
    for (key, value) in
        [("layers", 2), ("heads", 4), ("kv_heads", 2), ("context_tokens", 512), ("kv_bytes_per_token_f32", 256)]
    {
        assert_eq!(told[key], value, "{key}: {told}");
    }
    assert_eq!(told["template"]["renders_tools"], true);
    let listed: Value = serde_json::from_str(&stdout(&models(&home, &["list", "--json"]))).unwrap();
    assert_eq!(told["weights_digest"], listed["models"][1]["weights_digest"]);
    let pebble: Value = serde_json::from_str(&stdout(&models(&home, &["inspect", "pebble", "--json"]))).unwrap();
    assert_eq!((&pebble["kind"], pebble["files"].as_array().map(Vec::len)), (&"built_in".into(), Some(0)));

    flip(&path.join("model.safetensors"));
    let said = stdout(&models(&home, &["inspect", "micro-1"]));
    assert!(said.contains("changed since then: weights"), "{said}");
    let template = path.join("chat_template.jinja");
    fs::write(&template, "{{ 'x' * messages | length }}").unwrap();
    let said = stderr(&models(&home, &["inspect", "micro-1"]), 1);
    assert!(said.contains("INVALID_MODEL") && said.contains("template"), "{said}");
}

#[test]
fn a_registered_model_that_changed_or_went_is_refused_until_it_is_accepted() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    let place = path.to_str().unwrap();
    stdout(&models(&home, &["add", place]));
    flip(&path.join("model.safetensors"));
    let output = models(&home, &["verify", "pebble", "micro-1"]);
    assert!(stderr(&output, 1).contains("1 of 2"), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    for word in
        ["pebble: as it was", "micro-1: not what was added", "model.safetensors changed", "parts that changed: weights"]
    {
        assert!(told.contains(word), "{word}: {told}");
    }
    let refused = |output: Output, words: &[&str]| {
        let said = stderr(&output, 1);
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let words = ["MODEL_REVISION_UNAVAILABLE", "weights changed", "models verify micro-1", "--replace"];
    refused(home.refused(&["--model", "micro-1"], &[]), &words);
    refused(chat(&home, &["--data-dir", home.data().to_str().unwrap(), "--model", "micro-1"], ""), &words);
    stdout(&models(&home, &["add", place, "--replace"]));
    drop(home.start(&["--model", "micro-1"]));

    fs::write(path.join("generation_config.json"), "{\"temperature\": 0.5}").unwrap();
    let told = String::from_utf8(models(&home, &["verify", "micro-1"]).stdout).unwrap();
    assert!(told.contains("generation_config.json ") && told.contains("are the same"), "{told}");
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let told = String::from_utf8(models(&home, &["verify", "micro-1"]).stdout).unwrap();
    assert!(told.contains("model.safetensors is gone") && told.contains("no longer loads"), "{told}");
    refused(
        home.refused(&["--model", "micro-1"], &[]),
        &["INVALID_MODEL", "model.safetensors", "models remove micro-1"],
    );

    fs::remove_dir_all(&path).unwrap();
    refused(home.refused(&["--model", "micro-1"], &[]), &["MODEL_NOT_FOUND", place, "models remove micro-1"]);
    assert!(stdout(&models(&home, &["list"])).contains("gone"));
    let output = models(&home, &["verify", "micro-1"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("nothing is there now"), "{output:?}");
    stderr(&output, 1);
    stdout(&models(&home, &["remove", "micro-1"]));
}

#[test]
fn an_entry_of_a_hub_cache_is_registered_as_it_lies() {
    let home = Home::new();
    let files = micro(&home, "files", 1);
    let entry = home.path().join("hub/models--some-org--Small-1B");
    let (blobs, snapshot) = (entry.join("blobs"), entry.join("snapshots/0a1b2c"));
    for directory in [&blobs, &snapshot, &entry.join("refs")] {
        fs::create_dir_all(directory).unwrap();
    }
    for (i, file) in fs::read_dir(&files).unwrap().enumerate() {
        let file = file.unwrap();
        fs::rename(file.path(), blobs.join(format!("b10b{i}"))).unwrap();
        symlink(format!("../../blobs/b10b{i}"), snapshot.join(file.file_name())).unwrap();
    }
    fs::write(entry.join("refs/main"), "0a1b2c").unwrap();
    let said = stdout(&models(&home, &["add", entry.to_str().unwrap()]));
    assert!(said.contains("Small-1B is registered") && said.contains("snapshots/0a1b2c"), "{said}");
    stdout(&models(&home, &["verify", "Small-1B"]));
    drop(home.start(&["--model", "Small-1B"]));
    drop(home.start(&["--model", entry.to_str().unwrap()]));

    fs::write(entry.join("refs/main"), "another").unwrap();
    let said = stderr(&models(&home, &["add", entry.to_str().unwrap(), "--name", "b"]), 1);
    assert!(said.contains("INVALID_MODEL") && said.contains("another"), "{said}");
    drop(home.start(&["--model", "Small-1B"]));
}

#[test]
fn what_cannot_be_registered_is_refused_with_the_next_step() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    let path = path.to_str().unwrap();
    let empty = home.path().join("empty");
    let spaced = home.path().join("two words");
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&spaced).unwrap();
    let (empty, spaced) = (empty.to_str().unwrap(), spaced.to_str().unwrap());
    let refusals: &[(&[&str], [&str; 2])] = &[
        (&["add", path, "--name", "../escaped"], ["INVALID_NAME", "letters, digits"]),
        (&["add", path, "--name", ".."], ["INVALID_NAME", "\"..\""]),
        (&["add", path, "--name", "a/b"], ["INVALID_NAME", "a/b"]),
        (&["add", path, "--name", "pebble"], ["INVALID_ARGUMENT", "built in"]),
        (&["add", spaced], ["INVALID_NAME", "--name"]),
        (&["add", "pebble"], ["built in", "./pebble"]),
        (&["add", "/no/where"], ["MODEL_NOT_FOUND", "/no/where"]),
        (&["add", empty], ["INVALID_MODEL", "config.json"]),
        (&["remove", "../escaped"], ["INVALID_NAME", "../escaped"]),
        (&["verify", "a/b"], ["INVALID_NAME", "a/b"]),
        (&["remove", "pebble"], ["MODEL_NOT_FOUND", "pebble"]),
        (&["list", "--set", "models_dir=7"], ["INVALID_SETTING", "models_dir"]),
    ];
    for (arguments, words) in refusals {
        let said = stderr(&models(&home, arguments), 1);
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
    }
    assert!(!home.data().join("models").exists(), "nothing was written");
    stderr(&models(&home, &["verify"]), 2);
    stderr(&holdfast(&["models", "--address", "127.0.0.1:1", "list"]), 2);
}

#[test]
fn damaged_entries_are_passed_over_in_lists_and_refused_in_use() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    stdout(&models(&home, &["add", path.to_str().unwrap()]));
    let registry = home.data().join("models");
    let entry = fs::read_to_string(registry.join("micro-1.toml")).unwrap();
    fs::write(registry.join("cut.toml"), &entry[..entry.len() / 3]).unwrap();
    fs::write(registry.join("evil name.toml"), entry).unwrap();
    let output = models(&home, &["list"]);
    let said = stderr(&output, 0);
    assert!(
        said.contains("cut.toml") && said.contains("models remove cut") && said.contains("evil name.toml"),
        "{said}"
    );
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(listed.contains("micro-1") && !listed.contains("cut"), "{listed}");
    let said = stderr(&home.refused(&["--model", "cut"], &[]), 1);
    assert!(
        said.contains("INVALID_MODEL") && said.contains("cut.toml") && said.contains("models remove cut"),
        "{said}"
    );
    stderr(&models(&home, &["verify", "cut"]), 1);
    stdout(&models(&home, &["remove", "cut"]));
    assert!(!stderr(&models(&home, &["list"]), 0).contains("cut"));
}

#[test]
fn processes_that_add_at_once_lose_nothing() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    let add = |name: &str| {
        let mut command = command();
        command.args(["models", "add"]).arg(&path).args(["--name", name, "--data-dir"]).arg(home.data());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = ["a", "b", "c", "same", "same", "same"].into_iter().map(add).collect();
    let succeeded = children.into_iter().map(|mut child| child.wait().unwrap().success()).filter(|done| *done).count();
    assert_eq!(succeeded, 4, "three names of their own, and one of those who share one");
    let listed: Value = serde_json::from_str(&stdout(&models(&home, &["list", "--json"]))).unwrap();
    let names: Vec<_> =
        listed["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pebble", "a", "b", "c", "same"]);
    assert_eq!(listed["problems"], serde_json::json!([]));
}

#[test]
fn the_registry_may_lie_elsewhere_and_an_address_in_the_environment_is_no_hindrance() {
    let home = Home::new();
    let path = micro(&home, "micro-1", 1);
    let shared = home.path().join("shared");
    let mut add = command();
    add.args(["models", "add"]).arg(&path).env("HOLDFAST_MODELS_DIR", &shared).env("HOLDFAST_ADDRESS", "127.0.0.1:1");
    stdout(&finished(add, SOON));
    assert!(shared.join("micro-1.toml").is_file());
    let set = format!("models_dir={}", shared.display());
    assert!(stdout(&models(&home, &["list", "--set", &set])).contains("micro-1"));
    drop(home.start(&["--model", "micro-1", "--set", &set]));
}
