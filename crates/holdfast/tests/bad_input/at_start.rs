//! What a runtime refuses to start with: settings, data directories and models. It ends with exit code 1 and a message
//! that begins with the reason and says what to look at.

use std::fs;
use std::process::Output;

use crate::support::{Home, model_dir};

/// What is wrong, and which words the last line holds.
pub(crate) struct Start {
    pub(crate) input: &'static str,
    pub(crate) reason: &'static str,
    /// What the message names.
    pub(crate) names: &'static [&'static str],
    run: fn(&Home) -> Output,
}

macro_rules! starts {
    ($($input:literal => $reason:literal, [$($name:literal),*], |$home:ident| $run:expr;)*) => {
        &[$(Start { input: $input, reason: $reason, names: &[$($name),*], run: |$home| $run },)*]
    };
}

pub(crate) const STARTS: &[Start] = starts! {
    "an unknown key in the settings file" => "INVALID_SETTING", ["thread", "holdfast config"], |home|
        with_file(home, "[device]\nthread = 2\n");
    "a settings file that is not TOML" => "INVALID_SETTING", ["holdfast.toml"], |home|
        with_file(home, "threads: 2\n");
    "a settings file that is not there" => "INVALID_SETTING", ["nowhere.toml"], |home|
        home.refused(&["--config", "/nowhere.toml"], &[]);
    "an unknown environment variable of ours" => "INVALID_SETTING", ["slot", "environment"], |home|
        home.refused(&[], &[("HOLDFAST_DEVICE__SLOT", "7")]);
    "an unknown key in --set" => "INVALID_SETTING", ["limits.pages"], |home|
        home.refused(&["--set", "limits.pages=7"], &[]);
    "--set without a value" => "INVALID_SETTING", ["KEY=VALUE"], |home|
        home.refused(&["--set", "device.threads"], &[]);
    "a word where a number belongs" => "INVALID_SETTING", ["device.threads"], |home|
        home.refused(&["--set", "device.threads=many"], &[]);
    "a negative number" => "INVALID_SETTING", ["device.kv_bytes"], |home|
        home.refused(&["--set", "device.kv_bytes=-1"], &[]);
    "a limit of 0" => "INVALID_SETTING", ["page_size"], |home|
        home.refused(&["--set", "limits.page_size=0"], &[]);
    "blocks of 17 tokens" => "INVALID_SETTING", ["device.block_tokens"], |home|
        home.refused(&["--set", "device.block_tokens=17"], &[]);
    "a KV pool that cannot hold one block" => "INVALID_SETTING", ["kv_bytes"], |home|
        home.refused(&["--set", "device.kv_bytes=4096"], &[]);
    "a GPU that this machine has not" => "INVALID_SETTING", ["neuron"], |home|
        home.refused(&["--set", "device.kind=cuda", "--set", "device.ordinal=1000"], &[]);
    "a named chip without room for the model" => "INVALID_SETTING", ["HBM", "trn2"], |home|
        home.refused(&["--set", "chip.name=trn2", "--set", "chip.hbm_bytes=1048576"], &[]);
    "buckets that do not rise" => "INVALID_SETTING", ["buckets", "batch"], |home|
        home.refused(&["--set", "chip.batch_buckets=[1, 4, 2]"], &[]);
    "an address that is none" => "INVALID_SETTING", ["listen"], |home|
        home.refused(&["--set", "listen=\"everywhere\""], &[]);
    "listening beyond loopback without --insecure" => "INVALID_SETTING", ["0.0.0.0", "--insecure"], |home|
        home.refused(&["--set", "listen=\"0.0.0.0:0\""], &[]);
    "a port that is taken" => "INVALID_SETTING", ["listen"], |home| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("listen=\"{}\"", taken.local_addr().unwrap());
        home.refused(&["--set", &address], &[])
    };
    "a second process on a data directory" => "DATA_DIR_IN_USE", ["data", "pid"], |home| {
        let _first = home.start(&[]);
        home.refused(&[], &[])
    };
    "a data directory of a newer version" => "SCHEMA_TOO_NEW", ["journal.db"], |home| {
        drop(home.start(&[]));
        let journal = rusqlite::Connection::open(home.data().join("journal.db")).unwrap();
        journal.pragma_update(None, "user_version", 4_000).unwrap();
        drop(journal);
        home.refused(&[], &[])
    };
    "a journal that is not a database" => "JOURNAL_UNAVAILABLE", ["journal.db"], |home| {
        fs::create_dir_all(home.data()).unwrap();
        fs::write(home.data().join("journal.db"), "not a database, but long enough to be one. ".repeat(100)).unwrap();
        home.refused(&[], &[])
    };
    "a data directory that is a file" => "JOURNAL_UNAVAILABLE", ["data"], |home| {
        fs::write(home.data(), "a file").unwrap();
        home.refused(&[], &[])
    };
    "a built-in model that is not there" => "MODEL_NOT_FOUND", ["gpt-17"], |home|
        home.refused(&["--model", "gpt-17"], &[]);
    "a model directory that is not there" => "MODEL_NOT_FOUND", ["nowhere"], |home|
        home.refused(&["--model", "mine=/nowhere/at/all"], &[]);
    "a model without config.json" => "INVALID_MODEL", ["config.json"], |home|
        without(home, "config.json");
    "a model without weights" => "INVALID_MODEL", ["safetensors"], |home|
        without(home, "model.safetensors");
    "a model without a tokenizer" => "INVALID_MODEL", ["tokenizer.json"], |home|
        without(home, "tokenizer.json");
    "a config.json that is not JSON" => "INVALID_MODEL", ["config.json"], |home|
        damaged(home, "config.json", |bytes| bytes.truncate(bytes.len() / 2));
    "a model of an architecture that is not served" => "INVALID_MODEL", ["config.json", "MambaForCausalLM"], |home|
        damaged(home, "config.json", |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            *bytes = text.replace("LlamaForCausalLM", "MambaForCausalLM").replace("\"llama\"", "\"mamba\"").into_bytes();
        });
    "a config.json that does not fit the weights" => "INVALID_MODEL", ["mlp.gate_proj", "config"], |home|
        damaged(home, "config.json", |bytes| {
            let mut config: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            config["intermediate_size"] = 768.into();
            *bytes = serde_json::to_vec(&config).unwrap();
        });
    "weights cut in the middle" => "INVALID_MODEL", ["model.safetensors"], |home|
        damaged(home, "model.safetensors", |bytes| bytes.truncate(bytes.len() / 2));
    "weights cut after ten bytes" => "INVALID_MODEL", ["model.safetensors"], |home|
        damaged(home, "model.safetensors", |bytes| bytes.truncate(10));
    "weights of no bytes" => "INVALID_MODEL", ["model.safetensors"], |home|
        damaged(home, "model.safetensors", Vec::clear);
    "a flipped bit in the length of the weights' header" => "INVALID_MODEL", ["model.safetensors"], |home|
        damaged(home, "model.safetensors", |bytes| bytes[5] ^= 0x40);
    "a flipped bit in the weights' header" => "INVALID_MODEL", ["model.safetensors"], |home|
        damaged(home, "model.safetensors", |bytes| bytes[9] ^= 0x40);
    "a tokenizer cut in the middle" => "INVALID_MODEL", ["tokenizer.json"], |home|
        damaged(home, "tokenizer.json", |bytes| bytes.truncate(bytes.len() / 2));
    "two models of one name" => "INVALID_SETTING", ["models", "mine"], |home| {
        let model = format!("mine={}", model_dir::copy(&home.path().join("model")).display());
        home.refused(&["--model", &model, "--model", &model], &[])
    };
};

