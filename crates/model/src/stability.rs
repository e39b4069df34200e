//! What is known of a template before anyone speaks: that new items can be rendered alone, and where it looks back.
//!
//! In: a model's templates. Out: [`Facts`] for rendering, and [`Stability`] for people. All of it is found once, when a
//! model's text is loaded, on made-up histories. Deliberately not here: rendering ([`crate::render`]), what is rendered in the
//! place of parts that look back ([`crate::overrides`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use holdfast_types::{ReasoningEffort, TokenId};
use serde_json::Value;

use crate::reasoning::Efforts;
use crate::render::LogEnd;
use crate::synthetic::{self, ASSISTANT, Ending, Length, SHORTEST, SYSTEM, Shape, THOUGHT, news};
use crate::template::{DEFAULT, Rendering};
use crate::{ModelError, ModelText, RenderError};

/// How a session's history comes to be what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryRendering {
    /// As the published template renders all of it at once.
    Published,
    /// As the template renders all of it at once with the parts replaced that look back.
    Replaced,
    /// Piece by piece, by a template that looks back in words that we do not know: what one rendering of all would be differs.
    Incremental,
}

impl HistoryRendering {
    /// In a few words, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Published => "as published",
            Self::Replaced => "with parts replaced that look back",
            Self::Incremental => "piece by piece, not equal to one rendering of all",
        }
    }
}

/// What a later message changes of an earlier one's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LookBack {
    /// The text of answers.
    Answers,
    /// Reasoning is not in history, or goes away later.
    Reasoning,
    /// Where tools stand.
    Tools,
    /// Where the system message stands.
    System,
    /// A later system message moves to the front.
    LaterSystem,
    /// How earlier calls and results are written.
    Calls,
    /// Results of one round are one message.
    Results,
    /// The generation prompt has words that a written answer has not.
    Prompt,
}

impl fmt::Display for LookBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answers => "answers rewritten",
            Self::Reasoning => "reasoning dropped",
            Self::Tools => "tools moved",
            Self::System => "system message moved",
            Self::LaterSystem => "later system message moved to the front",
            Self::Calls => "calls and results rewritten",
            Self::Results => "results of one round merged",
            Self::Prompt => "generation prompt not in history",
        })
    }
}

/// What one template does to history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stability {
    /// Its name.
    pub template: String,
    /// How history comes to be.
    pub rendering: HistoryRendering,
    /// What later messages change in the published template, in order.
    pub published: Vec<LookBack>,
    /// What of that is left in what is rendered.
    pub left: Vec<LookBack>,
    /// It tells a date: the session's, which never changes.
    pub dated: bool,
}

impl Stability {
    /// What a session's history does not do though the published template does. Results of one round are given at once, so
    /// that they are merged is no difference.
    pub fn differs(&self) -> Vec<LookBack> {
        self.published.iter().copied().filter(|what| *what != LookBack::Results).collect()
    }
}

/// What templates write after an assistant's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closings {
    /// From the end of the text on: the stop token and what follows it.
    pub(crate) after_text: Vec<TokenId>,
    /// Behind the stop token only.
    pub(crate) after_stop: Vec<TokenId>,
}

/// What rendering has to know of a template.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) closings: Closings,
    /// Whether it has a place for a system message; otherwise that begins the first user message.
    pub(crate) takes_system: bool,
    /// Efforts after whose generation prompt reasoning is open; `None` is the template's own.
    pub(crate) opens_reasoning: Vec<Option<ReasoningEffort>>,
    /// The efforts that it knows, rising.
    pub(crate) efforts: Vec<ReasoningEffort>,
    pub(crate) stability: Stability,
}

impl Facts {
    pub(crate) fn is_incremental(&self) -> bool {
        self.stability.rendering == HistoryRendering::Incremental
    }
}

/// Why a template is not proven.
enum Doubt {
    /// It cannot be used.
    Broken(String),
    /// It looks back.
    Unstable(String),
}

impl ModelText {
    /// What each template does to history, by rising name.
    pub fn stability(&self) -> Vec<&Stability> {
        self.facts.values().map(|facts| &facts.stability).collect()
    }

    /// Finds the facts of every template, and proves on made-up histories that what new items become does not depend on what
    /// was before them: with and without system message and tools; after one exchange, after several, after a round of tools;
    /// for user messages, tool results and imported answers; for every effort. What a template refuses by itself is left out,
    /// but a user message it must take. One that looks back is rendered piece by piece, if the end of an answer can be found.
    ///
    /// # Errors
    /// [`ModelError::UnstableTemplate`] with the history at which it shows, [`ModelError::Template`] when a plain exchange
    /// cannot be rendered or an answer is not ended by a stop token, or templates end answers differently.
    pub(crate) fn find_facts(&self, path: &Path) -> Result<BTreeMap<String, Facts>, ModelError> {
        let mut all: BTreeMap<String, Facts> = BTreeMap::new();
        for name in self.templates.names() {
            all.insert(name.to_owned(), self.facts_of(path, name)?);
        }
        let ends = all.get(DEFAULT).map(|facts| facts.closings.after_text.clone());
        match all.iter().find(|(_, facts)| Some(&facts.closings.after_text) != ends.as_ref()) {
            None => Ok(all),
            Some((name, _)) => Err(ModelError::Template {
                path: path.to_owned(),
                name: name.clone(),
                problem: "it ends an answer in another way than the default template does".to_owned(),
            }),
        }
    }

