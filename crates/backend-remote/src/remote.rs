//! A device elsewhere, as a [`Backend`].
//!
//! In: plans, late masks and block copies, checked here as a whole before anything is sent. Out: what the device answered, checked
//! as well. Deliberately not here: bytes and connections (`link`), waiting for a device that is away (the engine).

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use holdfast_backend::plan::{Prepared, Slots, Undo, check_copy};
use holdfast_backend::samples::{Samplers, check_late};
use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_contracts::device_v1 as pb;
use holdfast_types::{DeviceDescription, LateInputs, SlotId, StepOutput, StepPlan};
use prost::Message as _;

use crate::answer::{Assembly, check_samples};
use crate::link::{Link, Threads, Unanswered};
use crate::wire::description::Described;
use crate::wire::plan::{masks_to_wire, to_wire};
use crate::{DeviceAddress, MESSAGE_BYTES_MAX, RemoteError};

/// Most block copies that are under way or ended and were not polled.
const COPIES_MAX: usize = 4_096;

/// The longest that one try to reach a lost device takes: who asks for it has other things to do.
const RECONNECT: Duration = Duration::from_secs(1);

/// Where a device is, and how long it is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSettings {
    /// Where it listens.
    pub address: DeviceAddress,
    /// How long a device that does not answer yet is waited for at first.
    pub connect_timeout: Duration,
    /// How long it may take over one answer: the longest step, and moving one block. One that takes longer is lost.
    pub step_timeout: Duration,
}

/// A device elsewhere.
///
/// A life is one stream to the device. Whatever breaks it (a dead process, a cut line, an answer that takes too long or does not fit what
/// was asked) is [`BackendError::Lost`]. After that each call of `submit` tries once to begin another life; the first that succeeds
/// sees an empty device with a new epoch. The device may have changed meanwhile in size, not in kind: weights, numerics class,
/// layout, vocabulary and precisions stay, or it counts as lost still.
///
/// Plans, masks and copies are checked here, so a device hears nothing that breaks the contract. For a device that draws no samples
/// the shared sampler draws them here.
#[derive(Debug)]
pub struct RemoteBackend {
    settings: RemoteSettings,
    threads: Threads,
    /// With an epoch that counts lives from 1.
    description: DeviceDescription,
    life: Option<Life>,
    copies_begun: u64,
    /// Copies that were begun and not polled.
    copies_open: usize,
    copies: (Sender<CopyDone>, Receiver<CopyDone>),
}

/// From one loss to the next.
#[derive(Debug)]
struct Life {
    link: Link,
    draws_samples: bool,
    slots: Slots,
    samplers: Samplers,
    open: VecDeque<Open>,
}

/// A step that was submitted and not collected.
#[derive(Debug)]
struct Open {
    step: Prepared,
    undo: Undo,
}

impl RemoteBackend {
    /// Finds a device and begins its first life; a device that does not answer is waited for.
    ///
    /// # Errors
    /// [`RemoteError`] with the address: nobody answers in time, or what answers cannot be used.
    pub fn connect(settings: RemoteSettings) -> Result<Self, RemoteError> {
        let threads = Threads::start()?;
        let (address, patience) = (settings.address.clone(), settings.connect_timeout);
        let opened = threads.wait(async move { Link::open_patiently(&address, patience).await });
        let (link, described) = opened.unwrap_or_else(|| Err(died(&settings.address)))?;
        let description = named(&described.description, &settings.address, 1);
        tracing::info!(device = description.name, class = %description.numerics_class, "device connected");
        let life = Some(Life::new(link, &described));
        Ok(Self { settings, threads, description, life, copies_begun: 0, copies_open: 0, copies: channel() })
    }

    /// Begins another life.
    fn reconnect(&mut self) -> Result<(), RemoteError> {
        let address = self.settings.address.clone();
        let bound = self.settings.connect_timeout.min(RECONNECT);
        let opened = self.threads.wait(async move { Link::open(&address, bound).await });
        let (link, described) = opened.unwrap_or_else(|| Err(died(&self.settings.address)))?;
        if let Some(problem) = difference(&self.description, &described.description) {
            return Err(RemoteError::Changed { address: self.settings.address.clone(), problem });
        }
        self.description = named(&described.description, &self.settings.address, self.description.epoch + 1);
        tracing::info!(device = self.description.name, epoch = self.description.epoch, "device connected again");
        self.life = Some(Life::new(link, &described));
        Ok(())
    }

