//! Jinja's filters: the table, and those that fit no other file.

use super::args::{Arguments, text, truth};
use super::interpreter::Interpreter;
use super::value::{Obj, Res, Val, fail};

const FILTERS: &str = "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float \
    forceescape format groupby indent int items join last length list lower map max min pprint random reject \
    rejectattr replace reverse round safe select selectattr slice sort string striptags sum title tojson trim \
    truncate unique upper urlencode urlize wordcount wordwrap xmlattr";

/// Whether there is a filter of this name.
pub fn known(name: &str) -> bool {
    FILTERS.split_whitespace().any(|filter| filter == name)
}

impl Interpreter<'_> {
    /// `value | name(arguments)`
    pub fn filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Val> {
        if let Some(found) = self.value_filter(name, value, arguments)? {
            return Ok(found);
        }
        match name {
            "abs" | "int" | "float" | "round" | "filesizeformat" | "sum" => {
                self.number_filter(name, value, arguments)
            }
            "batch" | "slice" | "sort" | "dictsort" | "unique" | "min" | "max" | "groupby" | "reverse" => {
                self.list_filter(name, value, arguments)
            }
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
                self.nested(|i| i.select_filter(name, value, arguments))
            }
            "e" | "escape" | "forceescape" | "striptags" | "urlencode" | "urlize" | "xmlattr" => {
                self.html_filter(name, value, arguments)
            }
            _ if known(name) => self.text_filter(name, value, arguments),
            _ => fail(format!("No filter named '{name}'.")),
        }
    }

    /// Filters that take values of many kinds.
    fn value_filter(&mut self, name: &str, value: &Val, arguments: &Arguments) -> Res<Option<Val>> {
        Ok(Some(match name {
            "default" | "d" => {
                let [default, boolean] = arguments.bind(name, ["default_value", "boolean"], 0)?;
                match matches!(value, Val::Undef(_)) || (truth(&boolean, false) && !value.truth()) {
                    true => default.unwrap_or_else(|| Val::str("")),
                    false => value.clone(),
                }
            }
            "length" | "count" => {
                arguments.none(name)?;
                self.charge_bytes(value.as_str().map_or(0, str::len))?;
                match (value.len(), value) {
                    (Some(n), _) => Val::Int(n as i64),
                    (None, Val::Obj(Obj::Loop(at))) => Val::Int(self.loops[*at].items.len() as i64),
                    _ => return fail(format!("object of type '{}' has no len()", value.type_name())),
                }
            }
            "list" => {
                arguments.none(name)?;
                Val::list(self.elements(value)?)?
            }
            "string" => {
                arguments.none(name)?;
                match value {
                    Val::Str(..) => value.clone(),
                    value => Val::str(self.text(value)?),
                }
            }
            "safe" => {
                arguments.none(name)?;
                Val::Str(self.text(value)?.into(), true)
            }
            "first" => {
                arguments.none(name)?;
                self.first(value)?
            }
            "last" => {
                arguments.none(name)?;
                if matches!(value, Val::Iter(_)) {
                    return fail("'generator' object is not reversible");
                }
                let last = self.elements(value)?.pop();
                last.unwrap_or_else(|| Val::undef("No last item, sequence was empty."))
            }
            "random" => {
                arguments.none(name)?;
                if matches!(value, Val::Dict(_) | Val::View(..) | Val::Iter(_)) {
                    return fail("no random item can be taken");
                }
                let all = self.elements(value)?;
                match all.is_empty() {
                    true => Val::undef("No random item, sequence was empty."),
                    false => all[self.draw(all.len())].clone(),
                }
            }
            "attr" => {
                let [attribute] = arguments.bind(name, ["name"], 1)?;
                let attribute = text(&attribute, "")?.to_string();
                match value {
                    Val::Dict(dict) if dict.get(&attribute).is_some() => {
                        // Items are not taken, only what every dict has.
                        self.attribute(&Val::dict(indexmap::IndexMap::new())?, &attribute)?
                    }
                    value => self.attribute(value, &attribute)?,
                }
            }
            "items" => {
                arguments.none(name)?;
                match value {
                    Val::Undef(_) => Val::iter(Vec::new()),
                    Val::Dict(dict) => {
                        let view = Val::View("dict_items", dict.clone());
                        Val::iter(self.elements(&view)?)
                    }
                    _ => return fail("Can only get item pairs from a mapping."),
                }
            }
            "tojson" => self.tojson(value, arguments)?,
            _ => return Ok(None),
        }))
    }

    fn first(&mut self, value: &Val) -> Res<Val> {
        let first = match value {
            Val::Iter(rest) => rest.lock().ok().and_then(|mut rest| rest.next()),
            Val::Str(text, safe) => text.chars().next().map(|c| Val::Str(c.to_string().into(), *safe)),
            value => self.elements(value)?.into_iter().next(),
        };
        Ok(first.unwrap_or_else(|| Val::undef("No first item, sequence was empty.")))
    }
}
