//! Stop strings across token borders: text that may be the start of one is held back until that is decided.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::EngineError;

/// The compiled stop strings of one request.
#[derive(Clone, Debug)]
pub struct StopStrings {
    strings: Arc<[String]>,
    matcher: Option<AhoCorasick>,
    include: bool,
}

impl StopStrings {
    /// Compiles the strings; `include`: a matched string stays in the text.
    pub fn new(strings: &[String], include: bool) -> Result<Self, EngineError> {
        let matcher = if strings.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::Standard).build(strings);
            Some(built.map_err(|e| EngineError::InvalidRequest(format!("stop: {e}")))?)
        };
        Ok(Self { strings: strings.into(), matcher, include })
    }

    /// Bytes at the end of `text` that are a proper prefix of a stop string.
    fn undecided(&self, text: &str) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let first = text.len().saturating_sub(longest);
        let tail = |start: usize| &text.as_bytes()[start..];
        (first..text.len())
            .find(|&s| {
                text.is_char_boundary(s) && self.strings.iter().any(|x| x.as_bytes().starts_with(tail(s)))
            })
            .map_or(0, |s| text.len() - s)
    }
}

/// The text of one sequence on its way out.
#[derive(Clone, Debug)]
pub struct StopFilter {
    stops: StopStrings,
    held: String,
}

impl StopFilter {
    /// A filter with nothing held.
    pub fn new(stops: StopStrings) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes new text. Appends what is certain to `out`; Some(stop string) when one is complete: what follows it is
    /// dropped. With `armed` false (before `min_tokens`) nothing matches and nothing is held.
    pub fn push(&mut self, text: &str, armed: bool, out: &mut String) -> Option<String> {
        let Some(matcher) = &self.stops.matcher else {
            out.push_str(text);
            return None;
        };
        self.held.push_str(text);
        if !armed {
            out.push_str(&std::mem::take(&mut self.held));
            return None;
        }
        // The match that ends first, as a reader of the stream would see it.
        if let Some(found) = matcher.find(&self.held) {
            let end = if self.stops.include { found.end() } else { found.start() };
            out.push_str(&self.held[..end]);
            self.held.clear();
            return Some(self.stops.strings[found.pattern().as_usize()].clone());
        }
        let certain = self.held.len() - self.stops.undecided(&self.held);
        out.extend(self.held.drain(..certain));
        None
    }

    /// The held text, when the sequence ended otherwise.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&str], stops: &[String], include: bool) -> (Vec<String>, Option<String>) {
        let mut filter = StopFilter::new(StopStrings::new(stops, include).expect("stops"));
        let mut out = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            let stop = filter.push(piece, true, &mut text);
            out.push(text);
            if stop.is_some() {
                return (out, stop);
            }
        }
        let mut text = String::new();
        filter.finish(&mut text);
        out.push(text);
        (out, None)
    }

    #[test]
    fn a_stop_string_over_three_pieces_never_shows() {
        let stops = ["END".to_string()];
        assert_eq!(
            run(&["aE", "N", "Db"], &stops, false),
            (vec!["a".into(), "".into(), "".into()], Some("END".into()))
        );
        assert_eq!(run(&["aE", "N", "Db"], &stops, true).0.concat(), "aEND");
        assert_eq!(run(&["aE", "N", "x"], &stops, false).0, ["a", "", "ENx", ""]);
        assert_eq!(run(&["aEN"], &stops, false).0, ["a", "EN"]);
    }

    #[test]
    fn before_min_tokens_nothing_matches() {
        let mut filter = StopFilter::new(StopStrings::new(&["b".into()], false).expect("stops"));
        let mut out = String::new();
        assert_eq!(filter.push("abc", false, &mut out), None);
        assert_eq!(filter.push("abc", true, &mut out), Some("b".into()));
        assert_eq!(out, "abca");
    }

    proptest! {
        /// However the text is cut into pieces, the result is that of the uncut text.
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,30}", stops in prop::collection::vec("[abé]{1,4}", 1..4), cuts in prop::collection::vec(0usize..30, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|c| text.is_char_boundary(*c)).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0].min(text.len())..w[1].min(text.len())]).collect();
            let (out, stop) = run(&pieces, &stops, false);
            let (whole, whole_stop) = run(&[&text], &stops, false);
            // Two strings that overlap may both be found, depending on where the first one is complete: the text up to
            // the earliest end is the same.
            prop_assert_eq!(stop.is_some(), whole_stop.is_some());
            prop_assert_eq!(out.concat(), whole.concat());
            let joined = out.concat();
            prop_assert!(text.starts_with(&joined));
        }
    }
}
