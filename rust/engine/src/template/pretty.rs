//! `pprint`: pprint.pformat of Python, with lines of 80 characters.

use super::interpreter::Interpreter;
use super::ops::order;
use super::sorting::sorted;
use super::value::{Res, Val};

const WIDTH: usize = 80;

/// pformat(value)
pub fn pretty(interpreter: &mut Interpreter<'_>, value: &Val) -> Res<String> {
    let mut out = String::new();
    write(interpreter, value, &mut out, 0, 0)?;
    Ok(out)
}

/// repr with the keys of dicts in order.
fn sorted_repr(interpreter: &mut Interpreter<'_>, value: &Val) -> Res<String> {
    let (begin, end) = brackets(value);
    match value {
        Val::Dict(_) => {
            let mut parts = Vec::new();
            for (key, value) in pairs(value) {
                let key = sorted_repr(interpreter, &key)?;
                parts.push(format!("{key}: {}", sorted_repr(interpreter, &value)?));
            }
            Ok(format!("{begin}{}{end}", parts.join(", ")))
        }
        Val::List(items) | Val::Tuple(items) => {
            let mut parts = Vec::new();
            for item in &items.all {
                parts.push(sorted_repr(interpreter, item)?);
            }
            let comma = if matches!(value, Val::Tuple(_)) && parts.len() == 1 { "," } else { "" };
            Ok(format!("{begin}{}{comma}{end}", parts.join(", ")))
        }
        value => interpreter.repr(value),
    }
}

fn brackets(value: &Val) -> (char, char) {
    match value {
        Val::Dict(_) => ('{', '}'),
        Val::Tuple(_) => ('(', ')'),
        _ => ('[', ']'),
    }
}

fn pairs(value: &Val) -> Vec<(Val, Val)> {
    let Val::Dict(dict) = value else { return Vec::new() };
    let pairs: Vec<(Val, Val)> = dict.map.iter().map(|(k, v)| (k.0.clone(), v.clone())).collect();
    let mut less = |a: &(Val, Val), b: &(Val, Val)| {
        Ok(match order(&a.0, &b.0, "<") {
            Ok(found) => found == Some(std::cmp::Ordering::Less),
            Err(_) => a.0.type_name() < b.0.type_name(),
        })
    };
    sorted(pairs, &mut less).unwrap_or_default()
}

fn write(
    interpreter: &mut Interpreter<'_>,
    value: &Val,
    out: &mut String,
    indent: usize,
    allowance: usize,
) -> Res<()> {
    interpreter.step()?;
    let whole = sorted_repr(interpreter, value)?;
    let items: Vec<(Option<Val>, Val)> = match value {
        Val::Dict(_) => pairs(value).into_iter().map(|(k, v)| (Some(k), v)).collect(),
        Val::List(l) | Val::Tuple(l) => l.all.iter().map(|v| (None, v.clone())).collect(),
        _ => Vec::new(),
    };
    if whole.chars().count() + indent + allowance <= WIDTH || items.is_empty() {
        out.push_str(&whole);
        return Ok(());
    }
    let (begin, end) = brackets(value);
    out.push(begin);
    let count = items.len();
    for (i, (key, item)) in items.into_iter().enumerate() {
        if i > 0 {
            out.push_str(",\n");
            out.push_str(&" ".repeat(indent + 1));
        }
        let mut inner = indent + 1;
        if let Some(key) = key {
            let key = sorted_repr(interpreter, &key)?;
            inner += key.chars().count() + 2;
            out.push_str(&key);
            out.push_str(": ");
        }
        let last = i + 1 == count;
        write(interpreter, &item, out, inner, if last { allowance + 1 } else { 1 })?;
    }
    if matches!(value, Val::Tuple(_)) && count == 1 {
        out.push(',');
    }
    out.push(end);
    interpreter.charge_bytes(whole.len())
}
