//! What a client hears when its connection ends: UNAVAILABLE, however it ends, and with the next call a new connection.
#![allow(clippy::unwrap_used)]

use holdfast_client::{Client, ClientError, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
/// Frame types and flags (RFC 9113, 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;
/// The stream of a connection's first call.
const FIRST: u32 = 1;

/// How a peer lets a call down once it has come.
#[derive(Debug, Clone, Copy)]
enum End {
    /// A goodbye that says that the call was not taken.
    Goodbye,
    /// The socket closes.
    Silence,
    /// The answer begins, then the socket closes.
    MidAnswer,
    /// The call alone is reset, with this error code.
    Reset(u8),
}

async fn frame(peer: &mut TcpStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    peer.write_all(&frame).await.unwrap();
}

/// Reads frames until a call's headers are there.
async fn hear_a_call(peer: &mut TcpStream) {
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        peer.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            return;
        }
    }
}

/// Takes connections and ends the first call of each.
async fn serve(listener: TcpListener, end: End) {
    loop {
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        frame(&mut peer, SETTINGS, 0, 0, &[]).await;
        hear_a_call(&mut peer).await;
        match end {
            // Last stream taken: 0. Error code: NO_ERROR.
            End::Goodbye => frame(&mut peer, GOAWAY, 0, 0, &[0; 8]).await,
            End::Silence => {}
            End::MidAnswer => {
                // `:status: 200` by its index, then `content-type: application/grpc` as a literal with an indexed name (RFC 7541).
                let mut headers = vec![0x88, 0x0f, 0x10, 16];
                headers.extend(b"application/grpc");
                frame(&mut peer, HEADERS, END_HEADERS, FIRST, &headers).await;
                // An empty event, whole.
                frame(&mut peer, DATA, 0, FIRST, &[0; 5]).await;
            }
            End::Reset(code) => frame(&mut peer, RST_STREAM, 0, FIRST, &[0, 0, 0, code]).await,
        }
        if matches!(end, End::Silence | End::MidAnswer) {
            peer.shutdown().await.unwrap();
        }
        // A socket that is closed with something unread takes back what it sent.
        let _ = tokio::io::copy(&mut peer, &mut tokio::io::sink()).await;
    }
}

async fn client_of(end: End) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(listener, end));
    Client::connect(&address).await.unwrap()
}

async fn ask(client: &Client) -> Status {
    client.runtime().get_runtime(v1::GetRuntimeRequest {}).await.unwrap_err()
}

#[tokio::test]
async fn a_call_that_meets_the_end_of_its_connection_is_unavailable() {
    for end in [End::Goodbye, End::Silence] {
        let client = client_of(end).await;
        for again in 0..3 {
            let refused = ask(&client).await;
            assert_eq!(refused.code(), Code::Unavailable, "{end:?}, call {again}: {refused:?}");
            let refused = ClientError::from(refused);
            assert!(refused.to_string().contains("the connection to the runtime ended"), "{refused}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_unavailable() {
    let client = client_of(End::MidAnswer).await;
    let request = v1::WatchSessionRequest::default();
    let mut answer = client.sessions().watch_session(request).await.unwrap().into_inner();
    assert_eq!(answer.message().await.unwrap(), Some(v1::Event::default()));
    let cut_off = answer.message().await.unwrap_err();
    assert_eq!(cut_off.code(), Code::Unavailable, "{cut_off:?}");
}

#[tokio::test]
async fn a_call_that_is_reset_alone_keeps_its_own_code() {
    for (code, told) in [(2, Code::Internal), (7, Code::Unavailable), (11, Code::ResourceExhausted)] {
        let refused = ask(&client_of(End::Reset(code)).await).await;
        assert_eq!(refused.code(), told, "{refused:?}");
    }
}
