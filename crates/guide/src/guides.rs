//! Compiled grammars of one vocabulary, kept by what they were compiled from.
//!
//! In: specs. Out: guides at their beginning. The most recently used grammars stay, up to a bound, so that a schema that comes with
//! every turn is compiled once. Compiling is bounded as well: whoever sends a grammar decides its size.

use std::sync::{Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{ParserFactory, TokenParser, panic_utils};
use toktrie::InferenceCapabilities;

use crate::grammar::grammar;
use crate::guide::Guide;
use crate::{GuideError, Spec, Vocabulary};

/// Grammars that stay compiled.
const COMPILED_MAX: usize = 64;
/// Symbols of one grammar.
const GRAMMAR_SIZE_MAX: usize = 50_000;
/// Stack that compiling may use: it follows schemas, references and rules into each other, whose number the size of a
/// constraint bounds. Memory is taken as it is used.
const STACK_BYTES: usize = 256 << 20;
/// States of one guide's lexer, each of one or two kilobytes.
const LEXER_STATES_MAX: usize = 20_000;

/// The compiler of one model's guides.
pub struct Guides {
    vocabulary: Vocabulary,
    factory: ParserFactory,
    compiled: Mutex<Compiled>,
}

/// Guides at their beginning, by what they were compiled from.
#[derive(Default)]
struct Compiled {
    /// Counts uses.
    clock: u64,
    entries: Vec<(blake3::Hash, u64, Guide)>,
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

    /// A guide at its beginning.
    ///
    /// # Errors
    /// [`GuideError::Schema`] and [`GuideError::Tool`] with the place in a schema that cannot be held to, [`GuideError::Form`] for any other
    /// constraint, [`GuideError::Unsayable`] when no token may come first.
    pub fn begin(&self, spec: &Spec) -> Result<Guide, GuideError> {
        let (grammar, parts) = grammar(spec, &self.vocabulary)?;
        let source = serde_json::to_vec(&grammar).map_err(|error| GuideError::Form(error.to_string()))?;
        let key = blake3::hash(&source);
        if let Some(guide) = self.compiled().get(&key) {
            return Ok(guide);
        }
        let parser = self.parser(grammar).map_err(|problem| {
            let refused = |schema| self.parser(TopLevelGrammar::from_json_schema(schema)).err();
            let wrong = parts.iter().find_map(|part| Some((part, refused(part.schema.whole())?)));
            match wrong {
                Some((part, problem)) => {
                    let error = part.schema.locate(refused, problem);
                    part.tool.iter().fold(error, |error, tool| error.of_tool(tool))
                }
                None => GuideError::Form(problem),
            }
        })?;
        let mut guide = Guide::new(parser, self.vocabulary.clone());
        guide.mask().map_err(|_| GuideError::Unsayable)?;
        if spec.answer.is_some() && spec.calls.is_some() {
            // A call could be said in its place; an answer has to be possible all the same.
            self.begin(&Spec { answer: spec.answer.clone(), ..Spec::default() })?;
        }
        self.compiled().put(key, guide.clone());
        Ok(guide)
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        let make = || {
            let mut parser = self.factory.create_parser(grammar)?;
            parser.start_without_prompt();
            Ok(parser)
        };
        let made = stacker::grow(STACK_BYTES, || panic_utils::catch_unwind(std::panic::AssertUnwindSafe(make)));
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
    fn get(&mut self, key: &blake3::Hash) -> Option<Guide> {
        self.clock += 1;
        let (_, used, guide) = self.entries.iter_mut().find(|(other, ..)| other == key)?;
        *used = self.clock;
        Some(guide.clone())
    }

    fn put(&mut self, key: blake3::Hash, guide: Guide) {
        if self.entries.len() >= COMPILED_MAX
            && let Some(oldest) = (0..self.entries.len()).min_by_key(|&at| self.entries[at].1)
        {
            self.entries.swap_remove(oldest);
        }
        self.entries.push((key, self.clock, guide));
    }
}

/// What llguidance says for a person: without the state and the grammar that may follow.
pub(crate) fn first_lines(message: &str) -> String {
    let end = ["\n<", "<non-verbose", "\n  while"].iter().filter_map(|mark| message.find(mark)).min();
    message[..end.unwrap_or(message.len())].trim().chars().take(512).collect()
}
