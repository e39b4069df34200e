//! Our stateless service: the whole conversation each time, nothing kept.

use holdfast_client::{Client, items, v1};
use tokio_stream::StreamExt as _;

use super::session::{sampling, take};
use super::{Answer, Said, Stopwatch};

/// A conversation that this side keeps.
pub(crate) struct Stateless {
    client: Client,
    history: Vec<v1::Item>,
}

impl Stateless {
    /// An empty conversation with the runtime's default model.
    pub(crate) fn new(client: &Client) -> Self {
        Self { client: client.clone(), history: Vec::new() }
    }

    /// Goes on with a conversation that was held elsewhere.
    pub(crate) fn after(client: &Client, history: Vec<v1::Item>) -> Self {
        Self { client: client.clone(), history }
    }

    /// Says something and reads the answer to its end.
    pub(crate) async fn turn(&mut self, said: &[Said], max_tokens: u32) -> anyhow::Result<Answer> {
        self.history.extend(said.iter().map(|said| items::user(said.text())));
        let request = v1::GenerateRequest {
            items: self.history.clone(),
            sampling: Some(sampling(max_tokens)),
            ..v1::GenerateRequest::default()
        };
        let mut watch = Stopwatch::start();
        let mut events = self.client.completions().generate(request).await?.into_inner();
        let mut tokens = None;
        while let Some(event) = events.next().await {
            take(event?, &mut watch, &mut tokens)?;
        }
        let tokens = tokens.ok_or_else(|| anyhow::anyhow!("the stream ended before the generation did"))?;
        let answer = watch.stop(tokens);
        self.history.push(items::message(v1::Role::Assistant, answer.text.clone()));
        Ok(answer)
    }
}
