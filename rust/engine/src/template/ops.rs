//! Operators: arithmetic, comparison and `in`, as Python has them.

use std::cmp::Ordering;
use std::sync::Arc;

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};

use super::html::escaped;
use super::interpreter::Interpreter;
use super::value::{DictKey, JinjaError, MAX_INT_BITS, Obj, Res, Val, fail};

/// a == b. Callers bound the sizes.
pub fn equal(a: &Val, b: &Val) -> bool {
    match (a, b) {
        (Val::Undef(_), Val::Undef(_)) | (Val::None, Val::None) => true,
        (Val::Str(a, _), Val::Str(b, _)) => a == b,
        (Val::List(a), Val::List(b)) | (Val::Tuple(a), Val::Tuple(b)) => {
            Arc::ptr_eq(a, b)
                || (a.all.len() == b.all.len() && a.all.iter().zip(&b.all).all(|(a, b)| equal(a, b)))
        }
        (Val::Dict(a), Val::Dict(b)) => {
            let same = |(k, v): (_, &Val)| b.map.get(k).is_some_and(|w| equal(v, w));
            Arc::ptr_eq(a, b) || (a.map.len() == b.map.len() && a.map.iter().all(same))
        }
        (Val::View(x, a), Val::View(y, b)) => x == y && Arc::ptr_eq(a, b),
        (Val::Range(..), Val::Range(..)) => {
            let n = a.range_len();
            let (Val::Range(s, _, t), Val::Range(u, _, v)) = (a, b) else { return false };
            n == b.range_len() && (n == 0 || (s == u && (n == 1 || t == v)))
        }
        (Val::Iter(a), Val::Iter(b)) => Arc::ptr_eq(a, b),
        (Val::Obj(a), Val::Obj(b)) => a == b,
        (Val::Method(a, x), Val::Method(b, y)) => x == y && equal(a, b),
        _ if a.is_number() && b.is_number() => number_order(a, b) == Some(Ordering::Equal),
        _ => false,
    }
}

