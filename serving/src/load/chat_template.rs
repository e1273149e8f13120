//! Chat templates of Hugging Face models, which are Jinja.

use std::{fmt, thread};

use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde_json::Value;

use crate::error::{Error, Result};

/// The name of the one template in the environment.
const NAME: &str = "chat";
/// The longest template in bytes. Real ones have up to thirty thousand.
const TEMPLATE_MAX: usize = 64 << 10;
/// The stack on which templates are parsed and run, in bytes. A chain of operators is parsed by recursion, and so is a value printed
/// that holds itself many times over: what fits into [`TEMPLATE_MAX`] and [`TEMPLATE_FUEL`] must fit on this stack, for running
/// out of it ends the process. Only what is used of it takes memory.
const STACK_BYTES: usize = 256 << 20;

/// Turns a system and a user message into the text that a model was trained to answer.
///
/// Without a template the text is the plain form `SYSTEM\n\nUSER\n`.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
    has_template: bool,
}

impl ChatTemplate {
    /// Returns the plain form, for models without a template.
    pub fn plain() -> Self {
        ChatTemplate { environment: Environment::new(), special_tokens: Vec::new(), has_template: false }
    }

    /// Takes the template from chat_template.jinja if there is one, else from tokenizer_config.json: a string, or a list of
    /// named templates of which `default` is taken. Fails if it is not Jinja, or longer than 64 KiB.
    pub fn new(tokenizer_config: &Value, chat_template_jinja: Option<&str>) -> Result<Self> {
        let Some(source) = chat_template_jinja.or_else(|| template_of(tokenizer_config)) else {
            return Ok(ChatTemplate::plain());
        };
        if source.len() > TEMPLATE_MAX {
            return Err(Error::Invalid(format!("the chat template has {} bytes; is it one?", source.len())));
        }
        let mut environment = environment();
        on_deep_stack(|| environment.add_template_owned(NAME, source.to_owned()))?
            .map_err(|error| Error::Invalid(format!("the chat template is not valid: {error:#}")))?;
        Ok(ChatTemplate { environment, special_tokens: special_tokens(tokenizer_config), has_template: true })
    }

    /// Renders both messages, ready for the answer.
    ///
    /// A template that refuses the system role, or passes over it, gets the system text in front of the user text. Fails if
    /// the template fails even then; the message is the template's.
    pub fn render(&self, system: &str, user: &str) -> Result<String> {
        if !self.has_template {
            return Ok(if system.is_empty() { format!("{user}\n") } else { format!("{system}\n\n{user}\n") });
        }
        on_deep_stack(|| self.render_template(system, user))?
    }

    fn render_template(&self, system: &str, user: &str) -> Result<String> {
        if system.is_empty() {
            return self.run(&[("user", user)]).map_err(failed);
        }
        let rendered = self.run(&[("system", system), ("user", user)]);
        if rendered.as_ref().is_ok_and(|text| text.contains(system.trim())) {
            return rendered.map_err(failed);
        }
        let joined = format!("{system}\n\n{user}");
        self.run(&[("user", &joined)]).map_err(|second| failed(rendered.err().unwrap_or(second)))
    }

    fn run(&self, messages: &[(&str, &str)]) -> Result<String, minijinja::Error> {
        let messages: Vec<_> = messages.iter().map(|(role, content)| context! { role, content }).collect();
        // Tools and documents are none rather than undefined, as in transformers: templates ask `is not none`.
        let none = Jinja::from(());
        let variables = context! {
            messages, add_generation_prompt => true, tools => none, documents => none,
            ..Jinja::from_iter(self.special_tokens.iter().map(|(name, token)| (*name, token.as_str())))
        };
        self.environment.get_template(NAME)?.render(variables)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("has_template", &self.has_template).finish_non_exhaustive()
    }
}

/// Instructions that a template may take. Real ones take hundreds; one that counts to a billion comes from a hostile file.
const TEMPLATE_FUEL: u64 = 50_000;

/// Runs `work` on a thread with [`STACK_BYTES`] of stack. Fails if there is none to be had, or if `work` panics.
fn on_deep_stack<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("refrain-template".to_owned()).stack_size(STACK_BYTES);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|error| Error::Invalid(format!("cannot start a thread for the chat template: {error}")))?;
        thread.join().map_err(|_| Error::Invalid("the chat template cannot be used: its interpreter panicked".to_owned()))
    })
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| fixed_date(&format));
    environment
}

