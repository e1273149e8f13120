//! A question about pairs as a question about one of their halves: for which of the other halves is the answer yes?
//!
//! ```text
//! ai_filter('Is the review about the topic?', review, topic)      review, topic  ->  Yes or No
//! the same, topic of [price, taste]                               review         ->  a list of topics
//! ```
//!
//! Where few values pair with many rows, this asks once for each row instead of once for each pair. A model may well answer it
//! otherwise than pair by pair.

use serde_json::Value;

use crate::call::{LlmCall, Prompt, is_plain};
use crate::function::Function;
use crate::task::{Shape, Task};
use crate::template::Piece;

impl LlmCall {
    /// Returns the call that shows all inputs but `paired`, and asks for which of its `values`, which are distinct, this call would be
    /// answered by Yes. `None` if this call asks no truth, or `paired` is a list of passages.
    pub fn which_of(&self, paired: usize, values: &[String]) -> Option<LlmCall> {
        let (labels, passages) = match &self.prompt {
            Prompt::Fields { labels, passages } => (labels, *passages),
            Prompt::Template(template) => (&template.labels, None),
            Prompt::Rows { .. } => return None,
        };
        if self.task.shape != Shape::Boolean || passages == Some(paired) {
            return None;
        }
        let name = mention(&labels[paired]);
        let listed = Value::from(values);
        let instruction = format!(
            "{question}\nThe question is asked of the data together with each value of {name}. Find all values of {name} for which the \
             answer is yes. Values of {name}:\n{listed}",
            question = self.question(labels),
        );
        let task = Task {
            instruction,
            answer_form: "Answer with a JSON list of values.".to_string(),
            shape: Shape::Choice { labels: values.to_vec(), multi: true },
            shown: format!("{}, {} of {listed}", self.shown_question(), labels[paired]),
        };
        let others = |input: &usize| *input != paired;
        let prompt = Prompt::Fields {
            labels: (0..labels.len()).filter(others).map(|input| labels[input].clone()).collect(),
            passages: passages.map(|passages| passages - usize::from(passages > paired)),
        };
        let inputs = (0..labels.len()).filter(others).map(|input| self.inputs[input].clone()).collect();
        Some(LlmCall { function: Function::Classify, task, prompt, options: self.options.clone(), inputs })
    }

    /// Returns what is asked, with fields by name where a template shows their values.
    fn question(&self, labels: &[String]) -> String {
        let Prompt::Template(template) = &self.prompt else { return self.task.instruction.clone() };
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Input(input) => mention(&labels[*input]),
        };
        template.pieces.iter().map(text).collect()
    }

    fn shown_question(&self) -> String {
        match &self.prompt {
            Prompt::Template(template) => format!("'{}'", crate::scalar::shorten(&template.source)),
            _ => self.task.shown.clone(),
        }
    }
}

/// Returns a field's name as it may stand in an instruction.
fn mention(label: &str) -> String {
    if is_plain(label) { format!("`{label}`") } else { Value::from(label).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::call;

    #[track_caller]
    fn check(call: &LlmCall, paired: usize, expected: &str, question: &str) {
        let values = ["price".to_string(), "taste".to_string()];
        let which = call.which_of(paired, &values).unwrap();
        assert_eq!(which.describe(), expected);
        assert!(which.task.instruction.starts_with(question), "{}", which.task.instruction);
        assert!(which.task.instruction.ends_with("Values of `title`:\n[\"price\",\"taste\"]"), "{}", which.task.instruction);
        assert_eq!((which.inputs.len(), which.task.value_type().to_string()), (1, "List(Utf8)".to_string()));
    }

    #[tokio::test]
    async fn one_half_is_shown_and_the_other_listed() {
        let fields = call("ai_filter('Is it about the title?', body, title)").await.unwrap();
        let expected = "ai_classify('Is it about the title?', title of [\"price\",\"taste\"], fields=[body])";
        check(&fields, 1, expected, "Is it about the title?\nThe question is asked");
        let template = call("ai_filter(prompt('Is {0} in {1}?', title, body))").await.unwrap();
        let expected = "ai_classify('Is {0} in {1}?', title of [\"price\",\"taste\"], fields=[body])";
        check(&template, 0, expected, "Is `title` in `body`?\nThe question is asked");
    }

    #[tokio::test]
    async fn other_questions_stay_as_they_are() {
        for sql in ["ai_complete('p', body, title)", "ai_filter('p', body, title, output_mode => 'probability')"] {
            assert!(call(sql).await.unwrap().which_of(1, &["a".to_string()]).is_none(), "{sql}");
        }
        let passages = call("ai_filter('p', body, passages => [title])").await.unwrap();
        assert!(passages.which_of(1, &["a".to_string()]).is_none());
        assert!(passages.which_of(0, &["a".to_string()]).is_some());
    }
}
