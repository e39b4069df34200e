//! Harmony to text, reasoning and calls: the decisions for an answer of several messages, without items.
//!
//! In: bytes and [`ChannelMark`]s as they are sampled, from behind `<|start|>assistant` on. Out: the [`Cut`]s of the scanner, the
//! same ones however the bytes were cut, but for where a text is divided. A header decides what its message is: a call if it
//! names a recipient, reasoning on the channel `analysis`, otherwise text (the answer, or a preamble to calls). Nothing is
//! lost: what is no message after all becomes text, and a call without a message is one that cannot be read. Deliberately
//! not here: what a header's or a call's text says (the model's), items, positions.

use holdfast_model::recipient;

use super::scanner::{Cut, Markers, find_stop, take_characters, undecided_stop};
use crate::language::ChannelMark;

/// The channel of reasoning.
const ANALYSIS: &str = "analysis";
/// Who speaks; its name is in every header but the first, where the generation prompt has it.
const ASSISTANT: &str = "assistant";
/// How a header names a recipient.
const RECIPIENT: &str = "to=";

/// What decides where text goes; small, so that a look ahead can work on a copy.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Channels {
    /// Bytes that do not make a character yet.
    bytes: Vec<u8>,
    /// A header or a call so far, marks as they are spelt; of a text what may become a stop string.
    held: String,
    place: Place,
    stopped: bool,
}

/// What the held text is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// A header: the first one of the answer.
    #[default]
    First,
    /// A header that begins with a role.
    Header,
    Text,
    Thought,
    Call,
    /// Between two messages.
    Between,
}

impl Channels {
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn go_on(&mut self) {
        self.stopped = false;
    }

    pub(super) fn in_call(&self) -> bool {
        self.place == Place::Call
    }

    pub(super) fn call(&self) -> &str {
        &self.held
    }