    fn facts_of(&self, path: &Path, template: &str) -> Result<Facts, ModelError> {
        let broken =
            |problem: String| ModelError::Template { path: path.to_owned(), name: template.to_owned(), problem };
        let plain = Shape::plain(template);
        let closings = self.closings_of(&plain).map_err(broken)?;
        let source = self.templates.rendered_source(template);
        let efforts = Efforts::of(source).known();
        let told: Vec<_> = std::iter::once(None).chain(efforts.iter().copied().map(Some)).collect();
        let proof = told.iter().try_for_each(|&effort| self.prove(&Shape { effort, ..plain }));
        let published = self.looks_back(&plain, true);
        let left = self.looks_back(&plain, false);
        let rendering = match proof {
            Ok(()) if self.templates.is_replaced(template) => HistoryRendering::Replaced,
            Ok(()) => HistoryRendering::Published,
            Err(Doubt::Broken(problem)) => return Err(broken(problem)),
            Err(Doubt::Unstable(problem)) => {
                if !self.goes_piece_by_piece(&Shape { incremental: true, ..plain }) {
                    return Err(ModelError::UnstableTemplate {
                        path: path.to_owned(),
                        name: template.to_owned(),
                        digest: self.templates.digest_of(template),
                        problem,
                    });
                }
                let looks_back = left.iter().map(LookBack::to_string).collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    path = %path.display(), template, digest = %self.templates.digest_of(template), problem, looks_back,
                    "the template looks back: history is rendered piece by piece and may differ from rendering all of it"
                );
                HistoryRendering::Incremental
            }
        };
        let opens = |effort: &Option<ReasoningEffort>| {
            let prompt = self.text_of(&Shape { effort: *effort, ..plain }, &[synthetic::user()], &[], true);
            self.reasoning.as_ref().is_some_and(|form| prompt.is_ok_and(|prompt| form.opened_by(&prompt)))
        };
        let opens_reasoning = told.into_iter().filter(opens).collect();
        let with_system = self.text_of(&plain, &[synthetic::system(), synthetic::user()], &[], false);
        let dated = source.contains("strftime_now");
        Ok(Facts {
            closings,
            takes_system: with_system.is_ok(),
            opens_reasoning,
            efforts,
            stability: Stability { template: template.to_owned(), rendering, published, left, dated },
        })
    }

    /// With an effort the shortest proof: that it changes what comes before or what comes after, and not what depends on what.
    fn prove(&self, plain: &Shape<'_>) -> Result<(), Doubt> {
        let (shapes, lengths) = match plain.effort {
            None => (&[(false, false), (true, false), (false, true), (true, true)][..], 3),
            Some(_) => (&[(true, true)][..], 1),
        };
        for &(system, tools) in shapes {
            let shape = Shape { system, tools, ..*plain };
            for new in news() {
                for (after, generate) in
                    [(LogEnd::Closed, false), (LogEnd::Closed, true), (LogEnd::Sampled, false), (LogEnd::Sampled, true)]
                {
                    let ending = Ending::of(&new, after);
                    let delta = |length| self.delta(&shape, after, length, &new, generate, None, &[]);
                    let needed = !system && !tools && ending == Ending::Assistant && new[0]["role"] == "user";
                    let what = format!("a new {} message (system {system}, tools {tools})", new[0]["role"]);
                    let shortest = match delta(SHORTEST) {
                        Ok(shortest) => shortest,
                        Err(RenderError::Rejected { .. }) if !needed => continue,
                        Err(RenderError::Rejected { message }) => return Err(Doubt::Broken(message)),
                        Err(e) => return Err(Doubt::Unstable(format!("{what}: {e}"))),
                    };
                    for (exchanges, rounds) in [(2, true), (2, false), (3, false)].into_iter().take(lengths) {
                        match delta(Length { exchanges, rounds }) {
                            Ok(other) if other == shortest => {}
                            Err(RenderError::Rejected { .. }) if rounds => {}
                            Ok(_) => {
                                let problem = format!("{what} renders differently after {exchanges} exchanges");
                                return Err(Doubt::Unstable(problem));
                            }
                            Err(e) => {
                                return Err(Doubt::Unstable(format!("{what} after {exchanges} exchanges: {e}")));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether user messages, and results where the model is known to call, can be rendered behind the last answer's end.
    fn goes_piece_by_piece(&self, plain: &Shape<'_>) -> bool {
        let user = || vec![synthetic::user()];
        let results = || vec![synthetic::result("call00008")];
        [false, true].into_iter().all(|with| {
            let shape = Shape { system: with, tools: with && self.form.is_some(), ..*plain };
            let news = std::iter::once(user()).chain(shape.tools.then(results));
            news.into_iter().all(|new| {
                [LogEnd::Closed, LogEnd::Sampled].into_iter().all(|after| {
                    match self.delta(&shape, after, SHORTEST, &new, true, None, &[]) {
                        Ok(_) => true,
                        Err(RenderError::Rejected { .. }) => with,
                        Err(_) => false,
                    }
                })
            })
        })
    }

    /// What later messages change.
    fn looks_back(&self, plain: &Shape<'_>, published: bool) -> Vec<LookBack> {
        use synthetic::{assistant, calls, later_user, result, system, thoughtful, user};
        let text = |tools: bool, messages: &[Value], generate: bool| {
            let tools = Shape { tools, ..*plain }.synthetic_tools();
            let rendering = Rendering { messages, tools: &tools, date: plain.date, effort: None, generate };
            match published {
                true => self.templates.render_published(plain.template, &rendering),
                false => self.templates.render(plain.template, &rendering),
            }
        };
        // What cannot be rendered changes nothing.
        let changes = |tools: bool, history: &[Value], new: Value| {
            let all: Vec<_> = history.iter().cloned().chain([new]).collect();
            match (text(tools, history, false), text(tools, &all, false)) {
                (Ok(base), Ok(full)) => !full.starts_with(&base),
                _ => false,
            }
        };
        let made = [("call00001".to_owned(), "look".to_owned()), ("call00002".to_owned(), "look".to_owned())];
        let exchange = [user(), assistant()];
        let answers = changes(false, &exchange, later_user());
        let tools = changes(true, &exchange, later_user());
        let instructed = [system(), user(), assistant()];
        let thought = text(false, &[user(), thoughtful(), later_user()], false);
        let prompt = match (text(false, &[user()], true), text(false, &exchange, false)) {
            (Ok(prompt), Ok(answered)) => !answered.starts_with(&prompt),
            _ => false,
        };
        let later = {
            let all: Vec<_> = instructed.iter().cloned().chain([user(), synthetic::later_system()]).collect();
            text(false, &all, false).is_ok_and(|full| {
                full.find(synthetic::LATER_SYSTEM)
                    .zip(full.rfind(ASSISTANT))
                    .is_some_and(|(later, answer)| later < answer)
            })
        };
        let found = [
            (LookBack::Answers, answers),
            (LookBack::Reasoning, self.reasoning.is_some() && thought.is_ok_and(|text| !text.contains(THOUGHT))),
            (LookBack::Tools, !answers && tools),
            (
                LookBack::System,
                !answers
                    && (changes(false, &instructed[..2], assistant()) || changes(false, &instructed, later_user())),
            ),
            (LookBack::LaterSystem, later),
            (
                LookBack::Calls,
                !tools && changes(true, &[user(), calls(&made[..1]), result("call00001"), assistant()], later_user()),
            ),
            (LookBack::Results, changes(true, &[user(), calls(&made), result("call00001")], result("call00002"))),
            (LookBack::Prompt, prompt),
        ];
        found.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect()
    }

    /// What the template writes after an assistant's text.
    fn closings_of(&self, shape: &Shape<'_>) -> Result<Closings, String> {
        let history = shape.history(&Ending::Assistant, SHORTEST);
        let text = self.text_of(shape, &history, &[], false).map_err(|e| e.to_string())?;
        let at = text.rfind(ASSISTANT).ok_or("an assistant's text is not rendered")?;
        let after_text = self.encoder.rendered(&text[at + ASSISTANT.len()..], None, false);
        let stop = self.after_last_stop(&after_text).ok_or_else(|| {
            let stops: Vec<_> = self.stop_tokens.iter().filter_map(|id| self.special_text(*id)).collect();
            format!("an assistant's message does not end with a stop token ({})", stops.join(", "))
        })?;
        let after_stop = after_text[stop..].to_vec();
        Ok(Closings { after_text, after_stop })
    }

    /// Whether what the template makes of system prompt and tools alone is how it begins with a message after them.
    pub(crate) fn can_begin_alone(&self, shape: &Shape<'_>) -> bool {
        let mut history = Vec::new();
        if shape.system {
            history.push(synthetic::system());
        }
        let tools = shape.synthetic_tools();
        if history.is_empty() && tools.is_empty() {
            return false;
        }
        let Ok(base) = self.text_of(shape, &history, &tools, false) else { return false };
        // A template may keep them for the first message.
        if (shape.system && !base.contains(SYSTEM)) || (shape.tools && !base.contains(synthetic::CALLED)) {
            return false;
        }
        // A first message of another role may be worked into the beginning as well; one that is refused cannot come.
        ["user", "system"].into_iter().all(|role| {
            let mut all = history.clone();
            all.push(serde_json::json!({"role": role, "content": synthetic::USER}));
            match self.text_of(shape, &all, &tools, false) {
                Ok(full) => full.starts_with(&base) && self.split(&base, &full, None, "the first message").is_ok(),
                Err(_) => role != "user",
            }
        })
    }
}
