//! `ai_translate(text, target [, source_language => s])`: the text in another language. VARCHAR.

use datafusion::common::{Result, plan_err};
use serde_json::Value;

use super::Arguments;
use crate::options::string;
use crate::task::{Shape, Task};

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let Value::String(target) = arguments.required(0, "target")? else {
        return plan_err!("{}: target must be the name of a language such as 'German' or 'de'", arguments.name);
    };
    let target = language(&string(&format!("{}: target", arguments.name), &Value::String(target.clone()))?);
    let source = match arguments.options.get("source_language") {
        Some(value) => Some(language(&string(&arguments.option_subject("source_language"), value)?)),
        None => None,
    };
    let (instruction, shown) = match source {
        Some(source) => (format!("Translate the text from {source} to {target}."), format!("'{source}' to '{target}'")),
        None => (format!("Translate the text into {target}."), format!("to '{target}'")),
    };
    Ok(Task { instruction, answer_form: String::new(), shape: Shape::Text, shown })
}

/// Returns the English name of a language that is given by its ISO 639-1 code; other text stands for itself.
fn language(text: &str) -> String {
    const CODES: &[(&str, &str)] = &[
        ("ar", "Arabic"),
        ("cs", "Czech"),
        ("da", "Danish"),
        ("de", "German"),
        ("el", "Greek"),
        ("en", "English"),
        ("es", "Spanish"),
        ("fi", "Finnish"),
        ("fr", "French"),
        ("he", "Hebrew"),
        ("hi", "Hindi"),
        ("hu", "Hungarian"),
        ("id", "Indonesian"),
        ("it", "Italian"),
        ("ja", "Japanese"),
        ("ko", "Korean"),
        ("nl", "Dutch"),
        ("no", "Norwegian"),
        ("pl", "Polish"),
        ("pt", "Portuguese"),
        ("ro", "Romanian"),
        ("ru", "Russian"),
        ("sv", "Swedish"),
        ("th", "Thai"),
        ("tr", "Turkish"),
        ("uk", "Ukrainian"),
        ("vi", "Vietnamese"),
        ("zh", "Chinese"),
    ];
    let code = text.trim().to_lowercase();
    match CODES.iter().find(|(short, _)| *short == code) {
        Some((_, name)) => name.to_string(),
        None => text.trim().to_string(),
    }
}
