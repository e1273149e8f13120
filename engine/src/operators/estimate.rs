//! What a call would cost, judged from a sample of its input. No model is asked; only the tokenizer is used.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;
use refrain_serving::Tokenizer;
use refrain_udf::{Prompt, PromptLayout};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::prompts::{plan_requests, strategy};

/// What one call is expected to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct CallEstimate {
    /// Rows that need an answer.
    pub rows: u64,
    /// Distinct questions among them.
    pub distinct: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Prompt tokens that all requests have in front: system text, instruction, shape.
    pub head_tokens: u64,
    /// Share of prompt tokens that the cache is expected to hold already, 0 to 1.
    pub prefix_hit: f64,
    /// The order of fields in the prompt, where one order serves all rows; empty in template mode.
    pub field_order: Vec<String>,
    /// The strategy that ordered them.
    pub strategy: String,
    /// Whether the sample was the whole input.
    pub is_exact: bool,
}

/// Estimates one call from the first rows of its input. `rows` is the number of rows that the input is expected to have.
pub fn estimate_call(
    call: &PhysicalCall,
    tokenizer: &dyn Tokenizer,
    sample: &[RecordBatch],
    rows: Option<u64>,
) -> Result<CallEstimate> {
    let layout = PromptLayout::new(&call.call, tokenizer)?;
    let mut questions = Questions::new(call.inputs.len(), call.options.dedups(), 0);
    for batch in sample {
        let (inputs, guard) = call.evaluate(batch)?;
        let nulls = call.call.null_policy(call.options.null_input);
        questions.push(&inputs, guard.as_ref(), nulls, 0, batch.num_rows(), usize::MAX)?;
    }
    let asked: Vec<u32> = (0..questions.len() as u32).collect();
    let planned = plan_requests(call, &layout, tokenizer, &questions, &asked, 1, None)?;
    let sampled_rows: u64 = sample.iter().map(|batch| batch.num_rows() as u64).sum();
    let asked_rows = crate::operators::window::rows_with_question(&questions);
    let scale = match rows {
        Some(rows) if sampled_rows > 0 => rows as f64 / sampled_rows as f64,
        _ => 1.0,
    };
    let scaled = |n: u64| (n as f64 * scale).round() as u64;
    let prompt_tokens: u64 = planned.requests.iter().map(|request| request.prompt_len() as u64).sum();
    let shared = shared_tokens(&planned.requests.iter().map(|r| r.prompt.as_slice()).collect::<Vec<_>>());
    Ok(CallEstimate {
        rows: scaled(asked_rows),
        distinct: scaled(questions.len() as u64),
        prompt_tokens: scaled(prompt_tokens),
        head_tokens: u64::from(planned.head_len),
        prefix_hit: if prompt_tokens == 0 { 0.0 } else { shared as f64 / prompt_tokens as f64 },
        field_order: field_names(call, planned.field_order),
        strategy: strategy(call).to_string(),
        is_exact: scale == 1.0,
    })
}

impl CallEstimate {
    /// Counts in tokens of the model, of which one of its tokenizer here makes `scale`.
    pub fn in_model_tokens(self, scale: f64) -> CallEstimate {
        let scaled = |tokens: u64| (tokens as f64 * scale).round() as u64;
        CallEstimate {
            prompt_tokens: scaled(self.prompt_tokens),
            head_tokens: scaled(self.head_tokens),
            is_exact: self.is_exact && scale == 1.0,
            ..self
        }
    }
}

/// Tokens of each prompt that the prompt before it begins with: what a cache of one path saves.
fn shared_tokens(prompts: &[&[Arc<[u32]>]]) -> u64 {
    let mut shared = 0;
    for pair in prompts.windows(2) {
        let tokens = |prompt: &[Arc<[u32]>]| prompt.iter().flat_map(|segment| segment.iter().copied()).collect::<Vec<_>>();
        let (before, this) = (tokens(pair[0]), tokens(pair[1]));
        let common = before.iter().zip(&this).take_while(|(a, b)| a == b).count();
        // The last prompt token is always computed, to know what follows it.
        shared += common.min(this.len().saturating_sub(1)) as u64;
    }
    shared
}

fn field_names(call: &PhysicalCall, order: Option<Vec<u32>>) -> Vec<String> {
    let (Prompt::Fields { labels }, Some(order)) = (&call.call.prompt, order) else { return vec![] };
    order.iter().filter_map(|field| labels.get(*field as usize).cloned()).collect()
}

impl fmt::Display for CallEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field_order.is_empty() {
            write!(f, "order=[{}] ({}) ", self.field_order.join(", "), self.strategy)?;
        }
        let about = if self.is_exact { "" } else { "≈" };
        write!(
            f,
            "rows{about}={} distinct{about}={} calls≤{} prompt{about}={} tok, head {} tok, prefix hit est {:.0} %, prefill≈{} tok",
            self.rows,
            self.distinct,
            self.distinct,
            self.prompt_tokens,
            self.head_tokens,
            self.prefix_hit * 100.0,
            (self.prompt_tokens as f64 * (1.0 - self.prefix_hit)).round() as u64,
        )
    }
}
