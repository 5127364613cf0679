//! String formats as regular expressions that real readers of the format take too.
//!
//! The compiler has its own for most formats. Those here are narrower: no leap second, no 29 February in other years, no
//! year 0, at most six digits of a second, capital letters, and texts that end.

/// What becomes of a format.
pub(super) enum TextFormat {
    /// The compiler holds it.
    Compiler,
    /// A pattern holds it.
    Pattern(String),
    /// It is an annotation.
    Annotation,
}

const YEAR: &str = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})";
const LEAP_YEAR: &str = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
const TIME: &str =
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const LABEL: &str = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,14}[a-zA-Z0-9])?";
const NUMBER: &str = "[0-9][0-9]?[0-9]?[0-9]?";

pub(super) fn text_format(name: &str) -> TextFormat {
    let pattern = match name {
        "date" => date(),
        "time" => TIME.to_string(),
        "date-time" => format!("{}T{TIME}", date()),
        "duration" => duration(),
        "email" => {
            let word = "[a-zA-Z0-9_+-]{1,16}";
            format!(r"{word}(?:\.{word})?@(?:{LABEL}\.){{1,2}}[a-zA-Z]{{2,6}}")
        }
        "hostname" | "ipv4" | "ipv6" | "uuid" | "uri" => return TextFormat::Compiler,
        _ => return TextFormat::Annotation,
    };
    TextFormat::Pattern(format!("^(?:{pattern})$"))
}

fn date() -> String {
    let months = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])";
    format!("(?:{YEAR}-(?:{months})|{LEAP_YEAR}-02-29)")
}

fn duration() -> String {
    let time = format!("T(?:{NUMBER}H(?:{NUMBER}M(?:{NUMBER}S)?)?|{NUMBER}M(?:{NUMBER}S)?|{NUMBER}S)");
    let date = format!("(?:{NUMBER}Y(?:{NUMBER}M(?:{NUMBER}D)?)?|{NUMBER}M(?:{NUMBER}D)?|{NUMBER}D)");
    format!("P(?:{date}(?:{time})?|{time}|{NUMBER}W)")
}
