//! `holdfast serve`: start, say where, wait for a signal, drain.

use tokio::signal::unix::{SignalKind, signal};

use crate::runtime::Runtime;
use crate::settings::Settings;

/// Serves until SIGTERM or Ctrl-C; a second signal does not wait for running turns.
///
/// # Errors
/// When the runtime cannot start.
#[expect(clippy::print_stdout, reason = "the address and a first command to try are this command's output")]
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let runtime = Runtime::start(settings).await?;
    let address = runtime.address();
    println!("holdfast {} serves {} on {address}", crate::build::VERSION, runtime.models().join(", "));
    println!("sessions are kept in {}", settings.data_dir.display());
    println!("try:");
    println!("  grpcurl -plaintext -d '{{\"session_id\":\"my-first-session\",\"request_id\":\"try\"}}' {address} holdfast.v1.SessionService/CreateSession");
    println!(
        "  grpcurl -plaintext -d '{{\"session\":\"sessions/my-first-session\",\"input\":[{{\"message\":{{\"role\":\"ROLE_USER\",\
         \"content\":[{{\"text\":\"My name is Ada.\"}}]}}}}]}}' {address} holdfast.v1.SessionService/RunTurn"
    );
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    println!("draining: running turns reach a step boundary and go on at the next start; a second signal does not wait");
    tokio::select! {
        stopped = runtime.stop() => stopped,
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
