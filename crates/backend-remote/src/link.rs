//! One life of a device, as the connection that it is: opened, asked one thing at a time, gone when it is dropped.
//!
//! In: messages. Out: answers, each within a bound of time, or why there is none. All of it runs on the backend's own small runtime;
//! the backend's callers wait for it without one. Deliberately not here: what messages mean.

use std::sync::Arc;
use std::time::Duration;

use holdfast_backend::{BackendError, BlockCopy, CopyDirection};
use holdfast_contracts::device_v1 as pb;
use holdfast_types::StepOutput;
use pb::device_service_client::DeviceServiceClient;
use pb::run_steps_reply::Reply;
use pb::run_steps_request::Request;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::answer::Assembly;
use crate::wire::description::{Described, from_wire};
use crate::{CHUNK_BYTES_MAX, DeviceAddress, MESSAGE_BYTES_MAX, RemoteError};

/// Between two tries to reach a device that is not there yet.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A connection without traffic is asked for a sign of life this often ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// ... and given up after so long without one.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The runtime that connections live on: one thread, stopped without waiting when it is dropped.
#[derive(Debug)]
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    pub(crate) fn start() -> std::io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("remote-device").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs a future and waits for it; `None` if it died of a defect.
    pub(crate) fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            // Nobody waits any more only if the caller's thread is gone.
            let _ = done.send(future.await);
        });
        result.recv().ok()
    }

    /// Runs a future beside everything else.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.0 {
            drop(runtime.spawn(future));
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Not by the runtime's own drop, which must not run inside another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The connection of one life.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    client: DeviceServiceClient<Channel>,
    steps: Arc<Mutex<Steps>>,
    /// The device's name of this life.
    epoch: u64,
}

#[derive(Debug)]
struct Steps {
    requests: mpsc::Sender<pb::RunStepsRequest>,
    replies: Streaming<pb::RunStepsReply>,
}

/// Why a request was not answered as it should be.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The device says that it failed.
    Failed(pb::Failure),
    /// The connection broke, or the device broke the contract; the life is over.
    Broken(String),
}

impl Link {
    /// Opens a life; tries again until `patience` is over.
    pub(crate) async fn open_patiently(
        address: &DeviceAddress,
        patience: Duration,
    ) -> Result<(Self, Described), RemoteError> {
        let mut last = None;
        let tries = async {
            loop {
                match Self::open(address, patience).await {
                    Err(error @ RemoteError::Unreachable { .. }) => last = Some(error),
                    opened => return opened,
                }
                sleep(TRY_AGAIN).await;
            }
        };
        match timeout(patience, tries).await {
            Ok(opened) => opened,
            Err(_) => {
                let silent = || unreachable(address, format!("no answer within {patience:?}"));
                Err(last.unwrap_or_else(silent))
            }
        }
    }

    /// Opens a life, or fails within `bound`.
    pub(crate) async fn open(address: &DeviceAddress, bound: Duration) -> Result<(Self, Described), RemoteError> {
        match timeout(bound, Self::connect(address)).await {
            Ok(opened) => opened,
            Err(_) => Err(unreachable(address, format!("no answer within {bound:?}"))),
        }
    }

