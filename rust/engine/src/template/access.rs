//! Attributes, items and slices, under the rules of Jinja's sandbox.

use std::sync::Arc;

use super::interpreter::Interpreter;
use super::value::{DictKey, Obj, Res, Val, fail};

const STR: &str = "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha \
    isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower \
    lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines \
    startswith strip swapcase title translate upper zfill encode maketrans";
const INT: &str = "as_integer_ratio bit_count bit_length conjugate is_integer to_bytes from_bytes";
const FLOAT: &str = "as_integer_ratio conjugate fromhex hex is_integer";

/// Whether a method of this name may be called on the value. Those that change a list or dict may not.
fn has_method(value: &Val, name: &str) -> bool {
    let names = match value {
        Val::Str(..) => STR,
        Val::List(_) => "copy count index",
        Val::Tuple(_) | Val::Range(..) => "count index",
        Val::Dict(_) => "copy fromkeys get items keys values",
        Val::View(..) => "isdisjoint",
        Val::Bool(_) | Val::Int(_) | Val::Big(_) => INT,
        Val::Float(_) => FLOAT,
        Val::Obj(Obj::Loop(_)) => "cycle changed",
        Val::Obj(Obj::Cycler(_)) => "next reset",
        Val::Obj(Obj::Function("dict")) => "fromkeys",
        _ => "",
    };
    names.split_whitespace().any(|n| n == name)
}

impl Interpreter<'_> {
    fn missing(&self, value: &Val, name: &str) -> Val {
        let owner = match value {
            Val::None => "'None'".to_string(),
            value => format!("'{} object'", value.type_name()),
        };
        Val::undef(format!("{owner} has no attribute '{name}'"))
    }

    /// A field or method, not an item.
    fn field(&self, value: &Val, name: &str) -> Option<Val> {
        if let Val::Obj(object) = value
            && let Some(found) = self.object_field(*object, name)
        {
            return Some(found);
        }
        let found = match (value, name) {
            (Val::Bool(_) | Val::Int(_) | Val::Big(_), "real" | "numerator") => value.as_big().map(Val::int),
            (Val::Bool(_) | Val::Int(_) | Val::Big(_), "imag") => Some(Val::Int(0)),
            (Val::Bool(_) | Val::Int(_) | Val::Big(_), "denominator") => Some(Val::Int(1)),
            (Val::Float(_), "real") => Some(value.clone()),
            (Val::Float(_), "imag") => Some(Val::Float(0.0)),
            (Val::Range(n, _, _), "start")
            | (Val::Range(_, n, _), "stop")
            | (Val::Range(_, _, n), "step") => Some(Val::Int(*n)),
            (Val::Tuple(pair), "grouper" | "list") if pair.group => {
                pair.all.get(usize::from(name == "list")).cloned()
            }
            _ => None,
        };
        found.or_else(|| has_method(value, name).then(|| Val::Method(Arc::new(value.clone()), name.into())))
    }

    fn object_field(&self, object: Obj, name: &str) -> Option<Val> {
        let count = |n: usize| Some(Val::Int(n as i64));
        match object {
            Obj::Namespace(at) => self.namespaces.get(at)?.get(name).cloned(),
            Obj::Cycler(at) if name == "current" => {
                let (items, place) = self.cyclers.get(at)?;
                items.get(*place).cloned()
            }
            Obj::Macro(at) => {
                let decl = self.macros.get(at)?.decl;
                match name {
                    "name" => Some(Val::Str(decl.name.clone(), false)),
                    "arguments" => {
                        Val::tuple(decl.params.iter().map(|p| Val::Str(p.clone(), false)).collect()).ok()
                    }
                    "catch_kwargs" => Some(Val::Bool(decl.uses_kwargs)),
                    "catch_varargs" => Some(Val::Bool(decl.uses_varargs)),
                    "caller" => Some(Val::Bool(decl.uses_caller)),
                    _ => None,
                }
            }
            Obj::Loop(at) => {
                let state = self.loops.get(at)?;
                let (index, length) = (state.index, state.items.len());
                match name {
                    "index" => count(index + 1),
                    "index0" => count(index),
                    "revindex" => count(length - index),
                    "revindex0" => count(length - index - 1),
                    "first" => Some(Val::Bool(index == 0)),
                    "last" => Some(Val::Bool(index + 1 == length)),
                    "length" => count(length),
                    "depth" => count(state.depth + 1),
                    "depth0" => count(state.depth),
                    "previtem" => Some(match index.checked_sub(1) {
                        Some(before) => state.items[before].clone(),
                        None => Val::undef("there is no previous item"),
                    }),
                    "nextitem" => Some(match state.items.get(index + 1) {
                        Some(after) => after.clone(),
                        None => Val::undef("there is no next item"),
                    }),
                    _ => None,
                }
            }
            Obj::Blocks => {
                let (name, _) = self.blocks.get_key_value(name)?;
                Some(Val::Method(Arc::new(Val::Obj(Obj::Blocks)), name.clone()))
            }
            _ => None,
        }
    }

    /// value.name
    pub fn attribute(&mut self, value: &Val, name: &str) -> Res<Val> {
        value.defined()?;
        if name.starts_with('_') && !matches!(value, Val::Dict(_)) {
            return Ok(Val::undef(format!(
                "access to attribute '{name}' of '{}' object is unsafe.",
                value.type_name()
            )));
        }
        if let Some(found) = self.field(value, name) {
            return Ok(found);
        }
        if let Val::Dict(dict) = value {
            let hidden = ["clear", "pop", "popitem", "setdefault", "update"].contains(&name);
            if let Some(found) = dict.get(name).filter(|_| !hidden) {
                return Ok(found.clone());
            }
        }
        Ok(self.missing(value, name))
    }

    /// value[key]
    pub fn item(&mut self, value: &Val, key: &Val) -> Res<Val> {
        value.defined()?;
        self.charge(key.size() / 16)?;
        let found = match value {
            Val::Dict(dict) => DictKey::of(key.clone()).ok().and_then(|key| dict.map.get(&key).cloned()),
            Val::Str(text, safe) => {
                self.charge_bytes(text.len())?;
                let place = place(key, || text.chars().count());
                let found = place.and_then(|n| text.chars().nth(n));
                found.map(|c| Val::Str(c.to_string().into(), *safe))
            }
            Val::List(l) | Val::Tuple(l) => place(key, || l.all.len()).and_then(|n| l.all.get(n).cloned()),
            Val::Range(start, _, step) => place(key, || value.range_len())
                .filter(|n| *n < value.range_len())
                .map(|n| Val::Int(start + step * n as i64)),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        match key {
            Val::Str(name, _) if !name.starts_with('_') => {
                let found = self.field(value, name);
                Ok(found.unwrap_or_else(|| self.missing(value, name)))
            }
            _ => {
                let name = self.repr(key)?;
                Ok(Val::undef(format!("{} object has no element {name}", value.type_name())))
            }
        }
    }

    /// value[start:stop:step]
    pub fn slice(&mut self, value: &Val, bounds: &[Val]) -> Res<Val> {
        value.defined()?;
        let Some(length) = value.len().filter(|_| !matches!(value, Val::Dict(_) | Val::View(..))) else {
            return fail(format!("'{}' object is not subscriptable", value.type_name()));
        };
        let mut given = [None; 3];
        for (place, bound) in given.iter_mut().zip(bounds) {
            *place = match bound {
                Val::None => None,
                bound => match bound.as_i64() {
                    Some(n) => Some(n),
                    None => return fail("slice indices must be integers or None"),
                },
            };
        }
        let (start, count, step) = places(given, length)?;
        self.charge(length / 16)?;
        let all = (0..count).map(|i| (start + i as i64 * step) as usize);
        match value {
            Val::Str(text, safe) => {
                let chars: Vec<char> = text.chars().collect();
                let text: String = all.filter_map(|i| chars.get(i)).collect();
                Ok(Val::Str(text.into(), *safe))
            }
            Val::Range(first, _, by) => {
                // One element or none has any step.
                let step_of = if count > 1 { step } else { step.signum() };
                let range = Val::Range(first + by * start, 0, by * step_of);
                Ok(exact_stop(range, *first, *by, given, length, step))
            }
            Val::List(l) => Val::list(all.filter_map(|i| l.all.get(i).cloned()).collect()),
            Val::Tuple(l) => Val::tuple(all.filter_map(|i| l.all.get(i).cloned()).collect()),
            _ => fail("only sequences are sliced"),
        }
    }
}

