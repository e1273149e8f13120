//! What an aggregate would cost: the groups of a sample are reduced with invented answers, as long as those of earlier runs or of a
//! sample of answers, else as long as they may be. No model is asked here.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{Result, ScalarValue};
use refrain_optimizer::cost::{Interval, Timing};
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
use crate::operators::describe::{duration, output_words};
use crate::operators::distinct::Questions;
use crate::operators::estimate::{Basis, CallEstimate, Sampled};

/// What invented answers are made of.
const WORD: &str = "word ";

/// What one aggregate is expected to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateEstimate {
    /// Groups.
    pub groups: u64,
    /// Inputs that are not NULL.
    pub inputs: u64,
    /// Questions of the first round: chunks of inputs, or values and sets of values that are ranked.
    pub chunks: u64,
    /// Questions of all rounds, were no two equal and every answer as long as [`output_basis`](Self::output_basis) says.
    pub calls: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// How the length of an answer is known.
    pub output_basis: Basis,
    /// The interval of [`output_tokens`](Self::output_tokens), where answers were sampled.
    pub output_interval: Option<Interval>,
    /// Tokens of all answers, were each as long as it may be.
    pub output_tokens_max: u64,
    /// Seconds, from the pace of the model so far; `None` before anything was measured.
    pub seconds: Option<f64>,
    /// Prompt tokens that the requests of the first round have in front.
    pub head_tokens: u64,
    /// Whether the sample was the whole input.
    pub is_exact: bool,
}

impl AggregateEstimate {
    /// Returns the estimate under names that stay.
    pub(super) fn to_json(&self) -> Value {
        let AggregateEstimate {
            groups,
            inputs,
            chunks,
            calls,
            prompt_tokens,
            output_tokens,
            output_basis,
            output_interval,
            output_tokens_max,
            seconds,
            head_tokens,
            is_exact,
        } = self;
        json!({
            "groups": groups,
            "inputs": inputs,
            "chunks": chunks,
            "calls": calls,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "output_basis": output_basis.name(),
            "output_interval": output_interval.map(|Interval { low, high, .. }| json!({"low": low, "high": high})),
            "output_tokens_max": output_tokens_max,
            "seconds": seconds,
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
            output_basis: self.output_basis,
            output_interval: self.output_interval,
            seconds: self.seconds,
            strategy: Strategy::Rows.to_string(),
            is_exact: self.is_exact,
            ..CallEstimate::none()
        }
    }
}

/// The model of an aggregate, as far as it matters to an estimate.
#[derive(Clone, Debug)]
pub(crate) struct ModelFacts {
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) context: Context,
    /// Its pace so far.
    pub(crate) timing: Timing,
}

/// The length of an answer in tokens, and how it is known.
#[derive(Clone, Copy, Debug)]
struct AnswerLen {
    mean: f64,
    basis: Basis,
    interval: Option<Interval>,
}

impl AnswerLen {
    fn new(aggregate: &PhysicalAggregate, known: Option<f64>, sampled: Option<&Sampled>) -> Self {
        let max = f64::from(aggregate.options.max_tokens);
        match (sampled.and_then(|sampled| Interval::of_mean(&sampled.output_lens)), known) {
            (Some(interval), _) => AnswerLen { mean: interval.estimate, basis: Basis::Sample, interval: Some(interval) },
            (None, Some(mean)) => AnswerLen { mean, basis: Basis::EarlierRun, interval: None },
            (None, None) => AnswerLen { mean: max, basis: Basis::AtMost, interval: None },
        }
    }
}

fn layouts_of(aggregate: &PhysicalAggregate, tokenizer: &dyn Tokenizer) -> Result<Vec<Arc<PromptLayout>>> {
    aggregate.stages.iter().map(|stage| Ok(Arc::new(PromptLayout::new(&stage.call, tokenizer)?))).collect()
}

