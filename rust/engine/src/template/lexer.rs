//! Tokens of a template, cut as Jinja's lexer cuts them with trim_blocks and lstrip_blocks.

use std::sync::Arc;

use num_bigint::BigInt;

use super::value::{JinjaError, Res, Val, fail};

#[derive(Clone)]
pub enum Token {
    Data(Arc<str>),
    PrintBegin,
    PrintEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Text(String),
    Number(Val),
    Op(&'static str),
    Eof,
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<(Token, usize)>,
    /// What came last ended a line.
    line_start: bool,
}

/// The tokens of `source` with the place of each.
pub fn tokens(source: &str) -> Res<Vec<(Token, usize)>> {
    let mut lexer = Lexer { text: source, at: 0, tokens: Vec::new(), line_start: true };
    lexer.run().map_err(|e| JinjaError(format!("line {}: {}", line_of(source, lexer.at), e.0)))?;
    lexer.tokens.push((Token::Eof, source.len()));
    Ok(lexer.tokens)
}

/// The source as Jinja reads it: every line end is \n, and the last one is left out.
pub fn normalized(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

pub fn line_of(source: &str, at: usize) -> usize {
    source.as_bytes()[..at.min(source.len())].iter().filter(|b| **b == b'\n').count() + 1
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.at));
    }

    fn run(&mut self) -> Res<()> {
        while self.at < self.text.len() {
            let rest = self.rest();
            let Some(begin) = next_tag(rest) else {
                self.push(Token::Data(rest.into()));
                self.at = self.text.len();
                return Ok(());
            };
            let kind = &rest[begin..begin + 2];
            let sign = rest[begin + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            self.data(&rest[..begin], sign, kind != "{{");
            self.at += begin;
            if let Some(length) = raw_begin(self.rest()) {
                self.raw(length)?;
                continue;
            }
            self.at += 2 + usize::from(sign.is_some());
            self.line_start = false;
            match kind {
                "{#" => self.comment()?,
                "{{" => {
                    self.push(Token::PrintBegin);
                    self.inside("}}", Token::PrintEnd)?;
                }
                _ => {
                    self.push(Token::BlockBegin);
                    self.inside("%}", Token::BlockEnd)?;
                }
            }
        }
        Ok(())
    }

    /// Text before a tag, with white space cut as the tag asks for it.
    fn data(&mut self, text: &str, sign: Option<char>, is_block: bool) {
        let mut kept = text;
        if sign == Some('-') {
            kept = text.trim_end_matches(space);
        } else if sign.is_none() && is_block {
            let line = text.rfind('\n').map_or(0, |n| n + 1);
            let blank = !text[line..].is_empty() && text[line..].chars().all(space);
            if (line > 0 || self.line_start) && blank {
                kept = &text[..line];
            }
        }
        if !kept.is_empty() {
            self.push(Token::Data(kept.into()));
        }
    }

    /// Moves behind the end of a tag, where `-` takes the white space after it and a block takes one line end.
    fn close(&mut self, signed: Option<char>, newline: bool) {
        let rest = self.rest();
        let cut = match signed {
            Some('-') => rest.len() - rest.trim_start_matches(space).len(),
            Some(_) => 0,
            None => usize::from(newline && rest.starts_with('\n')),
        };
        self.at += cut;
        self.line_start = rest[..cut].ends_with('\n');
    }

    fn comment(&mut self) -> Res<()> {
        if self.rest().is_empty() {
            return Ok(());
        }
        let Some(end) = self.rest().find("#}") else { return fail("Missing end of comment tag") };
        let sign = self.rest()[..end].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        self.at += end + 2;
        self.close(sign, true);
        Ok(())
    }

    fn raw(&mut self, length: usize) -> Res<()> {
        self.at += length;
        self.line_start = self.text[..self.at].ends_with('\n');
        if self.rest().is_empty() {
            return Ok(());
        }
        let mut from = 0;
        loop {
            let rest = self.rest();
            let Some(begin) = rest[from..].find("{%").map(|n| n + from) else {
                return fail("Missing end of raw directive");
            };
            if let Some((begin_sign, end_sign, length)) = raw_end(&rest[begin..]) {
                self.data(&rest[..begin], begin_sign, true);
                self.at += begin + length;
                self.close(end_sign, true);
                return Ok(());
            }
            from = begin + 2;
        }
    }

    /// Tokens of a tag up to its end.
    fn inside(&mut self, end: &str, token: Token) -> Res<()> {
        let mut open: Vec<&str> = Vec::new();
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(space);
            self.at += rest.len() - trimmed.len();
            let rest = trimmed;
            if rest.is_empty() {
                return Ok(());
            }
            let sign = rest.chars().next().filter(|c| *c == '-' || (*c == '+' && end == "%}"));
            if open.is_empty() && rest[sign.map_or(0, char::len_utf8)..].starts_with(end) {
                self.push(token);
                self.at += end.len() + usize::from(sign.is_some());
                self.close(sign, end == "%}");
                return Ok(());
            }
            if let Some((value, length)) = number(rest, self.text[..self.at].ends_with('.')) {
                self.push(Token::Number(value?));
                self.at += length;
            } else if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
                let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                self.push(Token::Name(rest[..length].into()));
                self.at += length;
            } else if rest.starts_with(['\'', '"']) {
                let Some(length) = literal_length(rest) else { return fail("unexpected end of a string") };
                self.push(Token::Text(unescaped(&rest[1..length - 1])?));
                self.at += length;
            } else if let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                match *op {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" if open.pop() != Some(*op) => return fail(format!("unexpected '{op}'")),
                    _ => {}
                }
                self.push(Token::Op(op));
                self.at += op.len();
            } else {
                return fail(format!("unexpected char {:?}", rest.chars().next().unwrap_or(' ')));
            }
        }
    }
}

