//! From questions to requests: tokens of cells, the schedule, and prompts as lists of shared segments.

use std::sync::Arc;

use ahash::RandomState;
use datafusion::common::{HashMap, HashSet, Result, exec_datafusion_err};
use refrain_optimizer::reorder::{self, Column, FieldOrder, Schedule, Strategy, Table};
use refrain_serving::{OutputShape, Request, RequestId, Sampling, Segment, Tokenizer};
use refrain_udf::{Place, Prompt, PromptLayout, Reorder};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::tokenise::tokenise;
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
    let mut cells = Cells { layout, tokenizer, questions, n_inputs: call.inputs.len(), segments: HashMap::default() };
    let table = cells.table(asked)?;
    let strategy = strategy(call);
    let options = reorder::Options { page: granularity as u32, ..reorder::Options::default() };
    let schedule = reorder::schedule(&table, strategy, &options)
        .map_err(|e| exec_datafusion_err!("cannot order the rows with refrain.reorder = '{strategy}': {e}"))?;
    let shape = Arc::new(call.call.task.output_shape());
    let in_order: Vec<u32> = schedule.rows().iter().map(|row| asked[*row as usize]).collect();
    let fields_of = |position: usize| match &call.call.prompt {
        Prompt::Fields { .. } => schedule.fields_of(position),
        Prompt::Template(_) | Prompt::Rows { .. } => &[],
    };
    let placed = in_order.iter().enumerate().flat_map(|(position, question)| cells.of(*question, fields_of(position)));
    let placed: Vec<Cell> = placed.collect();
    cells.tokenise(placed.into_iter());
    let mut truncated = 0;
    let requests = in_order.iter().enumerate().map(|(position, question)| {
        let fields = fields_of(position);
        let mut prompt = cells.prompt(*question, fields);
        if let Some(limit) = limit.filter(|limit| n_tokens(&prompt) > *limit)
            && let Some(shorter) = cells.cut_prompt(*question, fields, limit)
        {
            prompt = shorter;
            truncated += 1;
        }
        request(call, position as u32, prompt, &shape, seed(call, questions, *question))
    });
    let requests = requests.collect();
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
        (Prompt::Template(_) | Prompt::Rows { .. }, _) | (_, Reorder::Rows) => Strategy::Rows,
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
    let request = Request::new(RequestId(id), prompt, Arc::clone(shape), sampling, call.options.max_tokens);
    Request { stop: Arc::clone(&call.options.stop), logprobs: call.call.task.logprobs(), ..request }
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
    let inputs: Vec<&str> = (0..call.inputs.len()).map(|input| questions.text(question, input).as_ref()).collect();
    hasher.hash_one((inputs, questions.occurrence(question)))
}

fn n_tokens(prompt: &[Segment]) -> usize {
    prompt.iter().map(|segment| segment.len()).sum()
}

/// A cell of a column at its place in the prompt; it is tokenised once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cell {
    slot: Slot,
    /// The cell's code; 0 where the slot holds no value.
    code: u32,
}

/// A place in the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    /// A field, in fields mode.
    Field(usize, Place),
    /// A part of the template.
    Part(usize),
}

/// The tokens of cells.
struct Cells<'a> {
    layout: &'a PromptLayout,
    tokenizer: &'a dyn Tokenizer,
    questions: &'a Questions,
    n_inputs: usize,
    segments: HashMap<Cell, Segment, RandomState>,
}

