//! Was the machine ours?
//!
//! In: the kernel's counters of CPU time, ours and everybody's, before and after; and a fixed piece of work timed at moments
//! that a scenario calls quiet. Out: a [`Verdict`] that stands in every report. Shared hosts are the rule, and a figure from a busy one is
//! not wrong but unsure: it is printed with a warning. Deliberately not here: correcting a figure for noise.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::statistics::percentile;

/// More of all cores than this used by others, and the run is noisy.
const OTHERS_SHARE_MAX: f64 = 0.05;
/// More of all cores than this taken by the host, and the run is noisy.
const STEAL_SHARE_MAX: f64 = 0.02;
/// A slow probe (90th percentile) may take this much longer than the fastest.
const PROBE_SPREAD_MAX: f64 = 0.15;
/// Rounds of one probe; a few milliseconds.
const PROBE_ROUNDS: u64 = 4_000_000;

/// What a run knows about its neighbours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// Any of the reasons holds: figures of this run are unsure.
    pub(crate) noisy: bool,
    pub(crate) reasons: Vec<String>,
    /// Of the CPU time of all cores: used by processes that are not of this run. `None` where the system does not tell, or a peer is
    /// among the others.
    pub(crate) others_cpu_share: Option<f64>,
    /// Of the CPU time of all cores: taken by the host.
    pub(crate) steal_share: Option<f64>,
    /// 90th percentile of the probes over the fastest, less one.
    pub(crate) probe_spread: Option<f64>,
    /// CPU time of this program, in seconds.
    pub(crate) driver_cpu_s: Option<f64>,
    /// CPU time of the runtimes that it started, in seconds.
    pub(crate) runtime_cpu_s: Option<f64>,
    /// This program's part of both.
    pub(crate) driver_cpu_share: Option<f64>,
}

/// Watches one run, from its making to [`Watch::verdict`].
pub(crate) struct Watch {
    begin: Option<Counters>,
    probes_s: Vec<f64>,
    peers: bool,
}

impl Watch {
    /// Begins. `peers`: other servers of this run are among the processes that are not ours.
    pub(crate) fn begin(peers: bool) -> Self {
        Self { begin: Counters::read(), probes_s: Vec::new(), peers }
    }

    /// Times a fixed piece of work. Call it between measurements, while nothing of the run computes.
    pub(crate) fn probe(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
        let begin = Instant::now();
        let mut state = 1_u64;
        for round in 0..PROBE_ROUNDS {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round));
        }
        self.probes_s.push(begin.elapsed().as_secs_f64());
    }

    /// Ends. Call it after every runtime of the run was stopped and waited for: only then does the system count its time as
    /// ours.
    pub(crate) fn verdict(self) -> Verdict {
        let used = self.begin.and_then(|begin| Some(Counters::read()?.since(&begin)));
        judge(used, &self.probes_s, self.peers)
    }
}

/// CPU seconds since the machine or the process started.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counters {
    /// All cores, whatever they did.
    all: f64,
    busy: f64,
    steal: f64,
    driver: f64,
    /// Of children that ended and were waited for.
    children: f64,
}

impl Counters {
    #[cfg(target_os = "linux")]
    fn read() -> Option<Self> {
        use procfs::CurrentSI as _;
        let total = procfs::KernelStats::current().ok()?.total;
        let this = procfs::process::Process::myself().ok()?.stat().ok()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let steal = seconds(total.steal.unwrap_or(0));
        let idle = seconds(total.idle + total.iowait.unwrap_or(0));
        let busy =
            seconds(total.user + total.nice + total.system + total.irq.unwrap_or(0) + total.softirq.unwrap_or(0));
        Some(Self {
            all: busy + idle + steal,
            busy,
            steal,
            driver: seconds(this.utime + this.stime),
            children: seconds(u64::try_from(this.cutime + this.cstime).unwrap_or(0)),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn read() -> Option<Self> {
        None
    }

    fn since(self, begin: &Self) -> Self {
        Self {
            all: self.all - begin.all,
            busy: self.busy - begin.busy,
            steal: self.steal - begin.steal,
            driver: self.driver - begin.driver,
            children: self.children - begin.children,
        }
    }
}

fn judge(used: Option<Counters>, probes_s: &[f64], peers: bool) -> Verdict {
    let share = |part: f64, all: f64| if all > 0.0 { (part / all).clamp(0.0, 1.0) } else { 0.0 };
    let others = used.filter(|_| !peers).map(|used| share(used.busy - used.driver - used.children, used.all));
    let steal = used.map(|used| share(used.steal, used.all));
    let spread = (probes_s.len() > 1).then(|| percentile(probes_s, 90.0) / percentile(probes_s, 0.0) - 1.0);
    let mut reasons = Vec::new();
    let mut hold = |value: Option<f64>, most: f64, said: &str| {
        if let Some(value) = value.filter(|value| *value > most) {
            reasons.push(format!("{said} {:.0}% (a quiet run has at most {:.0}%)", value * 100.0, most * 100.0));
        }
    };
    hold(others, OTHERS_SHARE_MAX, "other processes used, of all cores,");
    hold(steal, STEAL_SHARE_MAX, "the host took, of all cores,");
    hold(spread, PROBE_SPREAD_MAX, "the same work took, at its slow moments, longer by");
    Verdict {
        noisy: !reasons.is_empty(),
        reasons,
        others_cpu_share: others,
        steal_share: steal,
        probe_spread: spread,
        driver_cpu_s: used.map(|used| used.driver),
        runtime_cpu_s: used.map(|used| used.children),
        driver_cpu_share: used.map(|used| share(used.driver, used.driver + used.children)),
    }
}

/// Sleeps in the run's own task, for moments that let the machine settle.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn used(busy: f64, steal: f64) -> Option<Counters> {
        Some(Counters { all: 100.0, busy, steal, driver: 2.0, children: 38.0 })
    }

    #[test]
    fn a_quiet_run_has_no_reasons() {
        let verdict = judge(used(41.0, 0.5), &[1.0, 1.02, 1.05], false);
        assert!(!verdict.noisy, "{verdict:?}");
        assert_eq!(verdict.driver_cpu_share, Some(0.05));
        assert_eq!(verdict.others_cpu_share, Some(0.01));
    }

    #[test]
    fn each_kind_of_noise_is_told() {
        for (used, probes, word) in [
            (used(60.0, 0.0), vec![1.0, 1.0], "other processes"),
            (used(40.0, 9.0), vec![1.0, 1.0], "the host"),
            (used(40.0, 0.0), vec![1.0, 1.4], "the same work"),
        ] {
            let verdict = judge(used, &probes, false);
            assert!(verdict.noisy && verdict.reasons[0].contains(word), "{verdict:?}");
        }
    }

    #[test]
    fn a_peer_is_no_neighbour() {
        assert!(!judge(used(90.0, 0.0), &[], true).noisy);
    }

    #[test]
    fn a_watch_counts_its_own_work() {
        let mut watch = Watch::begin(false);
        (0..3).for_each(|_| watch.probe());
        let verdict = watch.verdict();
        assert!(verdict.probe_spread.unwrap() >= 0.0);
    }
}
