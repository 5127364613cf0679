//! Filters of numbers.

use num_bigint::BigInt;
use num_traits::{FromPrimitive, Signed};

use super::args::{Arguments, int, text, truth};
use super::interpreter::Interpreter;
use super::lexer::space;
use super::value::{Res, Val, fail};

impl Interpreter<'_> {
    pub fn number_filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        match name {
            "abs" => {
                arguments.none(name)?;
                match (value.defined()?, value.as_big()) {
                    (Val::Float(x), _) => Ok(Val::Float(x.abs())),
                    (_, Some(n)) => Ok(Val::int(n.abs())),
                    _ => fail(format!("bad operand type for abs(): '{}'", value.type_name())),
                }
            }
            "int" => {
                let [default, base] = arguments.bind(name, ["default", "base"], 0)?;
                let base = int(&base, 10)?;
                Ok(integer(value.defined()?, base).unwrap_or_else(|| default.unwrap_or(Val::Int(0))))
            }
            "float" => {
                let [default] = arguments.bind(name, ["default"], 0)?;
                let found = match value.defined()? {
                    Val::Str(text, _) => float(text),
                    value => value.as_f64(),
                };
                Ok(found.map(Val::Float).unwrap_or_else(|| default.unwrap_or(Val::Float(0.0))))
            }
            "round" => self.round(value, arguments),
            "filesizeformat" => file_size(value, arguments),
            _ => {
                let [attribute, start] = arguments.bind(name, ["attribute", "start"], 0)?;
                let mut sum = start.unwrap_or(Val::Int(0));
                if sum.as_str().is_some() {
                    return fail("sum() can't sum strings");
                }
                let all = self.attributes(value, attribute)?;
                // Python 3.12 and later compensate the errors of a sum of floats; earlier ones add up plainly.
                for item in all {
                    sum = self.math("+", &sum, &item)?;
                }
                Ok(sum)
            }
        }
    }

    fn round(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [precision, method] = arguments.bind("round", ["precision", "method"], 0)?;
        let precision = int(&precision, 0)?;
        let method = text(&method, "common")?;
        if !["common", "ceil", "floor"].contains(&method) {
            return fail("method must be common, ceil or floor");
        }
        if !value.defined()?.is_number() {
            return fail(format!("type {} doesn't define __round__ method", value.type_name()));
        }
        if method == "common" {
            return match (value, value.as_big()) {
                (Val::Float(x), _) => Ok(Val::Float(rounded(*x, precision)?)),
                (_, Some(n)) => Ok(Val::int(rounded_int(n, precision)?)),
                _ => fail("no number"),
            };
        }
        let power = self.math("**", &Val::Int(10), &Val::Int(precision))?;
        let scaled = self.math("*", value, &power)?;
        let whole = match (&scaled, scaled.as_big()) {
            (Val::Float(x), _) => {
                let whole = if method == "ceil" { x.ceil() } else { x.floor() };
                match BigInt::from_f64(whole) {
                    Some(n) => Val::int(n),
                    None => return fail("cannot convert float infinity or NaN to integer"),
                }
            }
            (_, Some(n)) => Val::int(n),
            _ => return fail("no number"),
        };
        self.math("/", &whole, &power)
    }
}

/// round(x, precision), half to even of the exact value, as Python does it.
fn rounded(x: f64, precision: i64) -> Res<f64> {
    if !x.is_finite() || precision > 330 {
        return Ok(x);
    }
    if precision < -330 {
        return Ok(0.0_f64.copysign(x));
    }
    if let Ok(digits) = usize::try_from(precision) {
        return format!("{x:.digits$}").parse().map_err(|_| super::value::JinjaError("round".into()));
    }
    let whole = BigInt::from_f64(x.trunc()).unwrap_or_default();
    // What stands behind the point decides only where the whole part is just between two.
    let doubled = whole * 2 + i32::from(x.fract() != 0.0) * if x < 0.0 { -1 } else { 1 };
    let unit = BigInt::from(10).pow(u32::try_from(-precision).unwrap_or(0));
    let value = nearest(doubled, &(unit.clone() * 2)) * unit;
    Ok(num_traits::ToPrimitive::to_f64(&value).unwrap_or(0.0))
}

