//! From questions to requests: tokens of cells, the schedule, and prompts as lists of shared segments.

use std::cmp::Reverse;
use std::sync::Arc;

use ahash::RandomState;
use datafusion::common::{HashMap, Result, exec_datafusion_err};
use refrain_optimizer::reorder::{self, Dependency, FieldOrder, Schedule, Strategy};
use refrain_serving::{OutputShape, Request, RequestId, Sampling, Segment, Tokenizer};
use refrain_udf::{Prompt, PromptLayout, Reorder};

use crate::operators::call::PhysicalCall;
use crate::operators::cells::{Cell, Cells, n_tokens};
use crate::operators::chunk::CutText;
use crate::operators::distinct::Questions;
use crate::operators::overflow::Overflow;

/// The requests for a list of questions, in the order in which they should run.
#[derive(Debug)]
pub(super) struct PlannedRequests {
    /// Depth first by shared prefix; their ids are places in the schedule. A question whose text is cut into chunks has none.
    pub requests: Vec<Request>,
    /// The question at each place of the schedule.
    pub questions: Vec<u32>,
    /// Questions whose prompts are too long, with their longest text cut into chunks that are to be asked about instead.
    pub chunked: Vec<(u32, CutText)>,
    /// Prompt tokens that all requests have in front.
    pub head_len: u32,
    /// The order of fields that most rows have.
    pub field_order: Vec<u32>,
    /// How many orders of fields there are.
    pub n_field_orders: usize,
    /// What the field orders make use of, between fields.
    pub dependencies: Vec<Dependency>,
    /// How many prompts were cut, since they were too long.
    pub truncated: u64,
    schedule: Schedule,
    /// The field of each column of the schedule.
    field_of: Vec<u32>,
}

impl PlannedRequests {
    /// Returns the fields of the prompt at a place of the schedule, in its order.
    pub(super) fn fields_of(&self, position: usize) -> Vec<usize> {
        fields(self.schedule.fields_of(position), &self.field_of).map(|field| field as usize).collect()
    }

    /// Returns where the next window may go on.
    pub(super) fn edge(&self) -> Option<Edge> {
        let last = self.requests.last()?;
        Some(Edge { field_order: self.field_order.clone(), prompt: last.prompt.clone() })
    }
}

/// Where a window ended, so that the next one can go on there: the cache holds what they share.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    field_order: Vec<u32>,
    /// The last prompt.
    prompt: Vec<Segment>,
}

/// Turns questions of a call into requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planner<'a> {
    /// The call.
    pub call: &'a PhysicalCall,
    /// How its prompts are laid out.
    pub layout: &'a PromptLayout,
    /// The tokenizer of its model.
    pub tokenizer: &'a dyn Tokenizer,
    /// Prefix tokens are shared in units of this many.
    pub granularity: usize,
    /// What is done to prompts that are too long.
    pub overflow: Option<Overflow>,
    /// Where the window before ended.
    pub edge: Option<&'a Edge>,
}

impl<'a> Planner<'a> {
    /// Plans for a cache that shares every token, without a window before.
    pub(super) fn new(call: &'a PhysicalCall, layout: &'a PromptLayout, tokenizer: &'a dyn Tokenizer) -> Self {
        Planner { call, layout, tokenizer, granularity: 1, overflow: None, edge: None }
    }

    /// Orders `asked` and renders its prompts.
    pub(super) fn plan(&self, questions: &Questions, asked: &[u32]) -> Result<PlannedRequests> {
        let Planner { call, layout, tokenizer, granularity, overflow, edge } = *self;
        let mut cells = Cells::new(call, layout, tokenizer, questions, asked);
        let table = cells.table(asked)?;
        let strategy = strategy(call);
        let options = reorder::Options {
            page: granularity as u32,
            after: edge.map(|edge| cells.columns_in(&edge.field_order)),
            ..reorder::Options::default()
        };
        let schedule = reorder::schedule(&table, strategy, &options)
            .map_err(|e| exec_datafusion_err!("cannot order the rows with refrain.reorder = '{strategy}': {e}"))?;
        // The cells of all rows, one after the other, and where those of each row end.
        let (mut placed, mut ends): (Vec<Cell>, _) = (vec![], Vec::with_capacity(schedule.rows().len()));
        for (position, row) in schedule.rows().iter().enumerate() {
            cells.place(asked[*row as usize], columns_of(call, &schedule, position), &mut placed);
            ends.push(placed.len());
        }
        cells.tokenise(placed.iter().copied());
        let starts = [0].into_iter().chain(ends.iter().copied());
        let mut prompts: Vec<Vec<Segment>> =
            starts.zip(&ends).map(|(start, end)| cells.prompt(&placed[start..*end])).collect();
        let schedule = match edge.filter(|_| strategy != Strategy::None) {
            Some(edge) => {
                let order = going_on_from(&edge.prompt, &prompts);
                prompts = order.iter().map(|at| std::mem::take(&mut prompts[*at as usize])).collect();
                schedule.reordered(&order)
            }
            None => schedule,
        };
        let in_order: Vec<u32> = schedule.rows().iter().map(|row| asked[*row as usize]).collect();
        let shape = Arc::new(call.call.task.output_shape());
        let (mut requests, mut chunked, mut truncated) = (Vec::with_capacity(prompts.len()), vec![], 0);
        for (position, (mut prompt, question)) in prompts.into_iter().zip(&in_order).enumerate() {
            if let Some(overflow) = overflow.filter(|overflow| n_tokens(&prompt) > overflow.limit()) {
                let whole = cells.values(*question, columns_of(call, &schedule, position));
                // What neither helps fails as an overflow when it is asked.
                match overflow {
                    Overflow::Truncate { limit } => {
                        if let Some(shorter) = whole.truncated(limit) {
                            prompt = shorter;
                            truncated += 1;
                        }
                    }
                    Overflow::Chunk(limits) => {
                        if let Some(cut) = whole.chunks(limits) {
                            chunked.push((*question, cut));
                            continue;
                        }
                    }
                }
            }
            requests.push(request(call, position as u32, prompt, &shape, seed(call, questions, *question)));
        }
        let (field_order, n_field_orders) = field_orders(&schedule, &cells.field_of);
        Ok(PlannedRequests {
            requests,
            questions: in_order,
            chunked,
            head_len: layout.head().len() as u32,
            field_order,
            n_field_orders,
            dependencies: schedule.dependencies().iter().map(|found| between_fields(*found, &cells.field_of)).collect(),
            truncated,
            field_of: cells.field_of,
            schedule,
        })
    }
}

