//! The predicates of an AND, each over the answer of one call: rows are asked until one predicate is not TRUE.
//!
//! The first rows settle the order. A few, spread over the window, are asked everything; then rows go through in morsels, each as
//! large as all before it, and before each the order is found anew from what has been seen
//! ([`FilterOrder`]) and from what the remaining rows would cost: the distinct questions that have no answer yet, times the
//! tokens that a question of this call has been computing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ahash::RandomState;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::Schema;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::split_conjunction;
use datafusion::physical_expr::utils::collect_columns;
use refrain_optimizer::filter_order::{FilterOrder, PREDICATES_MAX, Passed, PredicateCost, Predicates};
use refrain_optimizer::statistics::CallStatistics;
use serde_json::{Value, json};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::{NO_QUESTION, Questions};
use crate::operators::enough::Enough;
use crate::operators::memo::Outcome;
use crate::operators::scope::{NodeStats, lock};

/// Rows that are asked every predicate, at most; more would not change the order any more.
const PROFILE_ROWS_MAX: usize = 64;
/// Rows that are asked every predicate, at least; fewer say nothing.
const PROFILE_ROWS_MIN: usize = 8;
/// The share of calls that may go into asking rows every predicate: what the best order may lose by being looked for.
const PROFILE_SHARE: f64 = 0.02;
/// The first morsel is this share of the window, within bounds.
const FIRST_MORSEL_SHARE: usize = 16;
const FIRST_MORSEL_ROWS: std::ops::RangeInclusive<usize> = 8..=256;
/// What a token of an answer costs beside one of a prompt: it is computed alone, not with hundreds of others.
pub(super) const OUTPUT_TOKEN_COST: f64 = 8.0;
/// Calls after which their mean cost is believed.
const MEASURED_CALLS_MIN: u64 = 8;
/// Bytes of a token before any has been counted.
const BYTES_PER_TOKEN: f64 = 4.0;

/// One predicate of an AND.
#[derive(Clone, Debug)]
pub(super) struct Conjunct {
    /// The call whose answer it reads.
    pub call: usize,
    /// The predicate, over a batch whose only column is the answer.
    pub predicate: Arc<dyn PhysicalExpr>,
}

/// Splits the predicate of an operator over the answers of `calls`, which stand behind `n_inputs` input columns. `None` if it is
/// not an AND of one predicate for each of several calls.
pub(super) fn conjuncts(
    predicate: &Arc<dyn PhysicalExpr>,
    n_inputs: usize,
    calls: &[Arc<PhysicalCall>],
) -> Result<Option<Arc<[Conjunct]>>> {
    let parts = split_conjunction(predicate);
    if parts.len() != calls.len() || !(2..=PREDICATES_MAX).contains(&parts.len()) {
        return Ok(None);
    }
    let mut found: Vec<Conjunct> = Vec::with_capacity(parts.len());
    for part in parts {
        let Some(conjunct) = over_answer(part, n_inputs)? else { return Ok(None) };
        if found.iter().any(|other| other.call == conjunct.call) || calls[conjunct.call].guard.is_some() {
            return Ok(None);
        }
        found.push(conjunct);
    }
    Ok(Some(found.into()))
}

/// Returns a predicate as one over a single answer; `None` if it reads anything else. Answers stand behind `n_inputs` input columns.
pub(super) fn over_answer(predicate: &Arc<dyn PhysicalExpr>, n_inputs: usize) -> Result<Option<Conjunct>> {
    let columns = collect_columns(predicate);
    let [Some(call)] = columns.iter().map(|column| column.index().checked_sub(n_inputs)).collect::<Vec<_>>()[..] else {
        return Ok(None);
    };
    let predicate = Arc::clone(predicate).transform_up(|expr| {
        Ok(match expr.downcast_ref::<Column>() {
            Some(_) => Transformed::yes(Arc::new(Column::new("answer", 0)) as Arc<dyn PhysicalExpr>),
            None => Transformed::no(expr),
        })
    })?;
    Ok(Some(Conjunct { call, predicate: predicate.data }))
}

