//! `ai_score(instruction [, input…] [, min => 0, max => 1, integer => false])`: a DOUBLE within the range.

use datafusion::common::{Result, plan_err};

use super::Arguments;
use crate::options::{Float, boolean, number, text_of};
use crate::task::{Shape, Task};

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let bound = |name: &str, default| match arguments.options.get(name) {
        Some(value) => number(&arguments.option_subject(name), &text_of(value)),
        None => Ok(default),
    };
    let (min, max) = (bound("min", 0.0)?, bound("max", 1.0)?);
    let integer = match arguments.options.get("integer") {
        Some(value) => boolean(&arguments.option_subject("integer"), &text_of(value))?,
        None => false,
    };
    if min >= max {
        return plan_err!("{}: min must be below max, and {min} is not below {max}", arguments.name);
    }
    if integer && min.ceil() > max.floor() {
        return plan_err!("{}: there is no whole number between min {min} and max {max}", arguments.name);
    }
    let kind = if integer { "a whole number" } else { "a score" };
    let shown = [arguments.shown_instruction(), format!("range={min}..{max}")];
    Ok(Task {
        instruction: arguments.sentence(),
        answer_form: format!("Give {kind} between {min} and {max}. Answer with the number only."),
        shape: Shape::Number { min: Float(min), max: Float(max), integer },
        shown: shown.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "),
    })
}
