//! The standard health service, which keeps to its last word while the runtime closes.
//!
//! In: what the gateway reports. Out: answers for the names that it knows. Watchers end when their name is taken away, which is the only
//! end that tonic-health gives them; whoever asks after that hears NOT_SERVING, and not that the name was never known.
//! Deliberately not here: when the runtime serves ([`crate::Gateway`]).

use tonic::{Code, Request, Response, Status, async_trait};
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response};
use tonic_health::server::{HealthReporter, HealthService};

/// See the module's documentation.
pub(crate) struct LastingHealth {
    service: HealthService,
    names: &'static [&'static str],
}

impl LastingHealth {
    /// Answers for `names` by what is reported of them, once that was done.
    pub(crate) fn new(reporter: HealthReporter, names: &'static [&'static str]) -> Self {
        Self { service: HealthService::from_health_reporter(reporter), names }
    }
}

#[async_trait]
impl Health for LastingHealth {
    type WatchStream = <HealthService as Health>::WatchStream;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let is_ours = self.names.contains(&request.get_ref().service.as_str());
        match self.service.check(request).await {
            Err(status) if is_ours && status.code() == Code::NotFound => {
                let status = health_check_response::ServingStatus::NotServing.into();
                Ok(Response::new(HealthCheckResponse { status }))
            }
            answer => answer,
        }
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.service.watch(request).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic_health::ServingStatus;

    use super::*;

    #[tokio::test]
    async fn a_name_that_was_taken_away_does_not_serve() {
        let mut reporter = HealthReporter::new();
        let health = LastingHealth::new(reporter.clone(), &["ours"]);
        let check = async |name: &str| {
            let request = HealthCheckRequest { service: name.to_owned() };
            health.check(Request::new(request)).await.map(|answer| answer.into_inner().status())
        };
        reporter.set_service_status("ours", ServingStatus::Serving).await;
        assert_eq!(check("ours").await.unwrap(), health_check_response::ServingStatus::Serving);
        reporter.clear_service_status("ours").await;
        assert_eq!(check("ours").await.unwrap(), health_check_response::ServingStatus::NotServing);
        assert_eq!(check("another").await.unwrap_err().code(), Code::NotFound);
    }
}
