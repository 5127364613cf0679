//! Values of templates, as Python has them.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};

/// What a template cannot do, in words.
#[derive(Clone, Debug)]
pub struct JinjaError(pub String);

pub type Res<T> = Result<T, JinjaError>;

/// An error with this text.
pub fn fail<T>(text: impl Into<String>) -> Res<T> {
    Err(JinjaError(text.into()))
}

/// Deepest nesting of lists and dicts. Everything that walks values recursively relies on it.
pub const MAX_DEPTH: u16 = 200;
/// Most values that one list or dict holds, with all that they hold.
const MAX_SIZE: usize = 4 << 20;
/// Most values in a tuple that is a key.
const MAX_KEY: usize = 1000;
/// Widest field that is filled.
pub const MAX_WIDTH: i64 = 1 << 20;
/// Most bits of an integer.
pub const MAX_INT_BITS: u64 = 1 << 15;

#[derive(Clone)]
pub enum Val {
    /// Undefined, with the message of the error that its use gives.
    Undef(Arc<str>),
    None,
    Bool(bool),
    Int(i64),
    /// Beyond 64 bits.
    Big(Arc<BigInt>),
    Float(f64),
    /// A text, and whether it counts as escaped.
    Str(Arc<str>, bool),
    List(Arc<Items>),
    Tuple(Arc<Items>),
    Dict(Arc<Dict>),
    /// `dict.keys()`, `.values()` or `.items()`, by that name.
    View(&'static str, Arc<Dict>),
    /// start, stop, step
    Range(i64, i64, i64),
    /// A generator: its values come once.
    Iter(Arc<Mutex<std::vec::IntoIter<Val>>>),
    /// A function, or an object that the interpreter keeps.
    Obj(Obj),
    /// A method with the value that it belongs to.
    Method(Arc<Val>, Arc<str>),
}

/// Objects that the interpreter keeps, by their place there, and functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obj {
    Namespace(usize),
    Loop(usize),
    Cycler(usize),
    Joiner(usize),
    Macro(usize),
    /// A global function by its name.
    Function(&'static str),
    /// `self`, which has the blocks.
    Blocks,
}

pub struct Items {
    pub all: Vec<Val>,
    extent: Extent,
    /// A pair of `groupby`, whose fields have names.
    pub group: bool,
}

#[derive(Default)]
pub struct Dict {
    pub map: IndexMap<DictKey, Val>,
    extent: Extent,
}

/// How deep a value nests, and how many values it holds with all that they hold.
#[derive(Clone, Copy, Default)]
struct Extent {
    depth: u16,
    size: usize,
}

impl Val {
    pub fn str(text: impl Into<Arc<str>>) -> Val {
        Val::Str(text.into(), false)
    }

    pub fn undef(text: impl Into<String>) -> Val {
        Val::Undef(text.into().into())
    }

    pub fn int(n: BigInt) -> Val {
        n.to_i64().map_or_else(|| Val::Big(Arc::new(n)), Val::Int)
    }

    pub fn list(all: Vec<Val>) -> Res<Val> {
        Ok(Val::List(Items::new(all, false)?))
    }

    pub fn tuple(all: Vec<Val>) -> Res<Val> {
        Ok(Val::Tuple(Items::new(all, false)?))
    }

    pub fn group(key: Val, list: Val) -> Res<Val> {
        Ok(Val::Tuple(Items::new(vec![key, list], true)?))
    }

    pub fn dict(map: IndexMap<DictKey, Val>) -> Res<Val> {
        Ok(Val::Dict(Arc::new(Dict { extent: extent_of(map.values())?, map })))
    }

    pub fn iter(all: Vec<Val>) -> Val {
        Val::Iter(Arc::new(Mutex::new(all.into_iter())))
    }

    /// The name of the value's type in Python.
    pub fn type_name(&self) -> &'static str {
        match self {
            Val::Undef(_) => "Undefined",
            Val::None => "NoneType",
            Val::Bool(_) => "bool",
            Val::Int(_) | Val::Big(_) => "int",
            Val::Float(_) => "float",
            Val::Str(..) => "str",
            Val::List(_) => "list",
            Val::Tuple(_) => "tuple",
            Val::Dict(_) => "dict",
            Val::View(name, _) => name,
            Val::Range(..) => "range",
            Val::Iter(_) => "generator",
            Val::Obj(Obj::Namespace(_)) => "Namespace",
            Val::Obj(Obj::Loop(_)) => "LoopContext",
            Val::Obj(Obj::Cycler(_)) => "Cycler",
            Val::Obj(Obj::Joiner(_)) => "Joiner",
            Val::Obj(Obj::Macro(_)) => "Macro",
            Val::Obj(_) | Val::Method(..) => "function",
        }
    }

    pub fn truth(&self) -> bool {
        match self {
            Val::Undef(_) | Val::None => false,
            Val::Bool(b) => *b,
            Val::Int(n) => *n != 0,
            Val::Float(x) => *x != 0.0,
            Val::Str(s, _) => !s.is_empty(),
            Val::List(l) | Val::Tuple(l) => !l.all.is_empty(),
            Val::Dict(d) | Val::View(_, d) => !d.map.is_empty(),
            Val::Range(..) => self.range_len() > 0,
            Val::Big(_) | Val::Iter(_) | Val::Obj(_) | Val::Method(..) => true,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Val::Str(s, _) => Some(s),
            _ => None,
        }
    }

    /// The value as an integer, if it is one (True is 1).
    pub fn as_big(&self) -> Option<BigInt> {
        match self {
            Val::Bool(b) => Some(BigInt::from(i64::from(*b))),
            Val::Int(n) => Some(BigInt::from(*n)),
            Val::Big(n) => Some((**n).clone()),
            _ => None,
        }
    }

