//! The player against servers that answer with chosen bytes in chosen pieces.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const MODELS: &str = r#"{"data":[{"id":"small"},{"id":"large"}]}"#;

/// What a server answers to a chat: status line, and the body in the pieces in which it leaves.
type Script = fn(&str) -> (&'static str, Vec<Vec<u8>>);

/// A server on loopback; its address and every request body that it got.
async fn server(script: Script) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = serve(stream, script, &log).await;
        }
    });
    (address, seen)
}

/// One request, one answer, and the end of the connection.
async fn serve(mut stream: TcpStream, script: Script, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let request = request(&mut stream).await?;
    let (head, body) = request.split_once("\r\n\r\n").unwrap_or_default();
    let (status, pieces) = if head.starts_with("GET /v1/models ") {
        ("200 OK", vec![MODELS.as_bytes().to_vec()])
    } else {
        log.lock().unwrap().push(body.to_owned());
        script(&request)
    };
    stream.write_all(format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    for piece in pieces {
        stream.write_all(&piece).await?;
        stream.flush().await?;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    stream.shutdown().await
}

async fn request(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if count == 0 || body.len() >= length.unwrap_or(0_usize) {
                return Ok(text);
            }
        }
    }
}

async fn connect(script: Script) -> (OpenAi, Arc<Mutex<Vec<String>>>) {
    let (url, seen) = server(script).await;
    (OpenAi::connect(&format!("p={url}/v1").parse().unwrap()).await.unwrap(), seen)
}

fn say(text: &str) -> Vec<Said> {
    vec![Said::User(text.to_owned())]
}

const GOOD: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n\
    data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\r\n\r\n\
    : a comment\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"é€\"}}]}\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"length\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":7}}}\n\n\
    data: [DONE]\n\n";

#[tokio::test]
async fn words_and_usage_come_through_any_pieces() {
    let whole: Script = |_| ("200 OK", vec![GOOD.as_bytes().to_vec()]);
    let bytes: Script = |_| ("200 OK", GOOD.as_bytes().chunks(5).map(<[u8]>::to_vec).collect());
    for script in [whole, bytes] {
        let (mut player, _) = connect(script).await;
        let answer = player.turn(&say("hello"), 3).await.unwrap();
        assert_eq!(answer.text, "hmé€x");
        assert_eq!(answer.gaps.len(), 2);
        assert_eq!(answer.tokens, Tokens { input: 10, cached: 7, computed: 3, output: 3 });
        assert!(answer.first_token <= answer.total);
    }
}

#[tokio::test]
async fn the_whole_conversation_is_sent_again_and_a_fresh_one_is_empty() {
    let (mut player, seen) = connect(|_| ("200 OK", vec![GOOD.as_bytes().to_vec()])).await;
    player.turn(&say("one"), 3).await.unwrap();
    player.turn(&say("two"), 3).await.unwrap();
    player.fresh().turn(&say("three"), 3).await.unwrap();
    let seen = seen.lock().unwrap();
    let messages = |at: usize| serde_json::from_str::<serde_json::Value>(&seen[at]).unwrap()["messages"].clone();
    assert_eq!(messages(1).as_array().unwrap().len(), 3);
    assert_eq!(messages(1)[1], serde_json::json!({"role": "assistant", "content": "hmé€x"}));
    assert_eq!(messages(2).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn hints_are_left_out_once_they_were_refused() {
    let (mut player, seen) = connect(|request| match request.contains("ignore_eos") {
        true => ("400 Bad Request", vec![b"unknown field ignore_eos".to_vec()]),
        false => ("200 OK", vec![GOOD.as_bytes().to_vec()]),
    })
    .await;
    player.turn(&say("one"), 3).await.unwrap();
    player.turn(&say("two"), 3).await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 3, "refused, repeated, and then known");
}

#[tokio::test]
async fn llama_cpp_tells_its_cache_in_timings() {
    let (mut player, _) = connect(|_| {
        let text = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1},\"timings\":{\"cache_n\":4}}\n\ndata: [DONE]\n\n";
        ("200 OK", vec![text.into()])
    })
    .await;
    let answer = player.turn(&say("x"), 1).await.unwrap();
    assert_eq!((answer.tokens.cached, answer.tokens.computed), (4, 5));
    assert_eq!(answer.first_token, answer.total, "no word came before the end");
}

#[tokio::test]
async fn what_goes_wrong_is_told_with_the_peers_name() {
    let scripts: [(Script, &str); 5] = [
        (|_| ("401 Unauthorized", vec![b"no key".to_vec()]), KEY_VARIABLE),
        (|_| ("500 Internal Server Error", vec![b"out of slots".to_vec()]), "out of slots"),
        (|_| ("200 OK", vec![b"data: {\"error\":{\"message\":\"overloaded\"}}\n\n".to_vec()]), "overloaded"),
        (|_| ("200 OK", vec![b"data: {\"choices\":[]}\n\n".to_vec()]), "before [DONE]"),
        (|_| ("200 OK", vec![b"data: <html>\n\n".to_vec()]), "<html>"),
    ];
    for (script, said) in scripts {
        let (mut player, _) = connect(script).await;
        let error = format!("{:#}", player.turn(&say("x"), 1).await.unwrap_err());
        assert!(error.contains("peer p") && error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn the_model_is_the_first_or_the_named_one() {
    let (url, seen) = server(|_| ("200 OK", vec![GOOD.as_bytes().to_vec()])).await;
    for (peer, model) in [(format!("p={url}"), "small"), (format!("p={url}/#large"), "large")] {
        let mut player = OpenAi::connect(&peer.parse().unwrap()).await.unwrap();
        player.turn(&say("x"), 1).await.unwrap();
        assert!(seen.lock().unwrap().pop().unwrap().contains(&format!("\"model\":\"{model}\"")));
    }
    let error = OpenAi::connect(&format!("p={url}#huge").parse().unwrap()).await.err().unwrap().to_string();
    assert!(error.contains("huge") && error.contains("small, large"), "{error}");
}

#[tokio::test]
async fn nobody_at_the_address_is_told_with_the_next_step() {
    let error = OpenAi::connect(&"p=http://127.0.0.1:1".parse().unwrap()).await.err().unwrap().to_string();
    assert!(error.contains("peer p") && error.contains("start it"), "{error}");
}

#[test]
fn peers_are_read_or_refused_with_the_form() {
    let peer: Peer = "llama=http://127.0.0.1:8080/v1/#m".parse().unwrap();
    assert_eq!((peer.url.as_str(), peer.model.as_deref()), ("http://127.0.0.1:8080", Some("m")));
    for wrong in ["llama", "=http://x", "x=http://", "x=ftp://y", "x=http://y#"] {
        assert!(wrong.parse::<Peer>().unwrap_err().contains("NAME=http://"), "{wrong}");
    }
    assert!("x=https://y".parse::<Peer>().unwrap_err().contains("TLS"));
}
