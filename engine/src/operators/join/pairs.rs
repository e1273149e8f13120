//! One execution of `LlmJoinExec`: candidates become questions, block by block, and matches become rows.
//!
//! A row stands in front of its candidates, so that the prompts of one block share it. In inner and outer joins the row with the
//! longer text does; every candidate is asked about. In semi, anti and mark joins the row that is looked for a match does, and rounds
//! of 1, 1, 2, 4 … candidates for each row that has none yet ask at most twice what a candidate at a time would. Where rows are asked
//! which values match, they stand in front, each is asked once, and its candidates with such a value match. Where not all pairs may be asked
//! about and each must be compared to be found, they are listed for some thousand rows in front at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::{DataFusionError, JoinSide, JoinType, Result, internal_err};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, RecordOutput, SpillMetrics};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, TryStreamExt, stream};

use crate::operators::call::without_nulls;
use crate::operators::job::{Blocks, Job};
use crate::operators::join::candidates::{Candidates, too_many_pairs};
use crate::operators::join::classification::{Classification, is_worth_classifying};
use crate::operators::join::llm_join_exec::{PairColumn, PairPlan};
use crate::operators::join::side::Side;
use crate::operators::llm_exec::output_schema;
use crate::operators::morsels::next_morsel;
use crate::operators::scope::lock;
use crate::operators::window::RowStore;

/// Pairs that are asked about together: enough to share prefixes and to keep a device busy, few enough to hold their text.
const BLOCK_PAIRS: usize = 32_768;

/// Rows in front whose candidates are listed first, where these are listed for some rows at a time.
const LISTED_ROWS: usize = 4096;

/// A step that is ready to run.
pub(super) enum StepJob {
    /// Asks about each pair.
    Ask(Box<Job>),
    /// Keeps the pairs for which this is TRUE.
    Keep(Arc<dyn PhysicalExpr>),
}

impl StepJob {
    fn start(self) -> Step {
        match self {
            StepJob::Ask(job) => Step::Ask(Blocks::new(*job)),
            StepJob::Keep(predicate) => Step::Keep(predicate),
        }
    }
}

/// A step that runs.
enum Step {
    /// Asks about each pair.
    Ask(Blocks),
    /// Keeps the pairs for which this is TRUE.
    Keep(Arc<dyn PhysicalExpr>),
}

/// One execution of the operator.
pub(super) struct PairJob {
    pub(super) schema: SchemaRef,
    pub(super) inputs: [Arc<dyn ExecutionPlan>; 2],
    /// Charged with the left input, the right input, and the numbers of the candidates.
    pub(super) memory: [MemoryReservation; 3],
    pub(super) plan: PairPlan,
    pub(super) steps: Vec<StepJob>,
    pub(super) spills: SpillMetrics,
    /// Takes what rows are asked instead of pairs, or why not.
    pub(super) classification: Arc<Mutex<Option<Result<String, String>>>>,
    pub(super) context: Arc<TaskContext>,
    /// Counts the pairs that pass what asks nobody.
    pub(super) candidates: Count,
    /// Counts the pairs that were asked about.
    pub(super) pairs: Count,
    pub(super) baseline: BaselineMetrics,
}

/// A row of the left input and one of the right input.
type Pair = (u32, u32);

/// Numbers of rows that leave the operator side by side; no row numbers stand for NULLs.
#[derive(Default)]
struct RowNumbers {
    left: Option<Vec<u32>>,
    right: Option<Vec<u32>>,
    marks: Option<Vec<bool>>,
}

/// Both inputs, and the columns of a pair.
struct Sides {
    left: Side,
    right: Side,
    columns: Vec<PairColumn>,
    pair_schema: SchemaRef,
}

/// How candidates are found.
struct Listing {
    /// Rows in front.
    n_outer: usize,
    /// The rows whose candidates are found next.
    n_rows: usize,
    memory: MemoryReservation,
    context: Arc<TaskContext>,
    /// Counts the candidates.
    found: Count,
}