/// What became of the order, for EXPLAIN ANALYZE. Empty before the operator has run.
#[derive(Clone, Debug, Default)]
pub(super) struct OrderReport {
    /// The orders of calls that ran, without repetition in a row.
    pub orders: Vec<Vec<usize>>,
    /// For each call: rows that met its predicate, and those that passed.
    pub seen: Vec<Passed>,
    /// For each call: the share of all rows that pass, as far as it could be seen.
    pub selectivity: Vec<f64>,
}

impl OrderReport {
    /// Returns the order that ran last with the selectivities that were seen, and how often it changed before.
    pub(super) fn line(&self, calls: &[Arc<PhysicalCall>]) -> Option<String> {
        let last = self.orders.last()?;
        let shown = |call: &usize| {
            let Passed { rows, passed } = self.seen.get(*call).copied().unwrap_or_default();
            format!("{} ({passed} of {rows} rows passed)", calls[*call].call.describe())
        };
        let changed = match self.orders.len() - 1 {
            0 => String::new(),
            1 => ", changed once".to_owned(),
            changes => format!(", changed {changes} times"),
        };
        Some(format!("asked in the order {}{changed}", last.iter().map(shown).collect::<Vec<_>>().join(", ")))
    }

    /// Returns the orders that ran and what was seen of each call; null before anything was asked.
    pub(super) fn to_json(&self, calls: &[Arc<PhysicalCall>]) -> Value {
        let Some(last) = self.orders.last() else { return Value::Null };
        let names = |order: &[usize]| order.iter().map(|call| calls[*call].output.name().clone()).collect::<Vec<_>>();
        let met = |(call, seen): (usize, &Passed)| json!({"output": calls[call].output.name(), "rows": seen.rows, "passed": seen.passed, "selectivity": self.selectivity[call]});
        json!({
            "last": names(last),
            "changes": self.orders.len() - 1,
            "predicates": self.seen.iter().enumerate().map(met).collect::<Vec<_>>(),
        })
    }
}

/// Whoever asks the questions of a call.
pub(super) trait Ask {
    /// Returns the outcomes of these questions of a call, in their order.
    fn ask(&self, call: usize, questions: Vec<u32>) -> impl Future<Output = Result<Vec<Outcome>>> + Send;

    /// As [`ask`](Self::ask) until enough rows pass; a question that is of no use then has no outcome.
    fn ask_until(
        &self,
        call: usize,
        questions: Vec<u32>,
        enough: Enough,
    ) -> impl Future<Output = Result<Vec<Option<Outcome>>>> + Send;

    /// Returns the prompt tokens that all questions of a call have in front, which are computed once.
    fn head_tokens(&self, call: usize) -> usize;
}

/// The answers of one call.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// By question; `None` where no row needed the answer.
    pub outcomes: Vec<Option<Outcome>>,
    /// The rows that needed each.
    pub rows: Vec<u64>,
}

/// The predicates of one execution, and what has been seen of them.
#[derive(Debug)]
pub(super) struct Conjunction {
    conjuncts: Arc<[Conjunct]>,
    order: FilterOrder,
    /// Whether an earlier run has shown every predicate's selectivity.
    is_known: bool,
    rows_done: usize,
    report: Arc<Mutex<OrderReport>>,
}

impl Conjunction {
    /// Starts with the selectivity that earlier runs have shown of each predicate.
    pub(super) fn new(conjuncts: Arc<[Conjunct]>, guesses: &[Option<f64>], report: Arc<Mutex<OrderReport>>) -> Self {
        Conjunction {
            conjuncts,
            order: FilterOrder::new(guesses),
            is_known: guesses.iter().all(Option::is_some),
            rows_done: 0,
            report,
        }
    }

    /// Returns the rows that met the predicate over a call's answer, as if it had been the first, and those that passed.
    pub(super) fn passed(&self, call: usize) -> Passed {
        let Some(position) = self.conjuncts.iter().position(|conjunct| conjunct.call == call) else {
            return Passed::default();
        };
        let rows = self.order.seen(position).rows;
        Passed { rows, passed: (rows as f64 * self.order.selectivity(position, 0)).round() as u64 }
    }

