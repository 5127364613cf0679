//! Filters of lists.

use std::cmp::Ordering;

use indexmap::IndexSet;

use super::args::{Arguments, int, text, truth};
use super::interpreter::Interpreter;
use super::ops::{equal, order};
use super::sorting::sorted;
use super::value::{DictKey, Res, Val, fail};

/// Names of an attribute, as in "address.city".
type Path = Vec<Val>;

fn path(attribute: &Val) -> Path {
    match attribute {
        Val::Str(text, _) => text
            .split('.')
            .map(|part| match part.parse() {
                Ok(n) if part.bytes().all(|b| b.is_ascii_digit()) => Val::Int(n),
                _ => Val::str(part),
            })
            .collect(),
        Val::None => Vec::new(),
        other => vec![other.clone()],
    }
}

impl Interpreter<'_> {
    fn follow(&mut self, item: &Val, path: &Path, default: Option<&Val>) -> Res<Val> {
        let mut item = item.clone();
        for part in path {
            self.step()?;
            item = self.item(&item, part)?;
            if let (Val::Undef(_), Some(default)) = (&item, default) {
                item = default.clone();
            }
        }
        Ok(item)
    }

    /// Sorts values by keys; the order of equal ones stays.
    fn sorted(&mut self, keyed: Vec<(Vec<Val>, Val)>, reverse: bool) -> Res<Vec<Val>> {
        let length = keyed.len();
        self.charge(length.saturating_mul(length.max(1).ilog2() as usize + 1) / 8)?;
        let largest = keyed.iter().flat_map(|(keys, _)| keys).map(Val::size).max().unwrap_or(0);
        self.charge((largest / 16).saturating_mul(length))?;
        let mut less = |a: &(Vec<Val>, Val), b: &(Vec<Val>, Val)| {
            for (a, b) in a.0.iter().zip(&b.0) {
                if !equal(a, b) {
                    return Ok(order(a, b, "<")? == Some(Ordering::Less));
                }
            }
            // One key without an order, such as none, is refused even beside its like.
            match (&a.0[..], &b.0[..]) {
                ([a], [b]) => Ok(order(a, b, "<")? == Some(Ordering::Less)),
                _ => Ok(false),
            }
        };
        let done = match reverse {
            true => sorted(keyed, &mut |a, b| less(b, a)),
            false => sorted(keyed, &mut less),
        };
        Ok(done?.into_iter().map(|(_, value)| value).collect())
    }

    /// Texts in small letters; other values as they are.
    fn without_case(&mut self, value: Val, case_sensitive: bool) -> Res<Val> {
        match &value {
            Val::Str(text, _) if !case_sensitive => {
                self.charge_bytes(text.len())?;
                Ok(Val::str(text.to_lowercase()))
            }
            _ => Ok(value),
        }
    }

    pub fn list_filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        match name {
            "batch" => self.batch(value, arguments),
            "slice" => self.columns(value, arguments),
            "sort" => self.sort(value, arguments),
            "dictsort" => self.dictsort(value, arguments),
            "unique" => self.unique(value, arguments),
            "groupby" => self.groupby(value, arguments),
            "reverse" => {
                arguments.none(name)?;
                if let Val::Str(text, safe) = value {
                    self.charge_bytes(text.len())?;
                    return Ok(Val::Str(text.chars().rev().collect::<String>().into(), *safe));
                }
                let mut all = self.elements(value)?;
                all.reverse();
                // A generator is not reversible: Jinja makes a list of it.
                if matches!(value, Val::Iter(_)) { Val::list(all) } else { Ok(Val::iter(all)) }
            }
            _ => self.extreme(name, value, arguments),
        }
    }

    fn batch(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [count, fill] = arguments.bind("batch", ["linecount", "fill_with"], 1)?;
        let count = usize::try_from(int(&count, 0)?).unwrap_or(usize::MAX);
        let fill = fill.filter(|v| !matches!(v, Val::None));
        let mut lines = Vec::new();
        let mut line = Vec::new();
        for item in self.elements(value)? {
            if line.len() == count {
                lines.push(Val::list(std::mem::take(&mut line))?);
            }
            line.push(item);
        }
        if !line.is_empty() {
            if let Some(fill) = fill {
                let missing = count.saturating_sub(line.len());
                self.charge(missing / 4)?;
                line.extend(std::iter::repeat_n(fill, missing));
            }
            lines.push(Val::list(line)?);
        }
        Ok(Val::iter(lines))
    }

    fn columns(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [count, fill] = arguments.bind("slice", ["slices", "fill_with"], 1)?;
        let count = int(&count, 0)?;
        let fill = fill.filter(|v| !matches!(v, Val::None));
        let all = self.elements(value)?;
        let Ok(count) = usize::try_from(count) else { return Ok(Val::iter(Vec::new())) };
        if count == 0 {
            return fail("integer division or modulo by zero");
        }
        self.charge(count)?;
        let (each, extra) = (all.len() / count, all.len() % count);
        let mut columns = Vec::new();
        let mut start = 0;
        for column in 0..count {
            let end = start + each + usize::from(column < extra);
            let mut items = all[start..end].to_vec();
            items.extend(fill.clone().filter(|_| column >= extra));
            columns.push(Val::list(items)?);
            start = end;
        }
        Ok(Val::iter(columns))
    }

    fn sort(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [reverse, case, attribute] =
            arguments.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
        let paths: Vec<Path> = match attribute.unwrap_or(Val::None) {
            Val::Str(text, _) => text.split(',').map(|part| path(&Val::str(part))).collect(),
            other => vec![path(&other)],
        };
        let case = truth(&case, false);
        let mut keyed = Vec::new();
        for item in self.elements(value)? {
            let mut keys = Vec::new();
            for path in &paths {
                let key = self.follow(&item, path, None)?;
                keys.push(self.without_case(key, case)?);
            }
            keyed.push((keys, item));
        }
        Val::list(self.sorted(keyed, truth(&reverse, false))?)
    }

    fn dictsort(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [case, by, reverse] = arguments.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let Val::Dict(dict) = value.defined()? else {
            return fail(format!("'{}' object has no attribute 'items'", value.type_name()));
        };
        let by_value = match text(&by, "key")? {
            "key" => false,
            "value" => true,
            _ => return fail("You can only sort by either \"key\" or \"value\""),
        };
        let mut keyed = Vec::new();
        for (key, value) in &dict.map {
            let by = if by_value { value.clone() } else { key.0.clone() };
            let pair = Val::tuple(vec![key.0.clone(), value.clone()])?;
            keyed.push((vec![self.without_case(by, truth(&case, false))?], pair));
        }
        Val::list(self.sorted(keyed, truth(&reverse, false))?)
    }

    fn unique(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [case, attribute] = arguments.bind("unique", ["case_sensitive", "attribute"], 0)?;
        let path = path(&attribute.unwrap_or(Val::None));
        let mut seen = IndexSet::new();
        let mut kept = Vec::new();
        for item in self.elements(value)? {
            let key = self.follow(&item, &path, None)?;
            let key = self.without_case(key, truth(&case, false))?;
            self.charge(key.size() / 16)?;
            if seen.insert(DictKey::of(key)?) {
                kept.push(item);
            }
        }
        Ok(Val::iter(kept))
    }

    fn extreme(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [case, attribute] = arguments.bind(name, ["case_sensitive", "attribute"], 0)?;
        let path = path(&attribute.unwrap_or(Val::None));
        let mut best: Option<(Val, Val)> = None;
        for item in self.elements(value)? {
            let key = self.follow(&item, &path, None)?;
            let key = self.without_case(key, truth(&case, false))?;
            let better = match &best {
                None => true,
                Some((best, _)) if name == "min" => self.compare("<", &key, best)?,
                Some((best, _)) => self.compare(">", &key, best)?,
            };
            if better {
                best = Some((key, item));
            }
        }
        let none = || Val::undef("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(none, |(_, item)| item))
    }

    fn groupby(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [attribute, default, case] =
            arguments.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
        let path = path(&attribute.unwrap_or(Val::None));
        let default = default.filter(|v| !matches!(v, Val::None));
        let case = truth(&case, false);
        let mut keyed = Vec::new();
        for item in self.elements(value)? {
            let own = self.follow(&item, &path, default.as_ref())?;
            let key = self.without_case(own.clone(), case)?;
            keyed.push((vec![key.clone()], Val::tuple(vec![key, own, item])?));
        }
        let mut groups: Vec<(Val, Val, Vec<Val>)> = Vec::new();
        for found in self.sorted(keyed, false)? {
            let [key, own, item] = &self.elements(&found)?[..] else { continue };
            match groups.last_mut().filter(|group| equal(&group.0, key)) {
                Some((_, _, items)) => items.push(item.clone()),
                None => groups.push((key.clone(), own.clone(), vec![item.clone()])),
            }
        }
        let groups = groups.into_iter().map(|(_, own, items)| Val::group(own, Val::list(items)?));
        Val::list(groups.collect::<Res<_>>()?)
    }

    /// `map`, `select`, `reject`, `selectattr` and `rejectattr`.
    pub fn select_filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        if !value.truth() {
            return Ok(Val::iter(Vec::new()));
        }
        let mut given = arguments.all.clone();
        let by_attribute = name.ends_with("attr");
        if (by_attribute || (name == "map" && arguments.named.is_empty())) && given.is_empty() {
            return fail(format!("{name} needs an argument"));
        }
        if name == "map" && given.is_empty() {
            return self.map_attribute(value, arguments);
        }
        let attribute = if by_attribute { path(&given.remove(0)) } else { Vec::new() };
        let function = if given.is_empty() { None } else { Some(given.remove(0)) };
        let function = function.map(|f| text(&Some(f), "").map(str::to_string)).transpose()?;
        let rest = Arguments { all: given, named: arguments.named.clone() };
        let mut kept = Vec::new();
        for item in self.elements(value)? {
            self.step()?;
            if let ("map", Some(filter)) = (name, &function) {
                kept.push(self.filter(filter, &item, &rest)?);
                continue;
            }
            let tested = self.follow(&item, &attribute, None)?;
            let taken = match &function {
                Some(test) => self.test(test, &tested, &rest)?,
                None => tested.truth(),
            };
            if taken == name.starts_with("select") {
                kept.push(item);
            }
        }
        Ok(Val::iter(kept))
    }

    fn map_attribute(&mut self, value: &Val, arguments: &Arguments) -> Res<Val> {
        let [attribute, default] = arguments.bind("map", ["attribute", "default"], 1)?;
        let path = path(&attribute.unwrap_or(Val::None));
        let default = default.filter(|v| !matches!(v, Val::None));
        let mut found = Vec::new();
        for item in self.elements(value)? {
            found.push(self.follow(&item, &path, default.as_ref())?);
        }
        Ok(Val::iter(found))
    }

    /// `sum` and `join` with an attribute take it of each element.
    pub fn attributes(&mut self, value: &Val, attribute: Option<Val>) -> Res<Vec<Val>> {
        let all = self.elements(value)?;
        let Some(attribute) = attribute.filter(|a| !matches!(a, Val::None)) else { return Ok(all) };
        let path = path(&attribute);
        all.iter().map(|item| self.follow(item, &path, None)).collect()
    }
}
