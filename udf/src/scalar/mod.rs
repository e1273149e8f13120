//! The functions, one file each: which type an answer has, and what is asked.
//!
//! The wordings are among those that the bundled model was trained on, where it was trained on the task.

mod ai_classify;
mod ai_complete;
mod ai_embed;
mod ai_extract;
mod ai_filter;
mod ai_fix_grammar;
mod ai_redact;
mod ai_score;
mod ai_sentiment;
mod ai_summarize;
mod ai_translate;
mod arguments;

pub(crate) use arguments::{Arguments, shorten, task, value_type};
