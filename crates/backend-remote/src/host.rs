//! A local backend behind the server: lives that begin and end, steps, and copies.
//!
//! In: calls, each on a thread that may block. Out: what the backend says. Deliberately not here: messages and streams (`serve`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_backend::{Backend, BackendError, BlockCopy, CopyDone, CopyTicket, StepTicket};
use holdfast_types::{DeviceDescription, LateInputs, SlotChange, SlotId, StepId, StepOutput, StepPlan};

/// Between two looks at a copy that a backend makes beside its steps.
pub(crate) const COPY_LOOK: std::time::Duration = std::time::Duration::from_millis(1);

/// One backend, lent to one runtime at a time.
///
/// A life is begun, used and ended; the backend itself goes on. At the end of a life every open step is collected and every slot closed, so
/// that the next life finds the backend as if it were new: what blocks hold is nobody's then, and read by nobody.
pub(crate) struct Host {
    backend: Box<dyn Backend>,
    life: u64,
    is_alive: bool,
    open: VecDeque<StepId>,
    /// Slots that the life may have left open.
    slots: BTreeSet<SlotId>,
    /// Copies that ended and were not asked for yet.
    copied: BTreeMap<CopyTicket, CopyDone>,
}

impl Host {
    pub(crate) fn new(backend: Box<dyn Backend>) -> Self {
        let (open, slots) = (VecDeque::new(), BTreeSet::new());
        Self { backend, life: 0, is_alive: false, open, slots, copied: BTreeMap::new() }
    }

    /// What the backend is, and the name of the life that it is in or will be in next.
    pub(crate) fn describe(&self) -> (DeviceDescription, u64) {
        (self.backend.describe().clone(), self.life + u64::from(!self.is_alive))
    }

    pub(crate) fn begin(&mut self) {
        self.life += 1;
        self.is_alive = true;
    }

    pub(crate) fn end(&mut self) {
        for step in std::mem::take(&mut self.open) {
            // What it gives interests nobody; an error means that it is not open any more.
            let _ = self.backend.collect(StepTicket(step), &LateInputs::default());
        }
        // One by one: some may be closed already, or gone with a backend that was lost.
        for slot in std::mem::take(&mut self.slots) {
            let slots = vec![SlotChange::Close { slot }];
            let close = StepPlan { id: StepId(0), slots, copies: Vec::new(), sequences: Vec::new() };
            if let Ok(ticket) = self.backend.submit(&close) {
                let _ = self.backend.collect(ticket, &LateInputs::default());
            }
        }
        self.is_alive = false;
    }

    pub(crate) fn submit(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        self.slots.extend(plan.slots.iter().filter_map(|change| match change {
            SlotChange::Open { slot, .. } => Some(*slot),
            SlotChange::Table(_) | SlotChange::Close { .. } => None,
        }));
        let ticket = self.backend.submit(plan)?;
        // The call to collect it is on its way for a while.
        self.backend.start(&ticket);
        self.open.push_back(ticket.0);
        Ok(())
    }

    pub(crate) fn collect(&mut self, step: StepId, late: &LateInputs) -> Result<StepOutput, BackendError> {
        let collected = self.backend.collect(StepTicket(step), late);
        if !matches!(collected, Err(BackendError::Rejected(_))) {
            self.open.retain(|open| *open != step);
        }
        collected
    }

    /// Begins a copy for the life of that name.
    pub(crate) fn begin_copy(&mut self, life: u64, copy: BlockCopy) -> Result<CopyTicket, BackendError> {
        if !self.is_alive || life != self.life {
            return Err(BackendError::Lost(format!("life {life} is over")));
        }
        self.backend.begin_copy(copy)
    }

    /// What became of a copy, once it has ended.
    pub(crate) fn copied(&mut self, ticket: CopyTicket) -> Option<CopyDone> {
        self.copied.extend(self.backend.poll_copies().into_iter().map(|done| (done.ticket, done)));
        self.copied.remove(&ticket)
    }
}
