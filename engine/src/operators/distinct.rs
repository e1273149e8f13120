//! The distinct questions of a window: cells as dictionary codes, rows as tuples of codes.
//!
//! Every cell is rendered to the JSON text that stands in the prompt and interned by it, column by column; two rows ask the same
//! question iff their tuples of codes are equal. A row that is not asked (its guard is not TRUE, or its inputs are NULL) has no
//! question.

use std::sync::Arc;

use ahash::RandomState;
use datafusion::arrow::array::{ArrayRef, BooleanArray};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::common::{HashMap, Result};
use refrain_udf::{JsonRenderer, NullPolicy};

/// Marks a row without a question.
pub(super) const NO_QUESTION: u32 = u32::MAX;

/// The distinct questions of one call over a window.
#[derive(Debug)]
pub(super) struct Questions {
    columns: Vec<CellDictionary>,
    /// Codes of all questions, one tuple after the other.
    tuples: Vec<u32>,
    by_tuple: HashMap<Box<[u32]>, u32, RandomState>,
    /// The question of each row of the window.
    pub of_row: Vec<u32>,
    /// How many equal questions of the window came before each one; empty where equal rows are one question.
    occurrences: Vec<u32>,
    window: u32,
    dedup: bool,
    n_questions: u32,
    bytes: usize,
}

/// The distinct cells of one input.
#[derive(Debug, Default)]
pub(super) struct CellDictionary {
    codes: HashMap<Arc<str>, u32, RandomState>,
    /// The JSON text of each cell, by code.
    pub texts: Vec<Arc<str>>,
}

impl Questions {
    /// Starts an empty window, the `window`-th of its operator, for a call of `n_inputs` inputs. Without `dedup` each row is a
    /// question of its own.
    pub(super) fn new(n_inputs: usize, dedup: bool, window: u32) -> Self {
        Questions {
            columns: (0..n_inputs).map(|_| CellDictionary::default()).collect(),
            tuples: vec![],
            by_tuple: HashMap::default(),
            of_row: vec![],
            occurrences: vec![],
            window,
            dedup,
            n_questions: 0,
            bytes: 0,
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
        if self.dedup {
            self.by_tuple.retain(|_, question| *question < keep);
        } else {
            for question in (keep..self.n_questions).rev() {
                let tuple: Box<[u32]> = self.tuple(question).into();
                match self.by_tuple.get_mut(&tuple) {
                    Some(occurrence) if *occurrence > 0 => *occurrence -= 1,
                    _ => drop(self.by_tuple.remove(&tuple)),
                }
            }
            self.occurrences.truncate(keep as usize);
        }
        self.tuples.truncate(keep as usize * self.columns.len());
        self.n_questions = keep;
    }

    /// Returns the number of distinct questions.
    pub(super) fn len(&self) -> usize {
        self.n_questions as usize
    }

    /// Returns the codes of one question, one for each input.
    pub(super) fn tuple(&self, question: u32) -> &[u32] {
        let width = self.columns.len();
        &self.tuples[question as usize * width..][..width]
    }

    /// Returns the dictionary of one input.
    pub(super) fn column(&self, input: usize) -> &CellDictionary {
        &self.columns[input]
    }

    /// Returns the JSON text of one cell of a question.
    pub(super) fn text(&self, question: u32, input: usize) -> &Arc<str> {
        &self.columns[input].texts[self.tuple(question)[input] as usize]
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
        self.bytes + self.of_row.len() * size_of::<u32>()
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
        let renderers = inputs.iter().map(|input| JsonRenderer::new(input.as_ref())).collect::<Result<Vec<_>>>()?;
        // NULL as SQL sees it: also untyped, or behind a dictionary key.
        let null_rows: Vec<_> = inputs.iter().map(|input| input.logical_nulls()).collect();
        let mut text = String::new();
        let mut tuple = vec![0; inputs.len()];
        for row in start..end {
            let asked = guard.is_none_or(|mask| mask.value(row)) && !skips(nulls, &null_rows, row);
            if !asked {
                self.of_row.push(NO_QUESTION);
                continue;
            }
            if self.len() >= max_questions {
                return Ok(row);
            }
            for ((code, renderer), column) in tuple.iter_mut().zip(&renderers).zip(&mut self.columns) {
                text.clear();
                renderer.write(row, &mut text);
                let (cell, added) = column.intern(&text);
                *code = cell;
                self.bytes += added;
            }
            let question = self.intern_tuple(&tuple);
            self.of_row.push(question);
        }
        Ok(end)
    }

    /// Adds a row whose inputs are JSON texts already.
    pub(super) fn push_texts(&mut self, inputs: &[Arc<str>]) {
        let mut tuple = vec![0; inputs.len()];
        for ((code, text), column) in tuple.iter_mut().zip(inputs).zip(&mut self.columns) {
            let (cell, added) = column.intern(text);
            *code = cell;
            self.bytes += added;
        }
        let question = self.intern_tuple(&tuple);
        self.of_row.push(question);
    }

    fn intern_tuple(&mut self, tuple: &[u32]) -> u32 {
        // Without dedup the map counts how often a tuple has been seen, with dedup it names its question.
        if let Some(known) = self.by_tuple.get_mut(tuple) {
            if self.dedup {
                return *known;
            }
            *known += 1;
            self.occurrences.push(*known);
        } else {
            self.by_tuple.insert(tuple.into(), if self.dedup { self.n_questions } else { 0 });
            self.bytes += size_of_val(tuple) + 32;
            if !self.dedup {
                self.occurrences.push(0);
            }
        }
        let question = self.n_questions;
        self.n_questions += 1;
        self.tuples.extend_from_slice(tuple);
        self.bytes += size_of_val(tuple);
        question
    }
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
    /// Returns the code of a cell, and the bytes that it added to the dictionary.
    fn intern(&mut self, text: &str) -> (u32, usize) {
        if let Some(code) = self.codes.get(text) {
            return (*code, 0);
        }
        let code = self.texts.len() as u32;
        let shared: Arc<str> = text.into();
        self.texts.push(Arc::clone(&shared));
        self.codes.insert(shared, code);
        (code, text.len() + 64)
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(questions.text(1, 0).as_ref(), "\"b\"");
        assert_eq!(questions.text(2, 1).as_ref(), "2");
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
    fn stops_before_a_row_that_would_ask_too_much() {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "a", "c"]));
        let mut questions = Questions::new(1, true, 0);
        let mut push =
            |start, max| questions.push(&[Arc::clone(&names)], None, NullPolicy::SkipIfAny, start, 4, max).unwrap();
        assert_eq!(push(0, 2), 2, "row 2 is not looked at, although its question is known");
        assert_eq!(push(2, 3), 4);
    }
}
