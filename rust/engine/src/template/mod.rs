//! Chat templates: the Jinja of Hugging Face tokenizers, rendered in minijinja with a bound on steps, nesting and output.
//!
//! What transformers adds to Jinja is added here: `tojson` as Python's json.dumps writes it, `raise_exception`,
//! `strftime_now`, loop controls, `{% generation %}` and the methods of Python strings, lists and dicts.

mod json;
mod messages;
mod methods;
mod number;
mod percent;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, ErrorKind, Value};
use octavo_model::{DEFAULT_TEMPLATE, ModelFolder};

use crate::EngineError;
use crate::error::panic_text;
use crate::tokenizer::Tokenizer;

/// Steps that a template may take: real ones need some thousands.
const FUEL: u64 = 2_000_000;
/// Longest rendered prompt, in bytes.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Longest template text, in bytes.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Stack for compiling and rendering, in bytes: enough for the deepest nesting that fits into the other limits. It is
/// address space only until it is used.
const STACK_BYTES: usize = 512 << 20;

/// The template that is taken where tools are given.
const TOOL_USE: &str = "tool_use";

/// The compiled chat templates of a model.
pub struct ChatTemplate {
    env: Environment<'static>,
    special: Vec<(String, String)>,
    has_tool_use: bool,
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
        (!found.is_empty()).then(|| on_large_stack(|| Self::compile(found, tokenizer)))
    }

    /// Compiles `text`. Special tokens of the tokenizer become variables (`bos_token`, ...).
    ///
    /// # Errors
    /// `InvalidRequest` if it is no valid template.
    pub fn new(text: &str, tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        on_large_stack(|| Self::compile(&[(DEFAULT_TEMPLATE.into(), text.into())], tokenizer))
    }

    fn compile(texts: &[(String, String)], tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let refuse = |e: &dyn std::fmt::Display| {
            EngineError::InvalidRequest(format!("the chat template is not valid: {e}"))
        };
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| refuse(&e))?);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(64);
        env.set_unknown_method_callback(methods::call);
        env.add_filter("tojson", json::tojson);
        // In Jinja texts and mappings have a length and items, so they are sequences too.
        env.add_test("sequence", |value: Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        });
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: String| -> Result<String, minijinja::Error> {
            use std::fmt::Write;
            let mut out = String::new();
            let now = chrono::Local::now();
            write!(out, "{}", now.format(&format)).map_err(|_| {
                minijinja::Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: bad format {format:?}"),
                )
            })?;
            Ok(out)
        });
        env.set_formatter(|out, state, value| match f64::try_from(value.clone()) {
            Ok(float) if value.kind() == ValueKind::Number && !value.is_integer() => {
                out.write_str(&number::python_float(float)).map_err(minijinja::Error::from)
            }
            _ => minijinja::escape_formatter(out, state, value),
        });
        for (name, text) in texts {
            if text.len() > MAX_TEMPLATE_BYTES {
                return Err(refuse(&format!("{} bytes, at most {MAX_TEMPLATE_BYTES} are taken", text.len())));
            }
            // Jinja reads every line end as \n.
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            let text = percent::with_format_filters(&without_generation_tags(&text));
            env.add_template_owned(name.clone(), text).map_err(|e| refuse(&e))?;
        }
        let keys =
            ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
        let special =
            keys.iter().filter_map(|k| Some((k.to_string(), tokenizer.special_token(k)?.to_string())));
        let has_tool_use = texts.iter().any(|(name, _)| name == TOOL_USE);
        Ok(Self { env, special: special.collect(), has_tool_use })
    }

    /// Renders a request: a JSON object with `messages` and whatever else the template reads (`tools`,
    /// `add_generation_prompt`, `documents`, ...). With `continue_final_message` the prompt ends where the last message does.
    ///
    /// # Errors
    /// `InvalidRequest` if the template refuses the messages, or runs too long.
    pub fn render(
        &self,
        request: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, EngineError> {
        let mut context: serde_json::Map<String, serde_json::Value> =
            self.special.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        for key in ["tools", "documents"] {
            context.insert(key.into(), serde_json::Value::Null);
        }
        context.extend(request.iter().map(|(k, v)| (k.clone(), v.clone())));
        let unfinished = messages::prepare(&mut context)?;
        let with_tools = self.has_tool_use && context.get("tools").is_some_and(|tools| !tools.is_null());
        let name = if with_tools { TOOL_USE } else { DEFAULT_TEMPLATE };
        let refuse = |e: minijinja::Error| {
            let mut text = e.to_string();
            if e.kind() == ErrorKind::OutOfFuel {
                text = format!("it took more than {FUEL} steps");
            }
            EngineError::InvalidRequest(format!("the chat template does not take these messages: {text}"))
        };
        let mut out = Capped(Vec::new());
        on_large_stack(|| {
            let template = self.env.get_template(name).map_err(refuse)?;
            template.render_captured_to(Value::from(Serde(context)), &mut out).map(|_| ()).map_err(refuse)
        })?;
        let text = String::from_utf8(out.0)
            .map_err(|e| EngineError::InvalidRequest(format!("the chat template wrote {e}")))?;
        if unfinished { messages::cut(text) } else { Ok(text) }
    }
}

/// Runs `work` where deep nesting in a template cannot overflow the stack.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, EngineError> + Send) -> Result<T, EngineError> {
    let failed = |why: String| EngineError::InvalidRequest(format!("the chat template cannot be run: {why}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("octavo-template".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| failed(e.to_string()))?;
        thread.join().unwrap_or_else(|p| Err(failed(panic_text(p))))
    })
}

/// A writer that refuses more than `MAX_OUTPUT_BYTES`.
struct Capped(Vec<u8>);

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other(format!("the prompt grew beyond {MAX_OUTPUT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Replaces `{% generation %}` and `{% endgeneration %}` (marks for training) by tags that do nothing, keeping their
/// white-space control.
fn without_generation_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        out.push_str(&rest[..start + 2]);
        rest = &rest[start + 2..];
        let Some(end) = rest.find("%}") else { break };
        let tag = &rest[..end];
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::byte_level;
    use serde_json::json;

    fn render(template: &str, request: serde_json::Value) -> Result<String, EngineError> {
        ChatTemplate::new(template, &byte_level())?.render(request.as_object().expect("object"))
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
