//! The sides of a comparison: our runtime, and servers that play the same.
//!
//! In: a connection, or the address of a server. Out: empty conversations. Deliberately not here: what is said in them.

use holdfast_client::Client;

use crate::player::Player;
use crate::player::openai::{OpenAi, Peer};
use crate::player::session::Session;

/// Somebody who answers.
#[derive(Clone)]
pub(crate) enum Side {
    /// Our runtime, with sessions.
    Ours(Client),
    /// Another server, with the history as text each time.
    Peer(Box<OpenAi>),
}

impl Side {
    /// Ours first, then each of `peers`.
    ///
    /// # Errors
    /// When a peer does not answer.
    pub(crate) async fn all(client: &Client, peers: &[Peer]) -> anyhow::Result<Vec<Self>> {
        let mut sides = vec![Self::Ours(client.clone())];
        for peer in peers {
            sides.push(Self::Peer(Box::new(OpenAi::connect(peer).await?)));
        }
        Ok(sides)
    }

    /// What a reader calls it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Ours(_) => "holdfast",
            Self::Peer(peer) => peer.name(),
        }
    }

    /// An empty conversation.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub(crate) async fn open(&self) -> anyhow::Result<Player> {
        Ok(match self {
            Self::Ours(client) => Player::Session(Session::create(client).await?),
            Self::Peer(peer) => Player::OpenAi(Box::new(peer.fresh())),
        })
    }
}
