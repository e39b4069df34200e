//! Pages that fit into one message.
//!
//! In: what a client asks for, and a way to ask the worker. Out: a page of at most `page_size` elements whose bytes fit
//! into `reply_bytes`. The worker's page tokens are passed through: a page that is too large is asked for again with as many
//! elements as fit, so its token is right by itself. Each goes out under the seal of its list, so that it is taken back only
//! with the same arguments; a seal is a check against mistakes, not a secret. Deliberately not here: what a token means.

use std::future::Future;

use holdfast_types::{Failure, Limits, Reason};
use holdfast_worker_api::Page;
use prost::Message;

use crate::edge;
use crate::field::Field;
use crate::limits;

/// Elements of a page when the client does not say.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// Longest token that can be one of ours, in bytes.
const TOKEN_BYTES: usize = 1_024;

/// Bytes that an element of a repeated field takes beside itself: its tag and its length.
const ELEMENT_OVERHEAD_BYTES: usize = 1 + 5;

/// Bytes of a page beside its elements and the text of the worker's token: tags, lengths, the seal.
const PAGE_OVERHEAD_BYTES: usize = 16 + SEAL_BYTES + 1;

/// Hexadecimal digits of a seal.
const SEAL_BYTES: usize = 16;

/// The page size to ask for: the client's, within the limit.
pub(crate) fn size(limits: &Limits, asked: u32) -> u32 {
    let size = if asked == 0 { DEFAULT_PAGE_SIZE } else { asked };
    size.min(limits.page_size).max(1)
}

/// A token that may be one of ours.
pub(crate) fn token(token: String) -> Result<String, Failure> {
    let field = Field::Root("page_token");
    if token.len() > TOKEN_BYTES {
        return Err(field.failure(Reason::InvalidPageToken, "is not one of ours"));
    }
    limits::no_control(field, Reason::InvalidPageToken, &token)?;
    Ok(token)
}

/// What a list's page tokens belong to: its method and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Seal(String);

impl Seal {
    /// The seal of a list. FNV-1a (Fowler, Noll, Vo), 64 bits, over the arguments with their lengths.
    pub(crate) fn of(arguments: &[&str]) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for argument in arguments {
            for byte in argument.len().to_le_bytes().iter().chain(argument.as_bytes()) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Self(format!("{hash:016x}"))
    }

    /// The worker's token in a client's token. Empty stays empty: the first page.
    pub(crate) fn open(&self, sealed: String) -> Result<String, Failure> {
        let sealed = token(sealed)?;
        if sealed.is_empty() {
            return Ok(sealed);
        }
        let inner = sealed.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix('.'));
        let problem = "is not one of ours, or belongs to a list with other arguments";
        let inner = inner.ok_or_else(|| Field::Root("page_token").failure(Reason::InvalidPageToken, problem));
        inner.map(str::to_owned)
    }

    /// A client's token for the worker's. Empty stays empty: the last page.
    pub(crate) fn close(&self, token: String) -> String {
        if token.is_empty() { token } else { format!("{}.{token}", self.0) }
    }
}

/// Asks for a page of at most `size` elements until it fits, and converts it.
pub(crate) async fn page<T, M, F>(
    limits: &Limits,
    size: u32,
    ask: impl Fn(u32) -> F,
    convert: impl Fn(&T) -> M,
) -> Result<(Vec<M>, String), Failure>
where
    M: Message,
    F: Future<Output = Result<Page<T>, Failure>>,
{
    let mut size = size;
    loop {
        let page = ask(size).await?;
        let elements: Vec<M> = page.elements.iter().map(&convert).collect();
        let fitting = fitting(limits, &elements, &page.next_page_token);
        if fitting >= elements.len() {
            return Ok((elements, page.next_page_token));
        }
        // Smaller each time, so that this ends even if the elements grow meanwhile.
        size = u32::try_from(fitting).unwrap_or(u32::MAX).min(size.saturating_sub(1));
        if size == 0 {
            let bytes = elements.first().map_or(0, Message::encoded_len);
            return Err(edge::too_large("reply_bytes", limits.reply_bytes, u64::try_from(bytes).unwrap_or(u64::MAX)));
        }
    }
}

