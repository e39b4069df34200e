//! Compiled grammars of one vocabulary, kept by what they were compiled from.
//!
//! In: specs. Out: guides at their beginning. The most recently used grammars stay, up to a bound, so that a schema that comes with
//! every turn is compiled once. Compiling is bounded as well: whoever sends a grammar decides its size.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{ParserFactory, TokenParser, panic_utils};
use toktrie::InferenceCapabilities;

use crate::grammar::{Part, grammar};
use crate::guide::Guide;
use crate::{GuideError, Spec, Vocabulary};

/// Grammars that stay compiled, or known as ones that cannot be.
const COMPILED_MAX: usize = 64;
/// Symbols of one grammar.
const GRAMMAR_SIZE_MAX: usize = 50_000;
/// Stack that compiling may use: it follows schemas, references and rules into each other, whose number the size of a
/// constraint bounds. Memory is taken as it is used.
const STACK_BYTES: usize = 256 << 20;
/// States of one lexer, each of one or two kilobytes.
const LEXER_STATES_MAX: usize = 20_000;
/// States of a lexer that new guides still share.
const SHARED_STATES_MAX: usize = 4_000;

/// The compiler of one model's guides.
pub struct Guides {
    vocabulary: Vocabulary,
    factory: ParserFactory,
    compiled: Mutex<Compiled>,
}

/// Grammars, by what they were compiled from.
#[derive(Default)]
struct Compiled {
    /// Counts uses.
    clock: u64,
    entries: Vec<Entry>,
}

struct Entry {
    key: blake3::Hash,
    used: u64,
    outcome: Result<Made, GuideError>,
}

/// A grammar that was compiled.
#[derive(Clone)]
struct Made {
    /// Whose lexer the guides share.
    shared: TokenParser,
    /// The same with a lexer that nothing used.
    cold: Arc<TokenParser>,
}

/// A grammar of llguidance on its way, with the schemas that it is made of.
struct Source {
    key: blake3::Hash,
    grammar: TopLevelGrammar,
    parts: Vec<Part>,
}

