//! Methods of Python strings that templates use and minijinja-contrib lacks.

use minijinja::value::from_args;
use minijinja::{Error, ErrorKind, State, Value};

/// `ljust`, `rjust`, `center`, `title`, `zfill`, `partition`, `rpartition`, `rsplit`, `removeprefix`, `removesuffix`; the rest goes to minijinja-contrib.
pub fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        // minijinja pads to any width, beyond all memory.
        "format" if longest_number(text) > 4 => {
            Err(Error::new(ErrorKind::InvalidOperation, "format: a width of more than four digits"))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            justified(text, method, width, fill.unwrap_or(" "))
        }
        "title" => Ok(title(text).into()),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            zero_filled(text, width)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            Ok(match text.split_once(separator) {
                Some((before, after)) => [before, separator, after],
                None => [text, "", ""],
            }
            .into_iter()
            .collect())
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            Ok(match text.rsplit_once(separator) {
                Some((before, after)) => [before, separator, after],
                None => ["", "", text],
            }
            .into_iter()
            .collect())
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            Ok(rsplit(text, separator, most.and_then(|n| usize::try_from(n).ok())).into_iter().collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// A letter after any other character is large, as in Python. minijinja capitalises only after white space.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

/// `text` with zeros between its sign and its digits.
fn zero_filled(text: &str, width: usize) -> Result<Value, Error> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = &text[..text.len() - digits.len()];
    let inner = justified(digits, "rjust", width.saturating_sub(sign.len()), "0")?;
    Ok(format!("{sign}{inner}").into())
}

/// `text` among copies of `fill` up to `width` characters.
fn justified(text: &str, method: &str, width: usize, fill: &str) -> Result<Value, Error> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("{method}: {what}")));
    if width > 9999 {
        return refuse("a width of more than four digits");
    }
    if fill.chars().count() != 1 {
        return refuse("the fill must be one character");
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // As CPython shares an odd rest.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

/// Digits of the longest number in `text`.
fn longest_number(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0)
}

/// At most `most` splits, counted from the right; without a separator at runs of white space.
fn rsplit<'a>(text: &'a str, separator: Option<&str>, most: Option<usize>) -> Vec<&'a str> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = text;
    match separator {
        Some(separator) => {
            while parts.len() < most {
                let Some((before, after)) = rest.rsplit_once(separator) else { break };
                parts.push(after);
                rest = before;
            }
            parts.push(rest);
        }
        None => {
            rest = rest.trim_end();
            while parts.len() < most {
                let Some(at) = rest.rfind(char::is_whitespace) else { break };
                let (before, word) = rest.split_at(at);
                parts.push(word.trim_start());
                rest = before.trim_end();
            }
            if !rest.is_empty() {
                // What is left over keeps its leading white space where the splits ran out, as in Python.
                parts.push(if parts.len() < most { rest.trim_start() } else { rest });
            }
        }
    }
    parts.reverse();
    parts
}