impl PartialEq for DictKey {
    fn eq(&self, other: &DictKey) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for DictKey {}

/// Order of two numbers; None beside NaN.
fn number_order(a: &Val, b: &Val) -> Option<Ordering> {
    match (a, b) {
        (Val::Float(x), Val::Float(y)) => x.partial_cmp(y),
        (Val::Float(x), n) => float_to_int(*x, n).map(Ordering::reverse),
        (n, Val::Float(x)) => float_to_int(*x, n),
        _ => Some(a.as_big()?.cmp(&b.as_big()?)),
    }
}

/// Order of the integer `n` beside `x`.
fn float_to_int(x: f64, n: &Val) -> Option<Ordering> {
    if x.is_nan() {
        return None;
    }
    if x.is_infinite() {
        return Some(if x > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let whole = num_traits::FromPrimitive::from_f64(x.trunc()).unwrap_or_else(BigInt::zero);
    let fraction = x.fract();
    Some(n.as_big()?.cmp(&whole).then(0.0.partial_cmp(&fraction)?))
}

/// Order of two values.
///
/// # Errors
/// They have none, in Python.
pub fn order(a: &Val, b: &Val, op: &str) -> Res<Option<Ordering>> {
    a.defined()?;
    b.defined()?;
    match (a, b) {
        (Val::Str(a, _), Val::Str(b, _)) => Ok(Some(a.cmp(b))),
        (Val::List(x), Val::List(y)) | (Val::Tuple(x), Val::Tuple(y)) => {
            for (a, b) in x.all.iter().zip(&y.all) {
                if !equal(a, b) {
                    return order(a, b, op);
                }
            }
            Ok(Some(x.all.len().cmp(&y.all.len())))
        }
        _ if a.is_number() && b.is_number() => Ok(number_order(a, b)),
        _ => fail(format!(
            "'{op}' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        )),
    }
}

impl Interpreter<'_> {
    /// One of `== != < <= > >= in`, `not in`.
    pub fn compare(&mut self, op: &str, a: &Val, b: &Val) -> Res<bool> {
        self.charge(a.size().min(b.size()) / 16)?;
        Ok(match op {
            "==" => equal(a, b),
            "!=" => !equal(a, b),
            "in" => self.contains(b, a)?,
            "not in" => !self.contains(b, a)?,
            _ => {
                let order = order(a, b, op)?;
                match op {
                    "<" => order == Some(Ordering::Less),
                    "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                    ">" => order == Some(Ordering::Greater),
                    _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
                }
            }
        })
    }

    /// item in container
    pub fn contains(&mut self, container: &Val, item: &Val) -> Res<bool> {
        Ok(match container {
            Val::Str(text, _) => match item {
                Val::Undef(why) => return fail(why.to_string()),
                Val::Str(part, _) => {
                    self.charge_bytes(text.len())?;
                    text.contains(&**part)
                }
                _ => {
                    let name = item.type_name();
                    return fail(format!("'in <string>' requires string as left operand, not {name}"));
                }
            },
            Val::Dict(dict) | Val::View("dict_keys", dict) => {
                self.charge(item.size() / 16)?;
                dict.map.contains_key(&DictKey::of(item.clone())?)
            }
            Val::Obj(Obj::Namespace(_)) => return fail("argument of type 'Namespace' is not iterable"),
            _ => {
                self.charge(container.size() / 16)?;
                container.elements()?.iter().any(|v| equal(v, item))
            }
        })
    }

    /// a op b
    pub fn math(&mut self, op: &str, a: &Val, b: &Val) -> Res<Val> {
        if let (Val::Str(template, safe), "%") = (a, op) {
            return Ok(Val::Str(self.percent(template, b)?.into(), *safe));
        }
        a.defined()?;
        b.defined()?;
        if a.is_number() && b.is_number() {
            let limbs = |v: &Val| if let Val::Big(n) = v { n.bits() as usize / 64 + 1 } else { 1 };
            let power = if op == "**" { 64 } else { 0 };
            self.charge(limbs(a).saturating_mul(limbs(b)) / 64 + power)?;
            return number_math(op, a, b);
        }
        match (op, a, b) {
            ("+", Val::Str(x, s), Val::Str(y, t)) => {
                self.charge_bytes(x.len() + y.len())?;
                let part = |text: &str, safe: bool| if safe { text.to_string() } else { escaped(text) };
                Ok(match s | t {
                    false => Val::Str(format!("{x}{y}").into(), false),
                    true => Val::Str((part(x, *s) + &part(y, *t)).into(), true),
                })
            }
            ("+", Val::List(x), Val::List(y)) => {
                self.charge((x.all.len() + y.all.len()) / 4)?;
                Val::list(x.all.iter().chain(&y.all).cloned().collect())
            }
            ("+", Val::Tuple(x), Val::Tuple(y)) => {
                self.charge((x.all.len() + y.all.len()) / 4)?;
                Val::tuple(x.all.iter().chain(&y.all).cloned().collect())
            }
            ("*", Val::Str(..) | Val::List(_) | Val::Tuple(_), n) if n.as_i64().is_some() => {
                self.repeated(a, n.as_i64().unwrap_or(0))
            }
            ("*", n, Val::Str(..) | Val::List(_) | Val::Tuple(_)) if n.as_i64().is_some() => {
                self.repeated(b, n.as_i64().unwrap_or(0))
            }
            _ => fail(format!(
                "unsupported operand type(s) for {op}: '{}' and '{}'",
                a.type_name(),
                b.type_name()
            )),
        }
    }

    fn repeated(&mut self, value: &Val, times: i64) -> Res<Val> {
        let times = usize::try_from(times).unwrap_or(0);
        match value {
            Val::Str(text, safe) => {
                self.charge_bytes(text.len().saturating_mul(times))?;
                Ok(Val::Str(text.repeat(times).into(), *safe))
            }
            Val::List(l) | Val::Tuple(l) => {
                self.charge(l.all.len().saturating_mul(times) / 4)?;
                let all = l.all.iter().cycle().take(l.all.len() * times).cloned().collect();
                if matches!(value, Val::List(_)) { Val::list(all) } else { Val::tuple(all) }
            }
            _ => fail("only texts and lists are repeated"),
        }
    }

    /// -value or +value
    pub fn signed(&mut self, negative: bool, value: &Val) -> Res<Val> {
        value.defined()?;
        match (value, value.as_big()) {
            (Val::Float(x), _) => Ok(Val::Float(if negative { -x } else { *x })),
            (_, Some(n)) => Ok(Val::int(if negative { -n } else { n })),
            _ => {
                let sign = if negative { '-' } else { '+' };
                fail(format!("bad operand type for unary {sign}: '{}'", value.type_name()))
            }
        }
    }
}

fn number_math(op: &str, a: &Val, b: &Val) -> Res<Val> {
    if let (Val::Int(x), Val::Int(y)) = (a, b) {
        let quick = match op {
            "+" => x.checked_add(*y),
            "-" => x.checked_sub(*y),
            "*" => x.checked_mul(*y),
            _ => None,
        };
        if let Some(n) = quick {
            return Ok(Val::Int(n));
        }
    }
    match (a.as_big(), b.as_big()) {
        (Some(x), Some(y)) => int_math(op, x, y),
        _ => {
            let overflow = || JinjaError("int too large to convert to float".into());
            float_math(op, finite(a).ok_or_else(overflow)?, finite(b).ok_or_else(overflow)?)
        }
    }
}

/// The value as a float; None for an integer beyond all floats.
fn finite(value: &Val) -> Option<f64> {
    value.as_f64().filter(|x| matches!(value, Val::Float(_)) || x.is_finite())
}

fn int_math(op: &str, x: BigInt, y: BigInt) -> Res<Val> {
    if x.bits() + y.bits() > MAX_INT_BITS {
        return fail("an integer of too many digits");
    }
    Ok(Val::int(match op {
        "+" => x + y,
        "-" => x - y,
        "*" => x * y,
        "/" | "//" | "%" if y.is_zero() => return fail("division by zero"),
        "/" => return divided(&x, &y),
        "//" => floor_divided(&x, &y).0,
        "%" => floor_divided(&x, &y).1,
        _ => return int_power(&x, &y),
    }))
}

/// The correctly rounded quotient.
fn divided(x: &BigInt, y: &BigInt) -> Res<Val> {
    let exact = |n: &BigInt| n.to_f64().filter(|_| n.bits() <= 53);
    if let (Some(x), Some(y)) = (exact(x), exact(y)) {
        return Ok(Val::Float(x / y));
    }
    // 66 bits of the quotient and a mark for what is left round as the quotient itself does.
    let shift = 66 - (x.bits() as i64 - y.bits() as i64);
    let (n, d) =
        if shift > 0 { (x.abs() << shift as u64, y.abs()) } else { (x.abs(), y.abs() << (-shift) as u64) };
    let mut quotient: BigInt = &n / &d;
    if !(&n % &d).is_zero() {
        quotient |= BigInt::from(1);
    }
    let Some(float) = quotient.to_f64() else { return fail("integer division result too large for a float") };
    let value = float * 2.0_f64.powi(i32::try_from(-shift).unwrap_or(0));
    if value.is_infinite() {
        return fail("integer division result too large for a float");
    }
    Ok(Val::Float(if x.is_negative() == y.is_negative() { value } else { -value }))
}

/// Quotient rounded down, and the rest, which has the divisor's sign.
fn floor_divided(x: &BigInt, y: &BigInt) -> (BigInt, BigInt) {
    let (quotient, rest) = (x / y, x % y);
    if !rest.is_zero() && rest.is_negative() != y.is_negative() {
        return (quotient - 1, rest + y);
    }
    (quotient, rest)
}

fn int_power(x: &BigInt, y: &BigInt) -> Res<Val> {
    if y.is_negative() {
        if x.is_zero() {
            return fail("zero to a negative power");
        }
        return float_math("**", x.to_f64().unwrap_or(0.0), y.to_f64().unwrap_or(0.0));
    }
    let small = x.bits() <= 1;
    let exponent = match y.to_u32() {
        Some(n) if small || x.bits().saturating_mul(u64::from(n)) <= MAX_INT_BITS => n,
        // 0, 1 and -1 stay what they are.
        None if small => (y % 2_u32).to_u32().unwrap_or(0) + 2,
        _ => return fail("an integer of too many digits"),
    };
    Ok(Val::int(x.pow(exponent)))
}

fn float_math(op: &str, x: f64, y: f64) -> Res<Val> {
    let rest = |x: f64, y: f64| {
        let rest = x % y;
        match rest {
            r if r != 0.0 && (r < 0.0) != (y < 0.0) => r + y,
            0.0 => 0.0_f64.copysign(y),
            r => r,
        }
    };
    Ok(Val::Float(match op {
        "+" => x + y,
        "-" => x - y,
        "*" => x * y,
        "/" | "//" | "%" if y == 0.0 => return fail("float division by zero"),
        "/" => x / y,
        "//" => {
            let quotient = (x - rest(x, y)) / y;
            let floor = quotient.floor();
            // As CPython rounds a quotient that is almost whole.
            if quotient == 0.0 {
                0.0_f64.copysign(x / y)
            } else if quotient - floor > 0.5 {
                floor + 1.0
            } else {
                floor
            }
        }
        "%" => rest(x, y),
        _ if x == 0.0 && y < 0.0 => return fail("zero to a negative power"),
        _ if x < 0.0 && x.is_finite() && y.is_finite() && y.fract() != 0.0 => {
            return fail("complex numbers are not known");
        }
        _ => {
            let power = x.powf(y);
            if power.is_infinite() && x.is_finite() && y.is_finite() {
                return fail("Result too large");
            }
            power
        }
    }))
}
