//! From questions to requests: tokens of cells, the schedule, and prompts as lists of shared segments.

use std::sync::Arc;

use ahash::RandomState;
use datafusion::common::{HashMap, Result, exec_datafusion_err};
use refrain_optimizer::reorder::{self, Column, FieldOrder, Schedule, Strategy, Table};
use refrain_serving::{OutputShape, Request, RequestId, Sampling, Segment, Tokenizer};
use refrain_udf::{Place, Prompt, PromptLayout, Reorder};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::truncate;

/// The requests for a list of questions, in the order in which they should run.
#[derive(Debug)]
pub(super) struct PlannedRequests {
    /// Depth first by shared prefix; request `n` has id `n`.
    pub requests: Vec<Request>,
    /// The question behind each request.
    pub questions: Vec<u32>,
    /// Prompt tokens that all requests have in front.
    pub head_len: u32,
    /// The order of fields, where one order serves all rows.
    pub field_order: Option<Vec<u32>>,
    /// The order of rows and of the fields of each.
    pub schedule: Schedule,
    /// How many prompts were cut, since they were too long.
    pub truncated: u64,
}

/// Orders `asked` and renders its prompts; those of more than `limit` tokens are cut.
pub(super) fn plan_requests(
    call: &PhysicalCall,
    layout: &PromptLayout,
    tokenizer: &dyn Tokenizer,
    questions: &Questions,
    asked: &[u32],
    granularity: usize,
    limit: Option<usize>,
) -> Result<PlannedRequests> {
    let mut cells = Cells { layout, tokenizer, questions, segments: HashMap::default() };
    let table = cells.table(asked, call.inputs.len())?;
    let strategy = strategy(call);
    let options = reorder::Options { page: granularity as u32, ..reorder::Options::default() };
    let schedule = reorder::schedule(&table, strategy, &options)
        .map_err(|e| exec_datafusion_err!("cannot order the rows with refrain.reorder = '{strategy}': {e}"))?;
    let shape = Arc::new(call.call.task.output_shape());
    let mut requests = Vec::with_capacity(asked.len());
    let mut in_order = Vec::with_capacity(asked.len());
    let mut truncated = 0;
    for (position, row) in schedule.rows().iter().enumerate() {
        let question = asked[*row as usize];
        let mut prompt = match &call.call.prompt {
            Prompt::Fields { .. } => cells.fields_prompt(question, schedule.fields_of(position)),
            Prompt::Template(_) => cells.template_prompt(question, call.inputs.len()),
        };
        if let Some(limit) = limit.filter(|limit| n_tokens(&prompt) > *limit)
            && let Some(shorter) = cells.cut_prompt(call, question, schedule.fields_of(position), limit)
        {
            prompt = shorter;
            truncated += 1;
        }
        requests.push(request(call, requests.len() as u32, prompt, &shape, seed(call, questions, question)));
        in_order.push(question);
    }
    Ok(PlannedRequests {
        requests,
        questions: in_order,
        head_len: layout.head().len() as u32,
        field_order: field_order(&schedule),
        schedule,
        truncated,
    })
}

/// Returns how rows and fields are ordered for a call. The user has fixed the order of values in a template; only rows may move.
pub(super) fn strategy(call: &PhysicalCall) -> Strategy {
    match (&call.call.prompt, call.options.reorder) {
        (_, Reorder::None) => Strategy::None,
        (Prompt::Template(_), _) | (_, Reorder::Rows) => Strategy::Rows,
        // What `auto` means so far; EXPLAIN names what is done.
        (_, Reorder::Auto | Reorder::Search) => Strategy::Search,
        (_, Reorder::Ggr) => Strategy::Ggr,
        (_, Reorder::Ophr) => Strategy::Ophr,
    }
}

fn field_order(schedule: &Schedule) -> Option<Vec<u32>> {
    match schedule.fields() {
        FieldOrder::Same(order) => Some(order.clone()),
        FieldOrder::PerRow(_) => None,
    }
}

fn request(call: &PhysicalCall, id: u32, prompt: Vec<Segment>, shape: &Arc<OutputShape>, seed: u64) -> Request {
    let sampling = Sampling { seed, ..call.options.sampling };
    Request::new(RequestId(id), prompt, Arc::clone(shape), sampling, call.options.max_tokens)
}