/// A range whose stop is the one that Python gives to a sliced range.
fn exact_stop(range: Val, first: i64, by: i64, given: [Option<i64>; 3], length: usize, step: i64) -> Val {
    let Val::Range(begin, _, whole_step) = range else { return range };
    let bound = |n: i64| if n < 0 { n + length as i64 } else { n };
    let stop = match given[1] {
        Some(n) if step > 0 => bound(n).clamp(0, length as i64),
        Some(n) => bound(n).clamp(-1, length as i64 - 1),
        None if step > 0 => length as i64,
        None => -1,
    };
    Val::Range(begin, first + by * stop, whole_step)
}

/// The place that an index means in a sequence.
fn place(key: &Val, length: impl FnOnce() -> usize) -> Option<usize> {
    let n = key.as_i64()?;
    if n >= 0 {
        usize::try_from(n).ok()
    } else {
        length().checked_sub(usize::try_from(n.unsigned_abs()).ok()?)
    }
}

/// First place, number of places and step of a slice.
fn places(bounds: [Option<i64>; 3], length: usize) -> Res<(i64, usize, i64)> {
    let length = length as i64;
    let step = bounds[2].unwrap_or(1);
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |n: i64| (if n < 0 { n.saturating_add(length) } else { n }).clamp(low, high);
    let start = bounds[0].map_or(if step > 0 { low } else { high }, bound);
    let stop = bounds[1].map_or(if step > 0 { high } else { low }, bound);
    let distance = if step > 0 { stop - start } else { start - stop };
    let wide = step.unsigned_abs();
    let count = u64::try_from(distance).map_or(0, |d| d.div_ceil(wide));
    // A step beyond the sequence takes one place: a small one does the same and cannot overflow.
    let step = if wide > length.unsigned_abs() { step.signum() * (length + 1) } else { step };
    Ok((start, count as usize, step))
}
