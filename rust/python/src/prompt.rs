//! Prompts from Python objects.

use octavo_engine::Prompt;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::errors::raise;

/// A list of token ids.
pub fn token_ids_of(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    ids.extract().map_err(|_| {
        raise(
            ids.py(),
            "InvalidRequestError",
            "token ids: a list of integers from 0 to 4294967295 is expected",
        )
    })
}

/// The text, if it is one that UTF-8 can hold.
pub fn utf8<'a>(text: &'a Bound<'_, PyString>) -> PyResult<&'a str> {
    text.to_str().map_err(|_| {
        raise(text.py(), "InvalidRequestError", "the text has a lone surrogate, which is no character")
    })
}

/// A text or a list of token ids.
pub fn prompt_of(prompt: &Bound<'_, PyAny>, add_special_tokens: bool) -> PyResult<Prompt> {
    Ok(match prompt.cast::<PyString>() {
        Ok(text) => Prompt::Text(utf8(text)?.to_string(), add_special_tokens),
        Err(_) => Prompt::Tokens(token_ids_of(prompt)?),
    })
}
