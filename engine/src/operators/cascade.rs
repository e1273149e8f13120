//! A proxy that answers first: scores of all questions, thresholds tested on a sample of the model's answers, and the model for
//! what lies between. See [`refrain_optimizer::cascade`] for what is promised and why it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use datafusion::common::{Result, ScalarValue, internal_datafusion_err};
use refrain_optimizer::cascade::{Cascade, Scored, Targets, Verdict};

use crate::operators::ask::Asker;
use crate::operators::distinct::{NO_QUESTION, Questions};
use crate::operators::memo::Outcome;
use crate::operators::scope::CascadeStats;

/// The proxy of a call.
#[derive(Debug)]
pub(super) struct Proxy {
    asker: Asker,
    targets: Targets,
    /// Windows in which a cascade was tried.
    windows: AtomicU32,
}

impl Proxy {
    /// Makes the proxy that `asker` asks.
    pub(super) fn new(asker: Asker, targets: Targets) -> Self {
        Proxy { asker, targets, windows: AtomicU32::new(0) }
    }

    /// Returns the outcomes of the questions `wanted`, in their order.
    ///
    /// Fails and is cancelled as [`ask_together`](super::ask::ask_together) is.
    pub(super) async fn ask(&self, model: &Asker, questions: &Arc<Questions>, wanted: &[u32]) -> Result<Vec<Outcome>> {
        let rows = rows_of(questions);
        let targets = self.targets_of_window();
        let n_rows: u64 = wanted.iter().map(|&question| u64::from(rows[question as usize])).sum();
        if n_rows < Cascade::rows_min(&targets) {
            return model.ask_alone(questions, wanted).await;
        }
        self.windows.fetch_add(1, Ordering::Relaxed);
        let scores = self.asker.ask_alone(questions, wanted).await?;
        let scored = wanted.iter().zip(scores).map(|(&at, score)| Scored { score: number(score), rows: rows[at as usize] });
        let mut cascade = Cascade::new(&scored.collect::<Vec<_>>(), targets, self.asker.call.options.sampling.seed);
        // Places in `wanted` from here on.
        let mut outcomes: Vec<Option<Outcome>> = vec![None; wanted.len()];
        loop {
            let sample = cascade.next_sample();
            if sample.is_empty() {
                break;
            }
            let asked = ask_places(model, questions, wanted, &sample, &mut outcomes).await?;
            cascade.learn(sample.into_iter().zip(asked));
        }
        let mut stats = CascadeStats { report: cascade.report(), accepted: 0, rejected: 0 };
        let (mut rest, mut assumed) = (vec![], vec![]);
        for place in 0..wanted.len() as u32 {
            let verdict = cascade.verdict(place);
            match verdict {
                Verdict::Ask if outcomes[place as usize].is_none() => rest.push(place),
                Verdict::Ask => {}
                Verdict::Yes | Verdict::No => {
                    let is_yes = verdict == Verdict::Yes;
                    *(if is_yes { &mut stats.accepted } else { &mut stats.rejected }) += 1;
                    assumed.push((place, ScalarValue::Boolean(Some(is_yes))));
                }
            }
        }
        model.stats.add_cascade(stats);
        let values = assumed.iter().map(|(place, value)| (wanted[*place as usize], value.clone())).collect();
        for ((place, _), (_, outcome)) in assumed.iter().zip(model.assume(questions, values)) {
            outcomes[*place as usize] = Some(outcome);
        }
        ask_places(model, questions, wanted, &rest, &mut outcomes).await?;
        let never = || internal_datafusion_err!("a question was never answered");
        outcomes.into_iter().map(|outcome| outcome.ok_or_else(never)).collect()
    }

    /// Windows share the failure probability: the first has half of it, the next a quarter, so that together they stay within it.
    fn targets_of_window(&self) -> Targets {
        let share = 0.5_f64.powi(self.windows.load(Ordering::Relaxed) as i32 + 1);
        Targets { failure_probability: self.targets.failure_probability * share, ..self.targets }
    }
}

/// Returns how many rows ask each question.
fn rows_of(questions: &Questions) -> Vec<u32> {
    let mut rows = vec![0; questions.len()];
    for question in questions.of_row.iter().filter(|question| **question != NO_QUESTION) {
        rows[*question as usize] += 1;
    }
    rows
}

/// Asks the model about the questions at some places of `wanted`, keeps the outcomes, and returns which are yes.
async fn ask_places(
    model: &Asker,
    questions: &Arc<Questions>,
    wanted: &[u32],
    places: &[u32],
    outcomes: &mut [Option<Outcome>],
) -> Result<Vec<bool>> {
    let asked: Vec<u32> = places.iter().map(|place| wanted[*place as usize]).collect();
    let answers = model.ask_alone(questions, &asked).await?;
    let is_yes = answers.iter().map(is_yes).collect();
    for (place, outcome) in places.iter().zip(answers) {
        outcomes[*place as usize] = Some(outcome);
    }
    Ok(is_yes)
}

/// The score of a question that the proxy failed on is no number.
fn number(score: Outcome) -> f64 {
    match score {
        Ok(ScalarValue::Float64(Some(score))) => score,
        _ => f64::NAN,
    }
}

fn is_yes(outcome: &Outcome) -> bool {
    matches!(outcome, Ok(ScalarValue::Boolean(Some(true))))
}
