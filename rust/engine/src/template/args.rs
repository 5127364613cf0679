//! Arguments of calls.

use std::sync::Arc;

use super::value::{Res, Val, fail};

#[derive(Default)]
pub struct Arguments {
    pub all: Vec<Val>,
    pub named: Vec<(Arc<str>, Val)>,
}

impl Arguments {
    pub fn add_named(&mut self, name: Arc<str>, value: Val) -> Res<()> {
        if self.named.iter().any(|(n, _)| *n == name) {
            return fail(format!("got multiple values for keyword argument '{name}'"));
        }
        self.named.push((name, value));
        Ok(())
    }

    /// The arguments of a function with these parameters, of which the first `required` must be given. A parameter without
    /// a name is taken by its place only.
    pub fn bind<const N: usize>(
        &self,
        function: &str,
        params: [&str; N],
        required: usize,
    ) -> Res<[Option<Val>; N]> {
        if self.all.len() > N {
            return fail(format!("{function}() takes at most {N} arguments, {} are given", self.all.len()));
        }
        let mut bound: [Option<Val>; N] = std::array::from_fn(|i| self.all.get(i).cloned());
        for (name, value) in &self.named {
            match params.iter().position(|p| !p.is_empty() && **p == **name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value.clone()),
                Some(_) => return fail(format!("{function}() got multiple values for argument '{name}'")),
                None => return fail(format!("{function}() got an unexpected keyword argument '{name}'")),
            }
        }
        match bound.iter().take(required).position(Option::is_none) {
            Some(at) => fail(format!("{function}() misses its argument {} {}", at + 1, params[at])),
            None => Ok(bound),
        }
    }

    /// No argument at all.
    pub fn none(&self, function: &str) -> Res<()> {
        self.bind(function, [], 0).map(|[]| ())
    }
}

/// The argument as an integer.
pub fn int(value: &Option<Val>, default: i64) -> Res<i64> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_i64() {
            Some(n) => Ok(n),
            None => fail(format!("'{}' object cannot be interpreted as an integer", value.type_name())),
        },
    }
}

/// The argument as an integer, where None stands for the default too.
pub fn int_or_none(value: &Option<Val>, default: i64) -> Res<i64> {
    if matches!(value, Some(Val::None)) { Ok(default) } else { int(value, default) }
}

/// The argument's truth.
pub fn truth(value: &Option<Val>, default: bool) -> bool {
    value.as_ref().map_or(default, Val::truth)
}

/// The argument as a text.
pub fn text<'a>(value: &'a Option<Val>, default: &'a str) -> Res<&'a str> {
    match value {
        None => Ok(default),
        Some(Val::Str(text, _)) => Ok(text),
        Some(Val::Undef(why)) => fail(why.to_string()),
        Some(value) => fail(format!("expected a string, got {}", value.type_name())),
    }
}

/// The argument as a text; None where it is not given or none.
pub fn text_or_none(value: &Option<Val>) -> Res<Option<&str>> {
    match value {
        None | Some(Val::None) => Ok(None),
        value => text(value, "").map(Some),
    }
}
