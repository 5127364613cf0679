//! JSON values as Python objects, and back.

use octavo_engine::FieldError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyList, PySequence, PyString};
use serde_json::{Map, Value, json};

/// `value` as dict, list, str, int, float, bool or None.
pub fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(b) => b.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(u), _) => u.into_pyobject(py)?.into_any(),
            (None, Some(i)) => i.into_pyobject(py)?.into_any(),
            _ => n.as_f64().into_pyobject(py)?.into_any(),
        },
        Value::String(s) => s.into_pyobject(py)?.into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            list.into_any()
        }
        Value::Object(map) => {
            let dict = PyDict::new(py);
            for (key, item) in map {
                dict.set_item(key, to_python(py, item)?)?;
            }
            dict.into_any()
        }
    })
}

/// A Python object as JSON; None where it has no such form.
fn from_python(value: &Bound<'_, PyAny>) -> Option<Value> {
    if value.is_none() {
        return Some(Value::Null);
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Some(value.is_true().into());
    }
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_str().ok().map(Into::into);
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        let entry = |(key, value): (Bound<'_, PyAny>, _)| {
            Some((key.str().ok()?.to_str().ok()?.to_string(), from_python(&value)?))
        };
        return dict.iter().map(entry).collect::<Option<Map<_, _>>>().map(Value::Object);
    }
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() {
        return None;
    }
    if let Ok(items) = value.cast::<PySequence>() {
        let items = items.try_iter().ok()?.map(|item| from_python(&item.ok()?));
        return items.collect::<Option<Vec<_>>>().map(Value::Array);
    }
    let integer =
        value.extract::<u64>().map(Value::from).or_else(|_| value.extract::<i64>().map(Value::from));
    integer
        .ok()
        .or_else(|| value.extract::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number))
}

/// Reads a struct from a mapping. The error names the field and shows its value as Python writes it.
pub fn read_fields<T>(
    fields: &Bound<'_, PyAny>,
    read: impl FnOnce(&Map<String, Value>) -> Result<T, FieldError>,
) -> PyResult<T> {
    let py = fields.py();
    let dict = match fields.cast::<PyDict>() {
        Ok(dict) => dict.clone(),
        Err(_) => py.get_type::<PyDict>().call1((fields,))?.cast_into::<PyDict>()?,
    };
    let mut map = Map::new();
    for (name, value) in &dict {
        // An object that no field accepts stands for a value without a form in JSON.
        map.insert(name.str()?.to_string(), from_python(&value).unwrap_or_else(|| json!({"": null})));
    }
    read(&map).map_err(|error| {
        let value = dict.get_item(&error.name).ok().flatten();
        let shown = value.and_then(|v| v.repr().ok()).map(|r| r.to_string()).unwrap_or_default();
        crate::errors::to_python(py, &error.with_value(&shown))
    })
}
