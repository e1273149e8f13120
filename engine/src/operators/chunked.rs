//! Questions whose text is longer than the context: its chunks are asked, and their answers become one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::common::{Result, ScalarValue, internal_datafusion_err};
use futures::FutureExt;
use futures::future::BoxFuture;
use refrain_udf::{ChunkAnswer, Combination};

use crate::operators::ask::{Asker, ask_parts};
use crate::operators::chunk::{Chunk, CutText};
use crate::operators::distinct::Questions;
use crate::operators::memo::{Failure, Outcome};

/// Asks about the chunks of some questions and returns the outcome of each question: about all of them at once, or about the others
/// of a question only where its first does not decide it.
///
/// A chunk is a question like any other: equal ones are asked once, and answers of earlier queries serve it.
pub(super) fn ask_in_chunks<'a>(
    asker: &'a Asker,
    questions: &'a Questions,
    cut: Vec<(u32, CutText)>,
) -> BoxFuture<'a, Result<Vec<(u32, Outcome)>>> {
    // Boxed, since the questions that are asked here may be asked in chunks in their turn.
    async move {
        let combination = Combination::of(&asker.call.call)
            .ok_or_else(|| internal_datafusion_err!("answers of {} cannot be combined", asker.call.function_name()))?;
        asker.stats.chunked.fetch_add(cut.len() as u64, Ordering::Relaxed);
        let texts: Vec<&[Chunk]> = cut.iter().map(|(_, text)| &text.chunks[..]).collect();
        let answers = match combination {
            Combination::AnyTrue => ask_until_true(asker, &texts).await?,
            _ => ask_all(asker, &texts).await?,
        };
        let combined = cut
            .iter()
            .zip(&answers)
            .map(|((question, text), outcomes)| (*question, combine(asker, combination, &text.chunks, outcomes)));
        let combined: Vec<(u32, Outcome)> = combined.collect();
        match combination {
            Combination::AskedAgain => ask_again(asker, questions, &cut, combined).await,
            _ => Ok(combined),
        }
    }
    .boxed()
}

/// Asks about chunks of several questions at once, and returns the outcomes by question.
async fn ask_all(asker: &Asker, texts: &[&[Chunk]]) -> Result<Vec<Vec<Outcome>>> {
    let mut parts = Parts::of(asker);
    let numbers: Vec<Vec<u32>> =
        texts.iter().map(|chunks| chunks.iter().map(|chunk| parts.add(&chunk.values)).collect()).collect();
    let answers = ask_parts(asker, &Arc::new(parts.0)).await?;
    let of_question =
        |numbers: &Vec<u32>| numbers.iter().map(|number| answers[*number as usize].clone()).collect::<Vec<Outcome>>();
    Ok(numbers.iter().map(of_question).collect())
}

/// Asks about the first chunk of each question, and then about the others of those that are not TRUE by it.
async fn ask_until_true(asker: &Asker, texts: &[&[Chunk]]) -> Result<Vec<Vec<Outcome>>> {
    let (first, others): (Vec<&[Chunk]>, Vec<&[Chunk]>) =
        texts.iter().map(|chunks| chunks.split_at(chunks.len().min(1))).unzip();
    let mut outcomes = ask_all(asker, &first).await?;
    let is_decided = outcomes.iter().map(|known| known.iter().any(is_true));
    let open: Vec<&[Chunk]> = others
        .into_iter()
        .zip(is_decided)
        .map(|(others, decided)| if decided { Default::default() } else { others })
        .collect();
    for (known, further) in outcomes.iter_mut().zip(ask_all(asker, &open).await?) {
        known.extend(further);
    }
    Ok(outcomes)
}

fn is_true(outcome: &Outcome) -> bool {
    matches!(outcome, Ok(ScalarValue::Boolean(Some(true))))
}

/// Asks about the answers in the place of the text that was cut.
async fn ask_again(
    asker: &Asker,
    questions: &Questions,
    cut: &[(u32, CutText)],
    mut answered: Vec<(u32, Outcome)>,
) -> Result<Vec<(u32, Outcome)>> {
    let (mut parts, mut asked) = (Parts::of(asker), vec![]);
    for (at, (question, outcome)) in answered.iter_mut().enumerate() {
        let Ok(answers) = outcome else { continue };
        let (answers, CutText { input, chunks }) = (answers.try_as_str().flatten().unwrap_or_default(), &cut[at].1);
        let len: usize = chunks.iter().map(|chunk| chunk.text.len()).sum();
        // Shorter by a tenth at least, so that it ends.
        if answers.len() * 10 > len * 9 {
            let message =
                "the answers about the chunks of the text are hardly shorter than the text; lower max_tokens".to_owned();
            *outcome = Err(Failure { reason: "overflow", message, prompt: None, output: None, attempts: 1 });
            continue;
        }
        let mut values: Vec<String> =
            (0..asker.call.inputs.len()).map(|input| questions.text(*question, input).to_owned()).collect();
        values[*input] = serde_json::Value::from(answers).to_string();
        asked.push((at, parts.add(&values)));
    }
    if !asked.is_empty() {
        let outcomes = ask_parts(asker, &Arc::new(parts.0)).await?;
        for (at, number) in asked {
            answered[at].1 = outcomes[number as usize].clone();
        }
    }
    Ok(answered)
}

/// Makes one outcome of those of all chunks. A failed one makes the whole fail, unless another decides it.
fn combine(asker: &Asker, combination: Combination, chunks: &[Chunk], outcomes: &[Outcome]) -> Outcome {
    if combination == Combination::AnyTrue && outcomes.iter().any(is_true) {
        return Ok(ScalarValue::from(true));
    }
    let mut answers = vec![];
    for (at, (chunk, outcome)) in chunks.iter().zip(outcomes).enumerate() {
        match outcome {
            Ok(value) => answers.push(ChunkAnswer { text: &chunk.text, tokens: chunk.tokens, value }),
            Err(failure) => {
                let message = format!("chunk {} of {}: {}", at + 1, chunks.len(), failure.message);
                return Err(Failure { message, ..failure.clone() });
            }
        }
    }
    combination.combine(&asker.call.call.task, &answers).map_err(|message| Failure {
        reason: "schema",
        message,
        prompt: None,
        output: None,
        attempts: 1,
    })
}

/// Questions that are asked in the place of others.
struct Parts(Questions);

impl Parts {
    fn of(asker: &Asker) -> Self {
        Parts(Questions::new(asker.call.inputs.len(), asker.call.options.dedups(), 0))
    }

    /// Adds a question, and returns its number.
    fn add(&mut self, values: &[String]) -> u32 {
        self.0.push_texts(values.iter().map(String::as_str));
        self.0.of_row.last().copied().unwrap_or_default()
    }
}
