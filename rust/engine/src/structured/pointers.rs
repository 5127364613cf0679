//! JSON pointers and the references that hold them.

use serde_json::Value;

/// A JSON pointer one step below `at`.
pub(super) fn below(at: &str, key: &str) -> String {
    format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// The part of `root` that a local reference leads to.
pub(super) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(&pointer_of(reference)?)
}

/// The JSON pointer of a local reference `#/...`.
pub(super) fn pointer_of(reference: &str) -> Option<String> {
    let text = reference.strip_prefix('#')?;
    if !(text.is_empty() || text.starts_with('/')) {
        return None;
    }
    let text = if text == "/" { "" } else { text };
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}