    /// Asks about the rows of a window and returns the answers of each call. Rows behind the first `missing` that pass need none, where a
    /// limit wants no more.
    pub(super) async fn answer(
        &mut self,
        asker: &impl Ask,
        calls: &[Arc<PhysicalCall>],
        stats: &[Arc<NodeStats>],
        questions: &[Arc<Questions>],
        missing: Option<usize>,
    ) -> Result<Vec<Answered>> {
        let conjuncts = Arc::clone(&self.conjuncts);
        let mut window = Asked::new(&conjuncts, calls, stats, questions)?;
        let n_rows = questions.first().map_or(0, |questions| questions.of_row.len());
        if missing == Some(0) {
            return Ok(window.into_answers());
        }
        let (profile, rest) = self.split(n_rows, questions);
        self.profile(asker, &mut window, &profile).await?;
        let (mut start, mut is_met) = (0, false);
        while start < rest.len() && !is_met {
            let first = (n_rows / FIRST_MORSEL_SHARE).clamp(*FIRST_MORSEL_ROWS.start(), *FIRST_MORSEL_ROWS.end());
            let end = rest.len().min(start + self.rows_done.max(first));
            let costs: Vec<PredicateCost> = window.costs(asker, &rest[start..]);
            let order = self.order.order(&costs);
            self.note_order(&order);
            self.morsel(asker, &mut window, &order, &rest[start..end], missing).await?;
            is_met = missing.is_some_and(|missing| window.is_met(rest[end - 1], missing));
            self.rows_done += end - start;
            start = end;
        }
        self.write_report();
        Ok(window.into_answers())
    }

    /// Returns the rows that are to be asked everything, and all others.
    fn split(&self, n_rows: usize, questions: &[Arc<Questions>]) -> (Vec<u32>, Vec<u32>) {
        let first = questions[self.conjuncts[0].call].len();
        let affordable = (first as f64 * PROFILE_SHARE) as usize / (self.conjuncts.len() - 1);
        let wanted = if self.is_known || self.rows_done >= PROFILE_ROWS_MAX { 0 } else { affordable.min(PROFILE_ROWS_MAX) };
        let wanted = if wanted < PROFILE_ROWS_MIN { 0 } else { wanted };
        // One of each stretch of the window, and not every hundredth: rows may come in cycles.
        let within = RandomState::with_seeds(n_rows as u64, 1, 2, 3);
        let one_of = |n: usize| {
            let (start, end) = (n * n_rows / wanted, (n + 1) * n_rows / wanted);
            start as u32 + (within.hash_one(n) % (end - start).max(1) as u64) as u32
        };
        let profile: Vec<u32> = (0..wanted).map(one_of).collect();
        let rest = (0..n_rows as u32).filter(|row| profile.binary_search(row).is_err()).collect();
        (profile, rest)
    }

    /// Asks rows every predicate.
    async fn profile(&mut self, asker: &impl Ask, window: &mut Asked<'_>, rows: &[u32]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let asked = (0..self.conjuncts.len()).map(|n| asker.ask(self.conjuncts[n].call, window.open(n, rows)));
        let answered = futures::future::try_join_all(asked).await?;
        for (n, outcomes) in answered.into_iter().enumerate() {
            let questions = window.open(n, rows);
            window.note(n, rows, questions, outcomes.into_iter().map(Some).collect())?;
        }
        for row in rows {
            let passes = (0..self.conjuncts.len()).filter(|n| window.passes(*n, *row) == Some(true));
            self.order.note_profile(passes.fold(0, |set: Predicates, n| set | 1 << n), 1);
        }
        self.rows_done += rows.len();
        Ok(())
    }

    /// Asks rows one predicate after the other, each for the survivors of those before it. All rows before the last of `rows` are decided or
    /// among them, so the last predicate meets a limit that wants `missing` of them.
    async fn morsel(
        &mut self,
        asker: &impl Ask,
        window: &mut Asked<'_>,
        order: &[usize],
        rows: &[u32],
        missing: Option<usize>,
    ) -> Result<()> {
        // A row that an answer given to another row drops already costs nothing.
        let fails = |window: &Asked, row: u32| (0..order.len()).any(|n| window.passes(n, row) == Some(false));
        let mut alive: Vec<u32> = rows.iter().copied().filter(|row| !fails(window, *row)).collect();
        let mut given: Predicates = 0;
        for (place, n) in order.iter().enumerate() {
            let (call, questions) = (self.conjuncts[*n].call, window.open(*n, &alive));
            let limit = missing.filter(|_| place + 1 == order.len());
            let outcomes = match (limit, rows.last()) {
                _ if questions.is_empty() => vec![],
                (Some(missing), Some(last)) => {
                    let enough = window.enough(*n, *last, missing);
                    asker.ask_until(call, questions.clone(), enough).await?
                }
                _ => asker.ask(call, questions.clone()).await?.into_iter().map(Some).collect(),
            };
            window.note(*n, &alive, questions, outcomes)?;
            let met = alive.iter().filter(|row| window.passes(*n, **row).is_some()).count() as u64;
            alive.retain(|row| window.passes(*n, *row) == Some(true));
            self.order.note(*n, given, Passed { rows: met, passed: alive.len() as u64 });
            given |= 1 << *n;
        }
        Ok(())
    }

