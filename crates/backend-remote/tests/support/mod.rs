//! What the tests of this crate share: the oracle of the suite, and a backend whose name does not tell its address.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its own part of this")]

pub mod middleman;

use holdfast_backend::conformance::{self, Tolerance};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_backend_remote::RemoteBackend;
use holdfast_model::{Model, Reference};
use holdfast_types::{DeviceDescription, LateInputs, StepOutput, StepPlan};

/// Of f32 devices.
pub const TOLERANCE: Tolerance = Tolerance { abs: 5e-5, rel: 1e-5 };

pub struct Candle(Reference);

impl Candle {
    pub fn new(model: &Model) -> Self {
        Self(Reference::new(model).unwrap())
    }
}

impl conformance::Reference for Candle {
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.0.logits(tokens).unwrap()
    }
}

/// A backend without its address: the suite asks for equal devices.
pub struct Nameless(RemoteBackend, DeviceDescription);

impl Nameless {
    pub fn new(backend: RemoteBackend) -> Self {
        let description = DeviceDescription { name: String::new(), ..backend.describe().clone() };
        Self(backend, description)
    }
}

impl Backend for Nameless {
    fn describe(&self) -> &DeviceDescription {
        &self.1
    }
    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        self.0.submit(plan)
    }
    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        self.0.collect(step, late)
    }
    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.0.begin_copy(copy)
    }
    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.0.poll_copies()
    }
}
