//! The command line, as clap reads it. What commands do is in their own files.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A stateful runtime environment for agents: sessions keep the KV state of their whole conversation, so that a turn
/// computes only what is new.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version = crate::build::VERSION, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the runtime and serve gRPC until SIGTERM or Ctrl-C.
    Serve(SettingsArgs),
    /// Chat in the terminal; starts an embedded runtime unless --address names one.
    Chat(ChatArgs),
    /// Look at sessions and delete them.
    Sessions(SessionsArgs),
    /// Register models by name, look at them and verify them; without a subcommand, list what a runtime serves.
    Models(ModelsArgs),
    /// Tell the device of each served model, the chip that it stands for, and what is modelled of that chip and the others.
    Devices(DevicesArgs),
    /// Lend a device of this machine to a runtime elsewhere.
    Device(DeviceArgs),
    /// Print every setting in force and where its value came from.
    Config(SettingsArgs),
    /// Print a completion script for a shell: `holdfast completions bash > ~/.local/share/bash-completion/completions/holdfast`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Where settings come from: built-in values, then --config, then HOLDFAST_… variables, then these flags.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SettingsArgs {
    /// A TOML file with settings; `holdfast config` prints all keys.
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:50051]; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Where sessions are kept; one process owns it at a time [default: ~/.local/share/holdfast].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A model to serve: `pebble` (built in), a name that `holdfast models add` registered, a directory in Hugging Face layout, a
    /// GGUF file, or NAME=any of these. May be repeated; the first is the default.
    #[arg(long = "model", value_name = "NAME|PATH")]
    pub(crate) models: Vec<String>,
    /// Allow listening beyond loopback without TLS or credentials.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Any other setting, for example `--set device.threads=2`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A running runtime; without it one is started inside this process.
    #[arg(long, env = "HOLDFAST_ADDRESS", value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Continue this session, or begin one of this name.
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// The system message of a new session.
    #[arg(long, value_name = "TEXT")]
    pub(crate) instructions: Option<String>,
    /// 0 is greedy, at most 2 [default: the model's].
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RemoteArgs {
    /// The runtime to ask.
    #[arg(long, env = "HOLDFAST_ADDRESS", value_name = "HOST:PORT", default_value = "127.0.0.1:50051", global = true)]
    pub(crate) address: String,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(flatten)]
    pub(crate) served: ServedArgs,
    #[command(subcommand)]
    pub(crate) command: Option<ModelsCommand>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServedArgs {
    /// The runtime to ask.
    #[arg(long, env = "HOLDFAST_ADDRESS", value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    pub(crate) address: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Load and check a model, and register it by name, so that `serve --model NAME` finds it and knows that it is the same. The
    /// model is not copied: it stays where it lies.
    Add {
        /// A directory in Hugging Face layout, a GGUF file, or an entry of a Hugging Face hub cache (`models--org--name`).
        path: String,
        /// 1 to 64 letters, digits, '.', '_' and '-' [default: the name of the directory, file or repository].
        #[arg(long)]
        name: Option<String>,
        /// Take the place of a model that is registered under the name.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// List built-in and registered models.
    List {
        /// As JSON, digests included.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Load a model, and tell its architecture, sizes, tokenizer, template, tool calls, digests and files.
    Inspect {
        /// A built-in or registered name, or a path.
        #[arg(value_name = "NAME|PATH")]
        model: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Read every byte of registered models, and tell whether they are what was added; exit status 1 when one is not.
    Verify {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Forget registered models. Their files are not touched.
    Remove {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// List the models that a running runtime serves, with what they hold of its device.
    Served(ServedArgs),
}

/// Settings of commands without a service: where models are registered (`models_dir`, else `models` in `data_dir`), and others.
#[derive(Debug, Clone, Args)]
pub(crate) struct RegistryArgs {
    /// A TOML file with settings; `holdfast config` prints all keys.
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory in whose `models` they are registered [default: ~/.local/share/holdfast].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Any other setting, for example `--set models_dir=/srv/models/registry`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RegistryArgs {
    /// As the flags of every command that reads settings.
    pub(crate) fn settings(&self) -> SettingsArgs {
        SettingsArgs {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            set: self.set.clone(),
            ..SettingsArgs::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    #[command(subcommand)]
    pub(crate) command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Load a model onto a device and serve the device until SIGTERM or Ctrl-C, to one runtime at a time. That runtime is started with
    /// the same model, and with `--set device.kind=remote --set device.address=ADDRESS`.
    Serve(DeviceServeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DeviceServeArgs {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "unix:PATH|HOST:PORT")]
    pub(crate) listen: holdfast_backend_remote::DeviceAddress,
    /// The model to hold: `pebble` (built in), a registered name, a directory in Hugging Face layout, or a GGUF file.
    #[arg(long, value_name = "NAME|PATH", default_value = "pebble")]
    pub(crate) model: String,
    /// Allow listening beyond loopback; there is neither TLS nor credentials.
    #[arg(long)]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) settings: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: SessionsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// List sessions: id, state, turns, tokens, last change.
    List {
        /// As ListSessions reads it, for example `state = IDLE AND labels.team = "red"`.
        #[arg(long, default_value = "")]
        filter: String,
        /// At most this many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show one session with its items.
    Show {
        /// Its id.
        session: String,
    },
    /// Delete sessions.
    Delete {
        /// Their ids.
        #[arg(required = true)]
        sessions: Vec<String>,
    },
    /// Follow a session's events until Ctrl-C.
    Tail {
        /// Its id.
        session: String,
        /// The first event wanted; 0 is only what happens from now on.
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
}
