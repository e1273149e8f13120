//! `ai_top_k(input, instruction, k [, method => 'score'])`: the best `k` inputs of a group. LIST<STRUCT(value, rank)>.
//!
//! | method | what is asked | source |
//! |---|---|---|
//! | score | a score of each value: the question of `ai_score` | pointwise ranking |
//! | pairwise | which of two values is better | Qin et al., pairwise ranking prompting, arXiv 2306.17563 |
//! | listwise | the order of up to [`LISTWISE_ROWS_MAX`] values | Sun et al., RankGPT, arXiv 2304.09542 |

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use serde_json::{Map, json};

use super::llm_aggregate::{Method, Parts, Reduction, ranked_fields};
use crate::call::{LlmCall, Prompt};
use crate::function::Function;
use crate::options::Keyword;
use crate::scalar;
use crate::task::{Shape, Task};

/// The labels of the two values of a comparison, which are its answers.
pub const PAIR_LABELS: [&str; 2] = ["A", "B"];

/// The most values that are ranked in one call.
pub const LISTWISE_ROWS_MAX: usize = 10;

/// Returns the stage of [`Method::Listwise`] that ranks so many values: from 2 to [`LISTWISE_ROWS_MAX`].
pub fn listwise_stage(n_rows: usize) -> usize {
    n_rows.saturating_sub(2)
}

pub(super) fn value_type(input: &DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Struct(ranked_fields(input)), true)))
}

pub(super) fn stages(parts: &Parts) -> Result<(Reduction, Vec<LlmCall>, String)> {
    let instruction = parts.instruction()?;
    let k = parts.count(1, "k")?;
    let method = parts.keyword("method", Method::Score)?;
    let no_options = Map::new();
    let arguments = parts.arguments(&instruction, &no_options);
    let shown = format!("{}, k={k}, method={}", arguments.shown_instruction(), method.name());
    let sentence = arguments.sentence();
    let stages = match method {
        Method::Score => {
            let task = scalar::task(Function::Score, &arguments)?;
            let labels = parts.labels.to_vec();
            vec![parts.stage(Function::Score, task, Prompt::Fields { labels, passages: None }, parts.labels.len())]
        }
        Method::Pairwise => {
            let labels = PAIR_LABELS.map(String::from).to_vec();
            let task = Task {
                instruction: format!("Which of the two, A or B, fits this better? {sentence}"),
                answer_form: "Answer with ONLY 'A' or 'B'.".to_string(),
                shape: Shape::Choice { labels: labels.clone(), multi: false },
                shown: String::new(),
            };
            vec![parts.stage(Function::TopK, task, Prompt::Fields { labels, passages: None }, 2)]
        }
        Method::Listwise => (2..=LISTWISE_ROWS_MAX)
            .map(|n_rows| parts.rows_stage(ranking(&sentence, n_rows), vec!["id".to_string(), "value".to_string()]))
            .collect(),
    };
    Ok((Reduction::TopK { k, method }, stages, shown))
}

/// Asks for the order of `n_rows` rows, as a list of their ids, which count from 1.
fn ranking(sentence: &str, n_rows: usize) -> Task {
    let ids: Vec<usize> = (1..=n_rows).collect();
    Task {
        instruction: format!("Rank the rows by how well they fit this, the best first: {sentence}"),
        answer_form: "Answer with the ids of all rows as a JSON list, the best first.".to_string(),
        shape: Shape::Json {
            schema: json!({"type": "array", "items": {"enum": ids}, "minItems": n_rows, "maxItems": n_rows}),
            value_type: DataType::new_list(DataType::Int64, true),
        },
        shown: String::new(),
    }
}