impl Cells<'_> {
    /// Codes and token lengths of the cells of `asked`, for the solver.
    fn table(&mut self, asked: &[u32]) -> Result<Table> {
        let columns: Vec<DenseCodes> =
            (0..self.n_inputs).map(|input| DenseCodes::new(self.questions, input, asked)).collect();
        let slots: Vec<Vec<Slot>> = (0..self.n_inputs).map(|input| self.slots(input)).collect();
        // All columns at once, so that there is work for all threads.
        let cells = columns.iter().zip(&slots).flat_map(|(codes, slots)| {
            codes.distinct.iter().flat_map(|code| slots.iter().map(|slot| Cell { slot: *slot, code: *code }))
        });
        self.tokenise(cells);
        let columns = columns.into_iter().zip(&slots).map(|(codes, slots)| {
            let len =
                |code: &u32| slots.iter().map(|slot| self.segment(Cell { slot: *slot, code: *code }).len() as u32).sum();
            Column::new(codes.of_row, codes.distinct.iter().map(len).collect())
        });
        columns
            .collect::<Result<_, _>>()
            .and_then(|columns| Table::new(columns, asked.len()))
            .map_err(|e| exec_datafusion_err!("cannot order rows: {e}"))
    }

    /// Returns where an input stands in the prompt. A field counts as one in the middle: its place is not known yet.
    fn slots(&self, input: usize) -> Vec<Slot> {
        match self.layout.n_parts() {
            0 => vec![Slot::Field(input, Place::Middle)],
            parts => (0..parts).filter(|part| self.layout.part_input(*part) == Some(input)).map(Slot::Part).collect(),
        }
    }

    /// Returns the cells of a question, in the order of `fields`; in template mode in that of the template.
    fn of(&self, question: u32, fields: &[u32]) -> Vec<Cell> {
        let tuple = self.questions.tuple(question);
        let field = |(position, field): (usize, &u32)| {
            let field = *field as usize;
            Cell { slot: Slot::Field(field, Place::of(position, fields.len())), code: tuple[field] }
        };
        let part = |part: usize| {
            let code = self.layout.part_input(part).map_or(0, |input| tuple[input]);
            Cell { slot: Slot::Part(part), code }
        };
        fields.iter().enumerate().map(field).chain((0..self.layout.n_parts()).map(part)).collect()
    }

    /// Tokenises the cells that have not been.
    fn tokenise(&mut self, cells: impl Iterator<Item = Cell>) {
        let mut seen: HashSet<Cell, RandomState> = HashSet::default();
        let missing: Vec<Cell> = cells.filter(|cell| !self.segments.contains_key(cell) && seen.insert(*cell)).collect();
        let segments = tokenise(missing.len(), |idx| self.encode(missing[idx]));
        self.segments.extend(missing.into_iter().zip(segments));
    }

    fn encode(&self, Cell { slot, code }: Cell) -> Segment {
        let json = self.input_of(slot).map_or("", |input| self.questions.column(input).texts[code as usize].as_ref());
        self.encode_in(slot, json)
    }

    /// Returns the input whose value stands in a slot.
    fn input_of(&self, slot: Slot) -> Option<usize> {
        match slot {
            Slot::Field(field, _) => Some(field),
            Slot::Part(part) => self.layout.part_input(part),
        }
    }

    fn encode_in(&self, slot: Slot, json: &str) -> Segment {
        match slot {
            Slot::Field(field, place) => self.layout.field_segment(self.tokenizer, field, json, place),
            Slot::Part(part) => self.layout.part_segment(self.tokenizer, part, json),
        }
    }

    fn prompt(&self, question: u32, fields: &[u32]) -> Vec<Segment> {
        let cells = self.of(question, fields);
        self.between_head_and_tail(cells.into_iter().map(|cell| Arc::clone(self.segment(cell))))
    }

    /// Returns the prompt of a question with its longest texts cut, `None` if that does not help.
    fn cut_prompt(&self, question: u32, fields: &[u32], limit: usize) -> Option<Vec<Segment>> {
        let cells = self.of(question, fields);
        let prompt_of = |values: &[String]| {
            let json = |slot: Slot| self.input_of(slot).map_or("", |input| values[input].as_str());
            self.between_head_and_tail(cells.iter().map(|cell| self.encode_in(cell.slot, json(cell.slot))))
        };
        let mut values: Vec<String> =
            (0..self.n_inputs).map(|input| self.questions.text(question, input).to_string()).collect();
        let fits = truncate::cut(&mut values, limit, self.tokenizer, |values| n_tokens(&prompt_of(values)));
        fits.then(|| prompt_of(&values))
    }

    fn between_head_and_tail(&self, body: impl ExactSizeIterator<Item = Segment>) -> Vec<Segment> {
        let mut prompt = Vec::with_capacity(body.len() + 2);
        prompt.push(Arc::clone(self.layout.head()));
        prompt.extend(body);
        prompt.push(Arc::clone(self.layout.tail()));
        prompt
    }

    fn segment(&self, cell: Cell) -> &Segment {
        self.segments.get(&cell).expect("cells are tokenised before they are used")
    }
}

/// The cells of one column that some questions have, numbered without gaps in the order in which they come.
struct DenseCodes {
    /// The number of each question's cell.
    of_row: Vec<u32>,
    /// The code of each number.
    distinct: Vec<u32>,
}

impl DenseCodes {
    fn new(questions: &Questions, input: usize, asked: &[u32]) -> Self {
        let mut numbers = vec![u32::MAX; questions.column(input).texts.len()];
        let (mut of_row, mut distinct) = (Vec::with_capacity(asked.len()), vec![]);
        for question in asked {
            let code = questions.tuple(*question)[input];
            let number = &mut numbers[code as usize];
            if *number == u32::MAX {
                *number = distinct.len() as u32;
                distinct.push(code);
            }
            of_row.push(*number);
        }
        DenseCodes { of_row, distinct }
    }
}