    /// What an answer that is none means. The life is over where it says so.
    fn failed(&mut self, unanswered: Unanswered) -> BackendError {
        let error = match unanswered {
            Unanswered::Broken(problem) => BackendError::Lost(problem),
            Unanswered::Failed(pb::Failure { kind, message }) => match pb::FailureKind::try_from(kind) {
                Ok(pb::FailureKind::Rejected) => BackendError::Rejected(message),
                Ok(pb::FailureKind::OutOfMemory) => BackendError::OutOfMemory(message),
                Ok(pb::FailureKind::Fault) => BackendError::Fault(message),
                Ok(pb::FailureKind::Lost | pb::FailureKind::Unspecified) | Err(_) => BackendError::Lost(message),
            },
        };
        match error {
            BackendError::Lost(problem) => self.lose(&problem),
            other => other,
        }
    }

    fn lose(&mut self, problem: &str) -> BackendError {
        self.life = None;
        BackendError::Lost(format!("{}: {problem}", self.description.name))
    }
}

impl Life {
    fn new(link: Link, described: &Described) -> Self {
        let slots = described.description.slots;
        let (slots, samplers) = (Slots::new(slots), Samplers::new(slots));
        Self { link, draws_samples: described.draws_samples, slots, samplers, open: VecDeque::new() }
    }

    fn wire(&self, plan: &StepPlan) -> Result<pb::StepPlan, BackendError> {
        let drawn = |slot: SlotId| self.samplers.last(slot.0).unwrap_or_default();
        let wire = to_wire(plan, if self.draws_samples { None } else { Some(&drawn) });
        // Some room for what goes around it.
        if wire.encoded_len() > MESSAGE_BYTES_MAX - 64 {
            return rejected(format!("step {} is larger than a message of {MESSAGE_BYTES_MAX} bytes", plan.id.0));
        }
        Ok(wire)
    }

    /// The oldest step has run: what it drew, or what the device says that it drew.
    fn finish(&mut self, output: StepOutput, late: &LateInputs, vocab: u32) -> Result<StepOutput, BackendError> {
        let Some(Open { step, .. }) = self.open.pop_front() else { return rejected("no step is open") };
        self.samplers.apply(&step.samplers);
        if self.draws_samples {
            let logprobs = |slot| self.samplers.logprobs(slot);
            check_samples(&step, &output, late, vocab, logprobs).map_err(BackendError::Fault)?;
            return Ok(output);
        }
        let asked = step.sequences.iter().filter(|sequence| !sequence.outputs.is_empty());
        let sequences = asked.zip(&output.sequences).map(|(sequence, rows)| {
            let mut logits = rows.logits.iter().map(|(_, logits)| logits.as_slice());
            self.samplers.output(sequence, &mut logits, late)
        });
        Ok(StepOutput { sequences: sequences.collect(), ..output })
    }
}