/// White space of Python.
pub fn space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|w| w[0] == b'{' && matches!(w[1], b'{' | b'%' | b'#'))
}

/// Length of `{% raw %}` at the beginning of `text`.
fn raw_begin(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("{%")?;
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(space);
    let rest = rest.strip_prefix("raw")?.trim_start_matches(space);
    let rest = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(space),
        None => rest.strip_prefix("%}")?,
    };
    Some(text.len() - rest.len())
}

/// Signs and length of `{% endraw %}` at the beginning of `text`, without what follows it.
fn raw_end(text: &str) -> Option<(Option<char>, Option<char>, usize)> {
    let rest = text.strip_prefix("{%")?;
    let begin = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(space);
    let rest = rest.strip_prefix("endraw")?.trim_start_matches(space);
    let end = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some((begin, end, text.len() - rest.len()))
}

/// Length of the string literal that `text` begins with.
fn literal_length(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// Digits with single underscores between them; their length.
fn digits(text: &str, radix: u32) -> usize {
    let mut length = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        let next = chars.peek().is_some_and(|(_, c)| c.is_digit(radix));
        if c.is_digit(radix) {
            length = i + 1;
        } else if c != '_' || !next || i != length {
            break;
        }
    }
    length
}

fn number(text: &str, after_dot: bool) -> Option<(Res<Val>, usize)> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let whole = digits(text, 10);
    let mut length = whole;
    if !after_dot {
        let fraction = text[length..].strip_prefix('.').map_or(0, digits_only);
        length += if fraction > 0 { fraction + 1 } else { 0 };
        if let Some(exponent) = text[length..].strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            let n = digits_only(&exponent[sign..]);
            length += if n > 0 { 1 + sign + n } else { 0 };
        }
    }
    if length > whole {
        let value = text[..length].replace('_', "").parse().unwrap_or(f64::NAN);
        return Some((Ok(Val::Float(value)), length));
    }
    let prefixed = text.get(..2).map(str::to_ascii_lowercase);
    let radix = match prefixed.as_deref() {
        Some("0x") => 16,
        Some("0b") => 2,
        Some("0o") => 8,
        _ => 10,
    };
    let n = if radix == 10 { 0 } else { digits(text[2..].trim_start_matches('_'), radix) };
    let (digits_text, length) = match n {
        // 012 is 0 and then 12, as in Jinja.
        0 if text.starts_with('0') => {
            let zeros = text[..whole].find(|c| c != '0' && c != '_').unwrap_or(whole);
            (&text[..zeros], zeros)
        }
        0 => (&text[..whole], whole),
        n => (&text[text.len() - text[2..].trim_start_matches('_').len()..][..n], 2 + n + skipped(text)),
    };
    let parsed = if digits_text.len() > 4300 {
        fail("a number of more than 4300 digits")
    } else {
        let plain = digits_text.replace('_', "");
        Ok(Val::int(BigInt::parse_bytes(plain.as_bytes(), radix).unwrap_or_default()))
    };
    Some((parsed, length))
}

fn digits_only(text: &str) -> usize {
    if text.starts_with('_') { 0 } else { digits(text, 10) }
}

fn skipped(text: &str) -> usize {
    text[2..].len() - text[2..].trim_start_matches('_').len()
}

/// The text of a literal, with the escapes of Python.
fn unescaped(text: &str) -> Res<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(kind) = chars.next() else { break };
        let width = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if width > 0 {
            let code: String = chars.by_ref().take(width).collect();
            let value = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == width);
            match value.and_then(char::from_u32) {
                Some(c) => out.push(c),
                None => return fail(format!("bad escape \\{kind}{code} in a string")),
            }
            continue;
        }
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(kind),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                let mut value = kind.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    chars.next();
                }
                out.extend(char::from_u32(value));
            }
            'N' => return fail("names of characters (\\N) are not known: write the character itself"),
            other => out.extend(['\\', other]),
        }
    }
    Ok(out)
}
