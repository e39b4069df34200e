//! A remote device that is dead, slow, busy, changed or lying; and one that draws no samples.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_backend::conformance::{self, PlanBuilder};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDirection, CopyDone, CopyTicket, StepTicket};
use holdfast_backend_neuron::program::{Chip, ChipChoice, ChipSettings};
use holdfast_backend_neuron::{KvSize, NeuronDevice, NeuronSettings};
use holdfast_backend_remote::{DeviceAddress, Listener, RemoteBackend, RemoteError, RemoteSettings, serve};
use holdfast_contracts::device_v1 as pb;
use holdfast_model::Model;
use holdfast_model::random::MicroShape;
use holdfast_types::{
    BlockId, DeviceDescription, LateInputs, OutputRequest, Precision, SamplingParams, SlotId, SlotSampling, StepId,
    StepOutput, StepPlan, TokenMask,
};
use pb::device_service_client::DeviceServiceClient;
use pb::run_steps_reply::Reply;
use pb::run_steps_request::Request;
use support::middleman::{Act, Middleman, OnRequest};
use support::{Candle, Nameless, TOLERANCE};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

/// Long enough for whatever should happen.
const LONG: Duration = Duration::from_secs(60);

fn model() -> Model {
    MicroShape::default().build().unwrap()
}

fn neuron(model: &Model) -> Box<dyn Backend> {
    let settings =
        NeuronSettings { threads: 1, kv: KvSize::Blocks(20), slots: 5, max_step_rows: 24, ..NeuronSettings::default() };
    Box::new(NeuronDevice::new(model.config(), model.weights(), &settings).unwrap())
}

/// A socket in a directory of its own, and what serves on it.
struct Place {
    runtime: Runtime,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { runtime: Runtime::new().unwrap(), directory: tempfile::tempdir().unwrap() }
    }

    fn address(&self) -> DeviceAddress {
        DeviceAddress::Unix(self.directory.path().join("device.sock"))
    }

    fn listen(&self, address: &DeviceAddress) -> Listener {
        self.runtime.block_on(Listener::bind(address)).unwrap()
    }

    /// Serves a backend; dropping what comes back does not end it.
    fn serve(&self, backend: Box<dyn Backend>) -> Serving {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let listener = self.listen(&self.address());
        let done = self.runtime.spawn(serve(backend, listener, async { drop(stopped.await) }));
        Serving { stop, done }
    }

    /// Serves a backend through somebody who changes what is said.
    fn serve_through(
        &self,
        backend: Box<dyn Backend>,
        on_request: OnRequest,
        on_reply: impl FnMut(&mut Reply) -> Act + Send + 'static,
    ) {
        let behind = self.directory.path().join("behind.sock");
        let listener = self.listen(&DeviceAddress::Unix(behind.clone()));
        self.runtime.spawn(serve(backend, listener, std::future::pending()));
        let DeviceAddress::Unix(path) = self.address() else { panic!("a place has a socket") };
        let listener = self.runtime.block_on(async { UnixListener::bind(path) }).unwrap();
        let device = format!("unix:{}", behind.display());
        self.runtime.spawn(Middleman::serve(listener, device, on_request, Box::new(on_reply)));
    }

    fn stop(&self, serving: Serving) {
        drop(serving.stop);
        self.runtime.block_on(serving.done).unwrap().unwrap();
    }

    fn settings(&self) -> RemoteSettings {
        RemoteSettings { address: self.address(), connect_timeout: LONG, step_timeout: LONG }
    }

    fn connect(&self) -> RemoteBackend {
        RemoteBackend::connect(self.settings()).unwrap()
    }
}

