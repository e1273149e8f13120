//! `ai_summarize_agg(text [, max_words => n])`: one summary of all texts of a group. VARCHAR.

use datafusion::common::Result;

use super::llm_aggregate::{Overflow, Parts, Reduction};
use crate::call::LlmCall;
use crate::options::{text_of, whole};
use crate::task::{Shape, Task};

pub(super) fn stages(parts: &Parts) -> Result<(Reduction, Vec<LlmCall>, String)> {
    let (limit, shown) = match parts.raw().get("max_words") {
        None => (String::new(), String::new()),
        Some(value) => {
            let words: u32 = whole(&format!("{}: option max_words", parts.name()), &text_of(value), 1)?;
            (format!(" in at most {words} words"), format!("max_words={words}"))
        }
    };
    let task =
        |instruction: String| Task { instruction, answer_form: String::new(), shape: Shape::Text, shown: shown.clone() };
    let chunk = task(format!("Summarize all of the rows together{limit}."));
    let combine =
        task(format!("Each row holds a summary of a part of the data. Summarize all of the rows together{limit}."));
    let stages =
        vec![parts.rows_stage(chunk, parts.labels.to_vec()), parts.rows_stage(combine, vec!["summary".to_string()])];
    let overflow = parts.keyword("overflow", Overflow::Hierarchical)?;
    Ok((Reduction::Hierarchy { overflow }, stages, shown))
}
