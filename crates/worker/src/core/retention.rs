//! Reasoning that is left behind: how long it stays in the log is the session's `reasoning_retention`.
//!
//! In: a fold, and items that are about to follow. Out: the rebase that goes before them, if a user message among them ends the
//! stay of reasoning, and which of them are not rendered. The log then is what rendering the history without that reasoning
//! gives; it is cut where the items before the first reasoning were appended, so what is before stays as it was sampled.
//! Deliberately not here: what reasoning is (the fold's), and when items follow ([`super::turn`], [`super::read`]).

use holdfast_journal::Body;
use holdfast_types::{Item, ItemContent, ReasoningRetention, Role};

use super::Shared;
use super::check::Base;
use crate::fold::{DROP_REASONING, SessionFold, is_reasoning, last_user_message};
use crate::language::LogEnd;

/// Whether each of these items is left out of the log: reasoning that a later user message among them has ended.
pub(super) fn left_out(retention: ReasoningRetention, items: &[Item]) -> Vec<bool> {
    let drops = retention == ReasoningRetention::DropAtNextUserMessage;
    let spoken_to = if drops { last_user_message(items.iter()) } else { 0 };
    items.iter().enumerate().map(|(i, item)| i < spoken_to && is_reasoning(item)).collect()
}

impl Shared {
    /// The rebase that leaves reasoning behind before these items follow `base`, and the base after it.
    ///
    /// A history that the template cannot say again keeps its reasoning: a session that could not go on would be worse.
    pub(super) fn leave_reasoning(
        &self,
        fold: &SessionFold,
        device: usize,
        base: Base,
        items: &[Item],
    ) -> Option<(Base, Body)> {
        if fold.config().reasoning_retention != ReasoningRetention::DropAtNextUserMessage
            || !items.iter().any(|item| matches!(item.content, ItemContent::Message { role: Role::User, .. }))
        {
            return None;
        }
        let place = fold.before_reasoning(base.items)?;
        let again = fold.items()[place.items as usize..base.items as usize].iter().map(|item| &item.item);
        let again: Vec<_> = again.filter(|item| !is_reasoning(item)).cloned().collect();
        let from = Base { tokens: place.tokens, items: place.items, end: place.end };
        let replacement = match self.runs_of(fold, device, from, &again, false) {
            Ok(runs) => runs,
            Err(failure) => {
                let session = fold.session();
                tracing::warn!(%session, problem = failure.message, "the reasoning stays: history cannot be rendered without it");
                return None;
            }
        };
        let tokens = place.tokens + replacement.iter().map(|run| run.ids.len() as u32).sum::<u32>();
        let end = if replacement.is_empty() { place.end } else { LogEnd::Closed };
        let cause = DROP_REASONING.to_owned();
        let body = Body::Rebase { keep_until: place.tokens, keep_items: base.items, replacement, cause };
        Some((Base { tokens, items: base.items, end }, body))
    }
}