    /// Ends the answer here: what was held, which is text after all. What may go on (`early`) keeps its header.
    pub(super) fn end(&mut self, early: bool) -> String {
        let header = matches!(self.place, Place::First | Place::Header);
        if early && (header || self.place == Place::Between) {
            return String::new();
        }
        if !early && !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.push('\u{FFFD}');
        }
        std::mem::take(&mut self.held)
    }

    /// Takes bytes and decides what can be decided.
    pub(super) fn push(&mut self, bytes: &[u8], markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        self.bytes.extend_from_slice(bytes);
        take_characters(&mut self.bytes, &mut self.held);
        match self.place {
            Place::First => {
                // Words where a header should be are an answer.
                let text = self.held.trim_start();
                let header = RECIPIENT.starts_with(text) || text.starts_with(RECIPIENT) || text.starts_with('<');
                if !header {
                    self.place = Place::Text;
                    self.text(markers, cuts);
                }
            }
            Place::Between if !self.held.trim().is_empty() => {
                self.place = Place::Text;
                self.text(markers, cuts);
            }
            Place::Text => self.text(markers, cuts),
            Place::Thought if !self.held.is_empty() => cuts.push(Cut::Thought(std::mem::take(&mut self.held))),
            Place::Thought | Place::Header | Place::Between | Place::Call => {}
        }
    }

    /// Takes a mark.
    pub(super) fn mark(&mut self, mark: ChannelMark, spelt: &str, markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.push('\u{FFFD}');
        }
        let in_header = matches!(self.place, Place::First | Place::Header);
        match mark {
            ChannelMark::End => self.close(markers, cuts),
            ChannelMark::Start => {
                self.close(markers, cuts);
                self.place = Place::Header;
            }
            ChannelMark::Channel | ChannelMark::Constrain if in_header => self.held.push_str(spelt),
            ChannelMark::Message if in_header => self.open(spelt, markers, cuts),
            // Out of place: a message without its header, or a header without its beginning.
            ChannelMark::Channel => {
                self.close(markers, cuts);
                self.place = Place::First;
                self.held.push_str(spelt);
            }
            ChannelMark::Message if self.place == Place::Between => self.place = Place::Text,
            ChannelMark::Message | ChannelMark::Constrain => {}
        }
    }

    /// The header is whole.
    fn open(&mut self, spelt: &str, markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        let header = self.held.trim_start();
        let header = header.strip_prefix(ASSISTANT).filter(|_| self.place == Place::Header).unwrap_or(header);
        let channel = header.split("<|channel|>").nth(1).unwrap_or_default().trim_start();
        if markers.form.is_some() && recipient(header).is_some() {
            self.held = format!("{header}{spelt}");
            self.place = Place::Call;
            cuts.push(Cut::CallOpened { bare: true });
        } else if channel.strip_prefix(ANALYSIS).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric)) {
            self.held.clear();
            self.place = Place::Thought;
            cuts.push(Cut::ThoughtOpened);
        } else {
            self.held.clear();
            self.place = Place::Text;
        }
    }

    /// The message ends.
    fn close(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.place, Place::Between) {
            Place::Call => cuts.push(Cut::CallClosed(held)),
            Place::Thought => {
                if !held.is_empty() {
                    cuts.push(Cut::Thought(held));
                }
                cuts.push(Cut::Ended);
            }
            Place::Text => {
                if !held.is_empty() {
                    cuts.push(Cut::Text(held));
                }
                cuts.push(Cut::Ended);
            }
            Place::First | Place::Header if held.trim().is_empty() => {}
            Place::First | Place::Header if markers.form.is_some() && recipient(&held).is_some() => {
                cuts.extend([Cut::CallOpened { bare: true }, Cut::CallClosed(held)]);
            }
            Place::First | Place::Header => cuts.extend([Cut::Text(held), Cut::Ended]),
            Place::Between => {}
        }
    }

    fn text(&mut self, markers: &Markers<'_>, cuts: &mut Vec<Cut>) {
        if self.stopped {
            return;
        }
        let stop = find_stop(&self.held, markers.stops);
        let len = stop.unwrap_or_else(|| self.held.len() - undecided_stop(&self.held, markers.stops));
        if len > 0 {
            cuts.push(Cut::Text(self.held[..len].to_owned()));
        }
        match stop {
            Some(_) => {
                self.held.clear();
                self.bytes.clear();
                self.stopped = true;
                cuts.push(Cut::Stopped);
            }
            None => {
                self.held.drain(..len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_model::ToolCallForm;
    use proptest::prelude::*;

    use super::*;
    use crate::language::CallForm;

    /// What a whole answer became.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Part {
        Text(String),
        Thought(String),
        Call(String),
        Open(String),
        Stopped,
    }

    /// Marks are tokens, and the text between them is cut into pieces of `size` bytes.
    fn scan(answer: &str, stops: &[String], calls: bool, size: usize) -> Vec<Part> {
        let form = CallForm::from(&ToolCallForm::of_template("<|channel|>commentary").unwrap());
        let markers = Markers { stops, form: calls.then_some(&form), tools: &[], reasoning: None };
        let (mut channels, mut cuts) = (Channels::default(), Vec::new());
        let mut rest = answer;
        while !rest.is_empty() && !channels.stopped() {
            let marks = ChannelMark::SPELT.iter().filter_map(|(text, mark)| Some((rest.find(text)?, *text, *mark)));
            let next = marks.min_by_key(|(at, ..)| *at);
            let until = next.map_or(rest.len(), |(at, ..)| at);
            for piece in rest.as_bytes()[..until].chunks(size) {
                if !channels.stopped() {
                    channels.push(piece, &markers, &mut cuts);
                }
            }
            if let Some((_, text, mark)) = next.filter(|_| !channels.stopped()) {
                channels.mark(mark, text, &markers, &mut cuts);
            }
            rest = &rest[until + next.map_or(0, |(_, text, _)| text.len())..];
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut open = false;
        for cut in cuts {
            match cut {
                Cut::Text(text) => match parts.last_mut() {
                    Some(Part::Text(before)) if open => before.push_str(&text),
                    _ => parts.push(Part::Text(text)),
                },
                Cut::Thought(text) => match parts.last_mut() {
                    Some(Part::Thought(before)) if open => before.push_str(&text),
                    _ => panic!("a thought that was not opened"),
                },
                Cut::ThoughtOpened => parts.push(Part::Thought(String::new())),
                Cut::CallClosed(body) => parts.push(Part::Call(body)),
                Cut::Stopped => parts.push(Part::Stopped),
                Cut::CallOpened { .. } => {}
                Cut::Ended => {
                    open = false;
                    continue;
                }
            }
            open = true;
        }
        if channels.in_call() {
            parts.push(Part::Open(channels.call().to_owned()));
        } else {
            let held = channels.end(false);
            match parts.last_mut() {
                _ if held.is_empty() => {}
                Some(Part::Text(before)) if open => before.push_str(&held),
                _ => parts.push(Part::Text(held)),
            }
        }
        parts
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn thought(text: &str) -> Part {
        Part::Thought(text.to_owned())
    }

    fn call(text: &str) -> Part {
        Part::Call(text.to_owned())
    }

    #[test]
    fn answers_become_the_same_parts_however_their_bytes_are_cut() {
        let one = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>{\"at\": \"é\"}";
        let other = " to=functions.stop<|channel|>commentary json<|message|>{}";
        for (answer, parts) in [
            (
                "<|channel|>analysis<|message|>Hm é.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
                    .to_owned(),
                vec![thought("Hm é."), text("Yes.")],
            ),
            (format!("{one}<|call|>"), vec![call(one)]),
            (format!("{other}<|call|>"), vec![call(other.trim_start())]),
            // A preamble, and several calls.
            (
                format!(
                    "<|channel|>commentary<|message|>Both.<|end|><|start|>assistant{one}<|call|><|start|>assistant{other}<|call|>"
                ),
                vec![text("Both."), call(one), call(other)],
            ),
            (
                format!("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{one}"),
                vec![thought("Hm."), Part::Open(one.to_owned())],
            ),
            // Not as it should be; nothing is lost.
            ("Yes.<|return|>".to_owned(), vec![text("Yes.")]),
            ("<|channel|>final<|message|>a<|channel|>final<|message|>b".to_owned(), vec![text("a"), text("b")]),
            ("<|channel|>analysis<|message|><|return|>".to_owned(), vec![thought("")]),
            (
                "<|channel|>commentary to=functions.look<|call|>".to_owned(),
                vec![call("<|channel|>commentary to=functions.look")],
            ),
            ("<|channel|>odd<|return|>".to_owned(), vec![text("<|channel|>odd")]),
            ("to".to_owned(), vec![text("to")]),
            ("<|channel|>final<|message|>a<|end|> more".to_owned(), vec![text("a"), text(" more")]),
            ("to=python<|message|>1<|call|>".to_owned(), vec![call("to=python<|message|>1")]),
        ] {
            for size in [1, 2, 3, 1000] {
                assert_eq!(scan(&answer, &[], true, size), parts, "{answer} by {size}");
            }
        }
        // Without tools nothing is a call.
        assert_eq!(scan(one, &[], false, 9), [text("{\"at\": \"é\"}")]);
    }

    #[test]
    fn stop_strings_end_answers_and_not_thoughts() {
        let stops = ["STOP".to_owned()];
        let answer = "<|channel|>analysis<|message|>STOP<|end|><|start|>assistant<|channel|>final<|message|>a STOP b";
        for size in [1, 3, 1000] {
            assert_eq!(scan(answer, &stops, true, size), [thought("STOP"), text("a "), Part::Stopped]);
        }
    }

    proptest! {
        #[test]
        fn no_cut_changes_what_an_answer_is_and_nothing_said_is_lost(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "assistant", "analysis",
                "final", "commentary", " to=functions.look", " json", "{\"a\": 1}", "é🌊", "STOP", " ", "x",
            ]), 0..16),
            stop in any::<bool>(),
            size in 1_usize..9,
        ) {
            let answer = pieces.concat();
            let stops = if stop { vec!["STOP".to_owned()] } else { Vec::new() };
            let one = scan(&answer, &stops, true, usize::MAX);
            prop_assert_eq!(&scan(&answer, &stops, true, size), &one);
            // Every message's content is there: waves are said in contents alone, or in a header that became text.
            if !stop && !answer.contains("<|message|>") {
                let said: String = one.iter().map(|part| match part {
                    Part::Text(text) | Part::Thought(text) | Part::Call(text) | Part::Open(text) => text.as_str(),
                    Part::Stopped => "",
                }).collect();
                prop_assert_eq!(said.matches('🌊').count(), answer.matches('🌊').count());
            }
        }
    }
}