/// An execution that knows its candidates.
struct Matching {
    schema: SchemaRef,
    plan: PairPlan,
    sides: Arc<Sides>,
    /// Those of some rows in front.
    candidates: Candidates,
    listing: Listing,
    /// The input whose rows stand in front.
    outer: JoinSide,
    steps: Vec<Step>,
    /// Set where rows are asked which values match, by the only step.
    classification: Option<Classification>,
    batch_rows: usize,
    /// The next row in front, and the next of its candidates.
    next: (usize, usize),
    left_matched: Vec<bool>,
    right_matched: Vec<bool>,
    ready: VecDeque<RowNumbers>,
    pairs_asked: u64,
    /// Questions of a limit: pairs, or rows that are looked for a match.
    asked: usize,
    rows_out: usize,
    all_asked: bool,
    pairs: Count,
    baseline: BaselineMetrics,
}

impl PairJob {
    /// Works off both inputs.
    pub(super) fn run(self) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let rows = |matching: Matching| {
            stream::try_unfold(matching, |mut matching| async move {
                let batch = matching.next_batch().await;
                if !matches!(batch, Ok(Some(_))) {
                    let flushed = matching.flush().await;
                    if batch.is_ok() {
                        flushed?;
                    }
                }
                Ok::<_, DataFusionError>(batch?.map(|batch| (batch, matching)))
            })
        };
        stream::once(async move { Ok::<_, DataFusionError>(rows(self.start().await?)) }).try_flatten()
    }

    /// Gathers the inputs and finds the candidates. An input that cannot matter is not run.
    async fn start(self) -> Result<Matching> {
        let PairJob { schema, inputs, memory, plan, steps, spills, classification, context, candidates, pairs, baseline } =
            self;
        let ([left, right], [left_memory, right_memory, pairs_memory]) = (inputs, memory);
        let left = Side::gather(left.execute(0, Arc::clone(&context))?, left_memory).await?;
        let right = match left.n_rows() == 0 && !keeps_right(plan.join_type) {
            true => Side::empty(right.schema(), right_memory),
            false => Side::gather(right.execute(0, Arc::clone(&context))?, right_memory).await?,
        };
        let decision = classified(&plan, &steps, [&left, &right])?;
        let outer = match &decision {
            Some(Ok(classification)) => classification.asked,
            _ => outer_side(&plan, &left, &right),
        };
        let asks_all = !plan.effort.stops_at_match && plan.effort.wanted.is_none();
        let asks_pairs = !matches!(decision, Some(Ok(_)));
        let max_listed = if asks_all && asks_pairs { plan.max_pairs } else { u64::MAX };
        let n_outer = if outer == JoinSide::Right { right.n_rows() } else { left.n_rows() };
        let lists_some = !asks_all && asks_pairs && plan.pairing.compares_all();
        let rows = if lists_some { 0..n_outer.min(LISTED_ROWS) } else { 0..n_outer };
        let found = plan.pairing.candidates([&left, &right], outer, rows, max_listed, &pairs_memory, &context).await?;
        candidates.add(usize::try_from(found.len()).unwrap_or(usize::MAX));
        let decision = decision
            .map(|decision| decision.and_then(|row| is_worth_classifying(found.n_paired(), found.len()).map(|()| row)));
        if asks_all && !matches!(decision, Some(Ok(_))) && found.len() > plan.max_pairs {
            return Err(too_many_pairs(Some(found.len()), plan.max_pairs));
        }
        if let Some(decision) = &decision {
            *lock(&classification) = Some(decision.as_ref().map(ToString::to_string).map_err(String::clone));
        }
        let classification = decision.and_then(Result::ok);
        let steps = match &classification {
            None => steps.into_iter().map(StepJob::start).collect(),
            Some(classification) => {
                let rows = if outer == JoinSide::Right { right.schema() } else { left.schema() };
                let store = RowStore::new(&context, 0, Arc::clone(rows), spills);
                vec![asking_rows(steps, classification, store)?]
            }
        };
        let (columns, pair_schema) = (plan.columns.clone(), Arc::clone(&plan.pair_schema));
        Ok(Matching {
            schema,
            left_matched: vec![false; left.n_rows()],
            right_matched: vec![false; right.n_rows()],
            sides: Arc::new(Sides { left, right, columns, pair_schema }),
            plan,
            candidates: found,
            listing: Listing {
                n_outer,
                n_rows: LISTED_ROWS,
                memory: pairs_memory,
                context: Arc::clone(&context),
                found: candidates,
            },
            outer,
            steps,
            classification,
            batch_rows: context.session_config().batch_size(),
            next: (0, 0),
            ready: VecDeque::new(),
            pairs_asked: 0,
            asked: 0,
            rows_out: 0,
            all_asked: false,
            pairs,
            baseline,
        })
    }
}

