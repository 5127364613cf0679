//! str() and repr() of Python.

use super::interpreter::Interpreter;
use super::number::python_float;
use super::value::{Obj, Res, Val, fail};

/// Most digits of an integer that Python writes.
const MAX_DIGITS: usize = 4300;

impl Interpreter<'_> {
    /// str(value), which `{{ }}` writes.
    pub fn text(&mut self, value: &Val) -> Res<String> {
        if let Val::Str(text, _) = value {
            self.charge_bytes(text.len())?;
            return Ok(text.to_string());
        }
        let mut out = String::new();
        match value {
            Val::Undef(_) => {}
            _ => self.repr_to(value, &mut out, 0)?,
        }
        Ok(out)
    }

    /// repr(value).
    pub fn repr(&mut self, value: &Val) -> Res<String> {
        let mut out = String::new();
        self.repr_to(value, &mut out, 0)?;
        Ok(out)
    }

    fn repr_to(&mut self, value: &Val, out: &mut String, depth: usize) -> Res<()> {
        self.step()?;
        let before = out.len();
        match value {
            Val::Undef(_) => out.push_str("Undefined"),
            Val::None => out.push_str("None"),
            Val::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
            Val::Int(n) => out.push_str(&n.to_string()),
            Val::Big(_) => out.push_str(&decimal(value)?),
            Val::Float(x) => out.push_str(&python_float(*x)),
            Val::Str(text, safe) => {
                let quoted = quoted(text);
                out.push_str(&if *safe { format!("Markup({quoted})") } else { quoted });
            }
            Val::List(items) => self.sequence(&items.all, "[", "]", out, depth)?,
            Val::Tuple(items) => {
                let end = if items.all.len() == 1 { ",)" } else { ")" };
                self.sequence(&items.all, "(", end, out, depth)?;
            }
            Val::Dict(dict) => {
                let pairs = dict.map.iter().map(|(k, v)| (k.0.clone(), v.clone()));
                self.pairs(pairs.collect(), out, depth)?;
            }
            Val::View(name, _) => {
                out.push_str(name);
                let items = value.elements()?;
                self.sequence(&items, "([", "])", out, depth)?;
            }
            Val::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
            Val::Range(start, stop, step) => out.push_str(&format!("range({start}, {stop}, {step})")),
            Val::Iter(_) => out.push_str("<generator object>"),
            Val::Method(owner, name) => {
                out.push_str(&format!("<built-in method {name} of {} object>", owner.type_name()));
            }
            Val::Obj(object) => self.object(*object, out, depth)?,
        }
        self.charge_bytes(out.len() - before)
    }

    fn object(&mut self, object: Obj, out: &mut String, depth: usize) -> Res<()> {
        match object {
            Obj::Namespace(_) if depth > 20 => return fail("a namespace holds itself"),
            Obj::Namespace(at) => {
                let pairs = self.namespaces[at].iter().map(|(k, v)| (Val::str(k.clone()), v.clone()));
                let pairs = pairs.collect();
                out.push_str("<Namespace ");
                self.pairs(pairs, out, depth)?;
                out.push('>');
            }
            Obj::Loop(at) => {
                let state = &self.loops[at];
                out.push_str(&format!("<LoopContext {}/{}>", state.index + 1, state.items.len()));
            }
            Obj::Macro(at) => out.push_str(&format!("<Macro '{}'>", self.macros[at].decl.name)),
            Obj::Cycler(_) => out.push_str("<Cycler>"),
            Obj::Joiner(_) => out.push_str("<Joiner>"),
            Obj::Function(name) => out.push_str(&format!("<function {name}>")),
            Obj::Blocks => out.push_str("<TemplateReference None>"),
        }
        Ok(())
    }

    fn sequence(&mut self, items: &[Val], begin: &str, end: &str, out: &mut String, depth: usize) -> Res<()> {
        out.push_str(begin);
        for (i, item) in items.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            self.repr_to(item, out, depth + 1)?;
        }
        out.push_str(end);
        Ok(())
    }

    fn pairs(&mut self, pairs: Vec<(Val, Val)>, out: &mut String, depth: usize) -> Res<()> {
        out.push('{');
        for (i, (key, value)) in pairs.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            self.repr_to(key, out, depth + 1)?;
            out.push_str(": ");
            self.repr_to(value, out, depth + 1)?;
        }
        out.push('}');
        Ok(())
    }
}

/// The digits of an integer.
pub fn decimal(value: &Val) -> Res<String> {
    let text = match value {
        // 4300 digits have less than 14,285 bits.
        Val::Big(n) if n.bits() > 14_285 => None,
        value => value.as_big().map(|n| n.to_string()),
    };
    match text {
        Some(text) if text.len() <= MAX_DIGITS + usize::from(text.starts_with('-')) => Ok(text),
        _ => fail(format!("Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion")),
    }
}

/// repr() of a text.
pub fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if printable(c) => out.push(c),
            c => match c as u32 {
                n @ ..=0xff => out.push_str(&format!("\\x{n:02x}")),
                n @ ..=0xffff => out.push_str(&format!("\\u{n:04x}")),
                n => out.push_str(&format!("\\U{n:08x}")),
            },
        }
    }
    out.push(quote);
    out
}

/// str.isprintable of one character.
pub fn printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Marks that join the character before them are printable, but Rust escapes them at the beginning of a text.
    let text: String = ['a', c].iter().collect();
    text.escape_debug().count() == 2
}