    async fn connect(address: &DeviceAddress) -> Result<(Self, Described), RemoteError> {
        let problem = |error: &dyn std::error::Error| unreachable(address, chain(error));
        let endpoint = Endpoint::from_shared(address.uri()).map_err(|error| problem(&error))?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| problem(&error))?;
        let mut client = DeviceServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (requests, outgoing) = mpsc::channel(1);
        let open = pb::RunStepsRequest { request: Some(Request::Open(pb::OpenSteps {})) };
        // There is room for one, and the receiver is here.
        let _ = requests.try_send(open);
        let refused = |status: Status| unreachable(address, told(&status));
        let mut replies = client.run_steps(ReceiverStream::new(outgoing)).await.map_err(refused)?.into_inner();
        let first = replies.message().await.map_err(refused)?.and_then(|reply| reply.reply);
        let Some(Reply::Opened(opened)) = first else {
            return Err(unreachable(address, "it does not answer as a device does".to_owned()));
        };
        let epoch = opened.epoch;
        let described =
            from_wire(opened).map_err(|problem| RemoteError::Description { address: address.clone(), problem })?;
        let steps = Arc::new(Mutex::new(Steps { requests, replies }));
        Ok((Self { client, steps, epoch }, described))
    }

    /// Hands a step over.
    pub(crate) async fn submit(self, plan: pb::StepPlan, bound: Duration) -> Result<(), Unanswered> {
        let id = plan.step_id;
        let asking = async {
            let mut steps = self.steps.lock().await;
            match steps.ask(Request::Submit(plan)).await? {
                Reply::Submitted(submitted) if submitted.step_id == id => Ok(()),
                Reply::Submitted(submitted) => {
                    Err(Unanswered::Broken(format!("it took step {} when step {id} was submitted", submitted.step_id)))
                }
                other => Err(unexpected(other)),
            }
        };
        within(bound, "take a step", asking).await
    }

    /// Waits for a step.
    pub(crate) async fn collect(
        self,
        collect: pb::CollectStep,
        mut assembly: Assembly,
        bound: Duration,
    ) -> Result<StepOutput, Unanswered> {
        let asking = async {
            let mut steps = self.steps.lock().await;
            let mut reply = steps.ask(Request::Collect(collect)).await?;
            loop {
                let Reply::Output(part) = reply else { return Err(unexpected(reply)) };
                if let Some(output) = assembly.take(part).map_err(Unanswered::Broken)? {
                    return Ok(output);
                }
                reply = steps.next().await?;
            }
        };
        within(bound, "give a step", asking).await
    }

    /// Moves a block. `bytes` are those of a whole block.
    pub(crate) async fn copy(
        mut self,
        copy: BlockCopy,
        bytes: u64,
        bound: Duration,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let (epoch, group, block) = (self.epoch, u32::from(copy.group), copy.block.0);
        let moving = async {
            match copy.direction {
                CopyDirection::Export => {
                    let request = pb::ExportBlockRequest { epoch, group, block };
                    let mut chunks = self.client.export_block(request).await?.into_inner();
                    let mut whole = Vec::new();
                    while let Some(chunk) = chunks.message().await? {
                        whole.extend(chunk.data);
                        if whole.len() as u64 > bytes {
                            break;
                        }
                    }
                    if whole.len() as u64 != bytes {
                        return Err(Status::internal(format!("it gave {} bytes for a block of {bytes}", whole.len())));
                    }
                    Ok(Some(whole))
                }
                CopyDirection::Import(whole) => {
                    let chunks = (whole.len().div_ceil(CHUNK_BYTES_MAX)).max(1);
                    let messages = (0..chunks).map(move |at| {
                        let end = whole.len().min((at + 1) * CHUNK_BYTES_MAX);
                        let data = whole[at * CHUNK_BYTES_MAX..end].to_vec();
                        let first = pb::ImportBlockRequest { epoch, group, block, data: Vec::new() };
                        let head = if at == 0 { first } else { pb::ImportBlockRequest::default() };
                        pb::ImportBlockRequest { data, ..head }
                    });
                    self.client.import_block(tokio_stream::iter(messages)).await?;
                    Ok(None)
                }
            }
        };
        match timeout(bound, moving).await {
            Ok(moved) => moved.map_err(|status: Status| copy_error(&status)),
            Err(_) => Err(BackendError::Lost(format!("the device did not copy a block within {bound:?}"))),
        }
    }
}

impl Steps {
    async fn ask(&mut self, request: Request) -> Result<Reply, Unanswered> {
        let request = pb::RunStepsRequest { request: Some(request) };
        // A closed channel means that the stream has ended; its answer says why.
        let _ = self.requests.send(request).await;
        self.next().await
    }

    async fn next(&mut self) -> Result<Reply, Unanswered> {
        match self.replies.message().await {
            Ok(Some(reply)) => match reply.reply {
                Some(Reply::Failure(failure)) => Err(Unanswered::Failed(failure)),
                Some(reply) => Ok(reply),
                None => Err(Unanswered::Broken("it gave an answer that says nothing".to_owned())),
            },
            Ok(None) => Err(Unanswered::Broken("it ended the stream of steps".to_owned())),
            Err(status) => Err(Unanswered::Broken(told(&status))),
        }
    }
}

async fn within<T>(
    bound: Duration,
    what: &str,
    asking: impl Future<Output = Result<T, Unanswered>>,
) -> Result<T, Unanswered> {
    match timeout(bound, asking).await {
        Ok(answered) => answered,
        Err(_) => Err(Unanswered::Broken(format!("it did not {what} within {bound:?}"))),
    }
}

fn unexpected(reply: Reply) -> Unanswered {
    let name = match reply {
        Reply::Opened(_) => "opened",
        Reply::Submitted(_) => "submitted",
        Reply::Output(_) => "output",
        Reply::Failure(_) => "failure",
    };
    Unanswered::Broken(format!("it answered with `{name}`, which was not asked for"))
}

fn unreachable(address: &DeviceAddress, problem: String) -> RemoteError {
    RemoteError::Unreachable { address: address.clone(), problem }
}

/// An error with what caused it: transport errors say little by themselves.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn told(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// What the contract says of each status of a copy.
fn copy_error(status: &Status) -> BackendError {
    let message = told(status);
    match status.code() {
        Code::InvalidArgument => BackendError::Rejected(message),
        Code::ResourceExhausted => BackendError::OutOfMemory(message),
        Code::Internal => BackendError::Fault(message),
        _ => BackendError::Lost(message),
    }
}
