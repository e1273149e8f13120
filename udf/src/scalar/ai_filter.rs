//! `ai_filter(instruction [, input…])`: whether a statement holds or a question is answered by yes. BOOLEAN.

use super::Arguments;
use crate::task::{Shape, Task};

pub(super) fn task(arguments: &Arguments) -> Task {
    Task {
        instruction: arguments.sentence(),
        answer_form: "Answer with ONLY 'Yes' or 'No'.".into(),
        shape: Shape::Boolean,
        shown: arguments.shown_instruction(),
    }
}
