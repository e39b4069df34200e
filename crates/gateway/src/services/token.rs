//! TokenService: how many tokens something is.

use std::sync::Arc;

use holdfast_contracts::v1;
use holdfast_contracts::v1::count_tokens_request::Context;
use holdfast_contracts::v1::token_service_server::TokenService;
use holdfast_types::{Failure, Limits, SessionConfig};
use holdfast_worker_api::CountTokens;
use tonic::{Request, Response, Status, async_trait};

use crate::edge::Edge;
use crate::field::Field;
use crate::{convert, names};

/// The service.
pub(crate) struct Tokens(pub(crate) Arc<Edge>);

#[async_trait]
impl TokenService for Tokens {
    async fn count_tokens(
        &self,
        request: Request<v1::CountTokensRequest>,
    ) -> Result<Response<v1::CountTokensResponse>, Status> {
        let edge = &self.0;
        edge.unary("holdfast.v1.TokenService/CountTokens", request, |caller, request| async move {
            let count = edge.worker.count_tokens(&caller, parse(&edge.limits, request)?).await?;
            Ok(v1::CountTokensResponse {
                tokens: u64::from(count.tokens),
                context_used_tokens: u64::from(count.context_tokens),
                context_limit_tokens: u64::from(count.context_limit),
            })
        })
        .await
    }
}

/// Reads CountTokens.
pub(crate) fn parse(limits: &Limits, request: v1::CountTokensRequest) -> Result<CountTokens, Failure> {
    let (session, config) = match request.context {
        None => (None, SessionConfig::default()),
        Some(Context::Session(name)) => {
            (Some(names::parse_session(Field::Root("session"), &name)?), SessionConfig::default())
        }
        Some(Context::Conversation(start)) => {
            (None, convert::session::start(limits, Field::Root("conversation"), start)?)
        }
    };
    let items = convert::item::items(limits, Field::Root("items"), request.items)?;
    Ok(CountTokens { session, config, items })
}
