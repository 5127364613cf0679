//! The operations on packs as one call, for bindings.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::EngineError;
use crate::engine::Engine;
use crate::packs::make::NewPack;
use crate::packs::manifest::{PackForm, Source};

/// What is to be done with packs. Each operation uses the fields that it needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PackCall {
    /// "make", "load", "unload", "list" or "text".
    operation: String,
    /// The pack's name.
    name: String,
    /// Its folder.
    path: PathBuf,
    /// "chat" or "text".
    form: String,
    text: String,
    sources: Vec<Source>,
    tokens: Vec<u32>,
    lora: Option<String>,
    replace: bool,
    check_block: Option<u32>,
}

impl Engine {
    /// Does what `call` says. `go_on`: false gives up the making of a pack.
    ///
    /// # Errors
    /// Those of the operation, and `InvalidRequest` if there is no such one.
    pub fn pack_call(&self, call: PackCall, go_on: &dyn Fn() -> bool) -> Result<Value, EngineError> {
        match call.operation.as_str() {
            "make" => {
                let form = [PackForm::Chat, PackForm::Text].into_iter().find(|f| f.name() == call.form);
                let form = form.ok_or_else(|| {
                    let found = &call.form;
                    EngineError::InvalidRequest(format!(
                        "form is {found:?}: \"chat\" or \"text\" is expected"
                    ))
                })?;
                let PackCall { text, sources, tokens, lora, replace, .. } = call;
                self.make_pack(&call.path, NewPack { form, text, sources, tokens, lora, replace }, go_on)
            }
            "load" => Ok(json!(self.load_pack(&call.name, &call.path, call.check_block)?)),
            "unload" => self.unload_pack(&call.name).map(|()| Value::Null),
            "list" => Ok(json!(self.packs())),
            "text" => {
                let (form, text) = self.pack_text(&call.name)?;
                Ok(json!([form.name(), text]))
            }
            other => Err(EngineError::InvalidRequest(format!("there is no operation {other:?} on packs"))),
        }
    }
}
