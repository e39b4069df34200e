//! Bytes that are no request, and clients that behave badly: what the connection gets, and that nobody else notices.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::time::Duration;

use holdfast_client::{items, v1};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::ground::{Ground, Row, rows};
use crate::support::{SOON, talk, within};

/// Calls that no generated client would make.
pub(crate) const ROWS: &[Row] = rows! {
    "a method that the service does not have" => Unimplemented, "METHOD_NOT_IMPLEMENTED", "metadata `method`", |ground|
        call::<v1::GetSessionRequest>(ground, "/holdfast.v1.SessionService/Teleport", v1::GetSessionRequest::default());
    "a service that is not there" => Unimplemented, "METHOD_NOT_IMPLEMENTED", "metadata `method`", |ground|
        call::<v1::GetSessionRequest>(ground, "/holdfast.v1.TeleportService/Go", v1::GetSessionRequest::default());
    "a request with a number where a name belongs" => InvalidArgument, "INVALID_ARGUMENT", "", |ground|
        call::<v1::ListSessionsRequest>(ground, "/holdfast.v1.SessionService/GetSession", v1::ListSessionsRequest { page_size: 7, ..Default::default() });
    "a name that is not UTF-8" => InvalidArgument, "INVALID_ARGUMENT", "", |ground|
        call::<Vec<u8>>(ground, "/holdfast.v1.SessionService/GetSession", vec![b's', 0xff, 0xfe]);
};

/// Calls a method by its path with a message of any type.
async fn call<M: prost::Message + Send + Sync + 'static>(
    ground: &Ground,
    path: &'static str,
    message: M,
) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(talk::channel(ground.address()).await);
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = ProstCodec::<M, v1::Session>::default();
    grpc.unary(Request::new(message), path.parse().unwrap(), codec).await.map(drop)
}

/// What a client does, and what comes of it.
pub(crate) struct Behaviour {
    pub(crate) input: &'static str,
    pub(crate) outcome: &'static str,
    act: for<'a> fn(&'a Ground) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