/// Derives the seed of a question from its inputs, so that a sampled answer does not depend on the order of rows, and the same
/// question in another operator of the query gets the same answer. Rows sampled apart differ by their number.
fn seed(call: &PhysicalCall, questions: &Questions, question: u32) -> u64 {
    let sampling = call.options.sampling;
    if sampling.temperature == 0.0 {
        return sampling.seed;
    }
    let hasher = RandomState::with_seeds(sampling.seed, 1, 2, 3);
    let inputs: Vec<&str> = (0..call.inputs.len()).map(|input| questions.text(question, input).as_ref()).collect();
    hasher.hash_one((inputs, questions.occurrence(question)))
}

fn n_tokens(prompt: &[Segment]) -> usize {
    prompt.iter().map(|segment| segment.len()).sum()
}

/// Where a cell's tokens are kept: input, code, place in the prompt.
type CellKey = (u32, u32, Place);

struct Cells<'a> {
    layout: &'a PromptLayout,
    tokenizer: &'a dyn Tokenizer,
    questions: &'a Questions,
    segments: HashMap<CellKey, Segment, RandomState>,
}

impl Cells<'_> {
    /// Codes and token lengths of the cells of `asked`, for the solver.
    fn table(&mut self, asked: &[u32], n_inputs: usize) -> Result<Table> {
        let mut columns = Vec::with_capacity(n_inputs);
        for input in 0..n_inputs {
            let n_cells = self.questions.column(input).texts.len();
            let (mut dense, mut lengths) = (vec![u32::MAX; n_cells], vec![]);
            let mut codes = Vec::with_capacity(asked.len());
            for question in asked {
                let code = self.questions.tuple(*question)[input];
                let slot = &mut dense[code as usize];
                if *slot == u32::MAX {
                    *slot = lengths.len() as u32;
                    lengths.push(self.segment(input as u32, code, Place::Middle).len() as u32);
                }
                codes.push(*slot);
            }
            columns.push(Column::new(codes, lengths).map_err(|e| exec_datafusion_err!("cannot order rows: {e}"))?);
        }
        Table::new(columns, asked.len()).map_err(|e| exec_datafusion_err!("cannot order rows: {e}"))
    }

    fn fields_prompt(&mut self, question: u32, order: &[u32]) -> Vec<Segment> {
        let mut prompt = Vec::with_capacity(order.len() + 2);
        prompt.push(Arc::clone(self.layout.head()));
        for (position, field) in order.iter().enumerate() {
            let place = Place::of(position, order.len());
            let code = self.questions.tuple(question)[*field as usize];
            prompt.push(self.segment(*field, code, place));
        }
        prompt.push(Arc::clone(self.layout.tail()));
        prompt
    }

    fn template_prompt(&self, question: u32, n_inputs: usize) -> Vec<Segment> {
        let values: Vec<&str> = (0..n_inputs).map(|input| self.questions.text(question, input).as_ref()).collect();
        let mut prompt = vec![Arc::clone(self.layout.head())];
        prompt.extend(self.layout.template_segments(self.tokenizer, &values));
        prompt.push(Arc::clone(self.layout.tail()));
        prompt
    }

    /// Returns the prompt of a question with its longest texts cut, `None` if that does not help.
    fn cut_prompt(&self, call: &PhysicalCall, question: u32, order: &[u32], limit: usize) -> Option<Vec<Segment>> {
        let mut values: Vec<String> =
            (0..call.inputs.len()).map(|input| self.questions.text(question, input).to_string()).collect();
        let fits =
            truncate::cut(&mut values, limit, self.tokenizer, |values| n_tokens(&self.prompt_of(call, order, values)));
        fits.then(|| self.prompt_of(call, order, &values))
    }

    /// Returns the prompt for values that are not those of a cell.
    fn prompt_of(&self, call: &PhysicalCall, order: &[u32], values: &[String]) -> Vec<Segment> {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let mut prompt = vec![Arc::clone(self.layout.head())];
        match &call.call.prompt {
            Prompt::Fields { .. } => prompt.extend(order.iter().enumerate().map(|(position, field)| {
                let (field, place) = (*field as usize, Place::of(position, order.len()));
                self.layout.field_segment(self.tokenizer, field, values[field], place)
            })),
            Prompt::Template(_) => prompt.extend(self.layout.template_segments(self.tokenizer, &values)),
        }
        prompt.push(Arc::clone(self.layout.tail()));
        prompt
    }

    /// Returns the tokens of a cell; each distinct cell is tokenised once for each place it stands in.
    fn segment(&mut self, field: u32, code: u32, place: Place) -> Segment {
        let segment = self.segments.entry((field, code, place)).or_insert_with(|| {
            let text = &self.questions.column(field as usize).texts[code as usize];
            self.layout.field_segment(self.tokenizer, field as usize, text, place)
        });
        Arc::clone(segment)
    }
}
