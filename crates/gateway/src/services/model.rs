//! ModelService: which models are served. There are few, so pages are cut here; a token is the last name of its page.

use std::sync::Arc;

use holdfast_contracts::v1;
use holdfast_contracts::v1::model_service_server::ModelService;
use holdfast_types::{Failure, Reason};
use holdfast_worker_api::Caller;
use tonic::{Request, Response, Status, async_trait};

use crate::edge::Edge;
use crate::field::Field;
use crate::{convert, names, paging};

/// The service.
pub(crate) struct Models(pub(crate) Arc<Edge>);

#[async_trait]
impl ModelService for Models {
    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.ModelService/ListModels", request, |caller, request| async move {
            let token = paging::token(request.page_token)?;
            let mut models = self.models(&caller).await?;
            if !token.is_empty() {
                let last = models
                    .iter()
                    .position(|model| model.name == token)
                    .ok_or_else(|| Field::Root("page_token").failure(Reason::InvalidPageToken, "is not one of ours"))?;
                models.drain(..=last);
            }
            let size = usize::try_from(paging::size(&edge.limits, request.page_size)).unwrap_or(usize::MAX);
            let longest =
                models.iter().map(|model| model.name.as_str()).max_by_key(|name| name.len()).unwrap_or_default();
            let kept = paging::fitting(&edge.limits, &models, longest).max(1).min(size);
            let more = models.len() > kept;
            models.truncate(kept);
            let next = models.last().filter(|_| more).map(|model| model.name.clone());
            Ok(v1::ListModelsResponse { models, next_page_token: next.unwrap_or_default() })
        })
        .await
    }

    async fn get_model(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::Model>, Status> {
        self.0
            .unary("holdfast.v1.ModelService/GetModel", request, |caller, request| async move {
                let name = names::parse_model(Field::Root("name"), &request.name)?;
                if name.is_empty() {
                    return Err(
                        Field::Root("name").failure(Reason::InvalidName, "is required, in the form models/{name}")
                    );
                }
                let name = names::model(&name);
                let models = self.models(&caller).await?;
                models.into_iter().find(|model| model.name == name).ok_or_else(|| {
                    let message = format!("{name} is not served; ListModels tells which models are");
                    Failure::resource(Reason::ModelNotFound, name, message)
                })
            })
            .await
    }
}

impl Models {
    async fn models(&self, caller: &Caller) -> Result<Vec<v1::Model>, Failure> {
        Ok(convert::model::models(&self.0.worker.list_models(caller).await?, &self.0.build))
    }
}