    /// The value as a number of 64 bits, if it is an integer; larger ones are cut to the bounds.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Val::Bool(b) => Some(i64::from(*b)),
            Val::Int(n) => Some(*n),
            Val::Big(n) => Some(if n.is_negative() { i64::MIN } else { i64::MAX }),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Val::Float(x) => Some(*x),
            Val::Big(n) => n.to_f64(),
            _ => self.as_i64().map(|n| n as f64),
        }
    }

    pub fn is_number(&self) -> bool {
        matches!(self, Val::Bool(_) | Val::Int(_) | Val::Big(_) | Val::Float(_))
    }

    pub fn range_len(&self) -> usize {
        let Val::Range(start, stop, step) = self else { return 0 };
        let (start, stop, step) = (i128::from(*start), i128::from(*stop), i128::from(*step));
        let n = if step > 0 { (stop - start + step - 1) / step } else { (start - stop - step - 1) / -step };
        usize::try_from(n.max(0)).unwrap_or(usize::MAX)
    }

    /// Number of elements; None if the value has none.
    pub fn len(&self) -> Option<usize> {
        Some(match self {
            Val::Undef(_) => 0,
            Val::Str(s, _) => s.chars().count(),
            Val::List(l) | Val::Tuple(l) => l.all.len(),
            Val::Dict(d) | Val::View(_, d) => d.map.len(),
            Val::Range(..) => self.range_len(),
            _ => return None,
        })
    }

    /// The elements that `iter` gives; a generator is used up.
    pub fn elements(&self) -> Res<Vec<Val>> {
        Ok(match self {
            Val::Undef(_) => Vec::new(),
            Val::Str(s, safe) => s.chars().map(|c| Val::Str(c.to_string().into(), *safe)).collect(),
            Val::List(l) | Val::Tuple(l) => l.all.clone(),
            Val::Dict(d) | Val::View("dict_keys", d) => d.map.keys().map(|k| k.0.clone()).collect(),
            Val::View("dict_values", d) => d.map.values().cloned().collect(),
            Val::View(_, d) => {
                let pairs = d.map.iter().map(|(k, v)| Val::tuple(vec![k.0.clone(), v.clone()]));
                pairs.collect::<Res<_>>()?
            }
            Val::Range(start, _, step) => {
                (0..self.range_len()).map(|i| Val::Int(start + step * i as i64)).collect()
            }
            Val::Iter(rest) => match rest.lock() {
                Ok(mut rest) => std::mem::take(&mut *rest).collect(),
                Err(_) => Vec::new(),
            },
            _ => return fail(format!("'{}' object is not iterable", self.type_name())),
        })
    }

    /// Error of an undefined value that is used.
    pub fn defined(&self) -> Res<&Val> {
        match self {
            Val::Undef(why) => fail(why.to_string()),
            value => Ok(value),
        }
    }

    /// How many values this one holds, with all that they hold.
    pub fn size(&self) -> usize {
        self.extent().size
    }

    fn extent(&self) -> Extent {
        match self {
            Val::List(l) | Val::Tuple(l) => l.extent,
            Val::Dict(d) | Val::View(_, d) => d.extent,
            Val::Method(owner, _) => owner.extent(),
            Val::Iter(rest) => {
                let full = Extent { depth: MAX_DEPTH, size: MAX_SIZE };
                rest.lock().map_or(full, |r| extent_of(r.as_slice().iter()).unwrap_or(full))
            }
            Val::Str(text, _) => Extent { depth: 0, size: 1 + text.len() / 64 },
            _ => Extent { depth: 0, size: 1 },
        }
    }
}

impl Items {
    fn new(all: Vec<Val>, group: bool) -> Res<Arc<Items>> {
        Ok(Arc::new(Items { extent: extent_of(all.iter())?, all, group }))
    }
}

fn extent_of<'a>(values: impl Iterator<Item = &'a Val>) -> Res<Extent> {
    let mut whole = Extent { depth: 0, size: 1 };
    for extent in values.map(Val::extent) {
        whole.depth = whole.depth.max(extent.depth);
        whole.size = whole.size.saturating_add(extent.size);
    }
    whole.depth += 1;
    if whole.depth > MAX_DEPTH {
        return fail(format!("lists and dicts are nested deeper than {MAX_DEPTH}"));
    }
    if whole.size > MAX_SIZE {
        return fail(format!("a list or dict holds more than {MAX_SIZE} values"));
    }
    Ok(whole)
}

impl Dict {
    pub fn get(&self, key: &str) -> Option<&Val> {
        self.map.get(&DictKey(Val::str(key)))
    }
}

/// A key of a dict: 1, 1.0 and True are one key, as in Python.
#[derive(Clone)]
pub struct DictKey(pub Val);

impl DictKey {
    /// # Errors
    /// Lists and dicts are no keys.
    pub fn of(value: Val) -> Res<DictKey> {
        match &value {
            Val::List(_) | Val::Dict(_) => fail(format!("unhashable type: '{}'", value.type_name())),
            Val::Tuple(l) if l.extent.size > MAX_KEY => fail("a key of too many values"),
            Val::Tuple(l) => {
                for item in &l.all {
                    DictKey::of(item.clone())?;
                }
                Ok(DictKey(value))
            }
            _ => Ok(DictKey(value)),
        }
    }
}

impl Hash for DictKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Val::Str(s, _) => s.hash(state),
            Val::Tuple(l) => l.all.iter().for_each(|v| DictKey(v.clone()).hash(state)),
            value => match value.as_f64() {
                Some(x) if x.is_zero() => 0_u64.hash(state),
                Some(x) => x.to_bits().hash(state),
                None => value.type_name().hash(state),
            },
        }
    }
}
