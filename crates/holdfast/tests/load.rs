//! Sixty-four sessions at once, of mixed lengths, for two minutes: no error, and every output as when it ran alone.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use holdfast_client::v1::Sharing;
use support::script::{Script, Shape, assert_same, play_alone};
use support::{Home, effort, talk};
use tokio::task::JoinSet;
use tokio::time::Instant;

const SESSIONS: usize = 64;
/// From a word to most of a context.
const SHAPES: &[Shape] = &[
    Shape { turns: 1, input_chars: 10, output_tokens: 4 },
    Shape { turns: 4, input_chars: 60, output_tokens: 20 },
    Shape { turns: 2, input_chars: 200, output_tokens: 80 },
    Shape { turns: 1, input_chars: 400, output_tokens: 200 },
];

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sessions_at_once_leave_what_each_leaves_alone() {
    let time = effort(Duration::from_secs(5), Duration::from_secs(120));
    let scripts: Vec<Script> =
        (0..24).map(|at| Script::random(9_000 + at, SHAPES[at as usize % SHAPES.len()])).collect();
    let home = Home::new();
    // Eight full contexts: what 64 sessions want does not fit at once.
    let runtime = home.start(&["--set", "device.kv_bytes=16777216"]);
    let client = runtime.client().await;
    let alone = Arc::new(play_alone(&client, &scripts, Sharing::Private).await);
    let scripts = Arc::new(scripts);

    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for lane in 0..SESSIONS {
        let (client, scripts, alone) = (client.clone(), scripts.clone(), alone.clone());
        tasks.spawn(async move {
            let mut played = 0;
            while Instant::now() < end || played == 0 {
                let at = (lane + played * 7) % scripts.len();
                let sharing = if lane % 2 == 0 { Sharing::Private } else { Sharing::Tenant };
                let trace = scripts[at].play(&client, sharing).await;
                assert_same("under load", &scripts[at..=at], &alone[at..=at], &[trace]);
                played += 1;
            }
            played
        });
    }
    let mut conversations = 0;
    while let Some(played) = tasks.join_next().await {
        conversations += played.unwrap();
    }
    assert!(conversations >= SESSIONS, "every lane played");

    let told = talk::runtime(&client).await;
    assert_eq!((told.turns_in_progress, told.draining), (0, false));
}
