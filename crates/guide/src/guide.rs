//! One generation that is held to a form.
//!
//! In: the tokens that were sampled, in order. Out: before each, which ones may be. A guide keeps nothing but what follows from its
//! spec and these tokens, so one that was lost is had again by replaying them. Deliberately not here: what it was compiled from.
//!
//! The lexer's automaton is built as it is walked, which costs far more than walking it; so the guides of one grammar share it. What
//! it says is the same whoever built it. What it may cost is each guide's own: one whose shared lexer fails goes on with its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use holdfast_types::{TokenId, TokenMask};
use llguidance::api::StopReason;
use llguidance::{TokenParser, panic_utils};

use crate::guides::first_lines;
use crate::{GuideError, Vocabulary};

/// Says which tokens may come next. A clone goes its own way from here.
pub struct Guide {
    parser: TokenParser,
    /// Where a lexer of its own begins, while it shares one.
    cold: Option<Arc<TokenParser>>,
    /// What it took, in order.
    said: Vec<TokenId>,
    vocabulary: Vocabulary,
}

impl Guide {
    /// A guide at its beginning that shares the lexer of `parser`; `cold` is at the same place with one that nothing uses.
    pub(crate) fn new(parser: TokenParser, cold: Arc<TokenParser>, vocabulary: Vocabulary) -> Self {
        Self { parser, cold: Some(cold), said: Vec::new(), vocabulary }
    }

    /// The tokens that may come next, at least one. Those that end a generation may exactly where what was said is whole; where nothing
    /// can be added, they alone.
    ///
    /// # Errors
    /// [`GuideError::TooComplex`] when the mask would cost more than it may, [`GuideError::Stuck`] when no token can go on.
    pub fn mask(&mut self) -> Result<TokenMask, GuideError> {
        let (allowed, whole) = self.guarded(|parser| {
            if parser.stopped() && parser.stop_reason().is_ok() {
                return Ok((None, true));
            }
            match parser.compute_mask() {
                Ok(allowed) => Ok((Some(allowed), parser.is_accepting())),
                Err(_) if parser.stop_reason() == StopReason::NoExtensionBias => Ok((None, false)),
                Err(error) => Err(error),
            }
        })?;
        let pairs = allowed.as_ref().map(|allowed| allowed.as_slice().chunks(2)).into_iter().flatten();
        let mut words: Vec<u64> = pairs
            .zip(self.vocabulary.going_on.iter())
            .map(|(pair, going_on)| {
                let high = pair.get(1).copied().unwrap_or_default();
                (u64::from(high) << 32 | u64::from(pair[0])) & going_on
            })
            .collect();
        words.resize(self.vocabulary.going_on.len(), 0);
        if whole {
            for &id in self.vocabulary.stop_tokens.iter() {
                words[id as usize / 64] |= 1 << (id % 64);
            }
        }
        if words.iter().all(|word| *word == 0) {
            return Err(GuideError::Stuck);
        }
        Ok(TokenMask::Bits(words))
    }

    /// Takes the token that was sampled under the last mask. One that ends a generation changes nothing.
    ///
    /// # Errors
    /// [`GuideError::TooComplex`] when it takes the guide beyond its bounds.
    pub fn accept(&mut self, token: TokenId) -> Result<(), GuideError> {
        if self.vocabulary.stop_tokens.contains(&token) {
            return Ok(());
        }
        self.guarded(|parser| take(parser, token))?;
        self.said.push(token);
        Ok(())
    }

    /// Takes tokens that were sampled before.
    ///
    /// # Errors
    /// [`GuideError::Refused`] for the first one that may not come next, else as for [`Guide::accept`].
    pub fn replay(&mut self, tokens: &[TokenId]) -> Result<(), GuideError> {
        for &token in tokens {
            let ends = self.vocabulary.stop_tokens.contains(&token);
            let fits = if ends {
                self.guarded(|parser| Ok(parser.is_accepting()))?
            } else {
                self.guarded(|parser| parser.validate_token(token))?
            };
            if !fits {
                return Err(GuideError::Refused { token });
            }
            self.accept(token)?;
        }
        Ok(())
    }

    /// A panic of the parser is an error of this guide. One under a shared lexer may be the doing of others, who filled it or broke
    /// it, and is nobody's: the work is done again on a lexer of this guide's own.
    fn guarded<T>(&mut self, work: impl Fn(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, GuideError> {
        match (attempt(&mut self.parser, &work), self.cold.take()) {
            (Err(_), Some(cold)) => {
                self.parser = cold.deep_clone();
                let said = &self.said;
                attempt(&mut self.parser, |parser| said.iter().try_for_each(|&token| take(parser, token)))
                    .and_then(|()| attempt(&mut self.parser, &work))
            }
            (outcome, cold) => {
                self.cold = cold;
                outcome
            }
        }
    }
}

/// What a failed lexer says is not to be trusted, so that it is an error whatever the work came to.
fn attempt<T>(parser: &mut TokenParser, work: impl Fn(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, GuideError> {
    let checked = || {
        let done = work(parser)?;
        parser.parser.get_error().map_or(Ok(done), |error| Err(anyhow::anyhow!(error.message())))
    };
    panic_utils::catch_unwind(AssertUnwindSafe(checked))
        .map_err(|error| GuideError::TooComplex(first_lines(&error.to_string())))
}

fn take(parser: &mut TokenParser, token: TokenId) -> anyhow::Result<()> {
    parser.consume_token(token)?;
    parser.check_stop().map(drop)
}

impl Clone for Guide {
    fn clone(&self) -> Self {
        let parser = if self.cold.is_some() { self.parser.clone() } else { self.parser.deep_clone() };
        Self { parser, cold: self.cold.clone(), said: self.said.clone(), vocabulary: self.vocabulary.clone() }
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("tokens", &self.said.len()).finish_non_exhaustive()
    }
}
