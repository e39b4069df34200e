//! The virtual token counter: which flow has had the least of the device, and so whose job is admitted next.
//!
//! After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (VTC): every flow has a counter of the service it
//! got; the flow with the smallest counter goes first; a flow that comes back from idleness is lifted to the smallest active
//! counter, so that idleness earns no credit. Between flows that always have work the counters stay within a constant.
//! Deliberately not here: what a token costs (`plan.rs` charges), whether there is room (`scheduler.rs`) and who can run
//! (`choose.rs`).
//!
//! Flows stand in an order, so that nothing here looks at all of them. A charge does not touch the order: counters only rise, so
//! a flow stands at its place or before it, and whoever is found to be first by mistake is moved back then.

use std::collections::{BTreeMap, BTreeSet};

use crate::JobId;

#[derive(Debug, Default)]
struct Flow {
    served: u64,
    /// Its service when it was given its place in the order.
    placed: u64,
    jobs: u32,
    /// Those of its jobs that wait, by arrival.
    waiting: BTreeMap<u64, JobId>,
}

/// What a flow has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Some of its jobs wait.
    Waits,
    /// All of its jobs run.
    Runs,
    /// It has no job.
    Idle,
}

/// Where a flow stands in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    standing: Standing,
    /// Its service, or less.
    served: u64,
    /// Arrival of its first job that waits; 0 when none does.
    arrival: u64,
    flow: u64,
}

/// The counters of all flows that have work, and of idle ones only while they are ahead of the active ones.
#[derive(Debug, Default)]
pub(crate) struct FairShare {
    flows: BTreeMap<u64, Flow>,
    order: BTreeSet<Place>,
}

impl FairShare {
    /// A job of the flow arrived, and waits.
    pub(crate) fn enter(&mut self, flow: u64, arrival: u64, job: JobId) {
        let floor = self.floor().unwrap_or(0);
        self.flows.entry(flow).or_default();
        self.change(flow, |entry| {
            if entry.jobs == 0 {
                entry.served = entry.served.max(floor);
            }
            entry.jobs += 1;
            entry.waiting.insert(arrival, job);
        });
    }

    /// Who is admitted next: of the flow served least, and among equals whoever came first.
    pub(crate) fn next(&mut self) -> Option<JobId> {
        let place = self.first(Standing::Waits)?;
        self.flows.get(&place.flow)?.waiting.get(&place.arrival).copied()
    }

    /// A job of the flow was admitted.
    pub(crate) fn run(&mut self, flow: u64, arrival: u64) {
        self.change(flow, |entry| {
            entry.waiting.remove(&arrival);
        });
    }

    /// A job of the flow waits again, in its old place.
    pub(crate) fn wait(&mut self, flow: u64, arrival: u64, job: JobId) {
        self.change(flow, |entry| {
            entry.waiting.insert(arrival, job);
        });
    }

    /// A job of the flow is gone.
    pub(crate) fn leave(&mut self, flow: u64, arrival: u64) {
        self.change(flow, |entry| {
            entry.jobs -= 1;
            entry.waiting.remove(&arrival);
        });
        // A counter at or below the floor would be lifted anyway; when nobody is active everybody starts level.
        let floor = self.floor().unwrap_or(u64::MAX);
        while let Some(idle) = self.first(Standing::Idle).filter(|idle| idle.served <= floor) {
            self.order.remove(&idle);
            self.flows.remove(&idle.flow);
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

    /// Whether each flow stands once in the order, at its place or before it.
    pub(crate) fn is_ordered(&self) -> bool {
        let stands = |(id, flow): (&u64, &Flow)| flow.placed <= flow.served && self.order.contains(&flow.place(*id));
        self.order.len() == self.flows.len() && self.flows.iter().all(stands)
    }

    /// The smallest counter of a flow that has work.
    fn floor(&mut self) -> Option<u64> {
        let active = [Standing::Waits, Standing::Runs].into_iter().filter_map(|standing| self.first(standing));
        active.map(|place| place.served).min()
    }

    fn first(&mut self, standing: Standing) -> Option<Place> {
        let from = Place { standing, served: 0, arrival: 0, flow: 0 };
        loop {
            let place = *self.order.range(from..).next().filter(|place| place.standing == standing)?;
            if place.served == self.served(place.flow) {
                return Some(place);
            }
            self.change(place.flow, |_| ());
        }
    }

    /// Changes a flow and gives it its place.
    fn change(&mut self, flow: u64, change: impl FnOnce(&mut Flow)) {
        let Some(entry) = self.flows.get_mut(&flow) else { panic!("flow {flow} never entered") };
        self.order.remove(&entry.place(flow));
        change(entry);
        entry.placed = entry.served;
        self.order.insert(entry.place(flow));
    }
}

impl Flow {
    fn place(&self, flow: u64) -> Place {
        let standing = match (self.waiting.is_empty(), self.jobs) {
            (false, _) => Standing::Waits,
            (true, 1..) => Standing::Runs,
            (true, 0) => Standing::Idle,
        };
        let arrival = self.waiting.first_key_value().map_or(0, |(arrival, _)| *arrival);
        Place { standing, served: self.placed, arrival, flow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_earns_no_credit_and_forgives_no_debt() {
        let mut fair = FairShare::default();
        fair.enter(1, 1, JobId(1));
        fair.enter(2, 2, JobId(2));
        fair.charge(1, 100);
        fair.charge(2, 40);
        fair.enter(3, 3, JobId(3));
        assert_eq!(fair.served(3), 40, "lifted to the smallest active counter");
        fair.leave(1, 1);
        fair.enter(1, 4, JobId(4));
        assert_eq!(fair.served(1), 100, "ahead, and remembered");
        fair.leave(1, 4);
        fair.charge(2, 70);
        fair.charge(3, 70);
        fair.leave(3, 3);
        assert_eq!(fair.len(), 1, "idle flows at or below the floor are forgotten");
        fair.leave(2, 2);
        assert_eq!(fair.len(), 0, "nobody is active: everybody starts level");
    }

    #[test]
    fn the_flow_served_least_goes_first_and_then_who_came_first() {
        let mut fair = FairShare::default();
        (1..=4).for_each(|arrival| fair.enter(arrival % 2, arrival, JobId(arrival)));
        assert_eq!(fair.next(), Some(JobId(1)), "among equals the first");
        fair.run(1, 1);
        assert_eq!(fair.next(), Some(JobId(2)));
        fair.charge(0, 5);
        assert_eq!(fair.next(), Some(JobId(3)), "the other flow was served");
        fair.charge(1, 5);
        fair.wait(1, 1, JobId(1));
        assert_eq!(fair.next(), Some(JobId(1)), "whoever waits again has its old place");
        fair.leave(1, 1);
        fair.run(0, 2);
        assert_eq!(fair.next(), Some(JobId(3)));
    }
}
