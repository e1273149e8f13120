//! `ai_summarize(text [, max_words => n])`: a shorter text. VARCHAR.

use datafusion::common::Result;

use super::Arguments;
use crate::options::{text_of, whole};
use crate::task::{Shape, Task};

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let (limit, shown) = match arguments.options.get("max_words") {
        None => (String::new(), String::new()),
        Some(value) => {
            let words: u32 = whole(&arguments.option_subject("max_words"), &text_of(value), 1)?;
            (format!(" in at most {words} words"), format!("max_words={words}"))
        }
    };
    let instruction = format!("Summarize the {}{limit}.", arguments.noun);
    Ok(Task { instruction, answer_form: String::new(), shape: Shape::Text, shown })
}
