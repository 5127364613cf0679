//! Methods of Python's str.

use unicode_categories::UnicodeCategories;

use super::args::{Arguments, int, int_or_none, text, text_or_none, truth};
use super::interpreter::Interpreter;
use super::lexer::space;
use super::value::{Res, Val, fail};

impl Interpreter<'_> {
    /// A method of `owner`, which counts as escaped if `safe`.
    pub fn text_method(&mut self, owner: &str, safe: bool, name: &str, arguments: &Arguments) -> Res<Val> {
        self.charge_bytes(owner.len())?;
        if let Some(found) = self.splitting(owner, name, arguments)? {
            return Ok(found);
        }
        if let Some(found) = self.searching(owner, name, arguments)? {
            return Ok(found);
        }
        if let Some(answer) = name.strip_prefix("is").and_then(|test| is_of(owner, test)) {
            arguments.none(name)?;
            return Ok(Val::Bool(answer));
        }
        let output = match name {
            "upper" | "lower" | "capitalize" | "title" | "swapcase" | "casefold" => {
                arguments.none(name)?;
                recased(owner, name)
            }
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = arguments.bind(name, [""], 0)?;
                trimmed(owner, text_or_none(&chars)?, name != "rstrip", name != "lstrip").to_string()
            }
            "replace" => {
                let [old, new, count] = arguments.bind(name, ["", "", ""], 2)?;
                self.replaced(owner, text(&old, "")?, text(&new, "")?, int(&count, -1)?)?
            }
            "removeprefix" | "removesuffix" => {
                let [part] = arguments.bind(name, [""], 1)?;
                let part = text(&part, "")?;
                let cut = match name {
                    "removeprefix" => owner.strip_prefix(part),
                    _ => owner.strip_suffix(part),
                };
                cut.unwrap_or(owner).to_string()
            }
            "ljust" | "rjust" | "center" => {
                let [width, fill] = arguments.bind(name, ["", ""], 1)?;
                self.filled(owner, name, int(&width, 0)?, text(&fill, " ")?)?
            }
            "zfill" => {
                let [width] = arguments.bind(name, [""], 1)?;
                let digits = owner.strip_prefix(['+', '-']).unwrap_or(owner);
                let sign = owner.len() - digits.len();
                let digits =
                    self.filled(digits, "rjust", int(&width, 0)?.saturating_sub(sign as i64), "0")?;
                format!("{}{digits}", &owner[..sign])
            }
            "expandtabs" => {
                let [size] = arguments.bind(name, ["tabsize"], 0)?;
                self.without_tabs(owner, int(&size, 8)?)?
            }
            "join" => self.joined(owner, arguments)?,
            "format" => self.braces(owner, arguments)?,
            "format_map" => {
                let [map] = arguments.bind(name, [""], 1)?;
                let Some(Val::Dict(dict)) = map else { return fail("format_map takes a mapping") };
                let mut given = Arguments::default();
                for (key, value) in &dict.map {
                    let Some(key) = key.0.as_str() else { continue };
                    given.add_named(key.into(), value.clone())?;
                }
                self.braces(owner, &given)?
            }
            "translate" => self.translated(owner, arguments)?,
            _ => return fail(format!("{name}() of a text is not known here")),
        };
        self.charge_bytes(output.len())?;
        Ok(Val::Str(output.into(), safe))
    }

    fn splitting(&mut self, owner: &str, name: &str, arguments: &Arguments) -> Res<Option<Val>> {
        let parts: Vec<&str> = match name {
            "split" | "rsplit" => {
                let [separator, most] = arguments.bind(name, ["sep", "maxsplit"], 0)?;
                let most = usize::try_from(int(&most, -1)?).unwrap_or(usize::MAX);
                let separator = text_or_none(&separator)?;
                if separator == Some("") {
                    return fail("empty separator");
                }
                if name == "split" { split(owner, separator, most) } else { rsplit(owner, separator, most) }
            }
            "splitlines" => {
                let [keep] = arguments.bind(name, ["keepends"], 0)?;
                split_lines(owner, truth(&keep, false))
            }
            "partition" | "rpartition" => {
                let [separator] = arguments.bind(name, [""], 1)?;
                let separator = text(&separator, "")?;
                if separator.is_empty() {
                    return fail("empty separator");
                }
                let found = match name {
                    "partition" => owner.split_once(separator),
                    _ => owner.rsplit_once(separator),
                };
                let parts = match (found, name) {
                    (Some((before, after)), _) => [before, separator, after],
                    (None, "partition") => [owner, "", ""],
                    _ => ["", "", owner],
                };
                return Val::tuple(parts.iter().map(|p| Val::str(*p)).collect()).map(Some);
            }
            _ => return Ok(None),
        };
        self.charge(parts.len() / 4)?;
        Val::list(parts.into_iter().map(Val::str).collect()).map(Some)
    }

    /// Methods that look for a part between two bounds.
    fn searching(&mut self, owner: &str, name: &str, arguments: &Arguments) -> Res<Option<Val>> {
        if !["find", "rfind", "index", "rindex", "count", "startswith", "endswith"].contains(&name) {
            return Ok(None);
        }
        let [part, start, stop] = arguments.bind(name, ["", "", ""], 1)?;
        let length = owner.chars().count() as i64;
        let bound = |n: i64| if n < 0 { (n + length).max(0) } else { n };
        let start = bound(int_or_none(&start, 0)?);
        let stop = bound(int_or_none(&stop, i64::MAX)?).min(length);
        // Even an empty part is not found behind the end.
        let inside = start <= stop;
        let byte = |n: i64| match usize::try_from(n) {
            Ok(n) => owner.char_indices().nth(n).map_or(owner.len(), |(i, _)| i),
            Err(_) => 0,
        };
        let area = if inside { &owner[byte(start)..byte(stop)] } else { "" };
        let part = part.unwrap_or(Val::None);
        if let ("startswith" | "endswith", Val::Tuple(parts)) = (name, &part) {
            let mut found = false;
            for part in &parts.all {
                let part = text(&Some(part.clone()), "")?.to_string();
                let here =
                    if name == "startswith" { area.starts_with(&*part) } else { area.ends_with(&*part) };
                found |= inside && here;
            }
            return Ok(Some(Val::Bool(found)));
        }
        let part = Some(part);
        let part = text(&part, "")?;
        let place = match name {
            "startswith" => return Ok(Some(Val::Bool(inside && area.starts_with(part)))),
            "endswith" => return Ok(Some(Val::Bool(inside && area.ends_with(part)))),
            "count" => {
                let count = match (inside, part.is_empty()) {
                    (false, _) => 0,
                    (_, true) => area.chars().count() + 1,
                    _ => area.matches(part).count(),
                };
                return Ok(Some(Val::Int(count as i64)));
            }
            "find" | "index" => area.find(part),
            _ => area.rfind(part),
        };
        match place.filter(|_| inside) {
            Some(at) => Ok(Some(Val::Int(start + area[..at].chars().count() as i64))),
            None if name.ends_with("index") => fail("substring not found"),
            None => Ok(Some(Val::Int(-1))),
        }
    }

    fn joined(&mut self, owner: &str, arguments: &Arguments) -> Res<String> {
        let [parts] = arguments.bind("join", [""], 1)?;
        let mut texts = Vec::new();
        for (i, part) in self.elements(&parts.unwrap_or(Val::None))?.iter().enumerate() {
            let Val::Str(text, _) = part else {
                return fail(format!("sequence item {i}: expected str instance, {} found", part.type_name()));
            };
            self.charge_bytes(owner.len() + text.len())?;
            texts.push(text.to_string());
        }
        Ok(texts.join(owner))
    }

    fn without_tabs(&mut self, owner: &str, size: i64) -> Res<String> {
        let size = usize::try_from(size.min(super::value::MAX_WIDTH)).unwrap_or(0);
        let (mut out, mut column) = (String::new(), 0);
        for c in owner.chars() {
            match c {
                '\t' if size > 0 => {
                    let n = size - column % size;
                    self.charge_bytes(n)?;
                    out.push_str(&" ".repeat(n));
                    column += n;
                }
                '\t' => {}
                c => {
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    out.push(c);
                }
            }
        }
        Ok(out)
    }

    fn translated(&mut self, owner: &str, arguments: &Arguments) -> Res<String> {
        let [table] = arguments.bind("translate", [""], 1)?;
        let Some(Val::Dict(table)) = table else { return fail("translate takes a dict") };
        let mut out = String::new();
        for c in owner.chars() {
            match table.map.get(&super::value::DictKey(Val::Int(i64::from(u32::from(c))))) {
                None => out.push(c),
                Some(Val::None) => {}
                Some(Val::Str(text, _)) => {
                    self.charge_bytes(text.len())?;
                    out.push_str(text);
                }
                Some(Val::Int(n)) => out.extend(u32::try_from(*n).ok().and_then(char::from_u32)),
                Some(_) => return fail("character mapping must return integer, None or str"),
            }
        }
        Ok(out)
    }
}

