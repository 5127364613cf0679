//! Patterns on names of modules, as PEFT matches them.

use fancy_regex::{Regex, RegexBuilder};

/// Most patterns of one map.
const MAX_PATTERNS: usize = 1024;
/// Bounds the memory of one pattern, in bytes.
const SIZE_LIMIT: usize = 1 << 20;
/// Bounds the steps of one match.
const BACKTRACK_LIMIT: usize = 10_000;

/// Values for names: the first pattern that matches holds.
pub(crate) struct Patterns<T> {
    rows: Vec<(Regex, T)>,
}

impl<T: Copy> Patterns<T> {
    /// # Errors
    /// A pattern that is no regular expression, or too many of them.
    pub fn new(rows: impl ExactSizeIterator<Item = (String, T)>) -> Result<Self, String> {
        if rows.len() > MAX_PATTERNS {
            return Err(format!("{} patterns, at most {MAX_PATTERNS} are read", rows.len()));
        }
        // A pattern stands for the end of a name, from a dot on.
        let rows = rows.map(|(key, value)| Ok((compile(&format!(r"^(.*\.)?({key})$"), &key)?, value)));
        Ok(Self { rows: rows.collect::<Result<_, String>>()? })
    }

    /// The value of `name`, if a pattern matches.
    pub fn get(&self, name: &str) -> Result<Option<T>, String> {
        for (regex, value) in &self.rows {
            if matches(regex, name)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// `target_modules` or `exclude_modules`.
pub(crate) enum Targets {
    /// Names or ends of names.
    Names(Vec<String>),
    /// One regular expression for whole names.
    Pattern(Regex),
    /// "all-linear".
    All,
}

impl Targets {
    /// # Errors
    /// The text is no regular expression.
    pub fn pattern(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("all-linear") {
            return Ok(Self::All);
        }
        Ok(Self::Pattern(compile(&format!("^(?:{text})$"), text)?))
    }

    /// True if `name` is one of them.
    pub fn has(&self, name: &str) -> Result<bool, String> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|end| is_end(name, end))),
            Self::Pattern(regex) => matches(regex, name),
            Self::All => Ok(true),
        }
    }
}

/// True if `end` is `name`, or its end from a dot on.
pub(crate) fn is_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn compile(regex: &str, shown: &str) -> Result<Regex, String> {
    let built =
        RegexBuilder::new(regex).backtrack_limit(BACKTRACK_LIMIT).delegate_size_limit(SIZE_LIMIT).build();
    built.map_err(|e| format!("{shown:?} is no regular expression that octavo reads: {e}"))
}

fn matches(regex: &Regex, name: &str) -> Result<bool, String> {
    regex.is_match(name).map_err(|e| format!("{:?} takes too long to match {name}: {e}", regex.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_peft() {
        let names = ["model.layers.0.self_attn.q_proj", "model.layers.10.self_attn.q_proj"];
        for (pattern, want) in [
            ("q_proj", [true, true]),
            ("proj", [false, false]),
            (r"layers\.0\..*", [true, false]),
            ("^model.layers.0.self_attn.q_proj", [true, false]),
            ("^layers.0.self_attn.q_proj", [false, false]),
            ("k_proj|q_proj", [true, true]),
            (r"layers\.(?!0\.)\d+\.self_attn\.q_proj", [false, true]),
            (r".*\.0\..*", [true, false]),
        ] {
            let patterns = Patterns::new([(pattern.to_string(), 4)].into_iter()).expect(pattern);
            let got = names.map(|name| patterns.get(name).expect(pattern).is_some());
            assert_eq!(got, want, "{pattern}");
        }
    }

    #[test]
    fn the_first_pattern_holds_and_bad_ones_are_named() {
        let rows = [("q_proj".to_string(), 1), (".*".to_string(), 2)];
        let patterns = Patterns::new(rows.into_iter()).expect("patterns");
        assert_eq!((patterns.get("a.q_proj"), patterns.get("a.k_proj")), (Ok(Some(1)), Ok(Some(2))));
        let error = Patterns::new([("q(".to_string(), 1)].into_iter()).err().expect("refused");
        assert!(error.contains("\"q(\""), "{error}");
        let slow = Patterns::new([(r"(a|a|b\1)*(?=c)x".to_string(), 1)].into_iter()).expect("patterns");
        assert!(slow.get(&"a".repeat(200)).is_err(), "a match without bound");
    }
}
