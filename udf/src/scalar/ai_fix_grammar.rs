//! `ai_fix_grammar(text)`: the text without mistakes of grammar and spelling. VARCHAR.

use super::Arguments;
use crate::task::{Shape, Task};

pub(super) fn task(arguments: &Arguments) -> Task {
    Task {
        instruction: format!("Correct the grammar and spelling of the {}.", arguments.noun),
        answer_form: "Answer with the corrected text only.".into(),
        shape: Shape::Text,
        shown: String::new(),
    }
}