/// Whether there are large and small letters.
pub fn cases(text: &str) -> (bool, bool) {
    (text.chars().any(char::is_uppercase), text.chars().any(char::is_lowercase))
}

/// The answer of `text.is...()`; None if there is no such test.
fn is_of(text: &str, test: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    // Digits that are no decimal ones: those above and below the line, and in circles.
    let digit = |c: char| {
        c.is_number_decimal_digit()
            || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐')
    };
    let (upper, lower) = cases(text);
    Some(match test {
        "upper" => upper && !lower,
        "lower" => lower && !upper,
        "space" => all(space),
        "digit" => all(digit),
        "decimal" => all(|c| c.is_number_decimal_digit()),
        "numeric" => all(|c| c.is_numeric() || "一二三四五六七八九十百千万億兆〇零".contains(c)),
        "alnum" => all(char::is_alphanumeric),
        "alpha" => all(char::is_alphabetic),
        "ascii" => text.is_ascii(),
        "printable" => text.chars().all(super::repr::printable),
        "identifier" => {
            let start = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            start && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
        "title" => {
            let (mut cased, mut any, mut right) = (false, false, true);
            for c in text.chars() {
                right &= if cased { !c.is_uppercase() } else { !c.is_lowercase() };
                cased = c.is_uppercase() || c.is_lowercase();
                any |= cased;
            }
            any && right
        }
        _ => return None,
    })
}

fn recased(text: &str, name: &str) -> String {
    match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "capitalize" => capitalized(text),
        "swapcase" => {
            let swapped = text.chars().map(|c| match c.is_uppercase() {
                true => c.to_lowercase().to_string(),
                false => c.to_uppercase().to_string(),
            });
            swapped.collect()
        }
        // By way of the large letters, small ones of several forms become one.
        "casefold" => text.chars().flat_map(char::to_uppercase).collect::<String>().to_lowercase(),
        _ => {
            let mut inside = false;
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                match inside {
                    true => out.extend(c.to_lowercase()),
                    false => out.push_str(&capitalized(&c.to_string())),
                }
                inside = c.is_uppercase() || c.is_lowercase();
            }
            out
        }
    }
}

