//! The server: lends a local backend to one runtime at a time, over the contract of devices.
//!
//! In: a backend, a bound listener, a future that says when to stop. Out: answered calls. Deliberately not here: which backend, signals
//! and settings (the binary).

use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDirection};
use holdfast_contracts::{DEVICE_FILE_DESCRIPTOR_SET, device_v1 as pb};
use holdfast_types::{BlockId, DeviceDescription, StepId};
use pb::device_service_server::{DeviceService, DeviceServiceServer};
use pb::run_steps_reply::Reply;
use pb::run_steps_request::Request as Ask;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::host::{COPY_LOOK, Host};
use crate::wire::description::to_wire;
use crate::wire::output::parts;
use crate::wire::plan::{from_wire, group_from, masks_from_wire};
use crate::{CHUNK_BYTES_MAX, DeviceAddress, MESSAGE_BYTES_MAX};

/// Messages that wait for a slow reader.
const WAITING_MAX: usize = 4;

/// A runtime that gives no sign of life is asked for one this often ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// ... and after so long without one the device is free for another.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// After every stream was told to end: time for the last bytes to leave.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Where a device listens, bound.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket, and its path; the file is removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
    /// A TCP port.
    Tcp(TcpListener),
}

/// The file of a Unix socket.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Begins to listen. A socket that a dead process left behind is taken over; port 0 takes a free one.
    ///
    /// # Errors
    /// As the system says; `AddrInUse` when somebody listens there.
    pub async fn bind(address: &DeviceAddress) -> std::io::Result<Self> {
        let path = match address {
            DeviceAddress::Tcp(address) => return Ok(Self::Tcp(TcpListener::bind(address).await?)),
            DeviceAddress::Unix(path) => path,
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let refused = UnixStream::connect(path).await.err().map(|refused| refused.kind());
                if refused != Some(ErrorKind::ConnectionRefused) {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        Ok(Self::Unix(listener, SocketFile(path.clone())))
    }

    /// Where it listens; the port that was found where 0 was asked for.
    ///
    /// # Errors
    /// As the system says.
    pub fn address(&self) -> std::io::Result<DeviceAddress> {
        Ok(match self {
            Self::Unix(_, SocketFile(path)) => DeviceAddress::Unix(path.clone()),
            Self::Tcp(listener) => DeviceAddress::Tcp(listener.local_addr()?.to_string()),
        })
    }
}

/// Serves `backend` on `listener` until `shutdown` is done; a runtime that uses it then loses it.
///
/// # Errors
/// When serving breaks down.
pub async fn serve(
    backend: Box<dyn Backend>,
    listener: Listener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (stop, stopped) = watch::channel(false);
    let device = Device::new(backend, stopped.clone());
    let service = DeviceServiceServer::new(device)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let mut router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service);
    let reflection =
        tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DEVICE_FILE_DESCRIPTOR_SET);
    // The set is compiled in; a device without reflection is a device all the same.
    if let Ok(reflection) = reflection.build_v1() {
        router = router.add_service(reflection);
    }
    let ended = wait(stopped);
    let (mut tcp, mut unix, _file) = match listener {
        Listener::Tcp(listener) => (Some(TcpIncoming::from(listener).with_nodelay(Some(true))), None, None),
        Listener::Unix(listener, file) => (None, Some(UnixListenerStream::new(listener)), Some(file)),
    };
    let serving = async move {
        match (tcp.take(), unix.take()) {
            (Some(incoming), _) => router.serve_with_incoming_shutdown(incoming, ended).await,
            (None, Some(incoming)) => router.serve_with_incoming_shutdown(incoming, ended).await,
            (None, None) => Ok(()),
        }
    };
    let mut serving = pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        () = shutdown => {}
    }
    stop.send_replace(true);
    match timeout(CLOSE_GRACE, serving).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!("connections were still open {CLOSE_GRACE:?} after their streams; leaving them");
            Ok(())
        }
    }
}