/// Returns the distinct questions that the groups of a sample begin with, and the stage that asks them.
pub(in crate::operators) fn first_questions(
    aggregate: &PhysicalAggregate,
    model: &ModelFacts,
    sample: &[RecordBatch],
) -> Result<Option<(usize, Questions)>> {
    let layouts = layouts_of(aggregate, model.tokenizer.as_ref())?;
    let measure = Measure::new(&aggregate.stages, &layouts, model.context, Arc::clone(&model.tokenizer));
    let new_reducer = new_reducer(aggregate);
    let mut asks = vec![];
    for batch in sample {
        let lists = aggregate.list.evaluate(batch)?.into_array(batch.num_rows())?;
        for items in groups(&lists, &aggregate.order, aggregate.aggregate.distinct)?.items {
            asks.extend(new_reducer(items).ask(&measure));
        }
    }
    let Some(stage) = asks.first().map(|ask| ask.stage) else { return Ok(None) };
    let call = &aggregate.stages[stage];
    let mut questions = Questions::new(call.inputs.len(), call.options.dedups(), 0);
    asks.iter().filter(|ask| ask.stage == stage).for_each(|ask| questions.push_texts(ask.inputs.iter().map(AsRef::as_ref)));
    Ok(Some((stage, questions)))
}

/// Estimates one aggregate from the groups of a sample of `1 / scale` of the rows. `known` is the mean length of its answers in earlier
/// runs, `sampled` what asking some of its questions has shown.
pub(crate) fn estimate_aggregate(
    aggregate: &PhysicalAggregate,
    model: &ModelFacts,
    sample: &[RecordBatch],
    scale: f64,
    known: Option<f64>,
    sampled: Option<&Sampled>,
) -> Result<AggregateEstimate> {
    let ModelFacts { tokenizer, context, timing } = model;
    let answer = AnswerLen::new(aggregate, known, sampled);
    let words = (answer.mean / tokenizer.encode(WORD).len().max(1) as f64).ceil() as usize;
    let layouts = layouts_of(aggregate, tokenizer.as_ref())?;
    let measure = Measure::new(&aggregate.stages, &layouts, *context, Arc::clone(tokenizer));
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
                let answers = asks.iter().map(|ask| Ok(invented(&aggregate.stages[ask.stage], ask, words)));
                reducer.tell(answers.collect());
            }
        }
    }
    let scaled = |n: usize| (n as f64 * scale).round() as u64;
    let prompt_tokens = tokens as f64 * scale * context.token_scale;
    let output_tokens = calls as f64 * scale * answer.mean;
    Ok(AggregateEstimate {
        // More rows may well belong to the same groups.
        groups: n_groups,
        inputs: scaled(inputs),
        chunks: scaled(chunks),
        calls: scaled(calls),
        prompt_tokens: prompt_tokens.round() as u64,
        output_tokens: output_tokens.round() as u64,
        output_basis: answer.basis,
        output_interval: answer.interval.map(|interval| interval.scaled(calls as f64 * scale)),
        output_tokens_max: scaled(calls * aggregate.options.max_tokens as usize),
        seconds: timing.seconds(prompt_tokens, output_tokens),
        head_tokens: (layouts[CHUNK_STAGE].head().len() as f64 * context.token_scale).round() as u64,
        is_exact: scale == 1.0 && context.token_scale == 1.0,
    })
}

/// Returns an answer such as a model might give: text of so many words, the better of two in the order of their texts.
fn invented(stage: &PhysicalCall, ask: &Ask, words: usize) -> ScalarValue {
    match &stage.call.task.shape {
        Shape::Text | Shape::Regex(_) => ScalarValue::from(WORD.repeat(words)),
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
            "groups{about}={} inputs{about}={} chunks{about}={} calls≈{} prompt≈{} tok, head {} tok, {}{}",
            self.groups,
            self.inputs,
            self.chunks,
            self.calls,
            self.prompt_tokens,
            self.head_tokens,
            output_words(self.output_tokens, self.output_basis, self.output_interval),
            self.seconds.map_or(String::new(), |seconds| format!(", time≈{}", duration(seconds))),
        )
    }
}
