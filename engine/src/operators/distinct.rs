//! The distinct questions of a window: cells as dictionary codes, rows as tuples of codes.
//!
//! Every cell is rendered to the JSON text that stands in the prompt and interned by it, column by column; two rows ask the same
//! question iff their tuples of codes are equal. A row that is not asked (its guard is not TRUE, or its inputs are NULL) has no
//! question.

use std::num::NonZeroUsize;
use std::thread;

use ahash::RandomState;
use datafusion::arrow::array::{ArrayRef, BooleanArray};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::common::Result;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use refrain_udf::{JsonRenderer, NullPolicy};

/// Marks a row without a question.
pub(super) const NO_QUESTION: u32 = u32::MAX;

/// Cells below which the columns of a batch are rendered one after the other.
const CELLS_MIN_IN_PARALLEL: usize = 4096;

/// The distinct questions of one call over a window.
#[derive(Debug)]
pub(super) struct Questions {
    columns: Vec<CellDictionary>,
    /// Codes of all questions, one tuple after the other.
    tuples: Vec<u32>,
    by_tuple: HashTable<Known>,
    hasher: RandomState,
    /// The question of each row of the window.
    pub of_row: Vec<u32>,
    /// How many equal questions of the window came before each one; empty where equal rows are one question.
    occurrences: Vec<u32>,
    window: u32,
    dedup: bool,
    n_questions: u32,
}

/// A tuple that has been seen.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The first question that has it.
    question: u32,
    /// How many more have it, where equal rows are questions of their own.
    repeats: u32,
}

