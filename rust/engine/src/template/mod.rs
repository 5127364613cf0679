//! Chat templates: the Jinja of Hugging Face tokenizers, with a bound on steps, nesting and output.
//!
//! The engine is written for these templates, with Python's values: what a template writes for a number, a list or a
//! comparison is what Jinja2 in Python writes. It follows Jinja2 as transformers configures it: the immutable sandbox,
//! `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`, `tojson` as json.dumps writes it, `raise_exception`,
//! `strftime_now`.

mod access;
mod args;
mod ast;
mod braces;
mod checks;
mod eval;
mod expressions;
mod filters;
mod format;
mod functions;
mod html;
mod interpreter;
mod json;
mod lexer;
mod list_filters;
mod messages;
mod number;
mod number_filters;
mod number_methods;
mod ops;
mod parser;
mod percent;
mod pretty;
mod repr;
mod run;
mod sorting;
mod special;
mod targets;
mod text_filters;
mod text_methods;
mod value;
mod wrap;

use std::collections::HashMap;
use std::sync::Arc;

use octavo_model::{DEFAULT_TEMPLATE, ModelFolder};

use crate::EngineError;
use crate::error::panic_text;
use crate::tokenizer::Tokenizer;
use ast::Stmt;
use interpreter::Interpreter;
use messages::{Fields, key};
use value::{JinjaError, Val};

/// Longest template text, in bytes.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Stack for compiling and rendering, in bytes: enough for the deepest nesting that the limits allow.
const STACK_BYTES: usize = 16 << 20;

/// The template that is taken where tools are given.
const TOOL_USE: &str = "tool_use";

/// The compiled chat templates of a model.
pub struct ChatTemplate {
    bodies: HashMap<String, Vec<Stmt>>,
    special: Vec<(String, Val)>,
}

