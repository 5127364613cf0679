//! Tokens that files beside tokenizer.json add: tokenizer_config.json, special_tokens_map.json, added_tokens.json. They are
//! applied as transformers 5 applies them: their order, their ids, and which file wins.

use std::collections::BTreeMap;

use octavo_model::TokenizerFiles;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

/// Special tokens that every tokenizer may name, in the order in which they are added.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Adds the tokens of `files` to `tokenizer`. Returns tokenizer_config.json with what the other files add to it, and
/// warnings.
///
/// # Errors
/// Says which entry is no token.
pub(super) fn apply(
    tokenizer: &mut Tokenizer,
    files: &mut TokenizerFiles,
) -> Result<(Map<String, Value>, Vec<String>), String> {
    let mut config = std::mem::take(&mut files.config);
    let mut warnings = Vec::new();
    rename_additional(&mut config);
    let declared = if config.contains_key("added_tokens_decoder") {
        warnings.extend(ignored(tokenizer, &config, files));
        of_config(&config)?
    } else {
        merge_map(&mut config, &files.special_tokens_map);
        let mut declared = of_file(&config, &files.added_tokens)?;
        declared.extend(tokenizer.get_added_tokens_decoder());
        declared
    };
    let named = named(&config)?;
    let mut tokens: Vec<AddedToken> = declared.values().cloned().collect();
    let known = |token: &AddedToken, tokens: &[AddedToken]| {
        tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content)
            || tokens.iter().any(|t| t.content == token.content)
    };
    for token in named.iter().map(|(_, token)| token.clone()).chain(listed(&config)?) {
        if !known(&token, &tokens) {
            tokens.push(token);
        }
    }
    for token in &mut tokens {
        token.special |= named.iter().any(|(_, named)| named.content == token.content);
    }
    tokens.retain(|token| !token.content.is_empty() && !has(tokenizer, token));
    if !tokens.is_empty() {
        tokenizer.add_tokens(tokens).map_err(|e| format!("its added tokens cannot be used: {e}"))?;
    }
    warnings.extend(other_ids(tokenizer, &declared));
    if config.get("split_special_tokens") == Some(&Value::Bool(true)) {
        tokenizer.set_encode_special_tokens(true);
    }
    Ok((config, warnings))
}

fn has(tokenizer: &Tokenizer, token: &AddedToken) -> bool {
    let added = tokenizer.get_added_vocabulary();
    let id = added.get_vocab().get(&token.content);
    id.and_then(|id| added.get_added_tokens_decoder().get(id)) == Some(token)
}

/// `additional_special_tokens` is the old name of `extra_special_tokens`.
fn rename_additional(config: &mut Map<String, Value>) {
    let empty = match config.get("extra_special_tokens") {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    };
    if let (true, Some(old)) = (empty, config.get("additional_special_tokens").cloned()) {
        config.insert("extra_special_tokens".into(), old);
    }
}

/// `added_tokens_decoder`: ids and their tokens.
fn of_config(config: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>, String> {
    let Some(Value::Object(entries)) = config.get("added_tokens_decoder") else {
        return Err("added_tokens_decoder in tokenizer_config.json is not an object of ids and tokens".into());
    };
    let entry = |(id, value): (&String, &Value)| {
        let wrong =
            || format!("added_tokens_decoder in tokenizer_config.json: {id:?} is no id with its token");
        let id: u32 = id.parse().map_err(|_| wrong())?;
        Ok((id, value.is_object().then(|| token_of(value, false)).flatten().ok_or_else(wrong)?))
    };
    entries.iter().map(entry).collect()
}

/// added_tokens.json: texts and their ids.
fn of_file(
    config: &Map<String, Value>,
    file: &Map<String, Value>,
) -> Result<BTreeMap<u32, AddedToken>, String> {
    let mut special: Vec<String> =
        NAMES.iter().filter_map(|name| Some(token_of(config.get(*name)?, true)?.content)).collect();
    special.extend(listed(config)?.into_iter().map(|token| token.content));
    let entry = |(text, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| format!("added_tokens.json: {text:?} has no id"))?;
        Ok((id, AddedToken::from(text.clone(), special.contains(text))))
    };
    file.iter().map(entry).collect()
}