struct Serving {
    stop: tokio::sync::oneshot::Sender<()>,
    done: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

fn sampling(params: SamplingParams) -> SlotSampling {
    SlotSampling { params, seed: 3, context: Vec::new(), sampled: Vec::new() }
}

/// Opens slot 0 on block 0 and asks for a sample of the second of two rows.
fn first_step(id: u64) -> StepPlan {
    let params = SamplingParams { logprobs: Some(2), ..SamplingParams::default() };
    PlanBuilder::new(id)
        .open(0, sampling(params))
        .table(0, 0, 0, &[0])
        .rows(0, 0, &[1, 2], Precision::Native)
        .want(0, OutputRequest::Logits)
        .want(1, OutputRequest::LogitsAndSample)
        .build()
}

fn nothing() -> StepPlan {
    PlanBuilder::new(0).build()
}

/// Tries a step of nothing until the device is there, as an engine does.
fn until_back(backend: &mut RemoteBackend) {
    for _ in 0..10_000 {
        if let Ok(ticket) = backend.submit(&nothing()) {
            backend.collect(ticket, &LateInputs::default()).unwrap();
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the device does not come back");
}

fn run(backend: &mut RemoteBackend, plan: &StepPlan) -> Result<StepOutput, BackendError> {
    let ticket = backend.submit(plan)?;
    backend.collect(ticket, &LateInputs::default())
}

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(result: Result<T, BackendError>, said: &str) {
    match result {
        Err(BackendError::Lost(message)) => assert!(message.contains(said), "{message}"),
        other => panic!("lost because of {said}, not {other:?}"),
    }
}

#[test]
fn a_device_that_draws_no_samples_passes_the_suite() {
    let model = model();
    let mut places = Vec::new();
    let mut factory = || -> Box<dyn Backend> {
        let place = Place::new();
        place.serve_through(neuron(&model), with_greedy_slots, |reply| {
            if let Reply::Opened(description) = reply {
                description.draws_samples = false;
            }
            Act::Say
        });
        let backend = Nameless::new(place.connect());
        places.push(place);
        Box::new(backend)
    };
    conformance::run(&mut factory, &Candle::new(&model), TOLERANCE);
}

/// What a runtime does not tell a device that draws no samples, so that the one behind takes the plan.
fn with_greedy_slots(message: &mut pb::RunStepsRequest) {
    match &mut message.request {
        Some(Request::Submit(plan)) => {
            for change in &mut plan.slots {
                if let Some(pb::slot_change::Change::Open(open)) = &mut change.change {
                    assert_eq!(open.sampling, None);
                    let greedy = pb::SlotSampling { top_p: 1.0, repetition_penalty: 1.0, ..Default::default() };
                    open.sampling = Some(greedy);
                }
            }
        }
        Some(Request::Collect(collect)) => assert!(collect.masks.is_empty(), "who draws nothing hears of no mask"),
        Some(Request::Open(_)) | None => {}
    }
}

/// As it is said.
fn unchanged(_: &mut pb::RunStepsRequest) {}

#[test]
fn a_device_that_dies_in_mid_step_is_lost_and_comes_back_empty() {
    let (place, model) = (Place::new(), model());
    let serving = place.serve(neuron(&model));
    let mut backend = place.connect();
    let want = run(&mut backend, &first_step(1)).unwrap();
    let second = PlanBuilder::new(2).rows(0, 2, &[3], Precision::Native).build();
    let ticket = backend.submit(&second).unwrap();
    place.stop(serving);
    assert_lost(backend.collect(ticket, &LateInputs::default()), "");
    assert_lost(backend.collect(StepTicket(StepId(2)), &LateInputs::default()), "away");
    assert_lost(backend.submit(&second), "no device answers at unix:");
    let export = BlockCopy { group: 0, block: BlockId(0), direction: CopyDirection::Export };
    assert_lost(backend.begin_copy(export), "away");
    assert_eq!(backend.describe().epoch, 1, "it has no other life yet");

    let _serving = place.serve(neuron(&model));
    until_back(&mut backend);
    assert_eq!(backend.describe().epoch, 2);
    assert!(matches!(backend.submit(&second), Err(BackendError::Rejected(_))), "slot 0 is closed in the new life");
    let mut again = run(&mut backend, &first_step(3)).unwrap();
    again.id = want.id;
    again.device_time_us = want.device_time_us;
    assert_eq!(again, want);
}

#[test]
fn a_device_that_never_answers_is_lost_when_its_time_is_over() {
    let (place, model) = (Place::new(), model());
    let silent = |reply: &mut Reply| if let Reply::Output(_) = reply { Act::Silence } else { Act::Say };
    place.serve_through(neuron(&model), unchanged, silent);
    let step_timeout = Duration::from_millis(300);
    let settings = RemoteSettings { step_timeout, ..place.settings() };
    let mut backend = RemoteBackend::connect(settings).unwrap();
    assert_lost(run(&mut backend, &first_step(1)), "did not give a step within 300ms");

    let place = Place::new();
    place.serve_through(neuron(&model), unchanged, |_| Act::Silence);
    let settings = RemoteSettings { connect_timeout: Duration::from_millis(300), ..place.settings() };
    let error = RemoteBackend::connect(settings).unwrap_err();
    assert!(error.to_string().contains("no answer within 300ms"), "{error}");
}

type Lie = Box<dyn Fn(&mut Reply) + Send>;

/// A lie about what a step gave.
fn output(lie: fn(&mut pb::StepOutput)) -> Lie {
    Box::new(move |reply| {
        if let Reply::Output(output) = reply {
            lie(output);
        }
    })
}

/// A lie about the one sample of [`first_step`].
fn sample(lie: fn(&mut pb::Sample)) -> Lie {
    Box::new(move |reply| {
        if let Reply::Output(output) = reply {
            lie(&mut output.sequences[0].samples[0]);
        }
    })
}

/// A lie about a step that was taken.
fn submitted(lie: fn(&mut Reply)) -> Lie {
    Box::new(move |reply| {
        if let Reply::Submitted(_) = reply {
            lie(reply);
        }
    })
}

#[test]
fn every_lie_is_told_apart_and_none_is_believed() {
    let model = model();
    let tell = |lie: Lie| {
        let place = Place::new();
        place.serve_through(neuron(&model), unchanged, move |reply| {
            lie(reply);
            Act::Say
        });
        run(&mut place.connect(), &first_step(9))
    };
    let lost = [
        ("step 8 when step 9", submitted(|reply| *reply = Reply::Submitted(pb::StepSubmitted { step_id: 8 }))),
        ("`opened`", submitted(|reply| *reply = Reply::Opened(pb::Description::default()))),
        ("step 7 when step 9", output(|output| output.step_id = 7)),
        ("slot 3, whose turn it is not", output(|output| output.sequences[0].slot = 3)),
        ("left out what slot 0", output(|output| output.sequences.clear())),
        ("left out what slot 0", output(|output| drop(output.sequences[0].logits.pop()))),
        ("row 7 of slot 0", output(|output| output.sequences[0].logits[0].row = 7)),
        ("bytes of logits", output(|output| output.sequences[0].logits[1].logits.truncate(3))),
        ("more samples", output(|output| output.sequences[0].samples.push(pb::Sample::default()))),
        ("stands for no chip", output(|output| output.modelled = Some(pb::ModelledStep::default()))),
        ("empty part", output(|output| *output = pb::StepOutput { step_id: 9, ..Default::default() })),
    ];
    for (said, lie) in lost {
        assert_lost(tell(lie), said);
    }
    let faults = [
        ("the vocabulary ends", sample(|sample| sample.token = u32::MAX)),
        ("position 0, not 2", sample(|sample| sample.position = 0)),
        ("log probabilities", sample(|sample| sample.logprobs.clear())),
        ("log probabilities", sample(|sample| sample.logprobs[0].logprob = f32::NAN)),
        ("log probabilities", sample(|sample| sample.logprobs.swap(0, 1))),
        ("is missing", output(|output| output.sequences[0].samples.clear())),
    ];
    for (said, lie) in faults {
        match tell(lie) {
            Err(BackendError::Fault(message)) => assert!(message.contains(said), "{said}: {message}"),
            other => panic!("{said}: {other:?}"),
        }
    }
    assert!(tell(Box::new(|_| ())).is_ok(), "and the truth is believed");
}

#[test]
fn a_sample_that_the_mask_forbids_fails_the_step() {
    let (place, model) = (Place::new(), model());
    let without_masks = |message: &mut pb::RunStepsRequest| {
        if let Some(Request::Collect(collect)) = &mut message.request {
            collect.masks.clear();
        }
    };
    place.serve_through(neuron(&model), without_masks, |_| Act::Say);
    let mut backend = place.connect();
    let free = run(&mut backend, &first_step(1)).unwrap().sequences[0].samples[0].id;
    let again = PlanBuilder::new(2).close(0).build();
    run(&mut backend, &again).unwrap();
    let ticket = backend.submit(&first_step(3)).unwrap();
    let only = TokenMask::Only(vec![(free + 1) % backend.describe().vocab_size]);
    let late = LateInputs { masks: vec![(SlotId(0), 1, only)] };
    let answer = backend.collect(ticket, &late);
    assert!(matches!(&answer, Err(BackendError::Fault(said)) if said.contains("the mask forbids")), "{answer:?}");
    run(&mut backend, &PlanBuilder::new(4).close(0).build()).unwrap();
}

#[test]
fn a_device_belongs_to_one_runtime_at_a_time() {
    let (place, model) = (Place::new(), model());
    let _serving = place.serve(neuron(&model));
    let mut first = place.connect();
    run(&mut first, &first_step(1)).unwrap();
    let hasty = RemoteSettings { connect_timeout: Duration::from_millis(200), ..place.settings() };
    let error = RemoteBackend::connect(hasty).unwrap_err().to_string();
    assert!(error.contains("another runtime has the device"), "{error}");
    drop(first);
    let mut second = place.connect();
    run(&mut second, &first_step(1)).expect("its slots are free again");
}

#[test]
fn another_device_does_not_take_the_place_of_a_lost_one() {
    let (place, first) = (Place::new(), model());
    let serving = place.serve(neuron(&first));
    let mut backend = place.connect();
    place.stop(serving);
    let other = MicroShape { seed: 5, ..MicroShape::default() }.build().unwrap();
    let serving = place.serve(neuron(&other));
    assert_lost(backend.submit(&nothing()), "");
    assert_lost(backend.submit(&nothing()), &format!("weights {}", other.weights().digest()));
    place.stop(serving);
    let _serving = place.serve(neuron(&first));
    until_back(&mut backend);
    run(&mut backend, &first_step(1)).unwrap();
}

#[test]
fn what_the_device_reports_arrives_as_it_is_meant() {
    let (place, model) = (Place::new(), model());
    let (failing, next) = Failing::new(neuron(&model));
    let _serving = place.serve(Box::new(failing));
    let mut backend = place.connect();
    let plant = |at_submit, error: &BackendError| *next.lock().unwrap() = Some((at_submit, error.clone()));
    let told = || "planted".to_owned();
    // Nothing of these happens: the same step can be tried again.
    for error in [BackendError::Rejected(told()), BackendError::OutOfMemory(told())] {
        plant(true, &error);
        assert_eq!(run(&mut backend, &first_step(1)).unwrap_err(), error);
    }
    plant(false, &BackendError::OutOfMemory(told()));
    assert_eq!(run(&mut backend, &first_step(1)).unwrap_err(), BackendError::OutOfMemory(told()));
    run(&mut backend, &first_step(2)).expect("slot 0 is not open after a step that did not happen");
    // The slot changes of a fault stand.
    let close = PlanBuilder::new(3).close(0).build();
    plant(false, &BackendError::Fault(told()));
    assert_eq!(run(&mut backend, &close).unwrap_err(), BackendError::Fault(told()));
    run(&mut backend, &first_step(4)).expect("slot 0 was closed by the step that failed");
    plant(true, &BackendError::Lost(told()));
    assert_lost(backend.submit(&nothing()), "planted");
    until_back(&mut backend);
    assert_eq!(backend.describe().epoch, 2);
    run(&mut backend, &first_step(5)).expect("the life that was lost left no slot open");
}

#[test]
fn a_device_that_stands_for_a_chip_models_the_same_for_whoever_asks() {
    let (place, model) = (Place::new(), model());
    let chip = ChipChoice::Named(ChipSettings::new(Chip::named("trn1").unwrap()));
    let settings = NeuronSettings { threads: 1, kv: KvSize::Blocks(20), slots: 5, chip, ..NeuronSettings::default() };
    let mut local = NeuronDevice::new(model.config(), model.weights(), &settings).unwrap();
    let lent = NeuronDevice::new(model.config(), model.weights(), &settings).unwrap();
    let _serving = place.serve(Box::new(lent));
    let mut remote = place.connect();
    assert!(local.describe().modelled.is_some());
    assert_eq!(remote.describe().modelled, local.describe().modelled);
    let ticket = local.submit(&first_step(1)).unwrap();
    let own = local.collect(ticket, &LateInputs::default()).unwrap().modelled;
    assert!(own.is_some());
    assert_eq!(run(&mut remote, &first_step(1)).unwrap().modelled, own);
}

#[test]
fn copies_belong_to_a_life() {
    let (place, model) = (Place::new(), model());
    let _serving = place.serve(neuron(&model));
    let mut backend = place.connect();
    run(&mut backend, &first_step(1)).unwrap();
    place.runtime.block_on(async {
        let mut client = DeviceServiceClient::connect(place.address().to_string()).await.unwrap();
        let described = client.describe(pb::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.epoch, 1);
        for (epoch, group, code) in [
            (2, 0, tonic::Code::FailedPrecondition),
            (1, 9, tonic::Code::InvalidArgument),
            (1, 1 << 20, tonic::Code::InvalidArgument),
        ] {
            let refused = client.export_block(pb::ExportBlockRequest { epoch, group, block: 0 }).await.unwrap_err();
            assert_eq!(refused.code(), code, "{refused:?}");
        }
        let long = vec![0; described.kv_groups[0].bytes_per_block as usize + 1];
        let chunk = pb::ImportBlockRequest { epoch: 1, group: 0, block: 1, data: long };
        let refused = client.import_block(tokio_stream::iter([chunk])).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    });
}

#[test]
fn a_stream_that_does_not_begin_with_open_is_refused() {
    let (place, model) = (Place::new(), model());
    let _serving = place.serve(neuron(&model));
    place.runtime.block_on(async {
        let mut client = DeviceServiceClient::connect(place.address().to_string()).await.unwrap();
        let first = pb::RunStepsRequest::default();
        let mut replies = client.run_steps(tokio_stream::iter([first])).await.unwrap().into_inner();
        let refused = replies.message().await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    });
    place.connect();
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    let (place, model) = (Place::new(), model());
    let wrong = |reply: &mut Reply| {
        if let Reply::Opened(description) = reply {
            description.vocab_size = 0;
        }
        Act::Say
    };
    place.serve_through(neuron(&model), unchanged, wrong);
    let error = RemoteBackend::connect(place.settings()).unwrap_err();
    assert!(matches!(&error, RemoteError::Description { problem, .. } if problem.contains("vocab_size")), "{error}");
}

#[test]
fn a_socket_that_a_dead_process_left_is_taken_over_and_a_live_one_is_not() {
    let place = Place::new();
    let DeviceAddress::Unix(path) = place.address() else { panic!("it is a path") };
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "nobody cleaned up");
    let listener = place.listen(&place.address());
    let error = place.runtime.block_on(Listener::bind(&place.address())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    assert!(!path.exists());
}

/// Fails once, on demand: at `submit` (true) or `collect`.
struct Failing {
    inner: Box<dyn Backend>,
    next: Next,
}

type Next = Arc<Mutex<Option<(bool, BackendError)>>>;

impl Failing {
    fn new(inner: Box<dyn Backend>) -> (Self, Next) {
        let next = Next::default();
        (Self { inner, next: Arc::clone(&next) }, next)
    }

    fn take(&self, at_submit: bool) -> Option<BackendError> {
        self.next.lock().unwrap().take_if(|(at, _)| *at == at_submit).map(|(_, error)| error)
    }
}

impl Backend for Failing {
    fn describe(&self) -> &DeviceDescription {
        self.inner.describe()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        match self.take(true) {
            Some(error) => Err(error),
            None => self.inner.submit(plan),
        }
    }

    fn collect(&mut self, step: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        let fault = self.take(false);
        let StepId(id) = step.0;
        let output = self.inner.collect(step, late)?;
        match fault {
            // The device inside did the step, and has to take back what it opened.
            Some(error @ BackendError::OutOfMemory(_)) => {
                let ticket = self.inner.submit(&PlanBuilder::new(id).close(0).build())?;
                self.inner.collect(ticket, &LateInputs::default())?;
                Err(error)
            }
            Some(error) => Err(error),
            None => Ok(output),
        }
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        self.inner.begin_copy(copy)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        self.inner.poll_copies()
    }
}
