//! Special tokens by the names under which templates read them.

use serde_json::{Map, Value};

use super::value::Val;

/// Where a configuration lists tokens by names of its own.
const NAMED: [&str; 2] = ["extra_special_tokens", "model_specific_special_tokens"];

/// A token's text, in both of its spellings.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The special tokens that a tokenizer's configuration names, as transformers gives them to a template: `bos_token` and
/// its like, any other `..._token`, and named extras.
pub fn tokens(config: &Map<String, Value>) -> Vec<(String, Val)> {
    let named = |(name, value): (&String, &Value)| Some((name.clone(), Val::str(text(value)?)));
    let own = config.iter().filter(|(name, _)| name.ends_with("_token"));
    let extra = NAMED.iter().filter_map(|name| config.get(*name)?.as_object()).flatten();
    own.chain(extra).filter_map(named).collect()
}
