//! A server that speaks the OpenAI chat API: the whole conversation as text each time, as agent frameworks send it.

use std::str::FromStr;

use super::{Answer, Said};

/// A server to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) url: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, url)) if !name.is_empty() && url.starts_with("http://") => {
                Ok(Self { name: name.to_owned(), url: url.trim_end_matches('/').to_owned() })
            }
            _ => Err(format!("{text:?} is no NAME=http://HOST:PORT")),
        }
    }
}

/// A conversation that this side keeps.
pub(crate) struct OpenAi {}

impl OpenAi {
    /// An empty conversation.
    pub(crate) fn new(_peer: &Peer) -> Self {
        Self {}
    }

    /// Says something and reads the answer to its end.
    pub(crate) async fn turn(&mut self, _said: &[Said], _max_tokens: u32) -> anyhow::Result<Answer> {
        anyhow::bail!("not written yet")
    }
}
