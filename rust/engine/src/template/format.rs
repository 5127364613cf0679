//! How one value is written under a format specification, for `%` and for str.format.

use super::number::python_float;
use super::ops::equal;
use super::value::{MAX_WIDTH, Res, Val, fail};

/// Most digits behind the point of a float.
const MAX_PRECISION: usize = 1000;

/// `[[fill]align][sign][#][0][width][grouping][.precision][kind]`
#[derive(Clone, Default)]
pub struct FormatSpec {
    pub fill: Option<char>,
    pub align: Option<char>,
    pub sign: Option<char>,
    pub alternate: bool,
    pub zero: bool,
    pub width: usize,
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

/// Reads digits; a number beyond all widths is refused.
pub fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Res<Option<usize>> {
    let mut found: Option<i64> = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        let n = found.unwrap_or(0) * 10 + i64::from(digit);
        if n > MAX_WIDTH {
            return fail("a format with a width or precision of too many digits");
        }
        found = Some(n);
        chars.next();
    }
    Ok(found.and_then(|n| usize::try_from(n).ok()))
}

impl FormatSpec {
    /// Reads the specification of str.format.
    pub fn parse(text: &str) -> Res<FormatSpec> {
        let mut spec = FormatSpec::default();
        let all: Vec<char> = text.chars().take(2).collect();
        let aligns = |c: &char| matches!(c, '<' | '>' | '^' | '=');
        let mut chars = text.chars().peekable();
        if all.get(1).is_some_and(aligns) {
            spec.fill = chars.next();
            spec.align = chars.next();
        } else {
            spec.align = chars.next_if(aligns);
        }
        spec.sign = chars.next_if(|c| matches!(c, '+' | '-' | ' '));
        spec.alternate = chars.next_if_eq(&'#').is_some();
        spec.zero = chars.next_if_eq(&'0').is_some();
        spec.width = digits(&mut chars)?.unwrap_or(0);
        spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = digits(&mut chars)?;
            if spec.precision.is_none() {
                return fail("Format specifier missing precision");
            }
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            return fail(format!("Invalid format specifier '{text}'"));
        }
        Ok(spec)
    }

    /// A text, cut and filled.
    pub fn text(&self, text: &str) -> Res<String> {
        if self.sign.is_some() || self.alternate || self.align == Some('=') || self.grouping.is_some() {
            return fail("this format is not allowed for a string");
        }
        if !matches!(self.kind, None | Some('s')) {
            return self.unknown("str");
        }
        let cut: String = match self.precision {
            Some(n) => text.chars().take(n).collect(),
            None => text.into(),
        };
        let fill = self.fill.or(self.zero.then_some('0'));
        Ok(filled(&cut, "", self.width, fill.unwrap_or(' '), self.align.unwrap_or('<')))
    }

    fn unknown(&self, of: &str) -> Res<String> {
        let kind = self.kind.unwrap_or(' ');
        fail(format!("Unknown format code '{kind}' for object of type '{of}'"))
    }

    /// A number.
    pub fn number(&self, value: &Val) -> Res<String> {
        let (negative, digits) = match (value, self.kind) {
            (Val::Float(x), _) => self.float(*x)?,
            (_, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => match value.as_f64() {
                Some(x) if x.is_finite() => self.float(x)?,
                _ => return fail("int too large to convert to float"),
            },
            _ => self.integer(value)?,
        };
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let prefix = if self.alternate && !matches!(value, Val::Float(_)) {
            match self.kind {
                Some('x') => "0x",
                Some('X') => "0X",
                Some('o') => "0o",
                Some('b') => "0b",
                _ => "",
            }
        } else {
            ""
        };
        let head = format!("{sign}{prefix}");
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let align = self.align.unwrap_or(if self.zero { '=' } else { '>' });
        let mut body = digits;
        if let Some(separator) = self.grouping {
            let width = if fill == '0' && align == '=' { self.width.saturating_sub(head.len()) } else { 0 };
            let size = if matches!(self.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
            body = grouped(&body, separator, size, width);
        }
        Ok(filled(&body, &head, self.width, fill, align))
    }

    fn integer(&self, value: &Val) -> Res<(bool, String)> {
        let Some(n) = value.as_big() else { return fail("not a number") };
        if self.precision.is_some() {
            return fail("Precision not allowed in integer format specifier");
        }
        let radix = match self.kind {
            None | Some('d' | 'n') => {
                let text = super::repr::decimal(value)?;
                let digits = if matches!(value, Val::Bool(_)) { n.to_string() } else { text };
                return Ok((digits.starts_with('-'), digits.trim_start_matches('-').to_string()));
            }
            Some('x' | 'X') => 16,
            Some('o') => 8,
            Some('b') => 2,
            Some('c') => {
                let c = value.as_i64().and_then(|n| u32::try_from(n).ok()).and_then(char::from_u32);
                return match c {
                    Some(c) => Ok((false, c.to_string())),
                    None => fail("%c arg not in range(0x110000)"),
                };
            }
            _ => return self.unknown("int").map(|text| (false, text)),
        };
        let text = n.magnitude().to_str_radix(radix);
        let text = if self.kind == Some('X') { text.to_uppercase() } else { text };
        Ok((n.sign() == num_bigint::Sign::Minus, text))
    }

    /// Whether the number is negative, and its digits.
    fn float(&self, x: f64) -> Res<(bool, String)> {
        let kind = self.kind.unwrap_or('r');
        if !"eEfFgGrn%".contains(kind) {
            return self.unknown("float").map(|text| (false, text));
        }
        let negative = x.is_sign_negative() && !x.is_nan();
        let x = x.abs();
        let precision = self.precision.unwrap_or(6);
        if precision > MAX_PRECISION {
            return fail(format!("a precision of more than {MAX_PRECISION}"));
        }
        let text = if !x.is_finite() {
            python_float(x) + if kind == '%' { "%" } else { "" }
        } else {
            match kind.to_ascii_lowercase() {
                'e' => exponent(x, precision),
                'f' => format!("{x:.precision$}"),
                '%' => format!("{:.precision$}%", x * 100.0),
                'r' => match self.precision {
                    None => python_float(x),
                    Some(n) => general(x, n, self.alternate, true),
                },
                _ => general(x, precision, self.alternate, false),
            }
        };
        let point = self.alternate && x.is_finite() && !text.contains(['.', 'e']);
        let text = if point { text + "." } else { text };
        Ok((negative, if matches!(kind, 'E' | 'G' | 'F') { text.to_uppercase() } else { text }))
    }

    /// format(value, specification)
    pub fn value(&self, value: &Val, written: &str) -> Res<String> {
        let plain = self.kind.is_none() && matches!(value, Val::Bool(_));
        match value {
            Val::Str(..) => self.text(written),
            value if value.is_number() && !(plain && equal(value, &Val::Bool(true)) && self.is_empty()) => {
                self.number(value)
            }
            _ => fail(format!("unsupported format string passed to {}.__format__", value.type_name())),
        }
    }

    fn is_empty(&self) -> bool {
        self.width == 0 && self.precision.is_none()
    }
}

/// As `%e` writes it.
fn exponent(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let n: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if n < 0 { '-' } else { '+' }, n.abs())
}

