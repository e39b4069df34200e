//! A session of ours: each turn brings only what is new.

use holdfast_client::v1::event::Kind;
use holdfast_client::{Client, TurnEvents, items, v1};

use super::{Answer, Said, Stopwatch, Tokens};

/// A conversation that the runtime keeps.
pub(crate) struct Session {
    client: Client,
    name: String,
}

impl Session {
    /// Creates a session on the runtime's default model, which samples greedily.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(crate) async fn create(client: &Client) -> anyhow::Result<Self> {
        let session = client.sessions().create_session(v1::CreateSessionRequest::default()).await?.into_inner();
        Ok(Self { client: client.clone(), name: session.name })
    }

    /// `sessions/{id}`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Says something and reads the answer to its end.
    pub(crate) async fn turn(&mut self, said: &[Said], max_tokens: u32) -> anyhow::Result<Answer> {
        let request = v1::RunTurnRequest {
            session: self.name.clone(),
            input: said.iter().map(|said| items::user(said.text())).collect(),
            options: Some(v1::TurnOptions { sampling: Some(sampling(max_tokens)), ..v1::TurnOptions::default() }),
            ..v1::RunTurnRequest::default()
        };
        let watch = Stopwatch::start();
        let events = self.client.run_turn(request).await?;
        answer(watch, events).await
    }
}

/// Greedy, of a bounded length.
pub(crate) fn sampling(max_tokens: u32) -> v1::Sampling {
    v1::Sampling { temperature: Some(0.0), max_output_tokens: Some(max_tokens), ..v1::Sampling::default() }
}

async fn answer(mut watch: Stopwatch, mut events: TurnEvents) -> anyhow::Result<Answer> {
    let mut tokens = None;
    while let Some(event) = events.next().await? {
        take(event, &mut watch, &mut tokens)?;
    }
    let tokens =
        tokens.ok_or_else(|| anyhow::anyhow!("the turn waits for tool results, which a benchmark does not give"))?;
    Ok(watch.stop(tokens))
}

/// Takes one event of a turn of ours, with a session or without.
pub(crate) fn take(event: v1::Event, watch: &mut Stopwatch, tokens: &mut Option<Tokens>) -> anyhow::Result<()> {
    match event.kind {
        Some(Kind::TextDelta(delta)) => watch.word(&delta.text),
        Some(Kind::ReasoningDelta(delta)) => watch.word(&delta.text),
        Some(Kind::ToolArgumentsDelta(delta)) => watch.word(&delta.arguments),
        Some(Kind::TurnEnded(ended)) => {
            let turn = ended.turn.unwrap_or_default();
            if let Some(error) = turn.error {
                anyhow::bail!("the turn failed: {error:?}");
            }
            let usage = turn.usage.unwrap_or_default();
            *tokens = Some(Tokens {
                input: usage.input_tokens,
                cached: usage.cached_tokens,
                computed: usage.computed_tokens + usage.recomputed_tokens,
                output: usage.output_tokens,
            });
        }
        _ => {}
    }
    Ok(())
}
