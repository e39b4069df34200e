//! `holdfast serve`: start, say where, wait for a signal, drain.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};

use crate::runtime::Runtime;
use crate::settings::Settings;

/// Serves until SIGTERM or Ctrl-C; a second signal does not wait for running turns.
///
/// # Errors
/// When the runtime cannot start.
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let runtime = Runtime::start(settings).await?;
    say(&welcome(&runtime, settings));
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    say("draining: running turns reach a step boundary and go on at the next start; a second signal does not wait");
    tokio::select! {
        stopped = runtime.stop() => stopped,
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// The first line ends with the address, for programs that start a runtime.
fn welcome(runtime: &Runtime, settings: &Settings) -> String {
    let address = runtime.address();
    let create = r#"'{"session_id":"my-first-session","request_id":"try"}'"#;
    let turn = r#"'{"session":"sessions/my-first-session","input":[{"message":{"role":"ROLE_USER","content":[{"text":"My locker code is 4471."}]}}]}'"#;
    format!(
        "holdfast {} serves {} on {address}\nsessions are kept in {}\ntry:\n  grpcurl -plaintext -d {create} {address} \
         holdfast.v1.SessionService/CreateSession\n  grpcurl -plaintext -d {turn} {address} holdfast.v1.SessionService/RunTurn",
        crate::build::VERSION,
        runtime.models().join(", "),
        settings.data_dir.display(),
    )
}

/// Tells whoever started the runtime. Nobody has to listen: a closed standard output is no reason to stop serving.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
