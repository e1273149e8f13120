//! From questions to requests: tokens of cells, the schedule, and prompts as lists of shared segments.

use std::cmp::Reverse;
use std::sync::Arc;

use ahash::RandomState;
use datafusion::common::{HashMap, Result, exec_datafusion_err};
use refrain_optimizer::reorder::{self, Column, Dependency, FieldOrder, Schedule, Strategy, Table};
use refrain_serving::{OutputShape, Request, RequestId, Sampling, Segment, Tokenizer};
use refrain_udf::{FieldTokens, Place, Prompt, PromptLayout, Reorder, list_items};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::parallel::in_parallel;
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
    /// Returns the fields of the request at `position`, in prompt order.
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
    /// Longer prompts are cut.
    pub limit: Option<usize>,
    /// Where the window before ended.
    pub edge: Option<&'a Edge>,
}

impl<'a> Planner<'a> {
    /// Plans for a cache that shares every token, without a window before.
    pub(super) fn new(call: &'a PhysicalCall, layout: &'a PromptLayout, tokenizer: &'a dyn Tokenizer) -> Self {
        Planner { call, layout, tokenizer, granularity: 1, limit: None, edge: None }
    }

    /// Orders `asked` and renders its prompts.
    pub(super) fn plan(&self, questions: &Questions, asked: &[u32]) -> Result<PlannedRequests> {
        let Planner { call, layout, tokenizer, granularity, limit, edge } = *self;
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
        let columns_of = |schedule: &Schedule, position: usize| match &call.call.prompt {
            Prompt::Fields { .. } => schedule.fields_of(position).to_vec(),
            Prompt::Template(_) | Prompt::Rows { .. } => vec![],
        };
        let placed: Vec<Vec<Cell>> = (0..schedule.rows().len())
            .map(|position| cells.of(asked[schedule.rows()[position] as usize], &columns_of(&schedule, position)))
            .collect();
        cells.tokenise(placed.iter().flatten().copied());
        let mut prompts: Vec<Vec<Segment>> = placed.iter().map(|placed| cells.prompt(placed)).collect();
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
        let mut truncated = 0;
        let requests = prompts.into_iter().zip(&in_order).enumerate().map(|(position, (mut prompt, question))| {
            if let Some(limit) = limit.filter(|limit| n_tokens(&prompt) > *limit)
                && let Some(shorter) = cells.cut_prompt(*question, &columns_of(&schedule, position), limit)
            {
                prompt = shorter;
                truncated += 1;
            }
            request(call, position as u32, prompt, &shape, seed(call, questions, *question))
        });
        let requests = requests.collect();
        let (field_order, n_field_orders) = field_orders(&schedule, &cells.field_of);
        Ok(PlannedRequests {
            requests,
            questions: in_order,
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
    let inputs: Vec<&str> = (0..call.inputs.len()).map(|input| questions.text(question, input)).collect();
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
    /// An item of the field that is a list of passages, at a place of its own within it.
    Passage(Place, Place),
    /// A part of the template.
    Part(usize),
}

/// Rows of more passages are not taken apart: their order stays.
const PASSAGES_MAX: usize = 64;
/// Columns times rows, likewise.
const PASSAGE_CELLS_MAX: usize = 1 << 24;

/// The passages of a call, taken apart.
struct Passages {
    /// The input that is their list.
    input: usize,
    /// The distinct passages as JSON.
    texts: Vec<Arc<str>>,
    /// By code of the list: its passages.
    of_list: Vec<Vec<u32>>,
    /// The most that a list holds.
    width: usize,
}

impl Passages {
    /// Takes apart the lists that some questions have. NULLs are no passages.
    fn new(input: usize, questions: &Questions, asked: &[u32]) -> Option<Self> {
        let lists = questions.column(input);
        let mut codes: HashMap<&str, u32, RandomState> = HashMap::default();
        let mut of_list: Vec<Vec<u32>> = vec![vec![]; lists.len()];
        let mut texts = vec![];
        for code in DenseCodes::new(questions, input, asked).distinct {
            let items = list_items(lists.text(code)).into_iter().filter(|item| *item != "null");
            let code_of = |item| {
                *codes.entry(item).or_insert_with(|| {
                    texts.push(item.into());
                    texts.len() as u32 - 1
                })
            };
            of_list[code as usize] = items.map(code_of).collect();
        }
        let width = of_list.iter().map(Vec::len).max().unwrap_or(0);
        let is_small = width <= PASSAGES_MAX && width * asked.len() <= PASSAGE_CELLS_MAX;
        (width > 0 && is_small).then_some(Passages { input, texts, of_list, width })
    }
}

/// The tokens of cells.
struct Cells<'a> {
    layout: &'a PromptLayout,
    tokenizer: &'a dyn Tokenizer,
    questions: &'a Questions,
    n_inputs: usize,
    passages: Option<Passages>,
    /// The input of each column of the solver's table.
    field_of: Vec<u32>,
    segments: Segments,
}

/// The tokens of cells, by place and code: codes are dense and places few.
#[derive(Debug, Default)]
struct Segments(Vec<(Slot, Vec<Option<FieldTokens>>)>);

impl Segments {
    fn get(&self, cell: Cell) -> Option<&FieldTokens> {
        let (_, by_code) = self.0.iter().find(|(slot, _)| *slot == cell.slot)?;
        by_code.get(cell.code as usize)?.as_ref()
    }

    fn insert(&mut self, cell: Cell, tokens: FieldTokens) {
        let at = self.0.iter().position(|(slot, _)| *slot == cell.slot).unwrap_or_else(|| {
            self.0.push((cell.slot, vec![]));
            self.0.len() - 1
        });
        let (by_code, code) = (&mut self.0[at].1, cell.code as usize);
        if by_code.len() <= code {
            by_code.resize(code + 1, None);
        }
        by_code[code] = Some(tokens);
    }
}

impl<'a> Cells<'a> {
    fn new(
        call: &PhysicalCall,
        layout: &'a PromptLayout,
        tokenizer: &'a dyn Tokenizer,
        questions: &'a Questions,
        asked: &[u32],
    ) -> Self {
        let n_inputs = call.inputs.len();
        let passages = match &call.call.prompt {
            Prompt::Fields { passages: Some(input), .. } => Passages::new(*input, questions, asked),
            _ => None,
        };
        let width = |input: usize| match &passages {
            Some(passages) if passages.input == input => passages.width,
            _ => 1,
        };
        let field_of = (0..n_inputs).flat_map(|input| std::iter::repeat_n(input as u32, width(input))).collect();
        Cells { layout, tokenizer, questions, n_inputs, passages, field_of, segments: Segments::default() }
    }

    /// Returns the columns that stand for fields, in the order of the fields.
    fn columns_in(&self, field_order: &[u32]) -> Vec<u32> {
        let columns_of = |field: &u32| {
            let field = *field;
            self.field_of.iter().enumerate().filter(move |(_, of)| **of == field).map(|(column, _)| column as u32)
        };
        field_order.iter().flat_map(columns_of).collect()
    }

    /// Codes and tokens of the cells of `asked`, for the solver.
    fn table(&mut self, asked: &[u32]) -> Result<Table> {
        let inputs: Vec<(usize, DenseCodes)> = (0..self.n_inputs)
            .filter(|input| self.passages.as_ref().is_none_or(|passages| passages.input != *input))
            .map(|input| (input, DenseCodes::new(self.questions, input, asked)))
            .collect();
        let slots: Vec<Vec<Slot>> = inputs.iter().map(|(input, _)| self.slots(*input)).collect();
        // All columns at once, so that there is work for all threads.
        let cells = inputs.iter().zip(&slots).flat_map(|((_, codes), slots)| {
            codes.distinct.iter().flat_map(|code| slots.iter().map(|slot| Cell { slot: *slot, code: *code }))
        });
        let n_passages = self.passages.as_ref().map_or(0, |passages| passages.texts.len() as u32);
        let cells: Vec<Cell> = cells.chain((0..n_passages).map(passage)).collect();
        self.tokenise(cells.into_iter());
        let mut columns: Vec<(usize, Result<Column, _>)> = vec![];
        for ((input, codes), slots) in inputs.into_iter().zip(&slots) {
            let tokens: Vec<Segment> = codes.distinct.iter().map(|code| self.joined(slots, *code)).collect();
            columns.push((input, Column::of_tokens(codes.of_row, tokens)));
        }
        let mut set = None;
        if let Some(passages) = &self.passages {
            // Rows with fewer passages fill up with one that has no tokens.
            let tokens = (0..n_passages).map(|code| Arc::clone(self.segment(passage(code)))).chain([Segment::default()]);
            let tokens: Arc<[Segment]> = tokens.collect();
            for at in 0..passages.width {
                let list = |question: &u32| &passages.of_list[self.questions.tuple(*question)[passages.input] as usize];
                let code = |question: &u32| list(question).get(at).copied().unwrap_or(n_passages);
                let codes = asked.iter().map(code).collect();
                columns.push((passages.input, Column::of_tokens(codes, Arc::clone(&tokens))));
            }
            set = Some(passages.input..passages.input + passages.width);
        }
        columns.sort_by_key(|(input, _)| *input);
        let columns = columns.into_iter().map(|(_, column)| column).collect::<Result<Vec<_>, _>>();
        let table = columns.and_then(|columns| Table::new(columns, asked.len()));
        let table = table.and_then(|table| match set {
            Some(set) => table.with_set(set),
            None => Ok(table),
        });
        table.map_err(|e| exec_datafusion_err!("cannot order rows: {e}"))
    }

    /// Returns where an input stands in the prompt. One of several fields counts as one in the middle: its place is not known yet.
    fn slots(&self, input: usize) -> Vec<Slot> {
        match self.layout.n_parts() {
            0 if self.n_inputs == 1 => vec![Slot::Field(input, Place::Only)],
            0 => vec![Slot::Field(input, Place::Middle)],
            parts => (0..parts).filter(|part| self.layout.part_input(*part) == Some(input)).map(Slot::Part).collect(),
        }
    }

    /// Returns the tokens of a value in all its slots.
    fn joined(&self, slots: &[Slot], code: u32) -> Segment {
        let segment = |slot: &Slot| self.segment(Cell { slot: *slot, code });
        match slots {
            [only] => Arc::clone(segment(only)),
            several => several.iter().flat_map(|slot| segment(slot).iter().copied()).collect(),
        }
    }

    /// Returns the cells of a question, its fields in the order of `columns`; in template mode in that of the template.
    fn of(&self, question: u32, columns: &[u32]) -> Vec<Cell> {
        let tuple = self.questions.tuple(question);
        let mut cells = vec![];
        let of = |column: &u32| self.field_of[*column as usize];
        for (position, chunk) in columns.chunk_by(|a, b| of(a) == of(b)).enumerate() {
            let (field, place) = (of(&chunk[0]) as usize, Place::of(position, self.n_inputs));
            let passages = self.passages_in(field, tuple, chunk);
            if passages.is_empty() {
                cells.push(Cell { slot: Slot::Field(field, place), code: tuple[field] });
            }
            let count = passages.len();
            cells.extend(
                passages
                    .into_iter()
                    .enumerate()
                    .map(|(at, code)| Cell { slot: Slot::Passage(place, Place::of(at, count)), code }),
            );
        }
        let part = |part: usize| {
            let code = self.layout.part_input(part).map_or(0, |input| tuple[input]);
            Cell { slot: Slot::Part(part), code }
        };
        cells.extend((0..self.layout.n_parts()).map(part));
        cells
    }

    /// Returns the passages of a row in the order of the columns that stand for them; none if `field` holds no passages.
    fn passages_in(&self, field: usize, tuple: &[u32], columns: &[u32]) -> Vec<u32> {
        let Some(passages) = self.passages.as_ref().filter(|passages| passages.input == field) else { return vec![] };
        let list = &passages.of_list[tuple[field] as usize];
        columns.iter().filter_map(|column| list.get(*column as usize - field).copied()).collect()
    }

    /// Tokenises the cells that have not been.
    fn tokenise(&mut self, cells: impl Iterator<Item = Cell>) {
        let mut missing = vec![];
        let nothing = FieldTokens::from(Segment::default());
        for cell in cells {
            if self.segments.get(cell).is_none() {
                // So that it is not met again; its tokens follow.
                self.segments.insert(cell, nothing.clone());
                missing.push(cell);
            }
        }
        let tokens = in_parallel(missing.len(), |idx| self.encode(missing[idx]));
        for (cell, tokens) in missing.into_iter().zip(tokens) {
            self.segments.insert(cell, tokens);
        }
    }

    fn encode(&self, Cell { slot, code }: Cell) -> FieldTokens {
        if let (Slot::Passage(place, item), Some(passages)) = (slot, &self.passages) {
            let json = &passages.texts[code as usize];
            return self.layout.item_segment(self.tokenizer, passages.input, json, place, item).into();
        }
        let json = self.input_of(slot).map_or("", |input| self.questions.column(input).text(code));
        // The solver's table has every field in the middle; elsewhere only its ends differ.
        if let Slot::Field(field, place @ (Place::First | Place::Last)) = slot
            && let Some(tokens) = self.segments.get(Cell { slot: Slot::Field(field, Place::Middle), code })
        {
            return self.layout.moved(self.tokenizer, field, json, tokens, place);
        }
        self.encode_in(slot, json)
    }

    /// Returns the input whose value stands in a slot.
    fn input_of(&self, slot: Slot) -> Option<usize> {
        match slot {
            Slot::Field(field, _) => Some(field),
            Slot::Passage(..) => self.passages.as_ref().map(|passages| passages.input),
            Slot::Part(part) => self.layout.part_input(part),
        }
    }

    fn encode_in(&self, slot: Slot, json: &str) -> FieldTokens {
        match slot {
            Slot::Field(field, place) => self.layout.field_tokens(self.tokenizer, field, json, place),
            Slot::Passage(place, _) => {
                self.layout.field_tokens(self.tokenizer, self.input_of(slot).unwrap_or_default(), json, place)
            }
            Slot::Part(part) => self.layout.part_segment(self.tokenizer, part, json).into(),
        }
    }

    fn prompt(&self, cells: &[Cell]) -> Vec<Segment> {
        self.between_head_and_tail(cells.iter().map(|cell| Arc::clone(self.segment(*cell))))
    }

    /// Returns the prompt of a question with its longest texts cut, `None` if that does not help. A list of passages is not cut,
    /// and stays in the order in which it was declared.
    fn cut_prompt(&self, question: u32, columns: &[u32], limit: usize) -> Option<Vec<Segment>> {
        let mut cells = self.of(question, columns);
        cells.dedup_by_key(|cell| match cell.slot {
            Slot::Passage(..) => None,
            slot => Some(slot),
        });
        let prompt_of = |values: &[String]| {
            let json = |slot: Slot| self.input_of(slot).map_or("", |input| values[input].as_str());
            self.between_head_and_tail(cells.iter().map(|cell| self.encode_in(cell.slot, json(cell.slot)).segment))
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
        &self.segments.get(cell).expect("cells are tokenised before they are used").segment
    }
}

/// A passage at a place that is not known yet.
fn passage(code: u32) -> Cell {
    Cell { slot: Slot::Passage(Place::Middle, Place::Middle), code }
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
        let mut numbers = vec![u32::MAX; questions.column(input).len()];
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
