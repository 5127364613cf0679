//! JSON of strangers: what two parsers might read differently, or what costs more than it says, is refused.

use std::cell::Cell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::EngineError;

/// Most bytes of a key that an error message repeats.
const MAX_SHOWN: usize = 64;

/// Bounds of a document.
#[derive(Clone, Copy, Debug)]
pub struct JsonLimits {
    /// Deepest nesting of arrays and objects; at most 120.
    pub depth: usize,
    /// Most values, those inside arrays and objects counted each.
    pub values: usize,
}

/// Reads a document. Duplicate keys, numbers that no f64 holds, NaN, lone surrogates and trailing text are errors.
///
/// # Errors
/// `InvalidRequest` with line and column.
pub fn parse_strict(text: &[u8], limits: JsonLimits) -> Result<Value, EngineError> {
    let left = Cell::new(limits.values);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let node = Node { depth: limits.depth.min(120), most: limits, left: &left };
    let value = node.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| EngineError::InvalidRequest(format!("not valid JSON: {e}")))
}

/// Reads one value; `depth` more levels may follow.
#[derive(Clone, Copy)]
struct Node<'a> {
    depth: usize,
    most: JsonLimits,
    left: &'a Cell<usize>,
}

impl Node<'_> {
    fn child<E: Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth, ..self }),
            None => Err(E::custom(format_args!(
                "nested deeper than the {} levels that are read",
                self.most.depth
            ))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => {
                let most = self.most.values;
                return Err(D::Error::custom(format_args!("more than the {most} values that are read")));
            }
        }
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if value.is_finite() { Ok(Value::from(value)) } else { Err(E::custom("a number that is not finite")) }
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let child = self.child()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(child)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let child = self.child()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(child)?;
            if map.contains_key(&key) {
                let shown: String = key.chars().take(MAX_SHOWN).collect();
                return Err(A::Error::custom(format_args!("the key {shown:?} stands twice in one object")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: JsonLimits = JsonLimits { depth: 4, values: 100 };

    fn fault(text: &str) -> String {
        parse_strict(text.as_bytes(), LIMITS).expect_err(text).to_string()
    }

    #[test]
    fn what_is_ambiguous_or_costly_is_refused() {
        assert!(fault(r#"{"a": 1, "a": 1}"#).contains("\"a\" stands twice"));
        assert!(fault(r#"{"x": {"a": 1, "b": 2, "\u0061": 1}}"#).contains("stands twice"));
        assert!(fault("[[[[[1]]]]]").contains("deeper than the 4"));
        assert!(fault(&"[".repeat(1 << 20)).contains("deeper"));
        assert!(fault(&format!("[{}0]", "0,".repeat(100))).contains("more than the 100"));
        for bad in
            ["1e400", "-1e400", "NaN", "Infinity", "[1] 2", "{\"a\": }", "\"\\ud800\"", "", "'a'", "[1,]"]
        {
            assert!(fault(bad).starts_with("not valid JSON"), "{bad}");
        }
        assert!(parse_strict(b"\"\xff\"", LIMITS).is_err());
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        assert!(parse_strict(b"[[[[1]]]]", LIMITS).is_ok());
        assert!(parse_strict(format!("[{}0]", "0,".repeat(98)).as_bytes(), LIMITS).is_ok());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e300..1e300f64).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn all_else_reads_as_serde_json_reads_it(value in value()) {
            let limits = JsonLimits { depth: 8, values: 10_000 };
            let text = serde_json::to_vec(&value).expect("json");
            let plain: Value = serde_json::from_slice(&text).expect("json");
            prop_assert_eq!(parse_strict(&text, limits).expect("valid"), plain);
        }
    }
}
