//! The virtual token counter: which flow has had the least of the device.
//!
//! After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (VTC): every flow has a counter of the service it
//! got; the flow with the smallest counter goes first; a flow that comes back from idleness is lifted to the smallest active
//! counter, so that idleness earns no credit. Between flows that always have work the counters stay within a constant.
//! Deliberately not here: what a token costs (`plan.rs` charges) and who can run (`choose.rs`).

use std::collections::BTreeMap;

#[derive(Debug, Default)]
struct Flow {
    served: u64,
    jobs: u32,
}

/// The counters of all flows that have work, and of idle ones only while they are ahead of the active ones.
#[derive(Debug, Default)]
pub(crate) struct FairShare {
    flows: BTreeMap<u64, Flow>,
}

impl FairShare {
    /// A job of the flow arrived.
    pub(crate) fn enter(&mut self, flow: u64) {
        let floor = self.floor();
        let entry = self.flows.entry(flow).or_default();
        if entry.jobs == 0 {
            entry.served = entry.served.max(floor.unwrap_or(0));
        }
        entry.jobs += 1;
    }

    /// A job of the flow is gone.
    pub(crate) fn leave(&mut self, flow: u64) {
        let Some(entry) = self.flows.get_mut(&flow) else { panic!("flow {flow} left before it entered") };
        entry.jobs -= 1;
        // A counter at or below the floor would be lifted anyway; when nobody is active everybody starts level.
        match self.floor() {
            Some(floor) => self.flows.retain(|_, flow| flow.jobs > 0 || flow.served > floor),
            None => self.flows.clear(),
        }
    }

    /// The flow got service.
    pub(crate) fn charge(&mut self, flow: u64, tokens: u64) {
        if let Some(entry) = self.flows.get_mut(&flow) {
            entry.served += tokens;
        }
    }

    /// Service of a flow so far.
    pub(crate) fn served(&self, flow: u64) -> u64 {
        self.flows.get(&flow).map_or(0, |flow| flow.served)
    }

    /// Flows that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    fn floor(&self) -> Option<u64> {
        self.flows.values().filter(|flow| flow.jobs > 0).map(|flow| flow.served).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_earns_no_credit_and_forgives_no_debt() {
        let mut fair = FairShare::default();
        fair.enter(1);
        fair.enter(2);
        fair.charge(1, 100);
        fair.charge(2, 40);
        fair.enter(3);
        assert_eq!(fair.served(3), 40, "lifted to the smallest active counter");
        fair.leave(1);
        fair.enter(1);
        assert_eq!(fair.served(1), 100, "ahead, and remembered");
        fair.leave(1);
        fair.charge(2, 70);
        fair.charge(3, 70);
        fair.leave(3);
        assert_eq!(fair.len(), 1, "idle flows at or below the floor are forgotten");
        fair.leave(2);
        assert_eq!(fair.len(), 0, "nobody is active: everybody starts level");
    }
}
