//! RuntimeService: what this runtime is.

use std::sync::Arc;

use holdfast_contracts::v1;
use holdfast_contracts::v1::runtime_service_server::RuntimeService;
use tonic::{Request, Response, Status, async_trait};

use crate::convert;
use crate::edge::Edge;

/// The service.
pub(crate) struct Runtimes(pub(crate) Arc<Edge>);

#[async_trait]
impl RuntimeService for Runtimes {
    async fn get_runtime(&self, request: Request<v1::GetRuntimeRequest>) -> Result<Response<v1::Runtime>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.RuntimeService/GetRuntime", request, |caller, _| async move {
            let mut runtime = convert::model::runtime(&edge.worker.runtime(&caller).await?);
            runtime.draining |= edge.is_draining();
            Ok(runtime)
        })
        .await
    }
}