/// Done when the server is to stop.
async fn wait(mut stopped: watch::Receiver<bool>) {
    // A dropped sender means the same as a sent word.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// The service.
struct Device {
    host: Arc<Mutex<Host>>,
    /// As it was when the latest life began or ended: asking does not wait for a step.
    described: Arc<Mutex<(DeviceDescription, u64)>>,
    owner: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

impl Device {
    fn new(backend: Box<dyn Backend>, stopped: watch::Receiver<bool>) -> Self {
        let host = Host::new(backend);
        let described = Arc::new(Mutex::new(host.describe()));
        Self { host: Arc::new(Mutex::new(host)), described, owner: Arc::new(Semaphore::new(1)), stopped }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One life, from its stream's first message to its end.
struct Life {
    host: Arc<Mutex<Host>>,
    described: Arc<Mutex<(DeviceDescription, u64)>>,
    replies: mpsc::Sender<Result<pb::RunStepsReply, Status>>,
    stopped: watch::Receiver<bool>,
    _owner: OwnedSemaphorePermit,
}

impl Life {
    async fn run(self, mut asked: Streaming<pb::RunStepsRequest>) {
        if !matches!(asked.message().await, Ok(Some(pb::RunStepsRequest { request: Some(Ask::Open(_)) }))) {
            self.end_with(Status::invalid_argument("the first message opens the stream")).await;
            return;
        }
        let opened = self
            .with(|host| {
                host.begin();
                host.describe()
            })
            .await;
        let Some((description, epoch)) = opened else { return };
        *lock(&self.described) = (description.clone(), epoch);
        tracing::info!(epoch, "a runtime has the device");
        if self.say(Reply::Opened(to_wire(&description, epoch))).await {
            self.answer(&mut asked).await;
        }
        let ended = self.with(|host| {
            host.end();
            host.describe()
        });
        if let Some(described) = ended.await {
            *lock(&self.described) = described;
        }
        tracing::info!(epoch, "the device is free again");
    }

    /// Answers until the stream ends, the device is lost, or the server stops.
    async fn answer(&self, asked: &mut Streaming<pb::RunStepsRequest>) {
        loop {
            let message = tokio::select! {
                message = asked.message() => message,
                () = wait(self.stopped.clone()) => {
                    self.end_with(Status::unavailable("the device is shutting down")).await;
                    return;
                }
            };
            let Ok(Some(pb::RunStepsRequest { request })) = message else { return };
            let answered = match request {
                Some(Ask::Submit(plan)) => self.submit(plan).await,
                Some(Ask::Collect(collect)) => self.collect(collect).await,
                Some(Ask::Open(_)) | None => {
                    Err(BackendError::Rejected("neither a step nor a question for one".to_owned()))
                }
            };
            match answered {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let lost = matches!(error, BackendError::Lost(_));
                    if !self.say(Reply::Failure(failure(&error))).await || lost {
                        return;
                    }
                }
            }
        }
    }

    async fn submit(&self, plan: pb::StepPlan) -> Result<bool, BackendError> {
        let plan = from_wire(plan).map_err(BackendError::Rejected)?;
        let step_id = plan.id.0;
        self.with(move |host| host.submit(&plan)).await.unwrap_or_else(died)?;
        Ok(self.say(Reply::Submitted(pb::StepSubmitted { step_id })).await)
    }

    async fn collect(&self, collect: pb::CollectStep) -> Result<bool, BackendError> {
        let late = masks_from_wire(collect.masks).map_err(BackendError::Rejected)?;
        let step = StepId(collect.step_id);
        let output = self.with(move |host| host.collect(step, &late)).await.unwrap_or_else(died)?;
        for part in parts(output) {
            if !self.say(Reply::Output(part)).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Uses the backend where it may block. `None` when it panicked.
    async fn with<T: Send + 'static>(&self, use_: impl FnOnce(&mut Host) -> T + Send + 'static) -> Option<T> {
        let host = Arc::clone(&self.host);
        spawn_blocking(move || use_(&mut lock(&host))).await.ok()
    }

    /// Whether anybody listens still.
    async fn say(&self, reply: Reply) -> bool {
        self.replies.send(Ok(pb::RunStepsReply { reply: Some(reply) })).await.is_ok()
    }

    async fn end_with(&self, status: Status) {
        // Whoever does not listen any more knows that it is over.
        let _ = self.replies.send(Err(status)).await;
    }
}

fn died<T>() -> Result<T, BackendError> {
    Err(BackendError::Lost("the device died of a defect".to_owned()))
}

fn failure(error: &BackendError) -> pb::Failure {
    let (kind, message) = match error {
        BackendError::Rejected(message) => (pb::FailureKind::Rejected, message),
        BackendError::OutOfMemory(message) => (pb::FailureKind::OutOfMemory, message),
        BackendError::Lost(message) => (pb::FailureKind::Lost, message),
        BackendError::Fault(message) => (pb::FailureKind::Fault, message),
    };
    pb::Failure { kind: kind.into(), message: message.clone() }
}

/// As the contract says of copies.
fn status(error: &BackendError) -> Status {
    match error {
        BackendError::Rejected(message) => Status::invalid_argument(message),
        BackendError::OutOfMemory(message) => Status::resource_exhausted(message),
        BackendError::Lost(message) => Status::failed_precondition(message),
        BackendError::Fault(message) => Status::internal(message),
    }
}

impl Device {
    /// Moves a block and waits for its end.
    async fn copy(&self, life: u64, copy: BlockCopy) -> Result<Option<Vec<u8>>, Status> {
        let host = Arc::clone(&self.host);
        let begun = spawn_blocking(move || lock(&host).begin_copy(life, copy)).await;
        let begun = begun.unwrap_or_else(|_| died());
        let ticket = begun.map_err(|error| status(&error))?;
        loop {
            let host = Arc::clone(&self.host);
            match spawn_blocking(move || lock(&host).copied(ticket)).await {
                Ok(Some(done)) => return done.result.map_err(|error| status(&error)),
                Ok(None) => sleep(COPY_LOOK).await,
                Err(_) => return Err(Status::failed_precondition("the device died of a defect")),
            }
        }
    }
}

#[tonic::async_trait]
impl DeviceService for Device {
    type RunStepsStream = ReceiverStream<Result<pb::RunStepsReply, Status>>;
    type ExportBlockStream = ReceiverStream<Result<pb::ExportBlockReply, Status>>;

    async fn describe(&self, _: Request<pb::DescribeRequest>) -> Result<Response<pb::Description>, Status> {
        let (description, epoch) = lock(&self.described).clone();
        Ok(Response::new(to_wire(&description, epoch)))
    }

    async fn run_steps(
        &self,
        request: Request<Streaming<pb::RunStepsRequest>>,
    ) -> Result<Response<Self::RunStepsStream>, Status> {
        let owner = Arc::clone(&self.owner).try_acquire_owned();
        let owner = owner.map_err(|_| Status::unavailable("another runtime has the device"))?;
        let (replies, stream) = mpsc::channel(WAITING_MAX);
        let (host, described) = (Arc::clone(&self.host), Arc::clone(&self.described));
        let life = Life { host, described, replies, stopped: self.stopped.clone(), _owner: owner };
        tokio::spawn(life.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn export_block(
        &self,
        request: Request<pb::ExportBlockRequest>,
    ) -> Result<Response<Self::ExportBlockStream>, Status> {
        let pb::ExportBlockRequest { epoch, group, block } = request.into_inner();
        let group = group_from(group).map_err(Status::invalid_argument)?;
        let copy = BlockCopy { group, block: BlockId(block), direction: CopyDirection::Export };
        let bytes = self.copy(epoch, copy).await?.unwrap_or_default();
        let (chunks, stream) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
                if chunks.send(Ok(pb::ExportBlockReply { data: chunk.to_vec() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn import_block(
        &self,
        request: Request<Streaming<pb::ImportBlockRequest>>,
    ) -> Result<Response<pb::ImportBlockReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("no block is named"))?;
        let group = group_from(first.group).map_err(Status::invalid_argument)?;
        let groups = lock(&self.described).0.kv_groups.clone();
        let bytes_max = groups.get(usize::from(group)).map_or(0, |group| group.bytes_per_block);
        let mut bytes = first.data;
        while let Some(chunk) = chunks.message().await? {
            bytes.extend(chunk.data);
            if bytes.len() as u64 > bytes_max {
                return Err(Status::invalid_argument(format!("more than the {bytes_max} bytes of a block")));
            }
        }
        let copy = BlockCopy { group, block: BlockId(first.block), direction: CopyDirection::Import(bytes) };
        self.copy(first.epoch, copy).await?;
        Ok(Response::new(pb::ImportBlockReply {}))
    }
}
