//! `'%s' % x`: Python's formatting operator, which minijinja lacks, rewritten to its `format` filter.
//!
//! Only a string literal on the left is recognised: there the operator cannot be a remainder.

/// Replaces `'text' % operand` inside tags by `('text' | format(operand))`.
pub fn with_format_filters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((start, close)) = next_tag(rest) {
        let Some(end) = tag_end(&rest[start + 2..], close) else { break };
        let tag = &rest[start + 2..start + 2 + end];
        out.push_str(&rest[..start + 2]);
        match close {
            "#}" => out.push_str(tag),
            _ => out.push_str(&rewrite(tag)),
        }
        rest = &rest[start + 2 + end..];
    }
    out.push_str(rest);
    out
}

/// The next tag's place and the text that ends it.
fn next_tag(text: &str) -> Option<(usize, &'static str)> {
    let kinds = [("{{", "}}"), ("{%", "%}"), ("{#", "#}")];
    kinds.iter().filter_map(|(open, close)| Some((text.find(open)?, *close))).min_by_key(|t| t.0)
}

/// Where a tag ends: the first `close` outside string literals.
fn tag_end(tag: &str, close: &str) -> Option<usize> {
    let mut i = 0;
    while i < tag.len() {
        let rest = &tag[i..];
        if rest.starts_with(close) {
            return Some(i);
        }
        i += if close == "#}" { char_len(rest) } else { literal_len(rest).unwrap_or_else(|| char_len(rest)) };
    }
    None
}

fn char_len(text: &str) -> usize {
    text.chars().next().map_or(1, char::len_utf8)
}

/// Length of the string literal that `text` begins with.
fn literal_len(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    None
}

fn rewrite(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let mut i = 0;
    while i < tag.len() {
        let rest = &tag[i..];
        let Some(literal) = literal_len(rest) else {
            let n = char_len(rest);
            out.push_str(&rest[..n]);
            i += n;
            continue;
        };
        let after = &rest[literal..];
        let spaces = after.len() - after.trim_start().len();
        let operand = after.trim_start().strip_prefix('%').map(|o| (o, o.trim_start()));
        let found = operand.and_then(|(o, t)| Some((o.len() - t.len(), t, operand_len(t)?)));
        match found {
            Some((gap, text, n)) if n > 0 => {
                // A tuple becomes several arguments.
                let inner = rewrite(&text[..n]);
                let whole = inner.starts_with('(') && balanced(&inner) == Some(inner.len());
                let arguments = if whole { inner } else { format!("({inner})") };
                out.push_str(&format!("({} | format{arguments})", &rest[..literal]));
                i += literal + spaces + 1 + gap + n;
            }
            _ => {
                out.push_str(&rest[..literal]);
                i += literal;
            }
        }
    }
    out
}

/// Length of the bracketed part that `text` begins with.
fn balanced(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut i = 0;
    while i < text.len() {
        let rest = &text[i..];
        if let Some(n) = literal_len(rest) {
            i += n;
            continue;
        }
        match rest.as_bytes()[0] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
        i += char_len(rest);
    }
    None
}

/// Length of the operand that `text` begins with: a literal, a name or something in brackets, with attributes, subscripts,
/// calls and filters, which all bind tighter than `%`.
fn operand_len(text: &str) -> Option<usize> {
    let word = |t: &str| t.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(t.len());
    let mut n = match text.chars().next()? {
        '(' | '[' | '{' => balanced(text)?,
        '\'' | '"' => literal_len(text)?,
        c if c.is_alphanumeric() || c == '_' => word(text),
        _ => return None,
    };
    loop {
        let rest = &text[n..];
        match rest.chars().next() {
            Some('.') => n += 1 + word(&rest[1..]),
            Some('[' | '(') => n += balanced(rest)?,
            _ => {
                let Some(filter) = rest.trim_start().strip_prefix('|') else { return Some(n) };
                let name = filter.trim_start();
                n = text.len() - name.len() + word(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::with_format_filters;

    #[test]
    fn only_strings_with_a_percent_operator_change() {
        let cases = [
            ("{{ '%s' % x }}", "{{ ('%s' | format(x)) }}"),
            ("{{ '%s-%d' % (a, b.c[0]) + 'x' }}", "{{ ('%s-%d' | format(a, b.c[0])) + 'x' }}"),
            ("{{- \"%s\" % m.get('a') | trim -}}", "{{- (\"%s\" | format(m.get('a') | trim)) -}}"),
            ("{% if '%s' % (x) == 'a' %}b{% endif %}", "{% if ('%s' | format(x)) == 'a' %}b{% endif %}"),
            ("{% set x = 'a' %}{{ 5 % 3 }} '%s' % x", "{% set x = 'a' %}{{ 5 % 3 }} '%s' % x"),
            ("{# '%s' % x #}{{ 'a %} b' }}", "{# '%s' % x #}{{ 'a %} b' }}"),
            ("{{ 'open", "{{ 'open"),
        ];
        for (template, wanted) in cases {
            assert_eq!(with_format_filters(template), wanted);
        }
    }
}
