//! `template % values`.

use super::format::{FormatSpec, digits};
use super::interpreter::Interpreter;
use super::value::{Res, Val, fail};

/// The values that a template takes, one after another.
struct Taken<'a> {
    all: &'a [Val],
    place: usize,
}

impl Taken<'_> {
    fn next(&mut self) -> Res<Val> {
        let Some(value) = self.all.get(self.place) else {
            return fail("not enough arguments for format string");
        };
        self.place += 1;
        Ok(value.clone())
    }

    fn width(&mut self) -> Res<i64> {
        match self.next()?.as_i64() {
            Some(n) if n.abs() <= super::value::MAX_WIDTH => Ok(n),
            Some(_) => fail("a width of too many digits"),
            None => fail("* wants int"),
        }
    }
}

impl Interpreter<'_> {
    /// template % values
    pub fn percent(&mut self, template: &str, values: &Val) -> Res<String> {
        let single = [values.clone()];
        let mut taken = Taken {
            all: match values {
                Val::Tuple(items) => &items.all,
                _ => &single,
            },
            place: 0,
        };
        let mut out = String::new();
        let mut chars = template.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut named = None;
            if chars.next_if_eq(&'(').is_some() {
                let name = parenthesized(&mut chars)?;
                let Val::Dict(dict) = values else { return fail("format requires a mapping") };
                match dict.get(&name) {
                    Some(value) => named = Some(value.clone()),
                    None => return fail(format!("KeyError: '{name}'")),
                }
            }
            let mut spec = FormatSpec::default();
            let mut left = false;
            while let Some(flag) = chars.next_if(|c| "#0- +".contains(*c)) {
                match flag {
                    '#' => spec.alternate = true,
                    '0' => spec.zero = true,
                    '-' => left = true,
                    '+' => spec.sign = Some('+'),
                    _ => spec.sign = spec.sign.or(Some(' ')),
                }
            }
            if chars.next_if_eq(&'*').is_some() {
                let width = taken.width()?;
                left |= width < 0;
                spec.width = usize::try_from(width.abs()).unwrap_or(0);
            } else {
                spec.width = digits(&mut chars)?.unwrap_or(0);
            }
            if chars.next_if_eq(&'.').is_some() {
                spec.precision = Some(match chars.next_if_eq(&'*') {
                    Some(_) => usize::try_from(taken.width()?).unwrap_or(0),
                    None => digits(&mut chars)?.unwrap_or(0),
                });
            }
            chars.next_if(|c| "hlL".contains(*c));
            let Some(kind) = chars.next() else { return fail("incomplete format") };
            if kind == '%' {
                out.push('%');
                continue;
            }
            spec.align = left.then_some('<');
            spec.kind = Some(kind);
            let value = match named {
                Some(value) => value,
                None => taken.next()?,
            };
            self.charge_bytes(spec.width.saturating_add(spec.precision.unwrap_or(0)))?;
            out.push_str(&self.converted(spec, &value)?);
        }
        let is_mapping = matches!(values, Val::List(_) | Val::Dict(_) | Val::Range(..) | Val::Undef(_));
        if !is_mapping && taken.place < taken.all.len() {
            return fail("not all arguments converted during string formatting");
        }
        self.charge_bytes(out.len())?;
        Ok(out)
    }

    fn converted(&mut self, spec: FormatSpec, value: &Val) -> Res<String> {
        let mut spec = spec;
        let kind = spec.kind.unwrap_or('s');
        let written = match kind {
            's' => self.text(value)?,
            'r' => self.repr(value)?,
            'a' => ascii(&self.repr(value)?),
            'c' => match value {
                Val::Str(text, _) if text.chars().count() == 1 => text.to_string(),
                Val::Int(_) => FormatSpec { kind: Some('c'), ..FormatSpec::default() }.number(value)?,
                _ => return fail("%c requires int or char"),
            },
            _ => return number(spec, kind, value),
        };
        (spec.sign, spec.alternate, spec.zero, spec.kind) = (None, false, false, None);
        if kind == 'c' {
            spec.precision = None;
        }
        spec.align = spec.align.or(Some('>'));
        spec.text(&written)
    }
}

fn number(spec: FormatSpec, kind: char, value: &Val) -> Res<String> {
    let mut spec = spec;
    if !value.is_number() {
        return fail(format!("%{kind} format: a real number is required, not {}", value.type_name()));
    }
    // Zeros on the left of the sign's width do not stand with `-`.
    spec.zero &= spec.align.is_none();
    match kind {
        'd' | 'i' | 'u' => {
            let whole = match value {
                Val::Float(x) => match num_traits::FromPrimitive::from_f64(x.trunc()) {
                    Some(n) => Val::int(n),
                    None => return fail("cannot convert float infinity or NaN to integer"),
                },
                value => value.clone(),
            };
            spec.kind = Some('d');
            with_precision(spec, &whole)
        }
        'x' | 'X' | 'o' => match value {
            Val::Float(_) => fail(format!("%{kind} format: an integer is required, not float")),
            value => with_precision(spec, value),
        },
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => spec.number(value),
        _ => fail(format!("unsupported format character '{kind}'")),
    }
}

/// An integer whose precision is its least number of digits.
fn with_precision(spec: FormatSpec, value: &Val) -> Res<String> {
    let Some(least) = spec.precision else { return spec.number(value) };
    let mut bare = FormatSpec { width: 0, precision: None, align: None, zero: false, ..spec.clone() };
    bare.precision = None;
    let text = bare.number(value)?;
    let digits = text.trim_start_matches(['-', '+', ' ']);
    let (prefix, digits) = if digits.starts_with("0x") || digits.starts_with("0X") || digits.starts_with("0o")
    {
        digits.split_at(2)
    } else {
        ("", digits)
    };
    let sign = &text[..text.len() - prefix.len() - digits.len()];
    let zeros = "0".repeat(least.saturating_sub(digits.len()));
    let text = format!("{sign}{prefix}{zeros}{digits}");
    Ok(super::format::filled(&text, "", spec.width, ' ', spec.align.unwrap_or('>')))
}

/// What stands up to the bracket that closes.
fn parenthesized(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Res<String> {
    let (mut name, mut depth) = (String::new(), 1);
    for c in chars.by_ref() {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Ok(name);
        }
        name.push(c);
    }
    fail("incomplete format key")
}

/// Characters beyond ASCII as escapes.
pub fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c as u32 {
            _ if c.is_ascii() => out.push(c),
            n @ ..=0xff => out.push_str(&format!("\\x{n:02x}")),
            n @ ..=0xffff => out.push_str(&format!("\\u{n:04x}")),
            n => out.push_str(&format!("\\U{n:08x}")),
        }
    }
    out
}
