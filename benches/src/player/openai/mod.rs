//! A server that speaks the OpenAI chat API: the whole conversation as text each time, as agent frameworks send it.
//!
//! In: `POST /v1/chat/completions` with `stream`, and its server-sent events. Out: an [`Answer`]. Servers that keep a cache of
//! prefixes find in it what they can, and say how much. Deliberately not here: TLS, and any other part of the API.

mod wire;

use std::str::FromStr;

use anyhow::{Context as _, bail};
use eventsource_stream::Eventsource as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio_stream::StreamExt as _;

use super::{Answer, Said, Stopwatch, Tokens};

/// The environment variable with a key, for servers that want one.
const KEY_VARIABLE: &str = "HOLDFAST_PEER_KEY";
/// Most bytes of an error's body that are shown.
const ERROR_SHOWN: usize = 400;

/// A server to compare with: `NAME=http://HOST:PORT`, or `NAME=URL#MODEL` where it serves more than one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Without a final `/` or `/v1`.
    url: String,
    model: Option<String>,
}

/// A conversation that this side keeps.
#[derive(Clone)]
pub(crate) struct OpenAi {
    connection: Connection,
    messages: Vec<wire::Message>,
}

/// A server that answered, and how it likes to be asked.
#[derive(Clone)]
struct Connection {
    http: Client<HttpConnector, Full<Bytes>>,
    peer: Peer,
    model: String,
    key: Option<String>,
    /// The server takes fields that are not OpenAI's.
    takes_hints: bool,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || format!("{text:?} is no NAME=http://HOST:PORT");
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let (url, model) = rest.split_once('#').map_or((rest, None), |(url, model)| (url, Some(model.to_owned())));
        if url.starts_with("https://") {
            return Err(format!("{url}: TLS is not spoken here; measure on the server's own machine, without it"));
        }
        let host = url.strip_prefix("http://").ok_or_else(form)?;
        if name.is_empty() || host.is_empty() || model.as_ref().is_some_and(String::is_empty) {
            return Err(form());
        }
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self { name: name.to_owned(), url, model })
    }
}

impl OpenAi {
    /// Asks the server which models it has, and begins an empty conversation with the first (or the named) one.
    ///
    /// # Errors
    /// When it does not answer as such a server does; with the next step.
    pub(crate) async fn connect(peer: &Peer) -> anyhow::Result<Self> {
        let http = Client::builder(TokioExecutor::new()).build_http();
        let key = std::env::var(KEY_VARIABLE).ok();
        let model = peer.model.clone().unwrap_or_default();
        let mut connection = Connection { http, peer: peer.clone(), model, key, takes_hints: true };
        let reply = connection.ask("GET", "/v1/models", Vec::new()).await?;
        let body = whole(connection.accepted(reply, "/v1/models").await?).await?;
        let models: wire::Models = serde_json::from_slice(&body)
            .with_context(|| format!("peer {}: /v1/models is not a list of models", peer.name))?;
        let ids: Vec<_> = models.data.into_iter().map(|model| model.id).collect();
        match (&peer.model, ids.first()) {
            (None, Some(first)) => connection.model.clone_from(first),
            (None, None) => bail!("peer {} serves no model", peer.name),
            (Some(model), _) if !ids.contains(model) => {
                bail!("peer {} serves no model {model}; it has {}", peer.name, ids.join(", "))
            }
            (Some(_), _) => {}
        }
        Ok(Self { connection, messages: Vec::new() })
    }

    /// What a reader calls it.
    pub(crate) fn name(&self) -> &str {
        &self.connection.peer.name
    }

    /// An empty conversation on the same server.
    pub(crate) fn fresh(&self) -> Self {
        Self { connection: self.connection.clone(), messages: Vec::new() }
    }

    /// Says something and reads the answer to its end.
    pub(crate) async fn turn(&mut self, said: &[Said], max_tokens: u32) -> anyhow::Result<Answer> {
        self.messages.extend(said.iter().map(|said| wire::Message::user(said.text())));
        let watch = Stopwatch::start();
        let reply = self.complete(max_tokens).await?;
        let answer = read(watch, reply).await.with_context(|| format!("peer {}", self.name()))?;
        self.messages.push(wire::Message::assistant(&answer.text));
        Ok(answer)
    }

    /// Sends the request; once more without the hints if they are what is refused.
    async fn complete(&mut self, max_tokens: u32) -> anyhow::Result<Response<Incoming>> {
        const PATH: &str = "/v1/chat/completions";
        loop {
            let connection = &self.connection;
            let request = wire::Request::new(&connection.model, &self.messages, max_tokens, connection.takes_hints);
            let reply = connection.ask("POST", PATH, serde_json::to_vec(&request)?).await?;
            let refused = matches!(reply.status(), StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
            if !(refused && connection.takes_hints) {
                return connection.accepted(reply, PATH).await;
            }
            self.connection.takes_hints = false;
        }
    }
}

impl Connection {
    async fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.peer.url));
        if !body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.key {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::from(body)).with_context(|| format!("{} is no address", self.peer.url))?;
        self.http.request(request).await.with_context(|| {
            format!("peer {} does not answer at {}; start it, or correct --peer", self.peer.name, self.peer.url)
        })
    }

    /// The reply, if it is one of success.
    async fn accepted(&self, reply: Response<Incoming>, path: &str) -> anyhow::Result<Response<Incoming>> {
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let body = whole(reply).await.unwrap_or_default();
        let shown = String::from_utf8_lossy(&body[..body.len().min(ERROR_SHOWN)]).into_owned();
        let step = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!("; give its key in {KEY_VARIABLE}"),
            StatusCode::NOT_FOUND => "; is this an OpenAI-compatible server?".to_owned(),
            _ => String::new(),
        };
        bail!("peer {} answers {path} with {status}{step}: {shown}", self.peer.name)
    }
}

async fn whole(reply: Response<Incoming>) -> anyhow::Result<Vec<u8>> {
    Ok(reply.into_body().collect().await?.to_bytes().to_vec())
}

/// Reads a stream of chunks up to `[DONE]`.
async fn read(mut watch: Stopwatch, reply: Response<Incoming>) -> anyhow::Result<Answer> {
    let mut events = reply.into_body().into_data_stream().eventsource();
    let mut tokens = Tokens::default();
    let mut ended = false;
    while let Some(event) = events.next().await {
        let event = event.context("the stream broke")?;
        if event.data == "[DONE]" {
            ended = true;
            break;
        }
        let chunk: wire::Chunk = serde_json::from_str(&event.data)
            .with_context(|| format!("a chunk that is not OpenAI's: {:.200}", event.data))?;
        if let Some(error) = chunk.error {
            bail!("the server failed in mid-stream: {error}");
        }
        chunk.words().for_each(|word| watch.word(word));
        if let Some(told) = chunk.tokens() {
            tokens = told;
        }
    }
    if !ended {
        bail!("the stream ended before [DONE]");
    }
    Ok(watch.stop(tokens))
}

#[cfg(test)]
mod tests;