fn rounded_int(n: BigInt, precision: i64) -> Res<BigInt> {
    if precision >= 0 {
        return Ok(n);
    }
    let Ok(digits) = u32::try_from(-precision) else { return Ok(BigInt::default()) };
    if u64::from(digits) > n.bits() {
        return Ok(BigInt::default());
    }
    let unit = BigInt::from(10).pow(digits);
    Ok(nearest(n, &unit) * unit)
}

/// n / unit, rounded half to even.
fn nearest(n: BigInt, unit: &BigInt) -> BigInt {
    let negative = n.is_negative();
    let (quotient, rest) = (n.abs() / unit, n.abs() % unit);
    let odd = &quotient % 2_u32 == BigInt::from(1);
    let twice = rest * 2_u32;
    let up = twice > *unit || (twice == *unit && odd);
    let value = quotient + u32::from(up);
    if negative { -value } else { value }
}

/// int(value) with Jinja's second try over float.
fn integer(value: &Val, base: i64) -> Option<Val> {
    let of_float = |x: f64| BigInt::from_f64(x.trunc()).filter(|_| x.is_finite()).map(Val::int);
    match value {
        Val::Str(text, _) => parsed_int(text, base).or_else(|| of_float(float(text)?)),
        Val::Float(x) => of_float(*x),
        value => value.as_big().map(Val::int),
    }
}

/// int(text, base)
fn parsed_int(text: &str, base: i64) -> Option<Val> {
    let text = text.trim_matches(space);
    let negative = text.starts_with('-');
    let mut digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let prefixed = match prefix.as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 0,
    };
    let mut radix = base;
    if prefixed != 0 && (base == 0 || base == prefixed) {
        radix = prefixed;
        digits = digits[2..].strip_prefix('_').unwrap_or(&digits[2..]);
    } else if base == 0 {
        radix = 10;
        if digits.starts_with('0') && digits.bytes().any(|b| b != b'0' && b != b'_') {
            return None;
        }
    }
    let radix = u32::try_from(radix).ok().filter(|r| (2..=36).contains(r))?;
    let plain = without_underscores(digits)?;
    let valid = !plain.is_empty() && plain.chars().all(|c| c.is_digit(radix));
    if !valid || plain.len() > 4300 {
        return None;
    }
    let n = BigInt::parse_bytes(plain.as_bytes(), radix)?;
    Some(Val::int(if negative { -n } else { n }))
}

/// Underscores stand between digits only.
fn without_underscores(text: &str) -> Option<String> {
    let single = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    single.then(|| text.replace('_', ""))
}

/// float(text)
fn float(text: &str) -> Option<f64> {
    let text = text.trim_matches(space);
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text).to_ascii_lowercase();
    if ["inf", "infinity", "nan"].contains(&&*bare) {
        return text.to_ascii_lowercase().parse().ok();
    }
    let between = |(i, b): (usize, u8)| {
        let digit = |n: usize| text.as_bytes().get(n).is_some_and(u8::is_ascii_digit);
        b != b'_' || (i > 0 && digit(i - 1) && digit(i + 1))
    };
    let plain = bare.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+' | b'-' | b'_'));
    if !plain || !text.bytes().enumerate().all(between) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn file_size(value: &Val, arguments: &Arguments) -> Res<Val> {
    let [binary] = arguments.bind("filesizeformat", ["binary"], 0)?;
    let size = match value.defined()? {
        Val::Str(text, _) => float(text),
        value => value.as_f64(),
    };
    let Some(size) = size else { return fail("filesizeformat: not a number") };
    let (base, unit): (f64, &str) = if truth(&binary, false) { (1024.0, "iB") } else { (1000.0, "B") };
    if size == 1.0 {
        return Ok(Val::str("1 Byte"));
    }
    if size < base {
        return Ok(Val::str(format!("{} Bytes", size.trunc())));
    }
    let letters = if unit == "B" { "kMGTPEZY" } else { "KMGTPEZY" };
    let mut text = String::new();
    for (i, letter) in letters.chars().enumerate() {
        let limit = base.powi(i as i32 + 2);
        text = format!("{:.1} {letter}{unit}", base * size / limit);
        if size < limit {
            break;
        }
    }
    Ok(Val::str(text))
}