/// Returns the columns of a row in the order in which they stand in its prompt; none in template mode, where the template orders them.
fn columns_of<'s>(call: &PhysicalCall, schedule: &'s Schedule, position: usize) -> &'s [u32] {
    match &call.call.prompt {
        Prompt::Fields { .. } => schedule.fields_of(position),
        Prompt::Template(_) | Prompt::Rows { .. } => &[],
    }
}

/// Returns the positions of `prompts`, which are in depth-first order, such that those come first that share most with `last`. Within
/// equal shares the order stays, so no group is torn apart.
fn going_on_from(last: &[Segment], prompts: &[Vec<Segment>]) -> Vec<u32> {
    let shared: Vec<usize> = prompts.iter().map(|prompt| shared_segments(last, prompt)).collect();
    let mut order: Vec<u32> = (0..prompts.len() as u32).collect();
    order.sort_by_key(|at| Reverse(shared[*at as usize]));
    order
}

fn shared_segments(one: &[Segment], other: &[Segment]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Returns the fields that columns stand for, each once.
fn fields<'a>(columns: &'a [u32], field_of: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    let of = |column: &u32| field_of[*column as usize];
    columns.chunk_by(move |a, b| of(a) == of(b)).map(move |chunk| of(&chunk[0]))
}

/// Returns the order of fields that most rows have, and how many orders there are.
fn field_orders(schedule: &Schedule, field_of: &[u32]) -> (Vec<u32>, usize) {
    let orders = match schedule.fields() {
        FieldOrder::Same(order) => return (fields(order, field_of).collect(), 1),
        FieldOrder::PerRow(orders) => orders,
    };
    let mut counts: HashMap<Vec<u32>, (usize, Reverse<usize>), RandomState> = HashMap::default();
    for (position, order) in orders.iter().enumerate() {
        counts.entry(fields(order, field_of).collect()).or_insert((0, Reverse(position))).0 += 1;
    }
    let n_orders = counts.len();
    let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(order, _)| order);
    (most.unwrap_or_default(), n_orders)
}

fn between_fields(found: Dependency, field_of: &[u32]) -> Dependency {
    let field = |column: u32| field_of[column as usize];
    Dependency { determinant: field(found.determinant), determined: field(found.determined), ..found }
}

/// Returns how rows and fields are ordered for a call. The user has fixed the order of values in a template; only rows may move.
pub(super) fn strategy(call: &PhysicalCall) -> Strategy {
    match (&call.call.prompt, call.options.reorder) {
        (_, Reorder::None) => Strategy::None,
        (Prompt::Template(_) | Prompt::Rows { .. }, _) | (_, Reorder::Rows) => Strategy::Rows,
        (_, Reorder::Auto) => Strategy::Auto,
        (_, Reorder::Search) => Strategy::Search,
        (_, Reorder::Tree) => Strategy::Tree,
        (_, Reorder::Ggr) => Strategy::Ggr,
        (_, Reorder::Ophr) => Strategy::Ophr,
    }
}

fn request(call: &PhysicalCall, id: u32, prompt: Vec<Segment>, shape: &Arc<OutputShape>, seed: u64) -> Request {
    let sampling = Sampling { seed, ..call.options.sampling };
    Request {
        id: RequestId(id),
        prompt,
        shape: Arc::clone(shape),
        sampling,
        max_tokens: call.options.max_tokens,
        stop: Arc::clone(&call.options.stop),
        logprobs: call.call.task.logprobs(),
    }
}

/// Returns the request of another call about the same row, where both prompts end with the instruction: only their tails differ.
pub(super) fn with_other_tail(
    of: &Request,
    call: &PhysicalCall,
    layout: &PromptLayout,
    shape: &Arc<OutputShape>,
    questions: &Questions,
    question: u32,
) -> Request {
    let mut prompt = of.prompt.clone();
    prompt.pop();
    prompt.push(Arc::clone(layout.tail()));
    request(call, of.id.0, prompt, shape, seed(call, questions, question))
}

/// Derives the seed of a question from its inputs, so that a sampled answer does not depend on the order of rows, and the same
/// question in another operator of the query gets the same answer. Rows sampled apart differ by their number.
fn seed(call: &PhysicalCall, questions: &Questions, question: u32) -> u64 {
    let sampling = call.options.sampling;
    if sampling.temperature == 0.0 {
        return sampling.seed;
    }
    let hasher = RandomState::with_seeds(sampling.seed, 1, 2, 3);
    let inputs: Vec<&str> = (0..call.inputs.len()).map(|input| questions.text(question, input)).collect();
    hasher.hash_one((inputs, questions.occurrence(question)))
}
