//! Filters that write HTML or URLs.

use super::args::{Arguments, int, text_or_none, truth};
use super::interpreter::Interpreter;
use super::lexer::space;
use super::value::{Res, Val, fail};

/// Longest word that may be a link.
const MAX_LINK: usize = 4096;
/// Longest name of a character.
const MAX_REFERENCE: usize = 12;

/// markupsafe.escape of a text.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

impl Interpreter<'_> {
    pub fn html_filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        let text = self.text(value)?;
        self.charge_bytes(text.len() * 4)?;
        match name {
            "e" | "escape" => {
                arguments.none(name)?;
                Ok(Val::Str(
                    if matches!(value, Val::Str(_, true)) { text } else { escaped(&text) }.into(),
                    true,
                ))
            }
            "forceescape" => {
                arguments.none(name)?;
                Ok(Val::Str(escaped(&text).into(), true))
            }
            "striptags" => {
                arguments.none(name)?;
                Ok(Val::str(unescaped(&without_tags(&text))))
            }
            "urlencode" => {
                arguments.none(name)?;
                self.urlencode(value, &text)
            }
            "xmlattr" => self.xmlattr(value, arguments),
            _ => urlize(&text, arguments),
        }
    }

    fn urlencode(&mut self, value: &Val, text: &str) -> Res<Val> {
        let pairs = match value {
            Val::Dict(dict) => Val::View("dict_items", dict.clone()),
            Val::List(_) | Val::Tuple(_) | Val::View(..) | Val::Iter(_) => value.clone(),
            _ => return Ok(Val::str(url_quoted(text, "/"))),
        };
        let mut parts = Vec::new();
        for pair in self.elements(&pairs)? {
            let [key, value] = &self.elements(&pair)?[..] else { return fail("urlencode takes pairs") };
            let (key, value) = (self.text(key)?, self.text(value)?);
            let quoted = |text: &str| url_quoted(text, "").replace("%20", "+");
            parts.push(format!("{}={}", quoted(&key), quoted(&value)));
        }
        Ok(Val::str(parts.join("&")))
    }

    fn xmlattr(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [autospace] = arguments.bind("xmlattr", ["autospace"], 0)?;
        let Val::Dict(dict) = value.defined()? else {
            return fail(format!("'{}' object has no attribute 'items'", value.type_name()));
        };
        let mut parts = Vec::new();
        for (key, value) in &dict.map {
            if matches!(value, Val::None | Val::Undef(_)) {
                continue;
            }
            let (key, text) = (self.text(&key.0)?, self.text(value)?);
            if key.contains(|c: char| c.is_ascii_whitespace() || matches!(c, '\x0b' | '/' | '>' | '=')) {
                return fail(format!("Invalid character in attribute name: '{key}'"));
            }
            let text = if matches!(value, Val::Str(_, true)) { text } else { escaped(&text) };
            parts.push(format!("{}=\"{text}\"", escaped(&key)));
        }
        let space = if truth(&autospace, true) && !parts.is_empty() { " " } else { "" };
        Ok(Val::Str((space.to_string() + &parts.join(" ")).into(), self.escape))
    }
}

