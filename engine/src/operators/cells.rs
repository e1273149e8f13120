//! The cells of some questions and their tokens: codes for the solver, and the segments of prompts.

use std::sync::Arc;

use ahash::RandomState;
use datafusion::common::{HashMap, Result, exec_datafusion_err};
use refrain_optimizer::reorder::{Column, Table};
use refrain_serving::{Segment, Tokenizer};
use refrain_udf::{FieldTokens, Place, Prompt, PromptLayout, list_items};

use crate::operators::call::PhysicalCall;
use crate::operators::chunk::{self, ChunkLimits, CutText};
use crate::operators::distinct::Questions;
use crate::operators::parallel::in_parallel;
use crate::operators::truncate;

/// Returns the length of a prompt.
pub(super) fn n_tokens(prompt: &[Segment]) -> usize {
    prompt.iter().map(|segment| segment.len()).sum()
}

/// A cell of a column at its place in the prompt; it is tokenised once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cell {
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
pub(super) struct Cells<'a> {
    layout: &'a PromptLayout,
    tokenizer: &'a dyn Tokenizer,
    questions: &'a Questions,
    n_inputs: usize,
    passages: Option<Passages>,
    /// The input of each column of the solver's table.
    pub(super) field_of: Vec<u32>,
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
    pub(super) fn new(
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
    pub(super) fn columns_in(&self, field_order: &[u32]) -> Vec<u32> {
        let columns_of = |field: &u32| {
            let field = *field;
            self.field_of.iter().enumerate().filter(move |(_, of)| **of == field).map(|(column, _)| column as u32)
        };
        field_order.iter().flat_map(columns_of).collect()
    }

    /// Codes and tokens of the cells of `asked`, for the solver.
    pub(super) fn table(&mut self, asked: &[u32]) -> Result<Table> {
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

    /// Adds the cells of a question to `placed`, its fields in the order of `columns`; in template mode in that of the template.
    pub(super) fn place(&self, question: u32, columns: &[u32], placed: &mut Vec<Cell>) {
        let tuple = self.questions.tuple(question);
        let of = |column: &u32| self.field_of[*column as usize];
        for (position, chunk) in columns.chunk_by(|a, b| of(a) == of(b)).enumerate() {
            let (field, place) = (of(&chunk[0]) as usize, Place::of(position, self.n_inputs));
            let passages = self.passages_in(field, tuple, chunk);
            if passages.is_empty() {
                placed.push(Cell { slot: Slot::Field(field, place), code: tuple[field] });
            }
            let count = passages.len();
            let passages = passages.into_iter().enumerate();
            placed.extend(passages.map(|(at, code)| Cell { slot: Slot::Passage(place, Place::of(at, count)), code }));
        }
        let part = |part: usize| {
            let code = self.layout.part_input(part).map_or(0, |input| tuple[input]);
            Cell { slot: Slot::Part(part), code }
        };
        placed.extend((0..self.layout.n_parts()).map(part));
    }

    /// Returns the passages of a row in the order of the columns that stand for them; none if `field` holds no passages.
    fn passages_in(&self, field: usize, tuple: &[u32], columns: &[u32]) -> Vec<u32> {
        let Some(passages) = self.passages.as_ref().filter(|passages| passages.input == field) else { return vec![] };
        let list = &passages.of_list[tuple[field] as usize];
        columns.iter().filter_map(|column| list.get(*column as usize - field).copied()).collect()
    }

    /// Tokenises the cells that have not been.
    pub(super) fn tokenise(&mut self, cells: impl Iterator<Item = Cell>) {
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

    pub(super) fn prompt(&self, cells: &[Cell]) -> Vec<Segment> {
        self.between_head_and_tail(cells.iter().map(|cell| Arc::clone(self.segment(*cell))))
    }

    /// Returns the values of a question whose fields stand in the order of `columns`. A list of passages stays as it was declared.
    pub(super) fn values(&self, question: u32, columns: &[u32]) -> Values<'_> {
        let mut cells = vec![];
        self.place(question, columns, &mut cells);
        cells.dedup_by_key(|cell| match cell.slot {
            Slot::Passage(..) => None,
            slot => Some(slot),
        });
        let values = (0..self.n_inputs).map(|input| self.questions.text(question, input).to_owned()).collect();
        Values { cells: self, slots: cells.into_iter().map(|cell| cell.slot).collect(), values }
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

/// The values of one question as they stand in its prompt, whose texts may be cut.
pub(super) struct Values<'a> {
    cells: &'a Cells<'a>,
    slots: Vec<Slot>,
    /// As JSON, one for each input.
    values: Vec<String>,
}

impl Values<'_> {
    /// Returns a prompt of at most `limit` tokens, with the longest texts cut; `None` if that does not help.
    pub(super) fn truncated(mut self, limit: usize) -> Option<Vec<Segment>> {
        let mut values = std::mem::take(&mut self.values);
        let fits = truncate::cut(&mut values, limit, self.cells.tokenizer, |values| n_tokens(&self.prompt(values)));
        fits.then(|| self.prompt(&values))
    }

    /// Cuts the longest text into chunks whose prompts fit; `None` if that does not help.
    pub(super) fn chunks(&self, limits: ChunkLimits) -> Option<CutText> {
        chunk::split(&self.values, limits, self.cells.tokenizer, |values| n_tokens(&self.prompt(values)))
    }

    fn prompt(&self, values: &[String]) -> Vec<Segment> {
        let cells = self.cells;
        let json = |slot: Slot| cells.input_of(slot).map_or("", |input| values[input].as_str());
        cells.between_head_and_tail(self.slots.iter().map(|slot| cells.encode_in(*slot, json(*slot)).segment))
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