/// As `%g` writes it; with `point` at least one digit stands behind the point, as format(x, '.3') writes it.
fn general(x: f64, precision: usize, keep_zeros: bool, point: bool) -> String {
    let precision = precision.max(1);
    let scientific = exponent(x, precision - 1);
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i64 = power.parse().unwrap_or(0);
    let without_zeros = |text: &str| match (text.contains('.'), keep_zeros) {
        (true, false) => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        _ => text.to_string(),
    };
    let limit = precision as i64 - i64::from(point && precision as i64 == power + 1);
    if power < -4 || power >= limit {
        return format!("{}e{}{:02}", without_zeros(digits), if power < 0 { '-' } else { '+' }, power.abs());
    }
    let places = usize::try_from(precision as i64 - 1 - power).unwrap_or(0);
    let text = without_zeros(&format!("{x:.places$}"));
    if point && !text.contains('.') { text + ".0" } else { text }
}

/// Separators between groups of digits of the whole part, which grows to `width` with zeros.
fn grouped(number: &str, separator: char, size: usize, width: usize) -> String {
    let end = number.find(|c: char| !c.is_ascii_hexdigit() || (size == 3 && !c.is_ascii_digit()));
    let (whole, rest) = number.split_at(end.unwrap_or(number.len()));
    let length = |n: usize| n + (n.max(1) - 1) / size + rest.len();
    let mut wanted = whole.len();
    while length(wanted) < width {
        wanted += 1;
    }
    let digits = "0".repeat(wanted - whole.len()) + whole;
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out + rest
}

/// `head` and `text` with `fill` around them, or between them for the alignment `=`.
pub fn filled(text: &str, head: &str, width: usize, fill: char, align: char) -> String {
    let missing = width.saturating_sub(text.chars().count() + head.chars().count());
    let fills = |n: usize| fill.to_string().repeat(n);
    match align {
        '<' => format!("{head}{text}{}", fills(missing)),
        '^' => format!("{}{head}{text}{}", fills(missing / 2), fills(missing - missing / 2)),
        '=' => format!("{head}{}{text}", fills(missing)),
        _ => format!("{}{head}{text}", fills(missing)),
    }
}
