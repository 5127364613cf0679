//! Jinja's tests: what stands after `is`.

use super::args::Arguments;
use super::interpreter::Interpreter;
use super::value::{Obj, Res, Val, fail};

const TESTS: &str = "odd even divisibleby defined undefined filter test none boolean false true integer float lower \
    upper string mapping number sequence iterable callable sameas escaped in == eq equalto != ne > gt greaterthan ge \
    >= < lt lessthan <= le";

/// Whether there is a test of this name.
pub fn known(name: &str) -> bool {
    TESTS.split_whitespace().any(|test| test == name)
}

impl Interpreter<'_> {
    /// `value is name(arguments)`
    pub fn test(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<bool> {
        let operator = match name {
            "==" | "eq" | "equalto" => "==",
            "!=" | "ne" => "!=",
            ">" | "gt" | "greaterthan" => ">",
            ">=" | "ge" => ">=",
            "<" | "lt" | "lessthan" => "<",
            "<=" | "le" => "<=",
            _ => "",
        };
        if !operator.is_empty() {
            let [other] = arguments.bind(name, [""], 1)?;
            return self.compare(operator, value, &other.unwrap_or(Val::None));
        }
        match name {
            "in" => {
                let [container] = arguments.bind(name, ["seq"], 1)?;
                return self.contains(&container.unwrap_or(Val::None), value);
            }
            "sameas" => {
                let [other] = arguments.bind(name, ["other"], 1)?;
                return Ok(same(value, &other.unwrap_or(Val::None)));
            }
            "divisibleby" => {
                let [by] = arguments.bind(name, ["num"], 1)?;
                let rest = self.math("%", value, &by.unwrap_or(Val::None))?;
                return self.compare("==", &rest, &Val::Int(0));
            }
            "odd" | "even" => {
                arguments.none(name)?;
                let rest = self.math("%", value, &Val::Int(2))?;
                return self.compare("==", &rest, &Val::Int(i64::from(name == "odd")));
            }
            "lower" | "upper" => {
                arguments.none(name)?;
                let text = self.text(value)?;
                let (upper, lower) = super::text_methods::cases(&text);
                return Ok(if name == "upper" { upper && !lower } else { lower && !upper });
            }
            "filter" => {
                arguments.none(name)?;
                return Ok(value.as_str().is_some_and(super::filters::known));
            }
            "test" => {
                arguments.none(name)?;
                return Ok(value.as_str().is_some_and(known));
            }
            _ if !known(name) => return fail(format!("No test named '{name}'.")),
            _ => arguments.none(name)?,
        }
        Ok(kind(name, value))
    }
}

/// Tests of what a value is.
fn kind(name: &str, value: &Val) -> bool {
    let listed = matches!(value, Val::Str(..) | Val::List(_) | Val::Tuple(_) | Val::Dict(_) | Val::Undef(_));
    match name {
        "defined" => !matches!(value, Val::Undef(_)),
        "undefined" => matches!(value, Val::Undef(_)),
        "none" => matches!(value, Val::None),
        "boolean" => matches!(value, Val::Bool(_)),
        "true" => matches!(value, Val::Bool(true)),
        "false" => matches!(value, Val::Bool(false)),
        "integer" => matches!(value, Val::Int(_) | Val::Big(_)),
        "float" => matches!(value, Val::Float(_)),
        "number" => value.is_number(),
        "string" => matches!(value, Val::Str(..)),
        "mapping" => matches!(value, Val::Dict(_)),
        "sequence" => listed || matches!(value, Val::Range(..)),
        "iterable" => {
            listed || matches!(value, Val::Range(..) | Val::View(..) | Val::Iter(_) | Val::Obj(Obj::Loop(_)))
        }
        "escaped" => matches!(value, Val::Str(_, true)),
        _ => match value {
            Val::Undef(_) | Val::Method(..) => true,
            Val::Obj(object) => !matches!(object, Obj::Namespace(_) | Obj::Cycler(_) | Obj::Blocks),
            _ => false,
        },
    }
}

/// `is`, as far as it can be known of values: equal texts and small integers are one object.
fn same(a: &Val, b: &Val) -> bool {
    match (a, b) {
        (Val::List(a), Val::List(b)) | (Val::Tuple(a), Val::Tuple(b)) => std::sync::Arc::ptr_eq(a, b),
        (Val::Dict(a), Val::Dict(b)) => std::sync::Arc::ptr_eq(a, b),
        (Val::None, Val::None) => true,
        _ => a.type_name() == b.type_name() && super::ops::equal(a, b),
    }
}
