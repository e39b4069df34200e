//! The jobs that run, and how many blocks they still take for the logs they have.
//!
//! In: jobs that are admitted, change and stop. Out: each of them, and their missing blocks as a sum per KV group. Deliberately not
//! here: why they change (`plan.rs`) and who joins them (`scheduler.rs`).
//!
//! A job can only be changed through [`RunningJobs::change`], which keeps the sum: asking what all of them miss costs nothing.

use std::collections::BTreeMap;

use holdfast_kv::{Holding, KvCache, Replaced};
use holdfast_types::SlotId;

use crate::JobId;
use crate::scheduler::Task;

/// A job that has a slot and holds blocks.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) task: Task,
    pub(crate) holding: Holding,
    /// Tokens whose KV is there; the rest of the log is to be computed.
    pub(crate) computed: u32,
    pub(crate) slot: SlotId,
    /// What the device has been told of the slot.
    pub(crate) told: Told,
}

/// What the device knows of a slot.
#[derive(Debug)]
pub(crate) enum Told {
    /// Nothing yet.
    Nothing,
    /// The slot is open and, per group, the entries of its table up to this one are set, as far as they are seen.
    Open {
        entries: Vec<u32>,
        /// Entries that changed since.
        changed: Vec<Replaced>,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct RunningJobs {
    jobs: BTreeMap<JobId, Running>,
    /// Per KV group, blocks that the jobs still take for the logs they have.
    missing: Vec<u32>,
}

impl RunningJobs {
    pub(crate) fn new(kv: &KvCache) -> Self {
        Self { jobs: BTreeMap::new(), missing: vec![0; kv.groups()] }
    }

    pub(crate) fn insert(&mut self, kv: &KvCache, running: Running) {
        self.missing.iter_mut().zip(running.missing(kv)).for_each(|(sum, blocks)| *sum += blocks);
        self.jobs.insert(running.task.job.id, running);
    }

    pub(crate) fn remove(&mut self, kv: &KvCache, job: JobId) -> Option<Running> {
        let running = self.jobs.remove(&job)?;
        self.missing.iter_mut().zip(running.missing(kv)).for_each(|(sum, blocks)| *sum -= blocks);
        Some(running)
    }

    /// Changes a job, and the cache with it.
    ///
    /// # Panics
    /// If it does not run.
    pub(crate) fn change<R>(
        &mut self,
        kv: &mut KvCache,
        job: JobId,
        change: impl FnOnce(&mut KvCache, &mut Running) -> R,
    ) -> R {
        let Some(running) = self.jobs.get_mut(&job) else { panic!("{job:?} left during a step") };
        self.missing.iter_mut().zip(running.missing(kv)).for_each(|(sum, blocks)| *sum -= blocks);
        let result = change(kv, running);
        self.missing.iter_mut().zip(running.missing(kv)).for_each(|(sum, blocks)| *sum += blocks);
        result
    }

    /// Blocks of each KV group that the jobs still take for the logs they have.
    pub(crate) fn missing(&self) -> &[u32] {
        &self.missing
    }

    pub(crate) fn get(&self, job: JobId) -> Option<&Running> {
        self.jobs.get(&job)
    }

    pub(crate) fn ids(&self) -> impl ExactSizeIterator<Item = JobId> {
        self.jobs.keys().copied()
    }

    /// In order of their ids.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Running> {
        self.jobs.values()
    }

    /// In order of their ids.
    pub(crate) fn into_tasks(self) -> impl Iterator<Item = Task> {
        self.jobs.into_values().map(|running| running.task)
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

impl Running {
    /// Blocks of each KV group that it still takes for the log it has.
    pub(crate) fn missing(&self, kv: &KvCache) -> impl Iterator<Item = u32> {
        kv.missing(&self.holding, self.task.job.log.len() as u32)
    }
}
