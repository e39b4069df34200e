//! The suite against one device that listens at one address: each fresh device is its next life.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use holdfast_backend::conformance::{self, Report, Tolerance};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_backend_remote::{DeviceAddress, RemoteBackend, RemoteError, RemoteSettings};
use holdfast_model::{Model, Reference};
use holdfast_types::{DeviceDescription, LateInputs, StepOutput, StepPlan};

/// For a device that is slow on purpose.
const PATIENCE: Duration = Duration::from_secs(60);

struct Oracle(Reference);

impl conformance::Reference for Oracle {
    #[expect(clippy::expect_used, reason = "the suite has no words for an oracle that fails, and ends")]
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.0.logits(tokens).expect("the reference computes the model")
    }
}

/// The connection of the latest life. The suite makes a fresh device before it drops the old one, and a device has one life at a time.
type Latest = Arc<Mutex<Option<RemoteBackend>>>;

struct Lent {
    latest: Latest,
    description: DeviceDescription,
}

impl Lent {
    fn begin(latest: &Latest, address: &DeviceAddress) -> Result<Self, RemoteError> {
        let mut place = latest.lock().unwrap_or_else(PoisonError::into_inner);
        *place = None;
        let settings = RemoteSettings { address: address.clone(), connect_timeout: PATIENCE, step_timeout: PATIENCE };
        let backend = RemoteBackend::connect(settings)?;
        let description = backend.describe().clone();
        *place = Some(backend);
        Ok(Self { latest: Arc::clone(latest), description })
    }

    fn with<T>(&self, use_: impl FnOnce(&mut RemoteBackend) -> Result<T, BackendError>) -> Result<T, BackendError> {
        let mut place = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_mut().map_or_else(|| Err(BackendError::Lost("no life".to_owned())), use_)
    }
}

impl Backend for Lent {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }
    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        self.with(|backend| backend.submit(plan))
    }
    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        self.with(|backend| backend.collect(step, late))
    }
    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.with(|backend| backend.begin_copy(copy))
    }
    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.with(|backend| Ok(backend.poll_copies())).unwrap_or_default()
    }
}

/// Runs the suite.
///
/// # Errors
/// When the device does not answer, or holds another model.
///
/// # Panics
/// When a rule is broken, with the rule.
#[expect(clippy::expect_used, reason = "the suite has no words for a device that goes away, and ends")]
pub(crate) fn conformance(address: &DeviceAddress, model: &Model, tolerance: Tolerance) -> anyhow::Result<Report> {
    let latest = Latest::default();
    let held = Lent::begin(&latest, address)?.description.weights;
    if held != model.weights().digest() {
        bail!("the device holds weights {held}, the model has {}", model.weights().digest());
    }
    let mut factory = || -> Box<dyn Backend> { Box::new(Lent::begin(&latest, address).expect("the device is there")) };
    Ok(conformance::run(&mut factory, &Oracle(Reference::new(model)?), tolerance))
}
