//! Sessions whose runtime came back as another: other weights, another model, another numerics class, a damaged journal.

use std::path::Path;
use std::pin::Pin;

use holdfast_client::{Client, v1};
use tonic::{Code, Status};

use crate::ground::details;
use crate::support::{Home, model_dir, talk};

type Ask = for<'a> fn(&'a Client, &'a str) -> Pin<Box<dyn Future<Output = Result<(), Status>> + 'a>>;

/// What is changed between two runs, and what a turn gets then.
pub(crate) struct Change {
    pub(crate) input: &'static str,
    pub(crate) code: Code,
    pub(crate) reason: &'static str,
    pub(crate) details: &'static str,
    /// Whether its items can still be listed: not without the tokenizer that they were sampled with.
    readable: bool,
    /// Extra arguments of the first run.
    first: fn(&Path) -> Vec<String>,
    /// Changes something; extra arguments of the second run.
    second: fn(&Path) -> Vec<String>,
    /// What is asked of the second run.
    ask: Ask,
}

pub(crate) const CHANGES: &[Change] = &[
    Change {
        input: "a turn after a bit of the weights has flipped",
        code: Code::FailedPrecondition,
        reason: "MODEL_REVISION_UNAVAILABLE",
        details: "PreconditionFailure; ResourceInfo `Model`",
        readable: true,
        first: |home| model(&model_dir::copy(&home.join("model"))),
        second: |home| {
            model_dir::damage(&home.join("model"), "model.safetensors", |bytes| {
                let last = bytes.len() - 3;
                bytes[last] ^= 0x10;
            });
            model(&home.join("model"))
        },
        ask: |client, session| Box::pin(talks(client, session)),
    },
    Change {
        input: "a turn after its model is not served any more",
        code: Code::FailedPrecondition,
        reason: "MODEL_REVISION_UNAVAILABLE",
        details: "PreconditionFailure; ResourceInfo `Model`",
        readable: false,
        first: |home| model(&model_dir::copy(&home.join("model"))),
        second: |_| Vec::new(),
        ask: |client, session| Box::pin(talks(client, session)),
    },
    Change {
        input: "a turn in another numerics class with REQUIRE_SAME",
        code: Code::FailedPrecondition,
        reason: "NUMERICS_CLASS_CHANGED",
        details: "PreconditionFailure",
        readable: true,
        first: |_| Vec::new(),
        second: |_| vec!["--set".to_owned(), "device.weights=nested".to_owned()],
        ask: |client, session| Box::pin(talks(client, session)),
    },
    Change {
        input: "a session with a damaged journal",
        code: Code::DataLoss,
        reason: "JOURNAL_CORRUPT",
        details: "",
        readable: false,
        first: |_| Vec::new(),
        second: |home| {
            let journal = rusqlite::Connection::open(home.join("data/journal.db")).unwrap();
            let changed = journal
                .execute("UPDATE entries SET body = replace(body, 'Pebble', 'Bebble') WHERE body LIKE '%Pebble%'", [])
                .unwrap();
            assert!(changed > 0);
            Vec::new()
        },
        ask: |client, session| Box::pin(talks(client, session)),
    },
];

async fn talks(client: &Client, session: &str) -> Result<(), Status> {
    talk::run(client, talk::says(session, "What is my locker code?")).await.map(drop)
}

fn model(directory: &Path) -> Vec<String> {
    vec!["--model".to_owned(), format!("mine={}", directory.display())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_came_back_as_another_says_so() {
    for change in CHANGES {
        let home = Home::new();
        let arguments = (change.first)(home.path());
        let mut runtime = home.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let client = runtime.client().await;
        let config = v1::SessionConfig { numerics_policy: v1::NumericsPolicy::RequireSame.into(), ..talk::pebble() };
        let session = talk::open(&client, config).await;
        talk::run_to_end(&client, talk::says(&session, "My locker code is 4471.")).await.unwrap();
        let items = talk::list_items(&client, &session).await;
        runtime.stop().await;

        let arguments = (change.second)(home.path());
        let runtime = home.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let client = runtime.client().await;
        let status = (change.ask)(&client, &session).await.expect_err(change.input);
        let got = (status.code(), talk::reason(&status), details(&status));
        assert_eq!(
            got,
            (change.code, change.reason.to_owned(), change.details.to_owned()),
            "{}: {status:?}",
            change.input
        );
        if change.readable {
            assert_eq!(talk::list_items(&client, &session).await, items, "history stays readable: {}", change.input);
        }
        let other = talk::open(&client, talk::pebble()).await;
        talk::run_to_end(&client, talk::says(&other, "Hello")).await.unwrap();
        let listed = client.sessions().list_sessions(v1::ListSessionsRequest::default()).await.unwrap().into_inner();
        assert!(listed.sessions.iter().any(|listed| listed.name == other), "others are not touched: {}", change.input);
        if change.code != Code::DataLoss {
            talk::delete(&client, &session).await.unwrap_or_else(|status| panic!("{}: {status:?}", change.input));
        }
    }
}
