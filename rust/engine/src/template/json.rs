//! JSON: `tojson` as transformers defines it, in the layout of Python's json.dumps, and the request that is read.

use super::args::{Arguments, truth};
use super::interpreter::Interpreter;
use super::number::python_float;
use super::ops::order;
use super::repr::decimal;
use super::sorting::sorted;
use super::value::{DictKey, JinjaError, Res, Val, fail};

/// Widest indent.
const MAX_INDENT: i64 = 64;

/// The layout of json.dumps.
struct Layout {
    ascii: bool,
    /// One level of indent; None writes one line.
    indent: Option<String>,
    comma: String,
    colon: String,
    sort_keys: bool,
}

impl Interpreter<'_> {
    /// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
    pub fn tojson(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort_keys] = arguments.bind("tojson", names, 0)?;
        let indent = match indent {
            None | Some(Val::None) => None,
            Some(Val::Str(text, _)) => Some(text.to_string()),
            Some(value) => match value.as_i64() {
                Some(n) if n <= MAX_INDENT => Some(" ".repeat(usize::try_from(n).unwrap_or(0))),
                Some(_) => return fail(format!("tojson: an indent of at most {MAX_INDENT} is taken")),
                None => return fail("tojson: the indent is a number or a text"),
            },
        };
        let (comma, colon) = match separators {
            None | Some(Val::None) => {
                (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string())
            }
            Some(pair) => match &self.elements(&pair)?[..] {
                [Val::Str(comma, _), Val::Str(colon, _)] => (comma.to_string(), colon.to_string()),
                _ => return fail("tojson: two separators are expected"),
            },
        };
        let layout =
            Layout { ascii: truth(&ascii, false), indent, comma, colon, sort_keys: truth(&sort_keys, false) };
        let mut out = String::new();
        self.dump(value, &layout, 0, &mut out)?;
        Ok(Val::str(out))
    }

    fn dump(&mut self, value: &Val, layout: &Layout, depth: usize, out: &mut String) -> Res<()> {
        self.step()?;
        let before = out.len();
        match value {
            Val::None => out.push_str("null"),
            Val::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Val::Int(_) | Val::Big(_) => out.push_str(&decimal(value)?),
            Val::Float(x) => out.push_str(&float(*x)),
            Val::Str(text, _) => string(text, layout.ascii, out),
            Val::List(items) | Val::Tuple(items) => {
                out.push('[');
                for (i, item) in items.all.iter().enumerate() {
                    out.push_str(if i > 0 { &layout.comma } else { "" });
                    layout.line(depth + 1, out);
                    self.dump(item, layout, depth + 1, out)?;
                }
                if !items.all.is_empty() {
                    layout.line(depth, out);
                }
                out.push(']');
            }
            Val::Dict(dict) => {
                let mut pairs: Vec<(&DictKey, &Val)> = dict.map.iter().collect();
                if layout.sort_keys {
                    self.charge(pairs.len())?;
                    let less = |a: &Val, b: &Val| Ok(order(a, b, "<")? == Some(std::cmp::Ordering::Less));
                    pairs = sorted(pairs, &mut |a, b| less(&a.0.0, &b.0.0))?;
                }
                out.push('{');
                for (i, (key, value)) in pairs.into_iter().enumerate() {
                    out.push_str(if i > 0 { &layout.comma } else { "" });
                    layout.line(depth + 1, out);
                    string(&key_text(&key.0)?, layout.ascii, out);
                    out.push_str(&layout.colon);
                    self.dump(value, layout, depth + 1, out)?;
                }
                if !dict.map.is_empty() {
                    layout.line(depth, out);
                }
                out.push('}');
            }
            _ => return fail(format!("Object of type {} is not JSON serializable", value.type_name())),
        }
        self.charge_bytes(out.len() - before)
    }
}

impl Layout {
    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }
}

fn key_text(key: &Val) -> Res<String> {
    Ok(match key {
        Val::Str(text, _) => text.to_string(),
        Val::None => "null".into(),
        Val::Bool(b) => b.to_string(),
        Val::Float(x) => float(*x),
        key if key.is_number() => decimal(key)?,
        _ => return fail(format!("keys must be str, int, float, bool or None, not {}", key.type_name())),
    })
}

fn float(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        x => python_float(x),
    }
}

fn string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !(' '..='~').contains(&c) && c != '\x7f') => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Deepest nesting of a request.
const MAX_NESTING: usize = 128;

/// Reads JSON, with integers of any length and the NaN and Infinity that Python writes.
pub fn parse(text: &str) -> Res<Val> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    if !reader.rest.trim_start_matches(blank).is_empty() {
        return fail("text after the value");
    }
    Ok(value)
}

fn blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip(&mut self, text: &str) -> bool {
        self.rest = self.rest.trim_start_matches(blank);
        let found = self.rest.strip_prefix(text);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn value(&mut self, depth: usize) -> Res<Val> {
        if depth > MAX_NESTING {
            return fail(format!("nested deeper than {MAX_NESTING} levels"));
        }
        if self.skip("{") {
            let mut map = indexmap::IndexMap::new();
            while !self.skip("}") {
                if !map.is_empty() && !self.skip(",") {
                    return fail("expected , or }");
                }
                self.rest = self.rest.trim_start_matches(blank);
                let key = DictKey(Val::str(self.string()?));
                if !self.skip(":") {
                    return fail("expected :");
                }
                map.insert(key, self.value(depth + 1)?);
            }
            return Val::dict(map);
        }
        if self.skip("[") {
            let mut items = Vec::new();
            while !self.skip("]") {
                if !items.is_empty() && !self.skip(",") {
                    return fail("expected , or ]");
                }
                items.push(self.value(depth + 1)?);
            }
            return Val::list(items);
        }
        if self.rest.starts_with('"') {
            return Ok(Val::str(self.string()?));
        }
        let names = [
            ("null", Val::None),
            ("true", Val::Bool(true)),
            ("false", Val::Bool(false)),
            ("NaN", Val::Float(f64::NAN)),
            ("Infinity", Val::Float(f64::INFINITY)),
            ("-Infinity", Val::Float(f64::NEG_INFINITY)),
        ];
        for (name, value) in names {
            if self.skip(name) {
                return Ok(value);
            }
        }
        self.number()
    }

    fn number(&mut self) -> Res<Val> {
        let part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if whole
            && digits.len() <= 4300
            && let Some(n) = num_bigint::BigInt::parse_bytes(text.as_bytes(), 10)
        {
            return Ok(Val::int(n));
        }
        match text.parse() {
            Ok(x) if !whole && digits.starts_with(|c: char| c.is_ascii_digit()) => Ok(Val::Float(x)),
            _ => fail("expected a value"),
        }
    }

    /// A string with its quotes; serde_json reads the escapes.
    fn string(&mut self) -> Res<String> {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, c)| match (escaped, c) {
            (true, _) => {
                escaped = false;
                false
            }
            (false, '\\') => {
                escaped = true;
                false
            }
            (false, c) => *c == '"',
        });
        let Some((end, _)) = end.filter(|_| self.rest.starts_with('"')) else {
            return fail("expected a string");
        };
        let (text, rest) = self.rest.split_at(end + 1);
        self.rest = rest;
        serde_json::from_str(text).map_err(|e| JinjaError(e.to_string()))
    }
}
