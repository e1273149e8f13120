//! `ai_redact(text [, categories])`: the text with personal data replaced by tags. VARCHAR.

use datafusion::common::Result;

use super::Arguments;
use super::arguments::listing;
use crate::task::{Shape, Task};

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let noun = arguments.noun;
    let (instruction, shown) = match arguments.optional(0, "categories")? {
        None => {
            let what = "name, address, email, phone number and other personal detail";
            (format!("Replace every {what} in the {noun} by [MASKED]."), String::new())
        }
        Some(value) => {
            let categories = arguments.texts(value, "categories")?;
            let rule = |category: &String| format!("{category} by [{}]", tag(category));
            let rules: Vec<String> = categories.iter().map(rule).collect();
            let shown = format!("categories=[{}]", categories.join(", "));
            (format!("In the {noun}, replace every {}.", listing(&rules, "and every")), shown)
        }
    };
    Ok(Task { instruction, answer_form: "Leave all other words as they are.".into(), shape: Shape::Text, shown })
}

/// Returns the tag of a category: `phone number` becomes `PHONE_NUMBER`.
fn tag(category: &str) -> String {
    category.trim().to_uppercase().replace(|letter: char| !letter.is_alphanumeric(), "_")
}