/// Formats 26 July 2024, the date that Llama's template falls back to. Equal questions must give equal prompts, today and
/// tomorrow, so no template learns the real date.
fn fixed_date(format: &str) -> String {
    let parts = [
        ("%d", "26"),
        ("%e", "26"),
        ("%m", "07"),
        ("%b", "Jul"),
        ("%B", "July"),
        ("%Y", "2024"),
        ("%y", "24"),
        ("%A", "Friday"),
        ("%a", "Fri"),
        ("%H", "00"),
        ("%I", "12"),
        ("%M", "00"),
        ("%S", "00"),
        ("%p", "AM"),
        ("%Z", "UTC"),
        ("%z", "+0000"),
        ("%F", "2024-07-26"),
        ("%T", "00:00:00"),
        ("%j", "208"),
    ];
    parts.iter().fold(format.to_owned(), |text, (code, value)| text.replace(code, value))
}

fn template_of(tokenizer_config: &Value) -> Option<&str> {
    match &tokenizer_config["chat_template"] {
        Value::String(source) => Some(source),
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default").or(named.first());
            default.and_then(|template| template["template"].as_str())
        }
        _ => None,
    }
}

/// Returns the special tokens that templates may name. A token is a string, or an object with its content.
fn special_tokens(tokenizer_config: &Value) -> Vec<(&'static str, String)> {
    let names = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];
    names.into_iter().filter_map(|name| Some((name, token_content(&tokenizer_config[name])?.to_owned()))).collect()
}

/// Returns the text of a token in tokenizer_config.json.
pub(super) fn token_content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn failed(error: minijinja::Error) -> Error {
    Error::Invalid(format!("the chat template failed: {error:#}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(config: Value, system: &str, user: &str, expected: &str) {
        let template = ChatTemplate::new(&config, None).unwrap();
        assert_eq!(template.render(system, user).unwrap(), expected);
    }

    #[test]
    fn renders_messages_with_special_tokens() {
        let template = "{{ bos_token }}{% for m in messages %}\n  <{{ m['role'] }}>{{ m.content.strip() }}{% endfor %}\n\
                        {% if add_generation_prompt %}<assistant>{% endif %}";
        let config = json!({"bos_token": {"content": "<s>"}, "chat_template": template});
        check(config, "be brief", " hi ", "<s>  <system>be brief  <user>hi<assistant>");
    }

    #[test]
    fn takes_the_default_of_named_templates_and_the_file_before_the_config() {
        let named =
            json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "{{ messages[0].content }}"}]);
        let config = json!({"chat_template": named});
        check(config.clone(), "", "hi", "hi");
        let template = ChatTemplate::new(&config, Some("file {{ messages[0].content }}")).unwrap();
        assert_eq!(template.render("", "hi").unwrap(), "file hi");
    }

    #[test]
    fn a_refused_system_text_moves_to_the_user() {
        let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
                       [INST] {{ messages[0].content }} [/INST]";
        check(json!({"chat_template": refuses}), "be brief", "hi", "[INST] be brief\n\nhi [/INST]");
        let passes_over = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
        check(json!({"chat_template": passes_over}), "be brief", "hi", "be brief\n\nhi");
    }

    #[test]
    fn without_a_template_the_form_is_plain() {
        check(json!({}), "be brief", "hi", "be brief\n\nhi\n");
        check(json!({}), "", "hi", "hi\n");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(&json!({"chat_template": endless}), None).unwrap();
        assert!(template.render("", "hi").is_err());
    }

    #[test]
    fn tools_are_none_and_the_date_is_fixed() {
        let template = "{% if tools is not none %}tools{% endif %}{{ strftime_now('%d %b %Y') }}";
        check(json!({"chat_template": template}), "", "hi", "26 Jul 2024");
    }

    #[test]
    fn failures_are_errors_with_the_template_s_message() {
        assert!(ChatTemplate::new(&json!({"chat_template": "{% if %}"}), None).is_err());
        let template = ChatTemplate::new(&json!({"chat_template": "{{ raise_exception('never') }}"}), None).unwrap();
        let error = template.render("a", "b").unwrap_err();
        assert!(error.to_string().contains("never"), "{error}");
    }
}