fn with_file(home: &Home, text: &str) -> Output {
    let path = home.path().join("holdfast.toml");
    fs::write(&path, text).unwrap();
    home.refused(&["--config", path.to_str().unwrap()], &[])
}

fn damaged(home: &Home, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> Output {
    let directory = model_dir::copy(&home.path().join("model"));
    model_dir::damage(&directory, file, change);
    home.refused(&["--model", &format!("mine={}", directory.display())], &[])
}

fn without(home: &Home, file: &str) -> Output {
    let directory = model_dir::copy(&home.path().join("model"));
    fs::remove_file(directory.join(file)).unwrap();
    home.refused(&["--model", &format!("mine={}", directory.display())], &[])
}

#[test]
fn a_start_that_cannot_be_ends_with_the_reason() {
    let mut wrong = Vec::new();
    for start in STARTS {
        let output = (start.run)(&Home::new());
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = format!("holdfast: {}: ", start.reason);
        let told = said.lines().any(|line| line.starts_with(&reason));
        let named = start.names.iter().all(|name| said.contains(name));
        let right = output.status.code() == Some(1) && told && named && !said.contains("panicked");
        if !right {
            wrong.push(format!(
                "{}: expected {} naming {:?}, {}:\n{said}",
                start.input, start.reason, start.names, output.status
            ));
        }
    }
    assert!(wrong.is_empty(), "{} starts:\n{}", wrong.len(), wrong.join("\n"));
}
