//! `EXPLAIN (SAMPLE n)`: asks a model a few of the questions of a call, to see what its answers are like.

use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{Result, ScalarValue};
use refrain_optimizer::statistics::CallStatistics;
use refrain_udf::{PromptLayout, Shape};

use crate::operators::aggregate::{ModelFacts, PhysicalAggregate, first_questions};
use crate::operators::ask::{Asker, ask_together};
use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::estimate::Sampled;
use crate::operators::llm_exec::{Shared, call_key};
use crate::sample::Draws;

/// Asks `count` of the distinct questions that some rows hold, drawn with a fixed seed. Counts towards the budget of the query.
pub(crate) async fn sample_answers(
    call: &Arc<PhysicalCall>,
    shared: &Shared,
    rows: &RecordBatch,
    count: usize,
) -> Result<Sampled> {
    let mut questions = Questions::new(call.inputs.len(), call.options.dedups(), 0);
    let (inputs, guard) = call.evaluate(rows)?;
    let nulls = call.call.null_policy(call.options.null_input);
    questions.push(&inputs, guard.as_ref(), nulls, 0, rows.num_rows(), usize::MAX)?;
    sample_questions(call, shared, questions, count).await
}

/// Asks `count` of the distinct questions that groups of an aggregate begin with, as [`sample_answers`] does. `None` if they ask nothing.
pub(crate) async fn sample_aggregate(
    aggregate: &PhysicalAggregate,
    model: &ModelFacts,
    shared: &Shared,
    groups: &[RecordBatch],
    count: usize,
) -> Result<Option<Sampled>> {
    let Some((stage, questions)) = first_questions(aggregate, model, groups)? else { return Ok(None) };
    sample_questions(&aggregate.stages[stage], shared, questions, count).await.map(Some)
}

async fn sample_questions(call: &Arc<PhysicalCall>, shared: &Shared, questions: Questions, count: usize) -> Result<Sampled> {
    let mut wanted: Vec<u32> = (0..questions.len() as u32).collect();
    let mut draws = Draws(0x5A11);
    // The first places of a shuffle.
    for place in 0..count.min(wanted.len()) {
        let from = place + draws.below((wanted.len() - place) as u64) as usize;
        wanted.swap(place, from);
    }
    wanted.truncate(count);
    wanted.sort_unstable();
    if wanted.is_empty() {
        return Ok(Sampled::default());
    }
    let backend = shared.models.backend(&call.model).await?;
    let tokenizer = backend.tokenizer();
    let stats = shared.scope.add_node(call.function_name(), &call.model);
    let layout = Arc::new(PromptLayout::new(&call.call, tokenizer.as_ref())?);
    let kept = shared.answers.open(&shared.answer_settings).await?;
    let asker = Asker::new(shared, call, backend, layout, &stats, &kept);
    let (questions, rows_of) = (Arc::new(questions), wanted.clone());
    let started = Instant::now();
    let answered = ask_together(&[asker], &questions, &wanted).await?;
    let took = started.elapsed().as_secs_f64();
    let rows_per_question = questions.rows();
    let mut sampled = Sampled::default();
    for (question, outcome) in rows_of.into_iter().zip(answered.into_iter().flatten()) {
        let Ok(value) = outcome else { continue };
        let text = value.to_string();
        sampled.output_lens.push(tokenizer.encode(&text).len() as f64);
        if let ScalarValue::Boolean(Some(truth)) = value {
            let rows = rows_per_question[question as usize] as f64;
            sampled.judged.0 += rows;
            sampled.judged.1 += if truth { rows } else { 0.0 };
        }
    }
    let seen = stats.statistics();
    let computed = seen.prompt_tokens.saturating_sub(seen.cached_tokens);
    shared.statistics.add_timing(&call.model, computed, seen.output_tokens, took);
    let (judged, passed) = (sampled.judged.0 as u64, sampled.judged.1 as u64);
    shared.statistics.add(call_key(&call.call, &call.model), CallStatistics { judged, passed, ..seen });
    // Lengths of answers as the model counts them, where their text says less: `Yes` is written as one token.
    if seen.calls > 0 && matches!(call.call.task.shape, Shape::Boolean | Shape::Choice { .. }) {
        let mean = seen.output_tokens as f64 / seen.calls as f64;
        sampled.output_lens.iter_mut().for_each(|len| *len = mean);
    }
    Ok(sampled)
}
