//! A server between a runtime and a device that changes what they say to each other, or keeps answers back.

use std::sync::{Arc, Mutex};

use holdfast_contracts::device_v1 as pb;
use pb::device_service_client::DeviceServiceClient;
use pb::device_service_server::{DeviceService, DeviceServiceServer};
use pb::run_steps_reply::Reply;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// What becomes of an answer.
pub enum Act {
    /// It is sent.
    Say,
    /// It is kept back, and so is every later one.
    Silence,
}

/// A hand on the device's answers.
pub type OnReply = Box<dyn FnMut(&mut Reply) -> Act + Send>;

/// A hand on the runtime's requests.
pub type OnRequest = fn(&mut pb::RunStepsRequest);

/// See the module.
pub struct Middleman {
    device: DeviceServiceClient<Channel>,
    on_request: OnRequest,
    on_reply: Arc<Mutex<OnReply>>,
}

impl Middleman {
    /// Between whoever connects to `listener` and the device at the URI.
    pub async fn serve(listener: UnixListener, device: String, on_request: OnRequest, on_reply: OnReply) {
        let device = DeviceServiceClient::connect(device).await.unwrap();
        let middleman = Self { device, on_request, on_reply: Arc::new(Mutex::new(on_reply)) };
        let server = tonic::transport::Server::builder().add_service(DeviceServiceServer::new(middleman));
        server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
    }
}

#[tonic::async_trait]
impl DeviceService for Middleman {
    type RunStepsStream = ReceiverStream<Result<pb::RunStepsReply, Status>>;
    type ExportBlockStream = Streaming<pb::ExportBlockReply>;

    async fn describe(&self, request: Request<pb::DescribeRequest>) -> Result<Response<pb::Description>, Status> {
        self.device.clone().describe(request).await
    }

    async fn run_steps(
        &self,
        request: Request<Streaming<pb::RunStepsRequest>>,
    ) -> Result<Response<Self::RunStepsStream>, Status> {
        let mut asked = request.into_inner();
        let (to_device, requests) = mpsc::channel(4);
        let (to_runtime, replies) = mpsc::channel(4);
        let on_request = self.on_request;
        tokio::spawn(async move {
            while let Ok(Some(mut message)) = asked.message().await {
                on_request(&mut message);
                if to_device.send(message).await.is_err() {
                    return;
                }
            }
        });
        let (mut device, on_reply) = (self.device.clone(), Arc::clone(&self.on_reply));
        let mut said = device.run_steps(ReceiverStream::new(requests)).await?.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(mut message)) = said.message().await {
                let act = message.reply.as_mut().map_or(Act::Say, |reply| (on_reply.lock().unwrap())(reply));
                if let Act::Silence = act {
                    std::future::pending::<()>().await;
                }
                if to_runtime.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn export_block(
        &self,
        request: Request<pb::ExportBlockRequest>,
    ) -> Result<Response<Self::ExportBlockStream>, Status> {
        self.device.clone().export_block(request).await
    }

    async fn import_block(
        &self,
        request: Request<Streaming<pb::ImportBlockRequest>>,
    ) -> Result<Response<pb::ImportBlockReply>, Status> {
        let mut chunks = request.into_inner();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            all.push(chunk);
        }
        self.device.clone().import_block(tokio_stream::iter(all)).await
    }
}