/// Takes the entries of special_tokens_map.json into `config`, where they win.
fn merge_map(config: &mut Map<String, Value>, map: &Map<String, Value>) {
    for (key, value) in map {
        let mut value = value.clone();
        match &mut value {
            Value::Object(token) if key != "extra_special_tokens" => {
                token.insert("special".into(), Value::Bool(true));
            }
            Value::Array(more) if key == "extra_special_tokens" => {
                let mut list = config.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                list.extend(more.iter().filter(|token| !list.contains(token)).cloned().collect::<Vec<_>>());
                value = Value::Array(list);
            }
            _ => {}
        }
        config.insert(key.clone(), value);
    }
    rename_additional(config);
}

/// Tokens with a name: those of `NAMES`, then the model's own.
fn named(config: &Map<String, Value>) -> Result<Vec<(String, AddedToken)>, String> {
    let mut found = Vec::new();
    for name in NAMES {
        if let Some(value) = config.get(name).filter(|value| !value.is_null()) {
            let token = token_of(value, true).ok_or_else(|| format!("{name} is no token"))?;
            found.push((name.to_string(), token));
        }
    }
    let own = config.iter().filter(|(key, _)| key.ends_with("_token") && !NAMES.contains(&key.as_str()));
    found.extend(own.filter_map(|(key, value)| Some((key.clone(), token_of(value, true)?))));
    if let Some(Value::Object(own)) = config.get("extra_special_tokens") {
        found.extend(own.iter().filter_map(|(key, value)| Some((key.clone(), token_of(value, true)?))));
    }
    Ok(found)
}

/// Special tokens without a name.
fn listed(config: &Map<String, Value>) -> Result<Vec<AddedToken>, String> {
    let token =
        |value| token_of(value, true).ok_or_else(|| format!("extra_special_tokens: {value} is no token"));
    match config.get("extra_special_tokens") {
        Some(Value::Array(list)) => list.iter().map(token).collect(),
        None | Some(Value::Null | Value::Object(_)) => Ok(Vec::new()),
        Some(other) => Err(format!("extra_special_tokens is {other}: a list or an object is expected")),
    }
}

/// A token as a text, or as an object with its properties. `special` is for those that do not say it.
fn token_of(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    let plain = AddedToken::from(value.get("content")?.as_str()?, special);
    let normalized = flag("normalized").unwrap_or(plain.normalized);
    let token = plain.normalized(normalized).single_word(flag("single_word").unwrap_or(false));
    Some(token.lstrip(flag("lstrip").unwrap_or(false)).rstrip(flag("rstrip").unwrap_or(false)))
}

/// The ids of the files that are not those of the vocabulary.
fn other_ids(tokenizer: &Tokenizer, declared: &BTreeMap<u32, AddedToken>) -> Option<String> {
    let other = |(id, token): (&u32, &AddedToken)| {
        let given = tokenizer.token_to_id(&token.content).filter(|given| given != id)?;
        Some(format!("{:?} {id} instead of {given}", token.content))
    };
    let mut others = declared.iter().filter_map(other);
    let first = others.next()?;
    Some(format!(
        "the tokenizer's files give {} added tokens other ids than they have, such as {first}. As in transformers, ids \
         follow the vocabulary of tokenizer.json. Save the tokenizer again with the model",
        others.count() + 1
    ))
}

/// What a folder with `added_tokens_decoder` says elsewhere, and does not count.
fn ignored(tokenizer: &Tokenizer, config: &Map<String, Value>, files: &TokenizerFiles) -> Option<String> {
    let known = |text: &str| {
        let entries = config.get("added_tokens_decoder").and_then(Value::as_object);
        let entry = |token: &Value| token.get("content").and_then(Value::as_str) == Some(text);
        tokenizer.token_to_id(text).is_some() || entries.is_some_and(|all| all.values().any(entry))
    };
    let texts = files.special_tokens_map.values().flat_map(|value| match value {
        Value::Array(list) => list.iter().collect(),
        other => vec![other],
    });
    let texts = texts.filter_map(|value| Some(token_of(value, true)?.content));
    let of_map = texts.filter(|text| !known(text));
    let of_file = files.added_tokens.keys().filter(|text| !known(text)).cloned();
    let mut lost = of_map.chain(of_file);
    let first = lost.next()?;
    Some(format!(
        "special_tokens_map.json and added_tokens.json have {} tokens, such as {first:?}, which are ignored as in \
         transformers: tokenizer_config.json has an added_tokens_decoder. Add the tokens there",
        lost.count() + 1
    ))
}