/// Decides whether rows are asked instead of pairs. `None` if that is out of the question.
fn classified(
    plan: &PairPlan,
    steps: &[StepJob],
    [left, right]: [&Side; 2],
) -> Result<Option<Result<Classification, String>>> {
    let (Some(halves), Some(StepJob::Ask(job))) = (&plan.halves, steps.first()) else { return Ok(None) };
    let tokenizer = job.shared.models.tokenizer_of(&halves.call.model)?;
    halves.classification(plan.join_type, [left.batches(), right.batches()], tokenizer.as_ref()).map(Some)
}

/// Returns the step that asks rows instead of pairs, under the counters of the one that would have asked pairs.
fn asking_rows(steps: Vec<StepJob>, classification: &Classification, store: RowStore) -> Result<Step> {
    let Some(StepJob::Ask(of_pairs)) = steps.into_iter().next() else {
        return internal_err!("a join that asks rows has no step that asks");
    };
    let calls = vec![Arc::clone(&classification.call)];
    let schema = output_schema(store.schema(), &calls);
    // Its answers are names of values, over which the join has no predicate.
    Ok(Step::Ask(Blocks::new(Job { schema, calls, store, conjuncts: None, over_answer: None, ..*of_pairs })))
}

/// Returns whether rows of the right input come out of a join without a match.
fn keeps_right(join_type: JoinType) -> bool {
    matches!(join_type, JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark)
}

/// Returns the input whose rows stand in front of their candidates.
fn outer_side(plan: &PairPlan, left: &Side, right: &Side) -> JoinSide {
    match plan.join_type {
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => JoinSide::Left,
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => JoinSide::Right,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
            let columns = |wanted: JoinSide| {
                plan.columns.iter().filter(move |column| column.side == wanted).map(|column| column.index)
            };
            let left_bytes = left.bytes_per_row(columns(JoinSide::Left));
            let right_bytes = right.bytes_per_row(columns(JoinSide::Right));
            if right_bytes > left_bytes { JoinSide::Right } else { JoinSide::Left }
        }
    }
}