fn url_quoted(text: &str, safe: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) || safe.as_bytes().contains(&b) => {
                out.push(char::from(b));
            }
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// `text` without tags and comments, and with single spaces for white space.
fn without_tags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let comment = rest[start..].starts_with("<!--");
        let end = match comment {
            true => rest[start + 4..].find("-->").map(|n| start + n + 7),
            false => rest[start..].find('>').map(|n| start + n + 1),
        };
        let Some(end) = end else { break };
        out.push_str(&rest[..start]);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out.split(space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Character references as characters: the usual names, and numbers.
fn unescaped(text: &str) -> String {
    const NAMES: [(&str, char); 8] = [
        ("amp", '&'),
        ("lt", '<'),
        ("gt", '>'),
        ("quot", '"'),
        ("apos", '\''),
        ("nbsp", '\u{a0}'),
        ("raquo", '»'),
        ("laquo", '«'),
    ];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let reference = rest.bytes().take(MAX_REFERENCE).position(|b| b == b';').map(|end| &rest[1..end]);
        let found = reference.and_then(|name| match name.strip_prefix('#') {
            Some(number) => {
                let hex = number.strip_prefix(['x', 'X']);
                let code = hex.map_or_else(|| number.parse(), |h| u32::from_str_radix(h, 16));
                char::from_u32(code.ok()?)
            }
            None => NAMES.iter().find(|(n, _)| *n == name).map(|(_, c)| *c),
        });
        match (found, reference) {
            (Some(c), Some(reference)) => {
                out.push(c);
                rest = &rest[reference.len() + 2..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn urlize(text: &str, arguments: &Arguments) -> Res<Val> {
    let names = ["trim_url_limit", "nofollow", "target", "rel", "extra_schemes"];
    let [limit, nofollow, target, rel, schemes] = arguments.bind("urlize", names, 0)?;
    if schemes.is_some_and(|s| s.truth()) {
        return fail("urlize: extra_schemes is not known here");
    }
    let limit = limit.filter(|v| !matches!(v, Val::None));
    let limit = if limit.is_some() { usize::try_from(int(&limit, 0)?).ok() } else { None };
    let mut rels: Vec<&str> = text_or_none(&rel)?.unwrap_or_default().split_whitespace().collect();
    rels.push("noopener");
    if truth(&nofollow, false) {
        rels.push("nofollow");
    }
    rels.sort_unstable();
    rels.dedup();
    let target = text_or_none(&target)?.map(|t| format!(" target=\"{}\"", escaped(t)));
    let attributes = format!(" rel=\"{}\"{}", escaped(&rels.join(" ")), target.unwrap_or_default());
    let mut out = String::new();
    let all = escaped(text);
    for piece in all.split_inclusive(space) {
        let word = piece.trim_end_matches(space);
        out.push_str(&linked(word, limit, &attributes));
        out.push_str(&piece[word.len()..]);
    }
    Ok(Val::str(out))
}

/// One word, as a link if it is one.
fn linked(word: &str, limit: Option<usize>, attributes: &str) -> String {
    if word.len() > MAX_LINK {
        return word.to_string();
    }
    let mut middle = word;
    while let Some(rest) = ["(", "&lt;"].iter().find_map(|p| middle.strip_prefix(p)) {
        middle = rest;
    }
    let head = &word[..word.len() - middle.len()];
    let after_head = middle;
    let ends = [")", ".", ",", "&gt;"];
    while let Some(rest) = ends.iter().find_map(|e| middle.strip_suffix(e)) {
        middle = rest;
    }
    // Brackets that the link itself opens stay in it.
    for (open, close) in [("(", ")"), ("&lt;", "&gt;")] {
        while middle.matches(open).count() > middle.matches(close).count() {
            let Some(at) = after_head[middle.len()..].find(close) else { break };
            middle = &after_head[..middle.len() + at + close.len()];
        }
    }
    let tail = &after_head[middle.len()..];
    let shown = match limit {
        Some(n) if middle.chars().count() > n => middle.chars().take(n).collect::<String>() + "...",
        _ => middle.to_string(),
    };
    let bare = ["https://", "http://"].iter().find_map(|s| middle.strip_prefix(s));
    let is_mail = |t: &str| {
        let parts = t.split_once('@').filter(|(a, b)| !a.is_empty() && b.contains('.'));
        parts.is_some_and(|(_, b)| !b.starts_with('.') && !b.ends_with('.') && !b.contains('@'))
    };
    let link = if bare.is_some_and(|b| b.contains('.') || b.starts_with("localhost")) {
        format!("<a href=\"{middle}\"{attributes}>{shown}</a>")
    } else if middle.strip_prefix("www.").is_some_and(|b| b.contains('.')) {
        format!("<a href=\"https://{middle}\"{attributes}>{shown}</a>")
    } else if let Some(mail) = middle.strip_prefix("mailto:").filter(|m| is_mail(m)) {
        format!("<a href=\"{middle}\">{mail}</a>")
    } else if !middle.contains(':') && !middle.starts_with("www.") && is_mail(middle) {
        format!("<a href=\"mailto:{middle}\">{middle}</a>")
    } else {
        middle.to_string()
    };
    format!("{head}{link}{tail}")
}
