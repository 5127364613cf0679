//! Filters of texts.

use super::args::{Arguments, int, int_or_none, text, text_or_none, truth};
use super::interpreter::Interpreter;
use super::lexer::space;
use super::text_methods::{capitalized, split_lines, trimmed};
use super::value::{MAX_WIDTH, Res, Val, fail};
use super::wrap;

impl Interpreter<'_> {
    pub fn text_filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        match name {
            "join" => return self.join(value, arguments),
            "indent" => return self.indent(value, arguments),
            "truncate" => return self.truncate(value, arguments),
            "wordwrap" => return self.wordwrap(value, arguments),
            "pprint" => {
                arguments.none(name)?;
                return super::pretty::pretty(self, value).map(Val::str);
            }
            "format" => return self.format_filter(value, arguments),
            _ => {}
        }
        let input = self.text(value)?;
        self.charge_bytes(input.len())?;
        let output = match name {
            "upper" => {
                arguments.none(name)?;
                input.to_uppercase()
            }
            "lower" => {
                arguments.none(name)?;
                input.to_lowercase()
            }
            "capitalize" => {
                arguments.none(name)?;
                capitalized(&input)
            }
            "title" => {
                arguments.none(name)?;
                titled(&input)
            }
            "trim" => {
                let [chars] = arguments.bind(name, ["chars"], 0)?;
                trimmed(&input, text_or_none(&chars)?, true, true).to_string()
            }
            "replace" => {
                let [old, new, count] = arguments.bind(name, ["old", "new", "count"], 2)?;
                let (old, new) =
                    (self.text(&old.unwrap_or(Val::None))?, self.text(&new.unwrap_or(Val::None))?);
                self.replaced(&input, &old, &new, int_or_none(&count, -1)?)?
            }
            "center" => {
                let [width] = arguments.bind(name, ["width"], 0)?;
                self.filled(&input, "center", int(&width, 80)?, " ")?
            }
            "wordcount" => {
                arguments.none(name)?;
                let words = input.split(|c: char| !(c.is_alphanumeric() || c == '_'));
                return Ok(Val::Int(words.filter(|word| !word.is_empty()).count() as i64));
            }
            _ => return fail(format!("No filter named '{name}'.")),
        };
        self.charge_bytes(output.len())?;
        Ok(Val::Str(output.into(), matches!(value, Val::Str(_, true)) && name != "replace"))
    }

    /// text.replace(old, new, count); a count below 0 is no bound.
    pub fn replaced(&mut self, text: &str, old: &str, new: &str, count: i64) -> Res<String> {
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
        self.charge_bytes(found.min(most).saturating_mul(new.len()).saturating_add(text.len()))?;
        Ok(text.replacen(old, new, most))
    }

    /// `text` with copies of `fill` around it, up to `width` characters.
    pub fn filled(&mut self, text: &str, method: &str, width: i64, fill: &str) -> Res<String> {
        if width > MAX_WIDTH {
            return fail(format!("{method}: a width of more than {MAX_WIDTH}"));
        }
        if fill.chars().count() != 1 {
            return fail(format!("{method}: the fill character must be exactly one character long"));
        }
        let width = usize::try_from(width).unwrap_or(0);
        self.charge_bytes(width.saturating_mul(4))?;
        let missing = width.saturating_sub(text.chars().count());
        let left = match method {
            "ljust" => 0,
            "rjust" => missing,
            // As CPython shares an odd rest.
            _ => missing / 2 + (missing & width & 1),
        };
        Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
    }

    fn join(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [separator, attribute] = arguments.bind("join", ["d", "attribute"], 0)?;
        let separator = self.text(&separator.unwrap_or_else(|| Val::str("")))?;
        let mut parts = Vec::new();
        for item in self.attributes(value, attribute)? {
            self.charge_bytes(separator.len())?;
            parts.push(self.text(&item)?);
        }
        Ok(Val::str(parts.join(&separator)))
    }

    fn indent(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"], 0)?;
        let indention = match &width {
            Some(Val::Str(text, _)) => text.to_string(),
            width => match int(width, 4)? {
                n if n > MAX_WIDTH => return fail("indent: a width of too many characters"),
                n => " ".repeat(usize::try_from(n).unwrap_or(0)),
            },
        };
        let Val::Str(input, safe) = value.defined()? else {
            return fail(format!("indent takes a text, not '{}'", value.type_name()));
        };
        let with_end = format!("{input}\n");
        let lines = split_lines(&with_end, false);
        self.charge_bytes(lines.len().saturating_mul(indention.len()) + input.len())?;
        let mut out = String::new();
        for (i, line) in lines.iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            if if i == 0 { truth(&first, false) } else { truth(&blank, false) || !line.is_empty() } {
                out.push_str(&indention);
            }
            out.push_str(line);
        }
        Ok(Val::Str(out.into(), *safe))
    }

    fn truncate(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let names = ["length", "killwords", "end", "leeway"];
        let [length, kill, end, leeway] = arguments.bind("truncate", names, 0)?;
        let (length, leeway) = (int(&length, 255)?, int_or_none(&leeway, 5)?);
        let end = text(&end, "...")?.to_string();
        let ending = end.chars().count() as i64;
        if length < ending || leeway < 0 {
            return fail(format!(
                "truncate: expected a length of at least {ending} and a leeway of at least 0"
            ));
        }
        // A list that is short enough is one, too.
        if value.defined()?.len().is_some_and(|n| n as i64 <= length.saturating_add(leeway)) {
            return Ok(value.clone());
        }
        let Val::Str(input, safe) = value else {
            return fail(format!("truncate takes a text, not '{}'", value.type_name()));
        };
        self.charge_bytes(input.len())?;
        let mut kept: String = input.chars().take(usize::try_from(length - ending).unwrap_or(0)).collect();
        if let Some(at) = kept.rfind(' ').filter(|_| !truth(&kill, false)) {
            kept.truncate(at);
        }
        Ok(Val::Str((kept + &end).into(), *safe))
    }

    fn wordwrap(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
        let [width, long, between, hyphens] = arguments.bind("wordwrap", names, 0)?;
        let width = int(&width, 79)?;
        let between = text_or_none(&between)?.unwrap_or("\n").to_string();
        let input = text(&Some(value.clone()), "")?.to_string();
        let Some(width) = usize::try_from(width).ok().filter(|w| *w > 0) else {
            return fail(format!("invalid width {width} (must be > 0)"));
        };
        self.charge(input.len())?;
        let wrapper = wrap::Wrapper { width, long: truth(&long, true), hyphens: truth(&hyphens, true) };
        let paragraphs = split_lines(&input, false);
        let wrapped: Vec<String> = paragraphs.iter().map(|line| wrapper.wrap(line).join(&between)).collect();
        Ok(Val::str(wrapped.join(&between)))
    }

    fn format_filter(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let template = self.text(value)?;
        if arguments.named.is_empty() {
            let given = Val::tuple(arguments.all.clone())?;
            return Ok(Val::str(self.percent(&template, &given)?));
        }
        if !arguments.all.is_empty() {
            return fail("can't handle positional and keyword arguments at the same time");
        }
        let pairs = arguments.named.iter();
        let named = pairs.map(|(name, v)| (super::value::DictKey(Val::Str(name.clone(), false)), v.clone()));
        let given = Val::dict(named.collect())?;
        Ok(Val::str(self.percent(&template, &given)?))
    }
}

/// Jinja's `title`: words begin behind white space, hyphens and opening brackets.
fn titled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        let separates = space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
        match begins && !separates {
            true => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        begins = separates;
    }
    out
}