    fn note_order(&self, order: &[usize]) {
        let calls: Vec<usize> = order.iter().map(|n| self.conjuncts[*n].call).collect();
        let mut report = lock(&self.report);
        if report.orders.last() != Some(&calls) {
            report.orders.push(calls);
        }
    }

    fn write_report(&self) {
        let mut report = lock(&self.report);
        let mut by_call: Vec<(usize, usize)> =
            self.conjuncts.iter().enumerate().map(|(n, conjunct)| (conjunct.call, n)).collect();
        by_call.sort_unstable();
        report.seen = by_call.iter().map(|(_, n)| self.order.seen(*n)).collect();
        report.selectivity = by_call.iter().map(|(_, n)| self.order.selectivity(*n, 0)).collect();
    }
}

/// The questions of a window and what is known of their answers.
struct Asked<'a> {
    calls: Vec<AskedCall<'a>>,
}

/// One predicate, its questions and their answers.
struct AskedCall<'a> {
    conjunct: &'a Conjunct,
    call: &'a Arc<PhysicalCall>,
    stats: &'a NodeStats,
    questions: &'a Arc<Questions>,
    /// Whether a row passes whose inputs are NULL, so that it has no question.
    null_passes: bool,
    passes: Vec<Option<bool>>,
    answered: Answered,
    /// Tokens of a question, from the text of some.
    tokens_guess: f64,
}

