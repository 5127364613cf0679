//! JSON objects as the tools of models write them: Python's json module writes NaN and infinities, Windows a mark before
//! the text.

use serde_json::{Map, Value};

/// Parses a JSON object; the error says what else it is. The words `NaN`, `Infinity` and `-Infinity`, which Python writes
/// as numbers, become strings: no JSON number is one, and no key for a number takes a string.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_json(text: &[u8]) -> Result<Map<String, Value>, String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let parsed = match serde_json::from_slice(text) {
        // Only a text that is no JSON is read again.
        Err(_) => serde_json::from_slice(&quoted(text)),
        parsed => parsed,
    };
    match parsed {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("not a JSON object".into()),
        Err(e) if e.to_string().starts_with("trailing comma") => Err(format!(
            "not valid JSON: {e}. A comma must not precede a closing brace or bracket: delete it"
        )),
        Err(e) => Err(format!("not valid JSON: {e}")),
    }
}

/// `text` with quotes around the words for numbers that are not finite, where they stand outside of strings.
fn quoted(text: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(text.len() + 64);
    let mut inside = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let word = if inside { None } else { WORDS.into_iter().find(|word| text[at..].starts_with(word)) };
        if let Some(word) = word {
            out.push(b'"');
            out.extend(word);
            out.push(b'"');
            at += word.len();
            continue;
        }
        out.push(byte);
        at += 1;
        match byte {
            b'"' => inside = !inside,
            b'\\' if inside => {
                out.extend(text.get(at));
                at += 1;
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_python_are_read_outside_of_strings_only() {
        let text = "\u{feff}{\"a\": NaN, \"b\": [Infinity, -Infinity, -1], \"NaN \\\" NaN\": \"Infinity\"}";
        let map = parse_json(text.as_bytes()).expect("map");
        assert_eq!(map["a"], "NaN");
        assert_eq!(map["b"], serde_json::json!(["Infinity", "-Infinity", -1]));
        assert_eq!(map["NaN \" NaN"], "Infinity");
    }

    #[test]
    fn what_is_no_json_stays_refused() {
        for text in [
            "{\"a\": NaNa}",
            "{\"a\": nan}",
            "{\"a\": +Infinity}",
            "{\"a\": \"NaN",
            "{\"a\": NaN, \\",
            "[NaN]",
        ] {
            assert!(parse_json(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["{\"a\": 1,}", "{\"a\": [NaN, 1,]}"] {
            let error = parse_json(text.as_bytes()).expect_err("refused");
            assert!(error.contains("comma"), "{text}: {error}");
        }
    }
}
