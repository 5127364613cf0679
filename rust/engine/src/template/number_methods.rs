//! Methods of Python's int and float.

use num_bigint::BigInt;

use super::args::Arguments;
use super::value::{Res, Val, fail};

pub fn call(owner: &Val, name: &str, arguments: &Arguments) -> Res<Val> {
    arguments.none(name)?;
    match (owner, name) {
        (Val::Float(x), "is_integer") => Ok(Val::Bool(x.is_finite() && x.fract() == 0.0)),
        (Val::Float(x), "conjugate") => Ok(Val::Float(*x)),
        (Val::Float(x), "hex") => Ok(Val::str(hex(*x))),
        (Val::Float(x), "as_integer_ratio") => ratio(*x),
        _ => {
            let n = owner.as_big().unwrap_or_default();
            match name {
                "bit_length" => Ok(Val::Int(n.bits() as i64)),
                "bit_count" => {
                    let ones: u32 = n.magnitude().iter_u64_digits().map(u64::count_ones).sum();
                    Ok(Val::Int(i64::from(ones)))
                }
                "conjugate" => Ok(Val::int(n)),
                "is_integer" => Ok(Val::Bool(true)),
                "as_integer_ratio" => Val::tuple(vec![Val::int(n), Val::Int(1)]),
                _ => fail(format!("{name}() of a number is not known here")),
            }
        }
    }
}

/// Mantissa and exponent of 2: x = mantissa * 2^exponent.
fn parts(x: f64) -> (u64, i64) {
    let bits = x.to_bits();
    let (exponent, mantissa) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
    if exponent == 0 { (mantissa, -1074) } else { (mantissa | (1 << 52), exponent as i64 - 1075) }
}

fn hex(x: f64) -> String {
    if !x.is_finite() {
        return super::number::python_float(x);
    }
    let sign = if x.is_sign_negative() { "-" } else { "" };
    if x == 0.0 {
        return format!("{sign}0x0.0p+0");
    }
    let bits = x.to_bits();
    let (exponent, mantissa) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
    let exponent_text = if exponent == 0 { -1022 } else { exponent as i64 - 1023 };
    format!("{sign}0x{}.{mantissa:013x}p{exponent_text:+}", u8::from(exponent != 0))
}

fn ratio(x: f64) -> Res<Val> {
    if !x.is_finite() {
        return fail("cannot convert infinity or NaN to integer ratio");
    }
    let (mut mantissa, mut exponent) = parts(x);
    while exponent < 0 && mantissa.is_multiple_of(2) && mantissa > 0 {
        mantissa /= 2;
        exponent += 1;
    }
    if mantissa == 0 {
        exponent = 0;
    }
    let numerator = BigInt::from(mantissa) << exponent.max(0) as u64;
    let numerator = if x < 0.0 { -numerator } else { numerator };
    let denominator = BigInt::from(1) << (-exponent).max(0) as u64;
    Val::tuple(vec![Val::int(numerator), Val::int(denominator)])
}