impl ChatTemplate {
    /// The templates of a model folder by name: chat_template.jinja (`default`) with additional_chat_templates/NAME.jinja, or
    /// `chat_template` in tokenizer_config.json (one text, or a list of named ones). Only `default` and `tool_use` are kept.
    pub fn find(
        folder: &dyn ModelFolder,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<(String, String)>, EngineError> {
        let mut files = Vec::new();
        for name in [DEFAULT_TEMPLATE, TOOL_USE] {
            files.extend(folder.chat_template(name)?.map(|text| (name.to_string(), text)));
        }
        if !files.is_empty() {
            return Ok(files);
        }
        let Some(value) = tokenizer.config().get("chat_template") else { return Ok(Vec::new()) };
        let named = |t: &serde_json::Value| {
            let name = t.get("name")?.as_str().filter(|n| [DEFAULT_TEMPLATE, TOOL_USE].contains(n))?;
            Some((name.to_string(), t.get("template")?.as_str()?.to_string()))
        };
        Ok(match value.as_array() {
            Some(list) => list.iter().filter_map(named).collect(),
            None => value
                .as_str()
                .map(|text| (DEFAULT_TEMPLATE.to_string(), text.to_string()))
                .into_iter()
                .collect(),
        })
    }

    /// Compiles what [`ChatTemplate::find`] found; None if it found nothing.
    ///
    /// # Errors
    /// `InvalidRequest` if one is no valid template.
    pub fn named(found: &[(String, String)], tokenizer: &Tokenizer) -> Option<Result<Self, EngineError>> {
        (!found.is_empty()).then(|| on_own_stack(|| Self::compile(found, tokenizer)))
    }

    /// Compiles `text`. Special tokens of the tokenizer become variables (`bos_token`, ...).
    ///
    /// # Errors
    /// `InvalidRequest` if it is no valid template.
    pub fn new(text: &str, tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        on_own_stack(|| Self::compile(&[(DEFAULT_TEMPLATE.into(), text.into())], tokenizer))
    }

    fn compile(texts: &[(String, String)], tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let refuse = |e: String| EngineError::InvalidRequest(format!("the chat template is not valid: {e}"));
        let mut bodies = HashMap::new();
        for (name, text) in texts {
            if text.len() > MAX_TEMPLATE_BYTES {
                return Err(refuse(format!("{} bytes, at most {MAX_TEMPLATE_BYTES} are taken", text.len())));
            }
            bodies.insert(name.clone(), parser::parse(text).map_err(|e| refuse(e.0))?);
        }
        Ok(Self { bodies, special: special::tokens(tokenizer.config()) })
    }

    /// Renders a request: a JSON object with `messages` and whatever else the template reads (`tools`,
    /// `add_generation_prompt`, `documents`, ...). With `continue_final_message` the prompt ends where the last message does.
    ///
    /// Fields of messages that are null are left out, as in transformers. A template that then fails sees them: some ask
    /// `content is none` and read it otherwise.
    ///
    /// # Errors
    /// `InvalidRequest` if the template refuses the messages, or runs too long.
    pub fn render(&self, request: &str) -> Result<String, EngineError> {
        on_own_stack(|| {
            let refuse = |e: JinjaError| EngineError::InvalidRequest(format!("messages: {}", e.0));
            let fields = json::parse(request).and_then(messages::fields).map_err(refuse)?;
            let prepared = messages::prepare(&fields, false).map_err(refuse)?;
            let unfinished = prepared.unfinished;
            let mut rendered = self.run(prepared.context);
            if rendered.is_err() && prepared.without_nulls {
                let whole = messages::prepare(&fields, true).map_err(refuse)?;
                rendered = self.run(whole.context).or(rendered);
            }
            let refuse = |e: JinjaError| {
                EngineError::InvalidRequest(format!(
                    "the chat template does not take these messages: {}",
                    e.0
                ))
            };
            let text = rendered.map_err(refuse)?;
            match unfinished {
                Some(unfinished) => messages::cut(text, &unfinished),
                None => Ok(text),
            }
        })
    }

    fn run(&self, context: Fields) -> Result<String, JinjaError> {
        let with_tools = context.get(&key("tools")).is_some_and(|tools| !matches!(tools, Val::None));
        let tool_use = self.bodies.get(TOOL_USE).filter(|_| with_tools);
        let Some(body) = tool_use.or_else(|| self.bodies.get(DEFAULT_TEMPLATE)) else {
            return value::fail("there is no template of the name \"default\"");
        };
        let mut names: HashMap<Arc<str>, Val> =
            self.special.iter().map(|(name, text)| (name.as_str().into(), text.clone())).collect();
        for name in ["tools", "documents"] {
            names.insert(name.into(), Val::None);
        }
        names.insert("add_generation_prompt".into(), Val::Bool(false));
        names.extend(context.iter().filter_map(|(k, v)| Some((k.0.as_str()?.into(), v.clone()))));
        let mut interpreter = Interpreter::new(names);
        interpreter.find_blocks(body);
        let mut out = String::new();
        interpreter.run(body, &mut out)?;
        Ok(out)
    }
}

/// Runs `work` where deep nesting in a template cannot overflow the stack, whatever the caller's is.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, EngineError> + Send) -> Result<T, EngineError> {
    let failed = |why: String| EngineError::InvalidRequest(format!("the chat template cannot be run: {why}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("octavo-template".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| failed(e.to_string()))?;
        thread.join().unwrap_or_else(|p| Err(failed(panic_text(p))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::byte_level;
    use serde_json::json;

    fn render(template: &str, request: serde_json::Value) -> Result<String, EngineError> {
        ChatTemplate::new(template, &byte_level())?.render(&request.to_string())
    }

    #[test]
    fn a_chatml_template_renders_with_python_methods_and_loop_controls() {
        let template = "{%- for m in messages -%}\n{%- if m.role == 'tool' %}{% continue %}{% endif -%}\n\
                        <|{{ m['role'].upper() }}|>{{ m.get('content', '').strip() }}\n{% endfor -%}\n\
                        {% generation %}{% if add_generation_prompt %}<|ASSISTANT|>{% endif %}{% endgeneration %}";
        let request = json!({"messages": [{"role": "user", "content": " hi "}, {"role": "tool"}], "add_generation_prompt": true});
        assert_eq!(render(template, request).expect("text"), "<|USER|>hi\n<|ASSISTANT|>");
    }

    #[test]
    fn strings_have_the_methods_of_python() {
        let cases = [
            ("{{ 'a.b.c'.rsplit('.', 1) | tojson }}", "[\"a.b\", \"c\"]"),
            ("{{ ' a  b c '.rsplit(none, 1) | tojson }}", "[\" a  b\", \"c\"]"),
            ("{{ ' a  b '.rsplit() | tojson }}", "[\"a\", \"b\"]"),
            ("{{ 'a=b=c'.partition('=') | tojson }}", "[\"a\", \"=\", \"b=c\"]"),
            ("{{ 'abc'.rpartition('=') | tojson }}", "[\"\", \"\", \"abc\"]"),
            ("{{ 'abc'.removeprefix('a').removesuffix('c') }}", "b"),
            ("{{ 'x' is sequence and [1] is sequence and 1 is not sequence }}", "True"),
            ("a\r\nb\rc", "a\nb\nc"),
        ];
        for (template, wanted) in cases {
            assert_eq!(render(template, json!({})).expect(template), wanted, "{template}");
        }
    }

    #[test]
    fn tojson_writes_what_python_writes() {
        let value = json!({"x": {"b": [1, 2.5, null, true], "a": "é<>\"", "e": [], "o": {}}});
        assert_eq!(
            render("{{ x | tojson }}", value.clone()).expect("text"),
            "{\"b\": [1, 2.5, null, true], \"a\": \"é<>\\\"\", \"e\": [], \"o\": {}}"
        );
        assert_eq!(
            render("{{ x | tojson(indent=2) }}", value).expect("text"),
            "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"a\": \"é<>\\\"\",\n  \"e\": [],\n  \"o\": {}\n}"
        );
    }

    #[test]
    fn hostile_templates_end_in_a_typed_error() {
        let endless =
            "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}";
        for template in [
            endless,
            "{{ raise_exception('no system turn') }}",
            "{{ 'x' * 100000000000 }}",
            "{{ '{:>100000000000}'.format(1) }}",
            "{{ messages.foo() }}",
        ] {
            let error = render(template, json!({"messages": []})).expect_err(template);
            assert_eq!(error.class_name(), "InvalidRequestError", "{error}");
        }
        assert!(render("{% if %}", json!({})).is_err());
        assert!(
            render("{{ strftime_now('%Y') }}", json!({})).expect("year").parse::<u32>().expect("number")
                > 2000
        );
        assert_eq!(
            render("{{ strftime_now('%Q') }}", json!({})).expect_err("format").class_name(),
            "InvalidRequestError"
        );
    }
}