pub(crate) const BEHAVIOURS: &[Behaviour] = &[
    Behaviour {
        input: "random bytes on the port",
        outcome: "the connection is closed",
        act: |ground| {
            Box::pin(async {
                let mut random = fastrand::Rng::with_seed(5);
                for length in [1, 9, 24, 100, 10_000] {
                    let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
                    send(ground, &bytes);
                }
            })
        },
    },
    Behaviour {
        input: "HTTP/1.1 on the port",
        outcome: "the connection is closed, or answered in HTTP/1.1",
        act: |ground| Box::pin(async { send(ground, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n") }),
    },
    Behaviour {
        input: "an HTTP/2 preface followed by garbage frames",
        outcome: "GOAWAY, and the connection is closed",
        act: |ground| {
            Box::pin(async {
                let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
                bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
                bytes.extend([0xff; 300]);
                send(ground, &bytes);
            })
        },
    },
    Behaviour {
        input: "a hundred connections that say nothing",
        outcome: "they wait; others are served",
        act: |ground| {
            Box::pin(async {
                let open: Vec<_> = (0..100).map(|_| TcpStream::connect(ground.address()).unwrap()).collect();
                answers(ground).await;
                drop(open);
            })
        },
    },
    Behaviour {
        input: "a client that does not read its streams",
        outcome: "its own streams wait; others are served, and it can read everything later",
        act: |ground| Box::pin(slow_reader(ground)),
    },
    Behaviour {
        input: "a client that goes away in mid-stream",
        outcome: "the turn goes on; AttachTurn brings all of it",
        act: |ground| {
            Box::pin(async {
                let (session, request) = long_turn(ground).await;
                let mut stream = ground.client.sessions().run_turn(request).await.unwrap().into_inner();
                let first = stream.message().await.unwrap().unwrap();
                drop(stream);
                let heard = talk::attach(&ground.client, &first.turn, 0).await.unwrap();
                assert_eq!(heard.ended().unwrap().state(), v1::TurnState::Incomplete, "{session}");
            })
        },
    },
    Behaviour {
        input: "a client that goes away in mid-stream with on_disconnect CANCEL",
        outcome: "the turn is cancelled",
        act: |ground| {
            Box::pin(async {
                let (_, request) = long_turn(ground).await;
                let request = v1::RunTurnRequest { on_disconnect: v1::OnDisconnect::Cancel.into(), ..request };
                let mut stream = ground.client.sessions().run_turn(request).await.unwrap().into_inner();
                let first = stream.message().await.unwrap().unwrap();
                drop(stream);
                let ended = talk::wait_ended(&ground.client, &first.turn).await;
                assert_eq!(ended.state(), v1::TurnState::Cancelled);
            })
        },
    },
    Behaviour {
        input: "a session deleted while its turn runs",
        outcome: "the turn's stream ends with `SESSION_DELETED`: as the error of turn_ended (FAILED), or of the stream if \
                  the session was gone before it was read",
        act: |ground| {
            Box::pin(async {
                let (session, request) = long_turn(ground).await;
                let stream = ground.client.sessions().run_turn(request).await.unwrap().into_inner();
                talk::delete(&ground.client, &session).await.unwrap();
                match talk::hear(stream).await {
                    Ok(heard) => {
                        let ended = heard.ended().expect("a terminal event");
                        assert_eq!(ended.state(), v1::TurnState::Failed);
                        assert_eq!(ended.error.as_ref().unwrap().reason(), v1::ErrorReason::SessionDeleted);
                    }
                    Err(status) => assert_eq!(talk::reason(&status), "SESSION_DELETED", "{status:?}"),
                }
            })
        },
    },
    Behaviour {
        input: "a call whose deadline passes in mid-stream",
        outcome: "DEADLINE_EXCEEDED or CANCELLED ends the stream; the turn goes on",
        act: |ground| {
            Box::pin(async {
                let (session, request) = long_turn(ground).await;
                let mut request = Request::new(request);
                request.set_timeout(Duration::from_millis(150));
                let ended = match ground.client.sessions().run_turn(request).await {
                    Ok(stream) => talk::hear(stream.into_inner()).await.map(drop),
                    Err(status) => Err(status),
                };
                let code = ended.expect_err("900 tokens take longer").code();
                assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
                let turn = talk::wait_ended(&ground.client, &format!("{session}/turns/1")).await;
                assert_eq!(turn.state(), v1::TurnState::Incomplete);
            })
        },
    },
];

async fn long_turn(ground: &Ground) -> (String, v1::RunTurnRequest) {
    let session = ground.session().await;
    let request = talk::says_with(&session, "Hello", talk::long(900));
    (session, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_what_a_bad_client_does() {
    let ground = Ground::new().await;
    for behaviour in BEHAVIOURS {
        within(behaviour.input, SOON, (behaviour.act)(&ground)).await;
        answers(&ground).await;
        ground.look(behaviour.input).await;
    }
    for row in ROWS {
        let got = ground.answer(row).await;
        assert_eq!(got, (row.code, row.reason.to_owned(), row.details.to_owned()), "{}", row.input);
    }
    ground.end().await;
}

/// Sends bytes, then waits for the other side to close or answer.
fn send(ground: &Ground, bytes: &[u8]) {
    let mut connection = TcpStream::connect(ground.address()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The other side may close before everything is sent, which is as good an answer as any.
    let _ = connection.write_all(bytes);
    let _ = connection.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match connection.take(1 << 20).read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// The runtime does its work.
async fn answers(ground: &Ground) {
    let session = ground.session().await;
    let request = talk::says(&session, "My locker code is 4471.");
    let heard = within("a turn", SOON, talk::run_to_end(&ground.client, request)).await.unwrap();
    assert_eq!(heard.ended().unwrap().state(), v1::TurnState::Completed);
    talk::delete(&ground.client, &session).await.unwrap();
}

/// Streams of much data that nobody reads, on a connection of their own; then read to the end.
async fn slow_reader(ground: &Ground) {
    let slow = holdfast_client::Client::connect(ground.address()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let session = ground.session().await;
        let sampling = v1::Sampling { logprobs: Some(20), ..talk::long(900) };
        let request =
            v1::RunTurnRequest { input: vec![items::user("Hello")], ..talk::says_with(&session, "Hello", sampling) };
        streams.push(slow.sessions().run_turn(request).await.unwrap().into_inner());
    }
    for _ in 0..3 {
        answers(ground).await;
    }
    for stream in streams {
        let heard = talk::hear(stream).await.unwrap();
        let numbered = heard.events.iter().filter(|event| event.sequence > 0);
        let mut next = 1;
        for event in numbered {
            assert_eq!(event.first_sequence, next, "nothing is left out for a slow reader");
            next = event.sequence + 1;
        }
        assert_eq!(heard.ended().unwrap().usage.as_ref().unwrap().output_tokens, 900);
    }
}