/// How many leading elements fit into a reply beside this token.
pub(crate) fn fitting<M: Message>(limits: &Limits, elements: &[M], token: &str) -> usize {
    let room = usize::try_from(limits.reply_bytes).unwrap_or(usize::MAX);
    let room = room.saturating_sub(PAGE_OVERHEAD_BYTES + token.len());
    limits::fitting(elements.iter().map(|element| element.encoded_len() + ELEMENT_OVERHEAD_BYTES), room)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use holdfast_contracts::v1;

    use super::*;

    /// A worker with elements of one size; the token is the number of elements before the next page.
    async fn all_pages(limits: &Limits, elements: usize, bytes: usize, asked: u32) -> Result<Vec<usize>, Failure> {
        let mut pages = Vec::new();
        let start = RefCell::new(0_usize);
        loop {
            let ask = |size: u32| {
                let first = *start.borrow();
                let end = elements.min(first + size as usize);
                let next_page_token = if end < elements { end.to_string() } else { String::new() };
                async move { Ok(Page { elements: vec!["x".repeat(bytes); end - first], next_page_token }) }
            };
            let convert = |text: &String| v1::Session { display_name: text.clone(), ..v1::Session::default() };
            let (page, token) = page(limits, size(limits, asked), ask, convert).await?;
            let encoded: usize =
                v1::ListSessionsResponse { sessions: page.clone(), next_page_token: token.clone() }.encoded_len();
            assert!(encoded <= limits.reply_bytes as usize, "{encoded}");
            pages.push(page.len());
            match token.parse() {
                Ok(next) => *start.borrow_mut() = next,
                Err(_) => return Ok(pages),
            }
        }
    }

    #[tokio::test]
    async fn pages_are_cut_by_count_and_by_bytes_and_nothing_is_lost() {
        let limits = Limits { reply_bytes: 1_000, page_size: 7, ..Limits::default() };
        assert_eq!(all_pages(&limits, 0, 10, 0).await.unwrap(), [0]);
        assert_eq!(all_pages(&limits, 9, 10, 0).await.unwrap(), [7, 2]);
        assert_eq!(all_pages(&limits, 9, 10, 3).await.unwrap(), [3, 3, 3]);
        assert_eq!(all_pages(&limits, 5, 300, 0).await.unwrap(), [3, 2]);
        assert_eq!(all_pages(&limits, 5, 900, 0).await.unwrap(), [1; 5]);
    }

    #[tokio::test]
    async fn an_element_larger_than_a_reply_is_said_so() {
        let limits = Limits { reply_bytes: 1_000, ..Limits::default() };
        assert_eq!(all_pages(&limits, 2, 1_000, 0).await.unwrap_err().reason, Reason::MessageTooLarge);
    }

    #[test]
    fn a_token_is_taken_back_only_by_its_own_list() {
        let seal = Seal::of(&["items", "sessions/a"]);
        let token = seal.close("17".into());
        assert_eq!(seal.open(token.clone()).unwrap(), "17");
        assert_eq!((seal.open(String::new()).unwrap(), seal.close(String::new())), (String::new(), String::new()));
        for other in [&["items", "sessions/b"][..], &["turns", "sessions/a"], &["itemss", "essions/a"], &[]] {
            assert_eq!(Seal::of(other).open(token.clone()).unwrap_err().reason, Reason::InvalidPageToken);
        }
        for bad in ["17", "page-two-please", ".", "0123456789abcdef.17"] {
            assert_eq!(seal.open(bad.into()).unwrap_err().reason, Reason::InvalidPageToken, "{bad}");
        }
    }

    #[test]
    fn tokens_are_bounded() {
        assert!(token("abc".into()).is_ok());
        assert_eq!(token("x".repeat(1_025)).unwrap_err().reason, Reason::InvalidPageToken);
        assert_eq!(token("a\0".into()).unwrap_err().reason, Reason::InvalidPageToken);
    }
}