/// The distinct cells of one input.
#[derive(Debug, Default)]
pub(super) struct CellDictionary {
    codes: HashTable<u32>,
    hasher: RandomState,
    /// The JSON texts of all cells, by code, one after the other.
    texts: String,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Questions {
    /// Starts an empty window, the `window`-th of its operator, for a call of `n_inputs` inputs. Without `dedup` each row is a
    /// question of its own.
    pub(super) fn new(n_inputs: usize, dedup: bool, window: u32) -> Self {
        Questions {
            columns: (0..n_inputs).map(|_| CellDictionary::default()).collect(),
            tuples: vec![],
            by_tuple: HashTable::new(),
            hasher: RandomState::new(),
            of_row: vec![],
            occurrences: vec![],
            window,
            dedup,
            n_questions: 0,
        }
    }

    /// Forgets the rows behind the first `rows`, and the questions that only they ask.
    pub(super) fn truncate(&mut self, rows: usize) {
        if rows >= self.of_row.len() {
            return;
        }
        self.of_row.truncate(rows);
        // Questions are numbered in the order of their first row.
        let asked = self.of_row.iter().filter(|question| **question != NO_QUESTION);
        let keep = asked.max().map_or(0, |question| question + 1);
        if !self.dedup {
            for question in keep..self.n_questions {
                let hash = self.hasher.hash_one(self.tuple(question));
                let (tuples, width) = (&self.tuples, self.columns.len());
                let known = self
                    .by_tuple
                    .find_mut(hash, |known| tuple_of(tuples, width, known.question) == tuple_of(tuples, width, question));
                if let Some(known) = known {
                    known.repeats = known.repeats.saturating_sub(1);
                }
            }
            self.occurrences.truncate(keep as usize);
        }
        self.by_tuple.retain(|known| known.question < keep);
        self.tuples.truncate(keep as usize * self.columns.len());
        self.n_questions = keep;
    }

    /// Returns the number of distinct questions.
    pub(super) fn len(&self) -> usize {
        self.n_questions as usize
    }

    /// Returns the codes of one question, one for each input.
    pub(super) fn tuple(&self, question: u32) -> &[u32] {
        tuple_of(&self.tuples, self.columns.len(), question)
    }

    /// Returns the dictionary of one input.
    pub(super) fn column(&self, input: usize) -> &CellDictionary {
        &self.columns[input]
    }

    /// Returns the JSON text of one cell of a question.
    pub(super) fn text(&self, question: u32, input: usize) -> &str {
        self.columns[input].text(self.tuple(question)[input])
    }

    /// Returns how many rows ask each question.
    pub(super) fn rows(&self) -> Vec<u64> {
        let mut rows = vec![0; self.len()];
        for question in self.of_row.iter().filter(|question| **question != NO_QUESTION) {
            rows[*question as usize] += 1;
        }
        rows
    }

    /// Returns about how many bytes of text a question has, from some of them.
    pub(super) fn mean_bytes(&self) -> f64 {
        const LOOKED_AT: usize = 64;
        let step = (self.len() / LOOKED_AT).max(1);
        let looked_at: Vec<u32> = (0..self.n_questions).step_by(step).collect();
        let texts = looked_at.iter().flat_map(|question| (0..self.columns.len()).map(|input| self.text(*question, input)));
        texts.map(|text| text.len()).sum::<usize>() as f64 / looked_at.len().max(1) as f64
    }

    /// Returns what tells rows of equal inputs apart: the window, and how many of them came before in it. `(0, 0)` where equal
    /// rows are one question.
    pub(super) fn occurrence(&self, question: u32) -> (u32, u32) {
        match self.occurrences.get(question as usize) {
            Some(occurrence) => (self.window, *occurrence),
            None => (0, 0),
        }
    }

    /// Returns about how much memory the dictionaries take.
    pub(super) fn bytes(&self) -> usize {
        let codes = self.of_row.len() + self.tuples.len() + self.occurrences.len();
        let tuples = self.by_tuple.len() * size_of::<Known>() + codes * size_of::<u32>();
        self.columns.iter().map(CellDictionary::bytes).sum::<usize>() + tuples
    }

    /// Adds rows of a batch, from row `start` on, until `max_questions` are known or the batch ends. Returns the row it stopped at.
    pub(super) fn push(
        &mut self,
        inputs: &[ArrayRef],
        guard: Option<&BooleanArray>,
        nulls: NullPolicy,
        start: usize,
        end: usize,
        max_questions: usize,
    ) -> Result<usize> {
        // NULL as SQL sees it: also untyped, or behind a dictionary key.
        let null_rows: Vec<_> = inputs.iter().map(|input| input.logical_nulls()).collect();
        let is_asked = |row: usize| guard.is_none_or(|mask| mask.value(row)) && !skips(nulls, &null_rows, row);
        let mut row = start;
        loop {
            // No more than there may be questions, so that no row is rendered in vain.
            let room = max_questions.saturating_sub(self.len());
            let mut asked = vec![];
            let first = row;
            while row < end && (asked.len() < room || !is_asked(row)) {
                if is_asked(row) {
                    asked.push(row);
                }
                row += 1;
            }
            let codes = self.intern(inputs, &asked)?;
            let mut tuple = vec![0; inputs.len()];
            let mut next = 0;
            for looked_at in first..row {
                if asked.get(next) != Some(&looked_at) {
                    self.of_row.push(NO_QUESTION);
                    continue;
                }
                tuple.iter_mut().zip(&codes).for_each(|(code, codes)| *code = codes[next]);
                let question = self.question_of(&tuple);
                self.of_row.push(question);
                next += 1;
            }
            if row == end || asked.is_empty() {
                return Ok(row);
            }
        }
    }

    /// Returns the codes of the cells of some rows, column by column.
    fn intern(&mut self, inputs: &[ArrayRef], rows: &[usize]) -> Result<Vec<Vec<u32>>> {
        let columns = self.columns.iter_mut().zip(inputs);
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        if cores == 1 || inputs.len() < 2 || inputs.len() * rows.len() < CELLS_MIN_IN_PARALLEL {
            return columns.map(|(column, input)| column.intern_rows(input, rows)).collect();
        }
        thread::scope(|scope| {
            let threads: Vec<_> =
                columns.map(|(column, input)| scope.spawn(move || column.intern_rows(input, rows))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// Adds a row whose inputs are JSON texts already.
    pub(super) fn push_texts<'t>(&mut self, inputs: impl IntoIterator<Item = &'t str>) {
        let tuple: Vec<u32> = inputs.into_iter().zip(&mut self.columns).map(|(text, column)| column.intern(text)).collect();
        let question = self.question_of(&tuple);
        self.of_row.push(question);
    }

    /// Returns the question of a row with these codes.
    fn question_of(&mut self, tuple: &[u32]) -> u32 {
        let (tuples, width, hasher) = (&self.tuples, self.columns.len(), &self.hasher);
        let of = |known: &Known| tuple_of(tuples, width, known.question);
        let known =
            self.by_tuple.entry(hasher.hash_one(tuple), |known| of(known) == tuple, |known| hasher.hash_one(of(known)));
        let question = self.n_questions;
        let repeats = match known {
            Entry::Occupied(known) if self.dedup => return known.get().question,
            Entry::Occupied(mut known) => {
                known.get_mut().repeats += 1;
                known.get().repeats
            }
            Entry::Vacant(place) => {
                place.insert(Known { question, repeats: 0 });
                0
            }
        };
        if !self.dedup {
            self.occurrences.push(repeats);
        }
        self.n_questions += 1;
        self.tuples.extend_from_slice(tuple);
        question
    }
}

/// Returns the codes of one question among those of all.
fn tuple_of(tuples: &[u32], width: usize, question: u32) -> &[u32] {
    &tuples[question as usize * width..][..width]
}

/// Returns whether a row gets NULL without a question.
fn skips(nulls: NullPolicy, null_rows: &[Option<NullBuffer>], row: usize) -> bool {
    let mut is_null = null_rows.iter().map(|nulls| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)));
    match nulls {
        NullPolicy::SkipIfAny => is_null.any(|null| null),
        NullPolicy::SkipIfAll => is_null.all(|null| null),
        NullPolicy::Never => false,
    }
}

impl CellDictionary {
    /// Returns the number of cells.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the JSON text of a cell.
    pub(super) fn text(&self, code: u32) -> &str {
        text_of(&self.texts, &self.ends, code)
    }

    fn bytes(&self) -> usize {
        self.texts.len() + self.ends.len() * (size_of::<usize>() + size_of::<u32>())
    }

    /// Returns the codes of some rows of a column.
    fn intern_rows(&mut self, input: &ArrayRef, rows: &[usize]) -> Result<Vec<u32>> {
        let renderer = JsonRenderer::new(input.as_ref())?;
        Ok(rows.iter().map(|row| self.intern_with(|text| renderer.write(*row, text))).collect())
    }

    fn intern(&mut self, text: &str) -> u32 {
        self.intern_with(|texts| texts.push_str(text))
    }

    /// Returns the code of the cell that `write` appends to a text.
    fn intern_with(&mut self, write: impl FnOnce(&mut String)) -> u32 {
        let start = self.texts.len();
        write(&mut self.texts);
        let (texts, ends, hasher) = (&self.texts, &self.ends, &self.hasher);
        let text = &texts[start..];
        let of = |code: &u32| text_of(texts, ends, *code);
        match self.codes.entry(hasher.hash_one(text), |code| of(code) == text, |code| hasher.hash_one(of(code))) {
            Entry::Occupied(known) => {
                let code = *known.get();
                self.texts.truncate(start);
                code
            }
            Entry::Vacant(place) => {
                let code = ends.len() as u32;
                place.insert(code);
                self.ends.push(self.texts.len());
                code
            }
        }
    }
}

fn text_of<'t>(texts: &'t str, ends: &[usize], code: u32) -> &'t str {
    let code = code as usize;
    &texts[if code == 0 { 0 } else { ends[code - 1] }..ends[code]]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Int64Array, StringArray};

    use super::*;

    fn questions(dedup: bool) -> Questions {
        let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("b"), None, Some("a"), Some("a")]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1), None, Some(1), Some(2)]));
        let mut questions = Questions::new(2, dedup, 0);
        let end = questions.push(&[names, numbers], None, NullPolicy::SkipIfAll, 0, 5, usize::MAX);
        assert_eq!(end.unwrap(), 5);
        questions
    }

    #[test]
    fn equal_rows_are_one_question() {
        let questions = questions(true);
        assert_eq!(questions.of_row, [0, 1, NO_QUESTION, 0, 2]);
        assert_eq!(questions.text(1, 0), "\"b\"");
        assert_eq!(questions.text(2, 1), "2");
        assert_eq!(questions.len(), 3);
    }

    #[test]
    fn without_dedup_each_row_is_a_question() {
        let questions = questions(false);
        assert_eq!(questions.of_row, [0, 1, NO_QUESTION, 2, 3]);
        assert_eq!(questions.tuple(2), questions.tuple(0));
        assert_eq!((questions.occurrence(0), questions.occurrence(2)), ((0, 0), (0, 1)));
    }

    #[test]
    fn rows_that_are_cut_leave_no_questions() {
        for dedup in [true, false] {
            let mut questions = questions(dedup);
            questions.truncate(2);
            assert_eq!((questions.of_row.as_slice(), questions.len()), (&[0, 1][..], 2));
            let again: ArrayRef = Arc::new(StringArray::from(vec!["a", "x"]));
            let numbers: ArrayRef = Arc::new(Int64Array::from(vec![2, 2]));
            questions.push(&[again, numbers], None, NullPolicy::SkipIfAll, 0, 2, usize::MAX).unwrap();
            assert_eq!(questions.of_row, [0, 1, 2, 3]);
            assert_eq!(questions.occurrence(2), (0, 0));
        }
    }

    #[test]
    fn columns_side_by_side_are_columns_one_by_one() {
        let n_rows = CELLS_MIN_IN_PARALLEL;
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..n_rows).map(|row| format!("é{}", row % 13))));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..n_rows as i64).map(|row| row % 11)));
        let (mut at_once, mut row_by_row) = (Questions::new(2, true, 0), Questions::new(2, true, 0));
        let inputs = [texts, numbers];
        at_once.push(&inputs, None, NullPolicy::Never, 0, n_rows, usize::MAX).unwrap();
        for row in 0..n_rows {
            row_by_row.push(&inputs, None, NullPolicy::Never, row, row + 1, usize::MAX).unwrap();
        }
        assert!(at_once.of_row == row_by_row.of_row);
        assert_eq!(at_once.len(), 13 * 11);
        for question in 0..at_once.len() as u32 {
            assert_eq!(at_once.tuple(question), row_by_row.tuple(question));
            assert_eq!(at_once.text(question, 0), row_by_row.text(question, 0));
        }
    }

    #[test]
    fn stops_before_a_row_that_would_ask_too_much() {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "a", "c"]));
        let mut questions = Questions::new(1, true, 0);
        let mut push =
            |start, max| questions.push(&[Arc::clone(&names)], None, NullPolicy::SkipIfAny, start, 4, max).unwrap();
        assert_eq!(push(0, 2), 2, "row 2 is not looked at, although its question is known");
        assert_eq!(push(2, 3), 4);
    }
}