impl<'a> Asked<'a> {
    fn new(
        conjuncts: &'a [Conjunct],
        calls: &'a [Arc<PhysicalCall>],
        stats: &'a [Arc<NodeStats>],
        questions: &'a [Arc<Questions>],
    ) -> Result<Self> {
        let asked = |conjunct: &'a Conjunct| {
            let (call, questions) = (&calls[conjunct.call], &questions[conjunct.call]);
            let null = ScalarValue::try_from(call.output.data_type())?.to_array()?;
            Ok(AskedCall {
                conjunct,
                call,
                stats: &stats[conjunct.call],
                questions,
                null_passes: passing(conjunct, call, null)? == [true],
                passes: vec![None; questions.len()],
                answered: Answered { outcomes: vec![None; questions.len()], rows: vec![0; questions.len()] },
                tokens_guess: questions.mean_bytes() / BYTES_PER_TOKEN + OUTPUT_TOKEN_COST,
            })
        };
        Ok(Asked { calls: conjuncts.iter().map(asked).collect::<Result<_>>()? })
    }

    /// Returns whether a row passes a predicate, if that is known.
    fn passes(&self, n: usize, row: u32) -> Option<bool> {
        let asked = &self.calls[n];
        match asked.questions.of_row[row as usize] {
            NO_QUESTION => Some(asked.null_passes),
            question => asked.passes[question as usize],
        }
    }

    /// Returns whether a row passes all predicates, if that is known.
    fn verdict(&self, row: u32) -> Option<bool> {
        let mut verdict = Some(true);
        for n in 0..self.calls.len() {
            match self.passes(n, row) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => verdict = None,
            }
        }
        verdict
    }

    /// Returns whether so many of the first rows up to `last` pass, each before the first that is not decided.
    fn is_met(&self, last: u32, missing: usize) -> bool {
        let decided = (0..=last).map_while(|row| self.verdict(row));
        decided.filter(|passes| *passes).take(missing).count() == missing
    }

    /// Returns what tells when so many rows up to `last` pass, where a row that is not decided waits for this predicate alone.
    fn enough(&self, n: usize, last: u32, missing: usize) -> Enough {
        let AskedCall { conjunct, call, questions, .. } = &self.calls[n];
        let known = (0..=last).map(|row| self.verdict(row)).collect();
        Enough::new((*conjunct).clone(), Arc::clone(call), Arc::clone(questions), missing).among(known)
    }

    /// Returns the questions of these rows that have no answer yet, each once.
    fn open(&self, n: usize, rows: &[u32]) -> Vec<u32> {
        let asked = &self.calls[n];
        let questions = rows.iter().map(|row| asked.questions.of_row[*row as usize]);
        let mut open: Vec<u32> =
            questions.filter(|question| *question != NO_QUESTION && asked.passes[*question as usize].is_none()).collect();
        open.sort_unstable();
        open.dedup();
        open
    }

    /// Takes the outcomes of questions that `rows` have asked; `None` where a limit was met before.
    fn note(&mut self, n: usize, rows: &[u32], questions: Vec<u32>, outcomes: Vec<Option<Outcome>>) -> Result<()> {
        let asked = &mut self.calls[n];
        let of_rows = rows.iter().map(|row| asked.questions.of_row[*row as usize]);
        for question in of_rows.filter(|question| *question != NO_QUESTION) {
            asked.answered.rows[question as usize] += 1;
            asked.stats.rows.fetch_add(1, Ordering::Relaxed);
        }
        asked.stats.distinct.fetch_add(questions.len() as u64, Ordering::Relaxed);
        let answered = questions.into_iter().zip(outcomes);
        let answered: Vec<(u32, Outcome)> =
            answered.filter_map(|(question, outcome)| outcome.map(|outcome| (question, outcome))).collect();
        if answered.is_empty() {
            return Ok(());
        }
        let values = answered.iter().map(|(_, outcome)| asked.call.value_of(outcome));
        let passes = passing(asked.conjunct, asked.call, ScalarValue::iter_to_array(values)?)?;
        for ((question, outcome), passes) in answered.into_iter().zip(passes) {
            asked.passes[question as usize] = Some(passes);
            asked.answered.outcomes[question as usize] = Some(outcome);
        }
        Ok(())
    }

    /// Returns what each predicate would cost if it were asked of all these rows.
    fn costs(&self, asker: &impl Ask, rows: &[u32]) -> Vec<PredicateCost> {
        // Guesses and measurements are not compared with each other.
        let measured: Option<Vec<f64>> = self.calls.iter().map(|asked| asked.measured_tokens(asker)).collect();
        let per_question = measured.unwrap_or_else(|| self.calls.iter().map(|asked| asked.tokens_guess).collect());
        let cost = |(n, per_question)| PredicateCost {
            rows: rows.len() as f64,
            questions: self.open(n, rows).len() as f64,
            per_question,
        };
        per_question.into_iter().enumerate().map(cost).collect()
    }

    /// Returns the answers, in the order of the calls.
    fn into_answers(mut self) -> Vec<Answered> {
        self.calls.sort_unstable_by_key(|asked| asked.conjunct.call);
        self.calls.into_iter().map(|asked| asked.answered).collect()
    }
}

impl AskedCall<'_> {
    /// Returns the tokens that a question has cost; `None` before enough have been asked.
    fn measured_tokens(&self, asker: &impl Ask) -> Option<f64> {
        let CallStatistics { calls, prompt_tokens, cached_tokens, output_tokens, .. } = self.stats.statistics();
        let computed =
            prompt_tokens.saturating_sub(cached_tokens).saturating_sub(asker.head_tokens(self.conjunct.call) as u64);
        let cost = computed as f64 + OUTPUT_TOKEN_COST * output_tokens as f64;
        (calls >= MEASURED_CALLS_MIN).then(|| cost / calls as f64)
    }
}

/// Returns for each answer whether the predicate is TRUE.
pub(super) fn passing(conjunct: &Conjunct, call: &PhysicalCall, answers: ArrayRef) -> Result<Vec<bool>> {
    let schema = Arc::new(Schema::new(vec![Arc::clone(&call.output)]));
    let batch = RecordBatch::try_new(schema, vec![answers])?;
    let mask = conjunct.predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
    let mask = as_boolean_array(&mask)?;
    Ok((0..mask.len()).map(|row| mask.is_valid(row) && mask.value(row)).collect())
}
