//! Who answers a conversation: a session of ours, our stateless service, or a server that speaks the OpenAI chat API.
//!
//! In: what is said in one turn. Out: an [`Answer`] with the times that a client feels, measured from the request to the last
//! word. All three are asked the way an agent framework asks them: a session gets what is new, the others get the whole
//! conversation as text each time. Deliberately not here: what is said (`workload`).

pub(crate) mod openai;
pub(crate) mod session;
pub(crate) mod stateless;

use std::time::{Duration, Instant};

/// What one turn brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// The user's words.
    User(String),
    /// What a tool gave. A model with random weights calls no tools, so it is sent as a message of the user, which costs
    /// the same tokens.
    ToolOutput(String),
}

impl Said {
    /// The words.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::User(text) | Self::ToolOutput(text) => text,
        }
    }
}

/// One answer, as its reader felt it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// From the request to the first word.
    pub(crate) first_token: Duration,
    /// From each word to the next.
    pub(crate) gaps: Vec<Duration>,
    /// From the request to the end.
    pub(crate) total: Duration,
    pub(crate) tokens: Tokens,
}

/// What the server says that it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) input: u64,
    /// Of the input: found, not computed.
    pub(crate) cached: u64,
    /// Of the input: computed, again or for the first time.
    pub(crate) computed: u64,
    pub(crate) output: u64,
}

/// A conversation with one of the three.
pub(crate) enum Player {
    Session(session::Session),
    Stateless(stateless::Stateless),
    OpenAi(Box<openai::OpenAi>),
}

impl Player {
    /// Says something and reads the answer to its end.
    ///
    /// # Errors
    /// When the server refuses or goes away; the conversation is over then.
    pub(crate) async fn turn(&mut self, said: &[Said], max_tokens: u32) -> anyhow::Result<Answer> {
        match self {
            Self::Session(player) => player.turn(said, max_tokens).await,
            Self::Stateless(player) => player.turn(said, max_tokens).await,
            Self::OpenAi(player) => player.turn(said, max_tokens).await,
        }
    }
}

/// Times the words of one answer.
pub(crate) struct Stopwatch {
    begin: Instant,
    last: Option<Instant>,
    answer: Answer,
}

impl Stopwatch {
    /// Starts; call it just before the request leaves.
    pub(crate) fn start() -> Self {
        Self { begin: now(), last: None, answer: Answer::default() }
    }

    /// Takes a piece of the answer.
    pub(crate) fn word(&mut self, text: &str) {
        let at = now();
        match self.last {
            None => self.answer.first_token = at - self.begin,
            Some(last) => self.answer.gaps.push(at - last),
        }
        self.last = Some(at);
        self.answer.text.push_str(text);
    }

    /// Ends.
    pub(crate) fn stop(mut self, tokens: Tokens) -> Answer {
        self.answer.total = now() - self.begin;
        if self.last.is_none() {
            // An answer without words was there when it ended.
            self.answer.first_token = self.answer.total;
        }
        self.answer.tokens = tokens;
        self.answer
    }
}

/// The one clock of this program.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
