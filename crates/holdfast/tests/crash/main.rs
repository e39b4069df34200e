//! SIGKILL at random instants under load: whatever was acknowledged or streamed before is there afterwards, under the same
//! numbers; an interrupted turn ends by itself as its uninterrupted twin did; every journal can be read. Two hundred
//! instants, drawn from seeds, several for each data directory.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lane;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use lane::{Lane, Plan};
use support::script::{Script, Shape};
use support::{Home, effort, talk, within};

/// Conversations at once.
const LANES: usize = 5;
/// Kills of one data directory.
const KILLS_OF_A_HOME: usize = 20;
/// A kill comes at most this long after the load begins.
const LOAD_MS_MAX: u64 = 200;
/// One in so many kills hits a runtime that has not printed its address yet.
const STARTUP_KILLS: u32 = 8;
/// ... at most this long after its start.
const STARTUP_MS_MAX: u64 = 60;
/// Load, restart and reading everything again take far less.
const ROUND: Duration = Duration::from_secs(120);

/// Turns long enough to be hit.
const SHAPE: Shape = Shape { turns: 4, input_chars: 50, output_tokens: 40 };

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_renumbered() {
    let kills = effort(10, 200);
    let plan = Plan::of(Script::many(70_000, 12, SHAPE)).await;
    let mut random = fastrand::Rng::with_seed(0x5147_4b11);
    let mut done = 0;
    while done < kills {
        let some = KILLS_OF_A_HOME.min(kills - done);
        one_home(&plan, some, &mut random).await;
        done += some;
    }
}

/// Kills the runtimes of one data directory, then lets every conversation come to its end.
async fn one_home(plan: &Plan, kills: usize, random: &mut fastrand::Rng) {
    let home = Home::new();
    let mut lanes: Vec<Lane> = (0..LANES).map(Lane::new).collect();
    for _ in 0..kills {
        while random.u32(0..STARTUP_KILLS) == 0 {
            drop(home.try_start(&[], Duration::from_millis(random.u64(0..=STARTUP_MS_MAX))));
        }
        let mut runtime = home.start(&[]);
        let client = runtime.client().await;
        lanes = each(lanes, plan, async |lane, _| lane.verify(&client).await).await;
        let load = each(lanes, plan, async |lane, plan| lane.drive(&client, plan, false).await);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(random.u64(0..=LOAD_MS_MAX))).await;
            runtime.kill();
        };
        (lanes, ()) = within("a load and its kill", ROUND, async { tokio::join!(load, kill) }).await;
    }

    let mut runtime = home.start(&[]);
    let client = runtime.client().await;
    lanes = each(lanes, plan, async |lane, _| lane.verify(&client).await).await;
    lanes = each(lanes, plan, async |lane, plan| lane.drive(&client, plan, true).await).await;
    assert!(lanes.iter().all(|lane| lane.rounds() > 0));
    let cut: usize = lanes.iter().map(Lane::cut).sum();
    assert!(2 * cut > kills, "many kills hit turns in their middle, several at once: {cut} of {kills}");
    assert_eq!(talk::runtime(&client).await.turns_in_progress, 0);
    runtime.stop().await;

    let runtime = home.start(&[]);
    let client = runtime.client().await;
    for lane in &mut lanes {
        lane.verify(&client).await;
    }
}

/// Does something with every lane, one after the other where order matters to nobody but all at once for the runtime.
async fn each(lanes: Vec<Lane>, plan: &Plan, work: impl AsyncFn(&mut Lane, &Plan)) -> Vec<Lane> {
    let all = lanes.into_iter().map(async |mut lane| {
        work(&mut lane, plan).await;
        lane
    });
    within("all lanes", ROUND, join_all(all)).await
}

/// Polls all of them together, on this task.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}