impl Matching {
    /// Returns the next rows; `None` after the last.
    async fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if self.plan.effort.wanted.is_some_and(|wanted| self.rows_out >= wanted) {
                return Ok(None);
            }
            if let Some(rows) = self.ready.pop_front() {
                let batch = self.batch(rows)?.record_output(&self.baseline);
                self.rows_out += batch.num_rows();
                return Ok(Some(batch));
            }
            if self.all_asked {
                return Ok(None);
            }
            match self.plan.join_type {
                _ if self.classification.is_some() => self.classify_next_rows().await?,
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => self.ask_next_pairs().await?,
                _ => self.ask_next_rows().await?,
            }
            if self.all_asked {
                for step in &self.steps {
                    if let Step::Ask(blocks) = step {
                        blocks.check_error_ratio()?;
                    }
                }
            }
        }
    }

    /// Keeps what was paid for.
    async fn flush(&mut self) -> Result<()> {
        for step in &mut self.steps {
            if let Step::Ask(blocks) = step {
                blocks.flush().await?;
            }
        }
        Ok(())
    }

    /// Finds the candidates of the next rows in front: of more rows at a time as long as they have few.
    async fn list(&mut self) -> Result<()> {
        let Listing { n_outer, n_rows, memory, context, found } = &mut self.listing;
        if self.candidates.len() < BLOCK_PAIRS as u64 {
            *n_rows = n_rows.saturating_mul(2);
        }
        let start = self.candidates.rows().end;
        let rows = start..start.saturating_add(*n_rows).min(*n_outer);
        let sides = [&self.sides.left, &self.sides.right];
        memory.free();
        self.candidates = self.plan.pairing.candidates(sides, self.outer, rows, u64::MAX, memory, context).await?;
        found.add(usize::try_from(self.candidates.len()).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Returns how many questions a limit allows now.
    fn morsel(&self) -> usize {
        match self.plan.effort.wanted {
            Some(wanted) => next_morsel(wanted, self.rows_out, self.asked).min(BLOCK_PAIRS),
            None => BLOCK_PAIRS,
        }
    }

    /// Inner and outer joins: asks about the next block of pairs; behind the last one come the rows without a match.
    async fn ask_next_pairs(&mut self) -> Result<()> {
        let room = self.morsel();
        let mut block = vec![];
        while block.len() < room && self.next.0 < self.listing.n_outer {
            if self.next.0 == self.candidates.rows().end {
                if !block.is_empty() {
                    break;
                }
                self.list().await?;
            }
            let (outer, nth) = self.next;
            let end = self.candidates.n_of(outer).min(nth + room - block.len());
            block.extend((nth..end).map(|nth| self.pair(outer, nth)));
            self.next = if end < self.candidates.n_of(outer) { (outer, end) } else { (outer + 1, 0) };
        }
        self.asked += block.len();
        let matches = self.ask(block).await?;
        self.ready_pairs(&matches);
        if self.next.0 == self.listing.n_outer {
            self.all_asked = true;
            self.ready_unmatched();
        }
        Ok(())
    }

    fn ready_unmatched(&mut self) {
        let rows_without = |matched: &[bool]| -> Vec<u32> {
            (0_u32..).zip(matched).filter(|(_, matched)| !**matched).map(|(row, _)| row).collect()
        };
        if matches!(self.plan.join_type, JoinType::Left | JoinType::Full) {
            for rows in rows_without(&self.left_matched).chunks(self.batch_rows) {
                self.ready.push_back(RowNumbers { left: Some(rows.to_vec()), ..RowNumbers::default() });
            }
        }
        if matches!(self.plan.join_type, JoinType::Right | JoinType::Full) {
            for rows in rows_without(&self.right_matched).chunks(self.batch_rows) {
                self.ready.push_back(RowNumbers { right: Some(rows.to_vec()), ..RowNumbers::default() });
            }
        }
    }

    /// Semi, anti and mark joins: looks for a match of each of the next rows.
    async fn ask_next_rows(&mut self) -> Result<()> {
        let start = self.next.0;
        if start == self.candidates.rows().end && start < self.listing.n_outer {
            self.list().await?;
        }
        let end = self.candidates.rows().end.min(start.saturating_add(self.morsel()));
        self.asked += end - start;
        let mut open: Vec<usize> = (start..end).filter(|row| self.candidates.n_of(*row) > 0).collect();
        let mut asked = 0;
        while !open.is_empty() {
            let round = if self.plan.effort.stops_at_match { asked.max(1) } else { usize::MAX };
            let mut block = vec![];
            for row in &open {
                let last = self.candidates.n_of(*row).min(asked.saturating_add(round));
                for nth in asked..last {
                    block.push(self.pair(*row, nth));
                    if block.len() == BLOCK_PAIRS {
                        self.ask(std::mem::take(&mut block)).await?;
                    }
                }
            }
            self.ask(block).await?;
            asked = asked.saturating_add(round);
            let (candidates, matched) = (&self.candidates, self.outer_matched());
            open.retain(|row| !matched[*row] && candidates.n_of(*row) > asked);
        }
        self.next.0 = end;
        self.all_asked = end == self.listing.n_outer;
        self.ready_rows(start, end);
        Ok(())
    }

    /// Asks the next rows in front which values match.
    async fn classify_next_rows(&mut self) -> Result<()> {
        let start = self.next.0;
        let end = self.listing.n_outer.min(start.saturating_add(self.morsel()));
        let open: Vec<usize> = (start..end).filter(|row| self.candidates.n_of(*row) > 0).collect();
        self.asked += open.len();
        let (Some(classification), [Step::Ask(blocks)]) = (&self.classification, self.steps.as_mut_slice()) else {
            return internal_err!("a join that asks rows has one step");
        };
        let sides = Arc::clone(&self.sides);
        let (outer, rows) = (self.outer, open.iter().map(|row| *row as u32).collect::<Vec<_>>());
        let side = move |sides: &Sides, rows: &[u32]| match outer {
            JoinSide::Right => sides.right.rows(rows),
            _ => sides.left.rows(rows),
        };
        let schema = if outer == JoinSide::Right { sides.right.schema() } else { sides.left.schema() };
        let chunks: Vec<Vec<u32>> = rows.chunks(self.batch_rows).map(<[u32]>::to_vec).collect();
        let (schema, of_sides) = (Arc::clone(schema), Arc::clone(&sides));
        let batches = stream::iter(chunks.into_iter().map(move |rows| side(&of_sides, &rows)));
        let answered = blocks.ask(Box::pin(RecordBatchStreamAdapter::new(schema, batches)), None).await?;
        let named = classification.named(&answered)?;
        let mut matches = vec![];
        for (row, named) in open.into_iter().zip(named) {
            let paired = (0..self.candidates.n_of(row)).map(|nth| (nth, self.candidates.inner(row, nth)));
            let matching = paired.filter(|(_, inner)| classification.matches(&named, *inner));
            matches.extend(matching.map(|(nth, _)| self.pair(row, nth)));
        }
        self.note_matches(&matches);
        self.next.0 = end;
        self.all_asked = end == self.listing.n_outer;
        match self.plan.join_type {
            JoinType::LeftSemi | JoinType::RightSemi => self.ready_rows(start, end),
            _ => {
                self.ready_pairs(&matches);
                if self.all_asked {
                    self.ready_unmatched();
                }
            }
        }
        Ok(())
    }

    /// Returns how many more pairs a limit takes; `None` without one, or where what leaves the operator is not pairs.
    fn missing(&self) -> Option<usize> {
        match self.plan.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                self.plan.effort.wanted.map(|wanted| wanted.saturating_sub(self.rows_out))
            }
            _ => None,
        }
    }

    fn ready_pairs(&mut self, matches: &[Pair]) {
        for rows in matches.chunks(self.batch_rows) {
            let (left, right) = rows.iter().copied().unzip();
            self.ready.push_back(RowNumbers { left: Some(left), right: Some(right), marks: None });
        }
    }

    fn note_matches(&mut self, matches: &[Pair]) {
        for (left, right) in matches {
            self.left_matched[*left as usize] = true;
            self.right_matched[*right as usize] = true;
        }
    }

    fn ready_rows(&mut self, start: usize, end: usize) {
        let matched = self.outer_matched()[start..end].to_vec();
        let (mut rows, mut marks): (Vec<u32>, Vec<bool>) = (start as u32..end as u32).zip(matched).unzip();
        let wanted = match self.plan.join_type {
            JoinType::LeftSemi | JoinType::RightSemi => Some(true),
            JoinType::LeftAnti | JoinType::RightAnti => Some(false),
            _ => None,
        };
        if let Some(wanted) = wanted {
            let mut kept = marks.iter().map(|mark| *mark == wanted);
            rows.retain(|_| kept.next().unwrap_or(false));
            marks.retain(|mark| *mark == wanted);
        }
        for (rows, marks) in rows.chunks(self.batch_rows).zip(marks.chunks(self.batch_rows)) {
            let (rows, marks) = (Some(rows.to_vec()), Some(marks.to_vec()).filter(|_| wanted.is_none()));
            self.ready.push_back(match self.outer {
                JoinSide::Right => RowNumbers { right: rows, marks, left: None },
                _ => RowNumbers { left: rows, marks, right: None },
            });
        }
    }

    fn outer_matched(&self) -> &[bool] {
        match self.outer {
            JoinSide::Right => &self.right_matched,
            _ => &self.left_matched,
        }
    }

    fn pair(&self, outer: usize, nth: usize) -> Pair {
        let inner = self.candidates.inner(outer, nth);
        match self.outer {
            JoinSide::Right => (inner, outer as u32),
            _ => (outer as u32, inner),
        }
    }

    /// Sends pairs through the steps, notes which rows have matched, and returns the matches.
    async fn ask(&mut self, mut pairs: Vec<Pair>) -> Result<Vec<Pair>> {
        if pairs.is_empty() {
            return Ok(pairs);
        }
        self.pairs_asked += pairs.len() as u64;
        if self.pairs_asked > self.plan.max_pairs {
            return Err(too_many_pairs(None, self.plan.max_pairs));
        }
        self.pairs.add(pairs.len());
        let sides = Arc::clone(&self.sides);
        let chunks: Vec<Vec<Pair>> = pairs.chunks(self.batch_rows).map(<[Pair]>::to_vec).collect();
        let pair_schema = Arc::clone(&sides.pair_schema);
        let batches = stream::iter(chunks.into_iter().map(move |chunk| sides.pair_batch(&chunk)));
        let mut rows = Box::pin(RecordBatchStreamAdapter::new(pair_schema, batches)) as SendableRecordBatchStream;
        // What the last predicate lets pass is a match, and matches are taken in the order of their pairs.
        let missing = self.missing();
        let mut behind = self.steps.as_mut_slice();
        while let Some((step, rest)) = behind.split_first_mut() {
            behind = rest;
            let batches = match step {
                Step::Ask(blocks) => {
                    let limit = match (missing, &*behind) {
                        (Some(missing), [Step::Keep(predicate)]) => Some((missing, predicate)),
                        _ => None,
                    };
                    blocks.ask(rows, limit).await?
                }
                Step::Keep(predicate) => keep(predicate, rows.try_collect().await?, &mut pairs)?,
            };
            let Some(first) = batches.first() else { return Ok(vec![]) };
            rows = Box::pin(RecordBatchStreamAdapter::new(first.schema(), stream::iter(batches.into_iter().map(Ok))));
        }
        self.note_matches(&pairs);
        Ok(pairs)
    }

    /// Puts rows of the output together.
    fn batch(&self, rows: RowNumbers) -> Result<RecordBatch> {
        let RowNumbers { left, right, marks } = rows;
        let n_rows = left.as_ref().or(right.as_ref()).map_or(0, Vec::len);
        let mut columns = vec![];
        let Sides { left: left_side, right: right_side, .. } = self.sides.as_ref();
        if !matches!(self.plan.join_type, JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark) {
            columns.extend(side_columns(left_side, left.as_deref(), n_rows)?);
        }
        if !matches!(self.plan.join_type, JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark) {
            columns.extend(side_columns(right_side, right.as_deref(), n_rows)?);
        }
        if let Some(marks) = marks {
            columns.push(Arc::new(BooleanArray::from(marks)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let room = self.plan.effort.wanted.map_or(n_rows, |wanted| wanted - self.rows_out);
        Ok(batch.slice(0, n_rows.min(room)))
    }
}

/// Returns some rows of an input, NULLs if there are none.
fn side_columns(side: &Side, rows: Option<&[u32]>, n_rows: usize) -> Result<Vec<ArrayRef>> {
    let fields = side.schema().fields().iter().enumerate();
    let column = |(idx, field): (usize, &Arc<datafusion::arrow::datatypes::Field>)| match rows {
        Some(rows) => side.take(idx, rows),
        None => Ok(new_null_array(field.data_type(), n_rows)),
    };
    fields.map(column).collect()
}

impl Sides {
    fn pair_batch(&self, pairs: &[Pair]) -> Result<RecordBatch> {
        let (left, right): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        let column = |column: &PairColumn| match column.side {
            JoinSide::Right => self.right.take(column.index, &right),
            _ => self.left.take(column.index, &left),
        };
        let columns = self.columns.iter().map(column).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(pairs.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.pair_schema), columns, &options)?)
    }
}

/// Keeps the rows for which the predicate is TRUE, and their pairs.
fn keep(predicate: &Arc<dyn PhysicalExpr>, batches: Vec<RecordBatch>, pairs: &mut Vec<Pair>) -> Result<Vec<RecordBatch>> {
    let mut kept = vec![];
    let mut passed = Vec::with_capacity(pairs.len());
    for batch in batches {
        let mask = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
        let mask = without_nulls(as_boolean_array(&mask)?);
        passed.extend(mask.values().iter());
        let batch = filter_record_batch(&batch, &mask)?;
        if batch.num_rows() > 0 {
            kept.push(batch);
        }
    }
    let mut passed = passed.into_iter();
    pairs.retain(|_| passed.next().unwrap_or(false));
    Ok(kept)
}