/// The first letter large, the others small.
pub fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    let mut large = first.to_uppercase();
    let mut out: String = large.next().into_iter().collect();
    // ß becomes Ss.
    out.extend(large.flat_map(char::to_lowercase));
    out + &chars.as_str().to_lowercase()
}

/// `text` without these characters at its ends; None stands for white space.
pub fn trimmed<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let cut = |c: char| chars.map_or_else(|| space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(cut) } else { text };
    if right { text.trim_end_matches(cut) } else { text }
}

/// Lines, as str.splitlines cuts them.
pub fn split_lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((at, c)) = rest.char_indices().find(|(_, c)| ends(*c)) else {
            lines.push(rest);
            break;
        };
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { c.len_utf8() };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    lines
}

/// At most `most` splits, counted from the left; without a separator at runs of white space.
fn split<'a>(text: &'a str, separator: Option<&str>, most: usize) -> Vec<&'a str> {
    if let Some(separator) = separator {
        return text.splitn(most.saturating_add(1), separator).collect();
    }
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(space);
    while !rest.is_empty() && parts.len() < most {
        let end = rest.find(space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(space);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// At most `most` splits, counted from the right.
fn rsplit<'a>(text: &'a str, separator: Option<&str>, most: usize) -> Vec<&'a str> {
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(most.saturating_add(1), separator).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(space);
            while !rest.is_empty() && parts.len() < most {
                let before = rest.trim_end_matches(|c: char| !space(c));
                parts.push(&rest[before.len()..]);
                rest = before.trim_end_matches(space);
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts
        }
    };
    parts.reverse();
    parts
}
