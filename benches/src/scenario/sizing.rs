//! What a model makes of lengths: tokens of text, bytes of KV.
//!
//! In: a runtime that serves the model. Out: texts of about so many of its tokens, and the setting for a KV pool of so many.
//! Scenarios say lengths in tokens, and a byte-level tokenizer makes three times as many of a text as a trained one.

use anyhow::Context as _;
use fastrand::Rng;
use holdfast_client::{Client, items, v1};

use crate::options::Common;
use crate::server::{Launch, Server};
use crate::workload;

/// Tokens, as the workload counts them, of the text that is counted by the model.
const SAMPLE_TOKENS: usize = 1000;
/// The setting that [`Sizing::kv_setting`] says.
const KV_BYTES: &str = "device.kv_bytes";

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizing {
    kv_bytes_per_token: u64,
    /// Most tokens of a session.
    pub(crate) context_limit_tokens: usize,
    /// What the template puts around one message and before its answer.
    pub(crate) message_tokens: usize,
    /// Tokens of the model for each that the workload counts.
    scale: f64,
}

impl Sizing {
    /// Starts a runtime with the model for as long as it takes to ask.
    ///
    /// # Errors
    /// When it does not start or answer, or the user has set the size of the KV pool, which is the scenario's to choose.
    pub(crate) async fn find_out(common: &Common, model: &str) -> anyhow::Result<Self> {
        if let Some(set) = common.set.iter().find(|set| set.starts_with(KV_BYTES)) {
            anyhow::bail!("this scenario chooses {KV_BYTES} itself: leave out --set {set}");
        }
        let server = Server::start(&Launch::serve(common, model, &[])?).await?;
        let sizing = Self::ask(&server.client().await?).await?;
        server.stop().await?;
        Ok(sizing)
    }

    async fn ask(client: &Client) -> anyhow::Result<Self> {
        let reply = client.models().list_models(v1::ListModelsRequest::default()).await?.into_inner();
        let model = reply.models.first().context("the runtime serves no model")?;
        let message_tokens = count(client, "x").await?.saturating_sub(1);
        let sample = workload::text(&mut Rng::with_seed(0), SAMPLE_TOKENS);
        let counted = count(client, &sample).await?.saturating_sub(message_tokens);
        Ok(Self {
            kv_bytes_per_token: model.kv_bytes_per_token,
            context_limit_tokens: usize::try_from(model.context_limit_tokens)?,
            message_tokens,
            scale: counted as f64 / SAMPLE_TOKENS as f64,
        })
    }

    /// Text of about `tokens` of the model's tokens.
    pub(crate) fn text(&self, rng: &mut Rng, tokens: usize) -> String {
        workload::text(rng, ((tokens as f64 / self.scale).round() as usize).max(1))
    }

    /// A model of which nobody was asked.
    #[cfg(test)]
    pub(crate) fn fixed(message_tokens: usize, scale: f64) -> Self {
        Self { kv_bytes_per_token: 6144, context_limit_tokens: 16384, message_tokens, scale }
    }

    /// The setting for a KV pool of `tokens` tokens.
    pub(crate) fn kv_setting(&self, tokens: usize) -> String {
        format!("{KV_BYTES}={}", tokens as u64 * self.kv_bytes_per_token)
    }
}

async fn count(client: &Client, text: &str) -> anyhow::Result<usize> {
    let request = v1::CountTokensRequest { items: vec![items::user(text)], ..v1::CountTokensRequest::default() };
    Ok(usize::try_from(client.tokens().count_tokens(request).await?.into_inner().tokens)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_the_models() {
        let characters = |scale| Sizing::fixed(14, scale).text(&mut Rng::with_seed(1), 300).len();
        assert!((300..320).contains(&characters(3.0)), "a byte-level model: a token is a character");
        assert!((900..920).contains(&characters(1.0)));
        assert_eq!(Sizing::fixed(14, 1.0).kv_setting(1000), "device.kv_bytes=6144000");
    }
}
