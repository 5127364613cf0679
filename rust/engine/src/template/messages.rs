//! What is done to messages before a template sees them, as transformers does it.

use serde_json::{Map, Value};

use crate::EngineError;

/// Names under which clients send a turn's reasoning; templates read the first, or the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Marks the end of the message that is to be continued. Its space shows whether the template trims what follows.
const MARK: &str = "OCTAVO_CONTINUES_HERE ";

/// Gives reasoning its usual names and marks the last message if `continue_final_message` asks for it; says whether it did.
///
/// # Errors
/// `InvalidRequest` if there is no text to continue.
pub fn prepare(context: &mut Map<String, Value>) -> Result<bool, EngineError> {
    let unfinished = context.remove("continue_final_message").is_some_and(|v| v == Value::Bool(true));
    if unfinished {
        context.insert("add_generation_prompt".into(), false.into());
    }
    let Some(Value::Array(messages)) = context.get_mut("messages") else { return Ok(false) };
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        let reasoning = REASONING.iter().find_map(|key| message.get(*key).filter(|v| !v.is_null()).cloned());
        if let Some(reasoning) = reasoning {
            let mut named = Map::new();
            named.insert("thinking".into(), reasoning.clone());
            named.append(message);
            named.insert("reasoning_content".into(), reasoning);
            *message = named;
        }
    }
    if unfinished && !messages.last_mut().is_some_and(mark) {
        return Err(EngineError::InvalidRequest(
            "continue_final_message is set, but the last message has no text to continue".into(),
        ));
    }
    Ok(unfinished)
}

/// Appends the mark to the message's text, or to the last of its parts that has one.
fn mark(message: &mut Value) -> bool {
    match message.get_mut("content") {
        Some(Value::String(text)) => {
            text.push_str(MARK);
            true
        }
        Some(Value::Array(parts)) => {
            let texts = parts.iter_mut().filter_map(|p| p.get_mut("text"));
            match texts.last() {
                Some(Value::String(text)) => {
                    text.push_str(MARK);
                    true
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// Cuts the prompt at the mark. Where the template trims the message, the text before it is trimmed too.
///
/// # Errors
/// `InvalidRequest` if the template left the message out.
pub fn cut(mut text: String) -> Result<String, EngineError> {
    let Some(at) = text.rfind(MARK.trim_end()) else {
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