impl Backend for RemoteBackend {
    fn describe(&self) -> &DeviceDescription {
        &self.description
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepTicket, BackendError> {
        if self.life.is_none() {
            self.reconnect().map_err(|error| BackendError::Lost(error.to_string()))?;
        }
        let Some(life) = &mut self.life else { return Err(away()) };
        if life.open.len() >= self.description.limits.in_flight as usize {
            return rejected(format!("{} steps are open, which is all that the device takes", life.open.len()));
        }
        if life.open.iter().any(|open| open.step.id == plan.id) {
            return rejected(format!("step {} is open already", plan.id.0));
        }
        let checked = life.slots.check(plan, &self.description)?;
        let asking = life.link.clone().submit(life.wire(plan)?, self.settings.step_timeout);
        match self.threads.wait(asking) {
            Some(Ok(())) => {
                let (step, undo) = life.slots.follow(checked);
                life.open.push_back(Open { step, undo });
                Ok(StepTicket(plan.id))
            }
            Some(Err(unanswered)) => {
                if matches!(&unanswered, Unanswered::Failed(failure) if failure.kind() == pb::FailureKind::Fault) {
                    // Its slot changes stand.
                    let (step, _) = life.slots.follow(checked);
                    life.samplers.apply(&step.samplers);
                }
                Err(self.failed(unanswered))
            }
            None => Err(self.lose("its connection died")),
        }
    }

    fn collect(&mut self, ticket: StepTicket, late: &LateInputs) -> Result<StepOutput, BackendError> {
        let vocab = self.description.vocab_size;
        let Some(life) = &mut self.life else { return Err(away()) };
        let step = match life.open.front() {
            Some(open) if open.step.id == ticket.0 => &open.step,
            _ => return rejected(format!("step {} is not the oldest open step", ticket.0.0)),
        };
        check_late(step, late, vocab)?;
        let masks = if life.draws_samples { masks_to_wire(late) } else { Vec::new() };
        let request = pb::CollectStep { step_id: ticket.0.0, masks };
        if request.encoded_len() > MESSAGE_BYTES_MAX - 64 {
            return rejected(format!("the masks are larger than a message of {MESSAGE_BYTES_MAX} bytes"));
        }
        let assembly = Assembly::new(step, life.draws_samples, &self.description);
        let asking = life.link.clone().collect(request, assembly, self.settings.step_timeout);
        let answered = match self.threads.wait(asking) {
            Some(answered) => answered,
            None => return Err(self.lose("its connection died")),
        };
        match answered {
            Ok(output) => life.finish(output, late, vocab),
            Err(Unanswered::Failed(failure)) if failure.kind() == pb::FailureKind::Fault => {
                if let Some(Open { step, .. }) = life.open.pop_front() {
                    life.samplers.apply(&step.samplers);
                }
                Err(BackendError::Fault(failure.message))
            }
            Err(Unanswered::Failed(failure)) if failure.kind() == pb::FailureKind::OutOfMemory => {
                if life.open.len() > 1 {
                    return Err(self.lose("it took back a step that others were built on"));
                }
                if let Some(Open { undo, .. }) = life.open.pop_front() {
                    life.slots.restore(undo);
                }
                Err(BackendError::OutOfMemory(failure.message))
            }
            Err(unanswered) => Err(self.failed(unanswered)),
        }
    }

    fn begin_copy(&mut self, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        let Some(life) = &self.life else { return Err(away()) };
        check_copy(&copy, &self.description, life.open.iter().map(|open| &open.step))?;
        if self.copies_open >= COPIES_MAX {
            return rejected(format!("{COPIES_MAX} copies were begun and not polled"));
        }
        self.copies_begun += 1;
        self.copies_open += 1;
        let ticket = CopyTicket(self.copies_begun);
        let bytes = self.description.kv_groups[usize::from(copy.group)].bytes_per_block;
        let moving = life.link.clone().copy(copy, bytes, self.settings.step_timeout);
        let done = self.copies.0.clone();
        self.threads.spawn(async move {
            let result = moving.await;
            // Nobody polls any more only if the backend is gone.
            let _ = done.send(CopyDone { ticket, result });
        });
        Ok(ticket)
    }

    fn poll_copies(&mut self) -> Vec<CopyDone> {
        let done: Vec<CopyDone> = self.copies.1.try_iter().collect();
        self.copies_open -= done.len();
        done
    }
}

fn rejected<T>(why: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::Rejected(why.into()))
}

fn away() -> BackendError {
    BackendError::Lost("the device is away, and what it held is gone".to_owned())
}

fn died(address: &DeviceAddress) -> RemoteError {
    RemoteError::Unreachable { address: address.clone(), problem: "the connection died of a defect".to_owned() }
}

/// A device's own description, told from here: where it is, and which life of it this is.
fn named(description: &DeviceDescription, address: &DeviceAddress, epoch: u64) -> DeviceDescription {
    DeviceDescription { name: format!("{} at {address}", description.name), epoch, ..description.clone() }
}

/// What tells two devices apart that may not take each other's place.
fn difference(was: &DeviceDescription, is: &DeviceDescription) -> Option<String> {
    let other = |what: &str, was: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
        Some(format!("{what} {is:?} instead of {was:?}"))
    };
    if was.weights != is.weights {
        return Some(format!("weights {} instead of {}", is.weights, was.weights));
    }
    if was.numerics_class != is.numerics_class {
        return Some(format!("numerics class {} instead of {}", is.numerics_class, was.numerics_class));
    }
    if was.kv_layout != is.kv_layout || was.block_tokens != is.block_tokens {
        return other("KV layout", &(&was.kv_layout, was.block_tokens), &(&is.kv_layout, is.block_tokens));
    }
    let shape = |d: &DeviceDescription| -> Vec<_> {
        d.kv_groups.iter().map(|group| (group.layers.clone(), group.window, group.bytes_per_block)).collect()
    };
    if shape(was) != shape(is) {
        return other("KV groups", &shape(was), &shape(is));
    }
    if (was.vocab_size, &was.precisions) != (is.vocab_size, &is.precisions) {
        return other(
            "vocabulary and precisions",
            &(was.vocab_size, &was.precisions),
            &(is.vocab_size, &is.precisions),
        );
    }
    None
}
