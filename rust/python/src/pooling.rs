//! Pooling parameters from a Python mapping, and embeddings as JSON.

use std::fmt::Write;

use octavo_engine::PoolingParams;
use pyo3::prelude::*;

use crate::json;

/// Reads the arguments of `octavo.LLM.embed`. Missing or None takes the default.
pub fn read(params: &Bound<'_, PyAny>) -> PyResult<PoolingParams> {
    json::read_fields(params, octavo_engine::read_fields)
}

/// `[0.25,-1.5,...]` of little-endian float32 values, which are finite.
pub fn json_array(values: &[u8]) -> String {
    let mut out = String::with_capacity(values.len() * 3 + 2);
    out.push('[');
    for (i, bytes) in values.chunks_exact(4).enumerate() {
        if i > 0 {
            out.push(',');
        }
        let x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        // Debug writes exponents as JSON has them. Writing to a String cannot fail.
        let _ = write!(out, "{x:?}");
    }
    out.push(']');
    out
}
