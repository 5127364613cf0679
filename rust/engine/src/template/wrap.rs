//! textwrap.wrap of Python.

pub struct Wrapper {
    pub width: usize,
    /// Words longer than a line are broken.
    pub long: bool,
    /// Words are broken behind hyphens.
    pub hyphens: bool,
}

fn space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ')
}

fn letter(c: Option<&char>) -> bool {
    c.is_some_and(|c| (c.is_alphanumeric() || *c == '_') && !c.is_numeric())
}

fn word(c: Option<&char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || *c == '_')
}

impl Wrapper {
    pub fn wrap(&self, text: &str) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut chunks = self.chunks(&chars);
        chunks.reverse();
        let mut lines: Vec<String> = Vec::new();
        while !chunks.is_empty() {
            let blank = |chunk: &&[char]| chunk.iter().all(|c| space(*c));
            let mut line: Vec<&[char]> = Vec::new();
            let mut length = 0;
            if !lines.is_empty() && chunks.last().is_some_and(blank) {
                chunks.pop();
            }
            while let Some(chunk) = chunks.pop_if(|c| length + c.len() <= self.width) {
                length += chunk.len();
                line.push(chunk);
            }
            if chunks.last().is_some_and(|c| c.len() > self.width) {
                self.long_word(&mut chunks, &mut line, length);
            }
            if line.last().is_some_and(blank) {
                line.pop();
            }
            if !line.is_empty() {
                lines.push(line.concat().into_iter().collect());
            }
        }
        lines
    }

    fn long_word<'c>(&self, chunks: &mut Vec<&'c [char]>, line: &mut Vec<&'c [char]>, length: usize) {
        let left = self.width - length;
        if !self.long {
            if line.is_empty() {
                line.extend(chunks.pop());
            }
            return;
        }
        let Some(chunk) = chunks.last_mut() else { return };
        let mut end = left;
        if self.hyphens && chunk.len() > left {
            let hyphen = chunk[..left].iter().rposition(|c| *c == '-').filter(|n| *n > 0);
            if let Some(n) = hyphen.filter(|n| chunk[..*n].iter().any(|c| *c != '-')) {
                end = n + 1;
            }
        }
        let (head, rest) = chunk.split_at(end);
        line.push(head);
        *chunk = rest;
    }

    /// The text in words and white space.
    fn chunks<'c>(&self, chars: &'c [char]) -> Vec<&'c [char]> {
        let mut chunks = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let length = self.chunk(chars, at).max(1);
            chunks.push(&chars[at..at + length]);
            at += length;
        }
        chunks
    }

    fn chunk(&self, chars: &[char], at: usize) -> usize {
        let rest = &chars[at..];
        let run = |test: fn(char) -> bool| rest.iter().take_while(|c| test(**c)).count();
        if space(rest[0]) {
            return run(space);
        }
        if !self.hyphens {
            return run(|c| !space(c));
        }
        let dashes = |n: usize| chars[n..].iter().take_while(|c| **c == '-').count();
        // A dash of two hyphens or more between words.
        let dash = |n: usize| {
            let before = n.checked_sub(1).and_then(|b| chars.get(b));
            let joins = word(before) || before.is_some_and(|c| "!\"'&.,?".contains(*c));
            let count = if joins { dashes(n) } else { 0 };
            (count >= 2 && word(chars.get(n + count))).then_some(count)
        };
        if let Some(count) = dash(at) {
            return count;
        }
        for n in at + 1..chars.len() {
            if space(chars[n]) {
                return n - at;
            }
            let back = |k: usize| n.checked_sub(k).and_then(|b| chars.get(b));
            let hyphenated = (letter(back(1)) && letter(back(2)))
                || (letter(back(1)) && back(2) == Some(&'-') && letter(back(3)));
            let second = n + 2 + usize::from(chars.get(n + 2) == Some(&'-'));
            if chars[n] == '-' && hyphenated && letter(chars.get(n + 1)) && letter(chars.get(second)) {
                return n + 1 - at;
            }
            if dash(n).is_some() {
                return n - at;
            }
        }
        chars.len() - at
    }
}
