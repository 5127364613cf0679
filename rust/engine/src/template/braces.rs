//! str.format.

use super::args::Arguments;
use super::format::FormatSpec;
use super::interpreter::Interpreter;
use super::value::{Res, Val, fail};

/// Deepest nesting of fields in specifications.
const MAX_FIELDS: usize = 2;

impl Interpreter<'_> {
    /// template.format(arguments)
    pub fn braces(&mut self, template: &str, arguments: &Arguments) -> Res<String> {
        let mut automatic = Some(0);
        self.fields(template, arguments, &mut automatic, MAX_FIELDS)
    }

    fn fields(
        &mut self,
        template: &str,
        arguments: &Arguments,
        automatic: &mut Option<usize>,
        depth: usize,
    ) -> Res<String> {
        let mut out = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return fail("Single '}' encountered in format string");
            }
            if depth == 0 {
                return fail("Max string recursion exceeded");
            }
            let length = field_length(rest)?;
            out.push_str(&self.replacement(&rest[..length], arguments, automatic, depth)?);
            self.charge_bytes(out.len())?;
            rest = &rest[length + 1..];
        }
        out.push_str(rest);
        self.charge_bytes(out.len())?;
        Ok(out)
    }

    fn replacement(
        &mut self,
        field: &str,
        arguments: &Arguments,
        automatic: &mut Option<usize>,
        depth: usize,
    ) -> Res<String> {
        // Brackets may hold a colon.
        let mut bracket = false;
        let end = field.find(|c: char| {
            bracket = (bracket || c == '[') && c != ']';
            !bracket && matches!(c, '!' | ':')
        });
        let (name, rest) = field.split_at(end.unwrap_or(field.len()));
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(after) => {
                let (conversion, spec) = after.split_once(':').unwrap_or((after, ""));
                (Some(conversion), spec)
            }
            None => (None, rest.strip_prefix(':').unwrap_or("")),
        };
        let mut value = self.field_value(name, arguments, automatic)?;
        match conversion {
            None => {}
            Some("s") => value = Val::str(self.text(&value)?),
            Some("r") => value = Val::str(self.repr(&value)?),
            Some("a") => value = Val::str(super::percent::ascii(&self.repr(&value)?)),
            Some(other) => return fail(format!("Unknown conversion specifier '{other}'")),
        }
        let spec = self.fields(spec, arguments, automatic, depth - 1)?;
        let written = self.text(&value)?;
        if spec.is_empty() {
            return Ok(written);
        }
        let spec = FormatSpec::parse(&spec)?;
        self.charge_bytes(spec.width.saturating_add(spec.precision.unwrap_or(0)))?;
        spec.value(&value, &written)
    }

    /// The value that a field's name means: `0`, `name`, `name.attribute`, `name[item]`.
    fn field_value(&mut self, name: &str, arguments: &Arguments, automatic: &mut Option<usize>) -> Res<Val> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = match (first.parse::<usize>(), first.is_empty()) {
            (_, true) => {
                let Some(n) = automatic.as_mut() else {
                    return fail(
                        "cannot switch from manual field specification to automatic field numbering",
                    );
                };
                *n += 1;
                arguments.all.get(*n - 1).cloned()
            }
            (Ok(n), _) => {
                if automatic.is_some_and(|n| n > 0) {
                    return fail(
                        "cannot switch from automatic field numbering to manual field specification",
                    );
                }
                *automatic = None;
                arguments.all.get(n).cloned()
            }
            _ => arguments.named.iter().find(|(n, _)| **n == *first).map(|(_, v)| v.clone()),
        };
        while let Some(found) = &value {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = Some(self.attribute(found, &after[..end])?);
                rest = &after[end..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let Some(end) = after.find(']') else { return fail("Missing ']' in format string") };
                let key = after[..end].parse().map_or_else(|_| Val::str(&after[..end]), Val::Int);
                value = Some(self.item(found, &key)?);
                rest = &after[end + 1..];
            } else {
                break;
            }
        }
        match value {
            Some(value) if rest.is_empty() => Ok(value),
            Some(_) => fail("Only '.' or '[' may follow ']' in format field specifier"),
            None => fail(format!("Replacement index or key '{first}' is not given")),
        }
    }
}

/// Length of a field up to the brace that closes it.
fn field_length(text: &str) -> Res<usize> {
    let mut depth = 1;
    for (i, c) in text.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Ok(i);
        }
    }
    fail("expected '}' before end of string")
}
