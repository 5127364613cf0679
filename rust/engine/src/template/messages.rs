//! What is done to messages before a template sees them, as transformers does it.

use indexmap::IndexMap;

use super::value::{DictKey, JinjaError, Res, Val, fail};
use crate::EngineError;

/// Names under which clients send a turn's reasoning; templates read the first, or the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Marks the end of the message that is to be continued. Its space shows whether the template trims what follows.
const MARK: &str = "OCTAVO_CONTINUES_HERE ";

pub type Fields = IndexMap<DictKey, Val>;

pub fn key(name: &str) -> DictKey {
    DictKey(Val::str(name))
}

/// The request as a template sees it.
pub struct Prepared {
    pub context: Fields,
    /// The text of the message that is to be continued.
    pub unfinished: Option<String>,
    /// Fields that are null were left out.
    pub without_nulls: bool,
}

/// Leaves out the fields of messages that are null (unless `nulls`), gives reasoning its usual names, and marks the last
/// message if `continue_final_message` asks for it.
///
/// # Errors
/// There is no text to continue.
pub fn prepare(request: &Fields, nulls: bool) -> Res<Prepared> {
    let mut context = request.clone();
    let continued = context.shift_remove(&key("continue_final_message"));
    let continued = matches!(continued, Some(Val::Bool(true)));
    if continued {
        context.insert(key("add_generation_prompt"), Val::Bool(false));
    }
    let mut prepared = Prepared { context, unfinished: None, without_nulls: false };
    let Some(Val::List(messages)) = prepared.context.get(&key("messages")) else { return Ok(prepared) };
    let mut messages = messages.all.clone();
    for message in &mut messages {
        let Val::Dict(dict) = message else { continue };
        let mut fields = dict.map.clone();
        if !nulls {
            fields.retain(|_, value| !matches!(value, Val::None));
            prepared.without_nulls |= fields.len() < dict.map.len();
        }
        *message = Val::dict(with_reasoning(fields))?;
    }
    if continued {
        match messages.last_mut().map(mark).transpose()?.flatten() {
            Some(text) => prepared.unfinished = Some(text),
            None => {
                return fail("continue_final_message is set, but the last message has no text to continue");
            }
        }
    }
    prepared.context.insert(key("messages"), Val::list(messages)?);
    Ok(prepared)
}

fn with_reasoning(fields: Fields) -> Fields {
    let found = REASONING.iter().find_map(|name| fields.get(&key(name)).filter(|v| !matches!(v, Val::None)));
    let Some(reasoning) = found.cloned() else { return fields };
    let mut named = Fields::new();
    named.insert(key("thinking"), reasoning.clone());
    named.extend(fields);
    named.insert(key("reasoning_content"), reasoning);
    named
}

/// Appends the mark to the message's text, or to the last of its parts that has one; that text without the mark.
fn mark(message: &mut Val) -> Res<Option<String>> {
    let Val::Dict(dict) = message else { return Ok(None) };
    let mut fields = dict.map.clone();
    let marked = |text: &str| Val::str(format!("{text}{MARK}"));
    let (content, text) = match fields.get(&key("content")) {
        Some(Val::Str(text, _)) => (marked(text), text.to_string()),
        Some(Val::List(parts)) => {
            let mut parts = parts.all.clone();
            let with_text = |part: &Val| matches!(part, Val::Dict(d) if d.get("text").is_some());
            let Some(at) = parts.iter().rposition(with_text) else { return Ok(None) };
            let Val::Dict(part) = &parts[at] else { return Ok(None) };
            let Some(Val::Str(text, _)) = part.get("text").cloned() else { return Ok(None) };
            let mut part = part.map.clone();
            part.insert(key("text"), marked(&text));
            parts[at] = Val::dict(part)?;
            (Val::list(parts)?, text.to_string())
        }
        _ => return Ok(None),
    };
    fields.insert(key("content"), content);
    *message = Val::dict(fields)?;
    Ok(Some(text))
}

/// Cuts the prompt at the mark. Where the template trims the message, the text before it is trimmed too.
///
/// # Errors
/// `InvalidRequest` if the template left the message out, or parts of it.
pub fn cut(mut text: String, unfinished: &str) -> Result<String, EngineError> {
    let found = text.rfind(MARK.trim_end()).filter(|_| text.contains(unfinished.trim()));
    let Some(at) = found else {
        return Err(EngineError::InvalidRequest(
            "continue_final_message is set, but the chat template does not write the last message".into(),
        ));
    };
    let trimmed = !text[at..].starts_with(MARK);
    text.truncate(at);
    if trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// The fields of a request, which must be a JSON object.
pub fn fields(value: Val) -> Res<Fields> {
    match value {
        Val::Dict(dict) => Ok(dict.map.clone()),
        other => Err(JinjaError(format!("a request is an object, not {}", other.type_name()))),
    }
}
