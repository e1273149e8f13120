//! What an aggregate would cost: the groups of a sample are reduced with invented answers. No model is asked.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{Result, ScalarValue};
use refrain_optimizer::reorder::Strategy;
use refrain_serving::Tokenizer;
use refrain_udf::aggregate::{CHUNK_STAGE, PAIR_LABELS};
use refrain_udf::{PromptLayout, Shape};
use serde_json::{Value, json};

use super::PhysicalAggregate;
use super::groups::groups;
use super::measure::{Context, Measure};
use super::reducer::Ask;
use super::run::new_reducer;
use crate::operators::call::PhysicalCall;
use crate::operators::estimate::{Basis, CallEstimate};

/// What one aggregate is expected to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateEstimate {
    /// Groups.
    pub groups: u64,
    /// Inputs that are not NULL.
    pub inputs: u64,
    /// Questions of the first round: chunks of inputs, or values and sets of values that are ranked.
    pub chunks: u64,
    /// Questions of all rounds, were no two equal and every answer as long as it may be.
    pub calls: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers, at most.
    pub output_tokens: u64,
    /// Prompt tokens that the requests of the first round have in front.
    pub head_tokens: u64,
    /// Whether the sample was the whole input.
    pub is_exact: bool,
}

impl AggregateEstimate {
    /// Returns the estimate under names that stay.
    pub(super) fn to_json(&self) -> Value {
        let AggregateEstimate { groups, inputs, chunks, calls, prompt_tokens, output_tokens, head_tokens, is_exact } = self;
        json!({
            "groups": groups,
            "inputs": inputs,
            "chunks": chunks,
            "calls": calls,
            "prompt_tokens": prompt_tokens,
            "output_tokens_max": output_tokens,
            "head_tokens": head_tokens,
            "is_exact": is_exact,
        })
    }

    /// Returns the estimate in the form of that of a scalar call: its rows are inputs, and its distinct questions all calls.
    pub fn as_call(&self) -> CallEstimate {
        CallEstimate {
            rows: self.inputs,
            distinct: self.calls,
            prompt_tokens: self.prompt_tokens,
            head_tokens: self.head_tokens,
            computed_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            output_basis: Basis::AtMost,
            strategy: Strategy::Rows.to_string(),
            is_exact: self.is_exact,
            ..CallEstimate::none()
        }
    }
}

/// Estimates one aggregate from the groups of a sample of `1 / scale` of the rows.
pub fn estimate_aggregate(
    aggregate: &PhysicalAggregate,
    tokenizer: &Arc<dyn Tokenizer>,
    context: Context,
    sample: &[RecordBatch],
    scale: f64,
) -> Result<AggregateEstimate> {
    let layouts = aggregate.stages.iter().map(|stage| Ok(Arc::new(PromptLayout::new(&stage.call, tokenizer.as_ref())?)));
    let layouts = layouts.collect::<Result<Vec<_>>>()?;
    let measure = Measure::new(&aggregate.stages, &layouts, context, Arc::clone(tokenizer));
    let new_reducer = new_reducer(aggregate);
    let (mut n_groups, mut inputs, mut chunks, mut calls, mut tokens) = (0, 0, 0, 0, 0);
    for batch in sample {
        let lists = aggregate.list.evaluate(batch)?.into_array(batch.num_rows())?;
        for items in groups(&lists, &aggregate.order, aggregate.aggregate.distinct)?.items {
            n_groups += 1;
            inputs += items.len();
            let mut reducer = new_reducer(items);
            for round in 0.. {
                let asks = reducer.ask(&measure);
                if asks.is_empty() {
                    break;
                }
                chunks += if round == 0 { asks.len() } else { 0 };
                calls += asks.len();
                for Ask { stage, inputs } in &asks {
                    let frame = layouts[*stage].head().len() + layouts[*stage].tail().len();
                    tokens += frame + inputs.iter().map(|text| measure.len(text)).sum::<usize>();
                }
                let answers = asks.iter().map(|ask| Ok(invented(&aggregate.stages[ask.stage], ask)));
                reducer.tell(answers.collect());
            }
        }
    }
    let scaled = |n: usize| (n as f64 * scale).round() as u64;
    Ok(AggregateEstimate {
        // More rows may well belong to the same groups.
        groups: n_groups,
        inputs: scaled(inputs),
        chunks: scaled(chunks),
        calls: scaled(calls),
        prompt_tokens: (tokens as f64 * scale * context.token_scale).round() as u64,
        output_tokens: scaled(calls * aggregate.options.max_tokens as usize),
        head_tokens: (layouts[CHUNK_STAGE].head().len() as f64 * context.token_scale).round() as u64,
        is_exact: scale == 1.0 && context.token_scale == 1.0,
    })
}

/// Returns an answer such as a model might give: text as long as it may be, the better of two in the order of their texts.
fn invented(stage: &PhysicalCall, ask: &Ask) -> ScalarValue {
    match &stage.call.task.shape {
        Shape::Text => ScalarValue::from("word ".repeat(stage.options.max_tokens as usize)),
        Shape::Number { min, .. } => ScalarValue::from(min.0),
        Shape::Choice { .. } => {
            let second_is_better = ask.inputs.get(1) < ask.inputs.first();
            ScalarValue::from(PAIR_LABELS[usize::from(second_is_better)])
        }
        _ => ScalarValue::try_from(&stage.call.task.value_type()).unwrap_or(ScalarValue::Null),
    }
}

impl fmt::Display for AggregateEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = if self.is_exact { "" } else { "≈" };
        write!(
            f,
            "groups{about}={} inputs{about}={} chunks{about}={} calls≈{} prompt≈{} tok, head {} tok",
            self.groups, self.inputs, self.chunks, self.calls, self.prompt_tokens, self.head_tokens,
        )
    }
}
