//! Global functions, and the methods of lists, dicts, numbers and Jinja's own objects.

use std::fmt::Write;
use std::sync::Arc;

use indexmap::IndexMap;

use super::args::{Arguments, int, text};
use super::interpreter::Interpreter;
use super::ops::equal;
use super::value::{Dict, DictKey, Obj, Res, Val, fail};

const FUNCTIONS: [&str; 8] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];
/// Longest range, as Jinja's sandbox bounds it.
const MAX_RANGE: usize = 100_000;

/// The global of this name.
pub fn global(name: &str) -> Option<Val> {
    if name == "self" {
        return Some(Val::Obj(Obj::Blocks));
    }
    FUNCTIONS.iter().find(|f| **f == name).map(|f| Val::Obj(Obj::Function(f)))
}

/// # Errors
/// A namespace takes no names with an underscore in front, as in transformers.
pub fn check_field(name: &str) -> Res<()> {
    if name.starts_with('_') {
        return fail(format!("a namespace stores no name with an underscore in front: rename '{name}'"));
    }
    Ok(())
}

impl Interpreter<'_> {
    pub fn function(&mut self, name: &str, arguments: Arguments) -> Res<Val> {
        match name {
            "range" => range(&arguments),
            "dict" => Val::dict(self.dict_of(arguments)?),
            "namespace" => {
                let mut fields = IndexMap::new();
                for (key, value) in self.dict_of(arguments)? {
                    let Some(key) = key.0.as_str() else { return fail("names of a namespace are strings") };
                    check_field(key)?;
                    fields.insert(Arc::from(key), value);
                }
                self.namespaces.push(fields);
                Ok(Val::Obj(Obj::Namespace(self.namespaces.len() - 1)))
            }
            "cycler" => {
                if arguments.all.is_empty() || !arguments.named.is_empty() {
                    return fail("at least one item has to be provided");
                }
                self.cyclers.push((arguments.all, 0));
                Ok(Val::Obj(Obj::Cycler(self.cyclers.len() - 1)))
            }
            "joiner" => {
                let [separator] = arguments.bind("joiner", ["sep"], 0)?;
                self.joiners.push((separator.unwrap_or_else(|| Val::str(", ")), false));
                Ok(Val::Obj(Obj::Joiner(self.joiners.len() - 1)))
            }
            "lipsum" => self.lipsum(&arguments),
            "raise_exception" => {
                let [message] = arguments.bind(name, ["message"], 1)?;
                let message = message.unwrap_or(Val::None);
                fail(self.text(&message)?)
            }
            _ => strftime_now(&arguments),
        }
    }

    /// dict(mapping or pairs, name=value, ...)
    fn dict_of(&mut self, arguments: Arguments) -> Res<IndexMap<DictKey, Val>> {
        let mut map = IndexMap::new();
        match &arguments.all[..] {
            [] => {}
            [Val::Dict(dict)] => {
                self.charge(dict.map.len())?;
                map = dict.map.clone();
            }
            [Val::Obj(Obj::Namespace(_))] => return fail("'Namespace' object is not iterable"),
            [pairs] => {
                for pair in self.elements(pairs)? {
                    match &self.elements(&pair)?[..] {
                        [key, value] => drop(map.insert(DictKey::of(key.clone())?, value.clone())),
                        other => {
                            return fail(format!("dictionary update sequence has length {}", other.len()));
                        }
                    }
                }
            }
            _ => return fail("dict expected at most 1 argument"),
        }
        for (name, value) in arguments.named {
            map.insert(DictKey(Val::Str(name, false)), value);
        }
        Ok(map)
    }

    /// Some words of no meaning.
    fn lipsum(&mut self, arguments: &Arguments) -> Res<Val> {
        const WORDS: [&str; 12] = [
            "lorem",
            "ipsum",
            "dolor",
            "sit",
            "amet",
            "consectetur",
            "adipiscing",
            "elit",
            "sed",
            "magna",
            "urna",
            "vitae",
        ];
        let [n, html, min, max] = arguments.bind("lipsum", ["n", "html", "min", "max"], 0)?;
        let (n, min, max) = (int(&n, 5)?.max(0), int(&min, 20)?, int(&max, 100)?);
        let html = html.is_none_or(|v| v.truth());
        if min >= max || min < 0 {
            return fail("lipsum: an empty range of lengths");
        }
        let mut parts = Vec::new();
        for _ in 0..n {
            self.charge(usize::try_from(max).unwrap_or(usize::MAX))?;
            let words: Vec<&str> = (0..min.max(1)).map(|_| WORDS[self.draw(WORDS.len())]).collect();
            let text = super::text_methods::capitalized(&words.join(" ")) + ".";
            parts.push(if html { format!("<p>{text}</p>") } else { text });
        }
        Ok(Val::Str(parts.join(if html { "\n" } else { "\n\n" }).into(), html))
    }

    /// A number below `bound`, of no quality.
    pub fn draw(&mut self, bound: usize) -> usize {
        if self.random == 0 {
            use std::hash::{BuildHasher, Hasher, RandomState};
            self.random = RandomState::new().build_hasher().finish() | 1;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % bound.max(1) as u64).unwrap_or(0)
    }

    /// Calls a method that `attribute` found.
    pub fn method(&mut self, owner: &Val, name: &str, arguments: &Arguments) -> Res<Val> {
        match owner {
            Val::Str(text, safe) => self.text_method(text, *safe, name, arguments),
            Val::List(_) | Val::Tuple(_) | Val::Range(..) => self.sequence_method(owner, name, arguments),
            Val::Dict(dict) => self.dict_method(dict, name, arguments),
            Val::View(..) => {
                let [other] = arguments.bind(name, [""], 1)?;
                let other = self.elements(&other.unwrap_or(Val::None))?;
                Ok(Val::Bool(!self.elements(owner)?.iter().any(|v| other.iter().any(|w| equal(v, w)))))
            }
            Val::Obj(Obj::Function(_)) => self.keyed(arguments),
            Val::Obj(Obj::Blocks) => {
                let Some(body) = self.blocks.get(name).copied() else { return fail("no such block") };
                arguments.none(name)?;
                let mut text = String::new();
                self.nested(|i| i.in_scope(0, |i| i.run(body, &mut text)))?;
                self.charge_bytes(text.len())?;
                Ok(Val::str(text))
            }
            Val::Obj(Obj::Cycler(at)) => {
                arguments.none(name)?;
                let (items, place) = &mut self.cyclers[*at];
                if name == "reset" {
                    *place = 0;
                    return Ok(Val::None);
                }
                let item = items[*place].clone();
                *place = (*place + 1) % items.len();
                Ok(item)
            }
            Val::Obj(Obj::Loop(at)) => self.loop_method(*at, name, arguments),
            _ => super::number_methods::call(owner, name, arguments),
        }
    }

    fn loop_method(&mut self, at: usize, name: &str, arguments: &Arguments) -> Res<Val> {
        if let Some((name, _)) = arguments.named.first() {
            return fail(format!("got an unexpected keyword argument '{name}'"));
        }
        let state = &mut self.loops[at];
        if name == "cycle" {
            return match arguments.all.len() {
                0 => fail("no items for cycling given"),
                n => Ok(arguments.all[state.index % n].clone()),
            };
        }
        let given = &arguments.all;
        let same =
            |old: &Vec<Val>| old.len() == given.len() && old.iter().zip(given).all(|(a, b)| equal(a, b));
        let changed = !state.changed.as_ref().is_some_and(same);
        state.changed = Some(given.clone());
        self.charge(given.iter().map(Val::size).sum::<usize>() / 16)?;
        Ok(Val::Bool(changed))
    }

    fn sequence_method(&mut self, owner: &Val, name: &str, arguments: &Arguments) -> Res<Val> {
        if name == "copy" {
            arguments.none(name)?;
            return Ok(owner.clone());
        }
        self.charge(owner.size() / 16)?;
        let all = self.elements(owner)?;
        let [item, start, stop] = arguments.bind(name, ["", "", ""], 1)?;
        let item = item.unwrap_or(Val::None);
        if name == "count" {
            if start.is_some() {
                return fail("count() takes exactly one argument");
            }
            return Ok(Val::Int(all.iter().filter(|v| equal(v, &item)).count() as i64));
        }
        let bound = |n: i64| if n < 0 { (n + all.len() as i64).max(0) } else { n.min(all.len() as i64) };
        let (start, stop) = (bound(int(&start, 0)?), bound(int(&stop, i64::MAX)?));
        let range = start as usize..(stop.max(start)) as usize;
        match all[range].iter().position(|v| equal(v, &item)) {
            Some(place) => Ok(Val::Int(start + place as i64)),
            None => fail("the value is not in list"),
        }
    }

    fn dict_method(&mut self, dict: &Arc<Dict>, name: &str, arguments: &Arguments) -> Res<Val> {
        match name {
            "get" => {
                let [key, default] = arguments.bind(name, ["", ""], 1)?;
                let key = DictKey::of(key.unwrap_or(Val::None))?;
                self.charge(key.0.size() / 16)?;
                let found = dict.map.get(&key).cloned();
                Ok(found.or(default).unwrap_or(Val::None))
            }
            "fromkeys" => self.keyed(arguments),
            _ => {
                arguments.none(name)?;
                Ok(match name {
                    "keys" => Val::View("dict_keys", dict.clone()),
                    "values" => Val::View("dict_values", dict.clone()),
                    "items" => Val::View("dict_items", dict.clone()),
                    _ => Val::Dict(dict.clone()),
                })
            }
        }
    }

    fn keyed(&mut self, arguments: &Arguments) -> Res<Val> {
        let [keys, value] = arguments.bind("fromkeys", ["", ""], 1)?;
        let value = value.unwrap_or(Val::None);
        let keys = self.elements(&keys.unwrap_or(Val::None))?;
        self.charge(keys.len())?;
        let pairs = keys.into_iter().map(|key| Ok((DictKey::of(key)?, value.clone())));
        Val::dict(pairs.collect::<Res<_>>()?)
    }
}

fn range(arguments: &Arguments) -> Res<Val> {
    let [a, b, step] = arguments.bind("range", ["", "", ""], 1)?;
    let (first, step) = (int(&a, 0)?, int(&step, 1)?);
    let (start, stop) = match b {
        None => (0, first),
        b => (first, int(&b, 0)?),
    };
    let bound = 1 << 40;
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    if [start, stop, step].iter().any(|n| n.abs() > bound) {
        return fail("range(): a bound of too many digits");
    }
    let range = Val::Range(start, stop, step);
    if range.range_len() > MAX_RANGE {
        return fail(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        ));
    }
    Ok(range)
}

fn strftime_now(arguments: &Arguments) -> Res<Val> {
    let [format] = arguments.bind("strftime_now", ["format"], 1)?;
    let format = text(&format, "")?;
    let mut out = String::new();
    match write!(out, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(Val::str(out)),
        Err(_) => fail(format!("strftime_now: bad format {format:?}")),
    }
}
