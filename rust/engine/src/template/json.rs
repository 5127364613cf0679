//! `tojson` as transformers defines it, in the layout of Python's json.dumps.

use minijinja::value::{Kwargs, Rest};
use minijinja::{ErrorKind, Value};
use serde::Serialize;

use super::number::python_float;

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: json.dumps with these arguments, by place or
/// by name.
pub fn tojson(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let failed = |e: &dyn std::fmt::Display| {
        minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {e}"))
    };
    if args.len() > 4 {
        return Err(failed(&"at most four arguments are taken"));
    }
    let given = |place: usize, name: &str| -> Result<Option<Value>, minijinja::Error> {
        let value = match args.get(place) {
            Some(value) => Some(value.clone()),
            None => kwargs.get(name)?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ascii = given(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent: Option<usize> = given(1, "indent")?.map(TryInto::try_into).transpose()?;
    let separators = given(2, "separators")?;
    let separators = separators
        .map(|v| Ok::<_, minijinja::Error>(v.try_iter()?.map(|s| s.to_string()).collect::<Vec<_>>()));
    let separators = separators.transpose()?;
    let sort_keys = given(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    if indent.is_some_and(|n| n > 64) {
        return Err(failed(&"an indent of at most 64 is taken"));
    }
    let mut json = serde_json::to_value(&value).map_err(|e| failed(&e))?;
    if sort_keys {
        json.sort_all_objects();
    }
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.clone(), colon.clone()),
        Some(_) => return Err(failed(&"two separators are expected")),
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let style = PythonJson { comma, colon, indent, depth: 0, empty: true };
    let mut out = Vec::new();
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style)).map_err(|e| failed(&e))?;
    let text = String::from_utf8(out).map_err(|e| failed(&e))?;
    Ok(Value::from_safe_string(if ascii { escaped(&text) } else { text }))
}

/// Characters beyond ASCII as `\uXXXX`, in surrogate pairs where needed. Only strings hold any.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if c.is_ascii() => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

/// The layout of Python's json.dumps.
struct PythonJson {
    comma: String,
    colon: String,
    indent: Option<usize>,
    depth: usize,
    /// The container that is open has no element yet.
    empty: bool,
}

impl PythonJson {
    fn line<W: ?Sized + std::io::Write>(&self, w: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(n) => write!(w, "\n{:1$}", "", n * self.depth),
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + std::io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.empty = true;
        w.write_all(bracket)
    }

    fn close<W: ?Sized + std::io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(w)?;
        }
        self.empty = false;
        w.write_all(bracket)
    }

    fn item<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            w.write_all(self.comma.as_bytes())?;
        }
        self.empty = false;
        self.line(w)
    }
}

impl serde_json::ser::Formatter for PythonJson {
    fn write_f64<W: ?Sized + std::io::Write>(&mut self, w: &mut W, value: f64) -> std::io::Result<()> {
        w.write_all(python_float(value).as_bytes())
    }
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.open(w, b"[")
    }
    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.close(w, b"]")
    }
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.item(w, first)
    }
    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.open(w, b"{")
    }
    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.close(w, b"}")
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.item(w, first)
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(self.colon.as_bytes())
    }
}