impl Guides {
    /// A compiler for this vocabulary.
    #[expect(clippy::expect_used, reason = "it fails on a wrong expression among the slices, which are constants")]
    pub fn new(vocabulary: Vocabulary) -> Self {
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&vocabulary.env, InferenceCapabilities::default(), &slices)
            .expect("llguidance's own slices compile");
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_grammar_size: GRAMMAR_SIZE_MAX,
            max_lexer_states: LEXER_STATES_MAX,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Self { vocabulary, factory, compiled: Mutex::default() }
    }

    /// A guide at its beginning. What was compiled or refused before is found.
    ///
    /// # Errors
    /// [`GuideError::Schema`] and [`GuideError::Tool`] with the place in a schema that cannot be held to, [`GuideError::Form`] for any other
    /// constraint, [`GuideError::Unsayable`] when no token may come first.
    pub fn begin(&self, spec: &Spec) -> Result<Guide, GuideError> {
        let source = self.source(spec)?;
        let key = source.key;
        let found = self.compiled().get(&key);
        let outcome = found.unwrap_or_else(|| {
            let outcome = self.compile(spec, source);
            self.compiled().put(key, outcome.clone());
            outcome
        });
        outcome.map(|made| self.guide(made))
    }

    /// As [`Guides::begin`], but compiles nothing, so that it takes no longer than reading the spec: `None` where that is to be done first.
    ///
    /// # Errors
    /// As for [`Guides::begin`].
    pub fn find(&self, spec: &Spec) -> Result<Option<Guide>, GuideError> {
        let key = self.source(spec)?.key;
        let found = self.compiled().get(&key).transpose()?;
        Ok(found.map(|made| self.guide(made)))
    }

    /// Whether [`Guides::begin`] would compile nothing.
    pub fn is_known(&self, spec: &Spec) -> bool {
        self.source(spec).map_or(true, |source| self.compiled().entries.iter().any(|entry| entry.key == source.key))
    }

    fn guide(&self, made: Made) -> Guide {
        Guide::new(made.shared, made.cold, self.vocabulary.clone())
    }

    fn source(&self, spec: &Spec) -> Result<Source, GuideError> {
        let (grammar, parts) = grammar(spec, &self.vocabulary)?;
        let text = serde_json::to_vec(&grammar).map_err(|error| GuideError::Form(error.to_string()))?;
        Ok(Source { key: blake3::hash(&text), grammar, parts })
    }

    fn compile(&self, spec: &Spec, source: Source) -> Result<Made, GuideError> {
        let shared = self.parser(source.grammar).map_err(|problem| {
            let refused = |schema| self.parser(TopLevelGrammar::from_json_schema(schema)).err();
            let wrong = source.parts.iter().find_map(|part| Some((part, refused(part.schema.whole())?)));
            match wrong {
                Some((part, problem)) => {
                    let error = part.schema.locate(refused, problem);
                    part.tool.iter().fold(error, |error, tool| error.of_tool(tool))
                }
                None => GuideError::Form(problem),
            }
        })?;
        let made = Made { cold: Arc::new(shared.deep_clone()), shared };
        self.guide(made.clone()).mask().map_err(|_| GuideError::Unsayable)?;
        if spec.answer.is_some() && spec.calls.is_some() {
            // A call could be said in its place; an answer has to be possible all the same.
            self.begin(&Spec { answer: spec.answer.clone(), ..Spec::default() })?;
        }
        Ok(made)
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        let make = || {
            let mut parser = self.factory.create_parser(grammar)?;
            parser.start_without_prompt();
            Ok(parser)
        };
        let made = stacker::grow(STACK_BYTES, || panic_utils::catch_unwind(AssertUnwindSafe(make)));
        made.map_err(|error| first_lines(&error.to_string()))
    }

    fn compiled(&self) -> std::sync::MutexGuard<'_, Compiled> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Guides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guides").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl Compiled {
    fn get(&mut self, key: &blake3::Hash) -> Option<Result<Made, GuideError>> {
        self.clock += 1;
        // All of them: what one generation filled is not kept until its grammar is asked for again.
        self.entries.iter_mut().flat_map(|entry| &mut entry.outcome).for_each(Made::renew);
        let entry = self.entries.iter_mut().find(|entry| entry.key == *key)?;
        entry.used = self.clock;
        Some(entry.outcome.clone())
    }

    fn put(&mut self, key: blake3::Hash, outcome: Result<Made, GuideError>) {
        // Another thread may have been as quick.
        self.entries.retain(|entry| entry.key != key);
        if self.entries.len() >= COMPILED_MAX
            && let Some(oldest) = (0..self.entries.len()).min_by_key(|&at| self.entries[at].used)
        {
            self.entries.swap_remove(oldest);
        }
        self.entries.push(Entry { key, used: self.clock, outcome });
    }
}

impl Made {
    /// Begins another lexer in the place of one that failed or grew large. Guides on their way keep theirs.
    fn renew(&mut self) {
        let stats = || Ok(self.shared.parser.lexer_stats());
        // Its lock is broken where a parser panicked.
        let stats = panic_utils::catch_unwind(AssertUnwindSafe(stats));
        if stats.map_or(true, |stats| stats.error || stats.num_states > SHARED_STATES_MAX) {
            self.shared = self.cold.deep_clone();
        }
    }
}

/// What llguidance says for a person: without the state and the grammar that may follow.
pub(crate) fn first_lines(message: &str) -> String {
    let end = ["\n<", "<non-verbose", "\n  while"].iter().filter_map(|mark| message.find(mark)).min();
    message[..end.unwrap_or(message.len())].trim().chars().take(512).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use holdfast_types::{Constraint, TokenId, TokenMask};

    use super::*;

    const STOP: TokenId = 256;
    const NAMES: &str = r#"{"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}},
        "required": ["name"], "additionalProperties": false}}"#;

    fn guides() -> Guides {
        let bytes: Vec<u8> = (0..=255).collect();
        let one = |id: TokenId| bytes.get(id as usize).map_or(&[][..], std::slice::from_ref);
        Guides::new(Vocabulary::new(STOP + 1, one, |id| id == STOP, &[STOP]))
    }

    fn names() -> Spec {
        Spec { answer: Some(Constraint::JsonSchema(NAMES.to_owned())), ..Spec::default() }
    }

    fn masks(mut guide: Guide, text: &str) -> Vec<TokenMask> {
        let ids = text.bytes().map(TokenId::from);
        let step = |id| {
            let mask = guide.mask().unwrap();
            assert!(mask.allows(id));
            guide.accept(id).unwrap();
            mask
        };
        ids.map(step).collect()
    }

    #[test]
    fn what_was_compiled_or_refused_is_known() {
        let guides = guides();
        let refused = Spec { answer: Some(Constraint::Regex("(".to_owned())), ..Spec::default() };
        assert!(!guides.is_known(&names()) && !guides.is_known(&refused));
        let failed = guides.begin(&refused).unwrap_err();
        guides.begin(&names()).unwrap();
        assert!(guides.is_known(&names()) && guides.is_known(&refused));
        assert_eq!(guides.begin(&refused).unwrap_err(), failed);
        assert_eq!(guides.compiled().entries.len(), 2);
        // What is refused as it is read needs no compiling.
        assert!(guides.is_known(&Spec { answer: Some(Constraint::Choice(Vec::new())), ..Spec::default() }));
    }

    #[test]
    fn a_lexer_that_others_used_says_what_a_fresh_one_says() {
        let texts = [r#"[{"name": "Ada"}]"#, r#"[{"name":"\\n é"}, {"name": ""}]"#, "[]"];
        let shared = guides();
        for text in texts.iter().chain(&texts) {
            let fresh = masks(guides().begin(&names()).unwrap(), text);
            assert_eq!(masks(shared.begin(&names()).unwrap(), text), fresh);
        }
        assert_eq!(shared.compiled().entries.len(), 1);
    }

    #[test]
    fn a_lexer_that_another_broke_is_left_for_one_of_its_own() {
        let guides = guides();
        let text = r#"[{"name": "Ada"}]"#;
        let (before, after) = text.split_at(8);
        let expected = masks(guides.begin(&names()).unwrap(), text);
        let mut guide = guides.begin(&names()).unwrap();
        masks(guide.clone(), before);
        before.bytes().for_each(|id| guide.accept(id.into()).unwrap());
        let lexer = |guides: &Guides| guides.compiled().entries[0].outcome.as_ref().unwrap().shared.parser.clone();
        let broken = panic_utils::catch_unwind(AssertUnwindSafe(|| lexer(&guides).test_trigger_lexer_error()));
        assert!(broken.is_err());
        assert_eq!(masks(guide, after), expected[before.len()..]);
        // Whoever begins now shares a whole one again.
        assert_eq!(masks(guides.begin(&names()).unwrap(), text), expected);
        assert!(!lexer(&guides).lexer_stats().error);
    }

    #[test]
    fn a_lexer_that_grew_large_is_not_begun_with() {
        let guides = guides();
        let counted = |n: usize| {
            let schema = format!(r#"{{"type": "string", "minLength": {n}}}"#);
            Spec { answer: Some(Constraint::JsonSchema(schema)), ..Spec::default() }
        };
        let states = |guides: &Guides| {
            guides.compiled().entries[0].outcome.as_ref().unwrap().shared.parser.lexer_stats().num_states
        };
        let text = format!("\"{}", "a".repeat(SHARED_STATES_MAX + 100));
        let mut guide = guides.begin(&counted(100_000)).unwrap();
        text.bytes().for_each(|id| guide.accept(id.into()).unwrap());
        assert!(states(&guides) > SHARED_STATES_MAX);
        let mask = guide.mask().unwrap();
        guides.begin(&names()).unwrap();
        assert!(states(&guides) < 100);
        assert_eq!(guide.mask().unwrap(), mask);
    }
}
