//! When a limit is met: the answers so far may decide which rows it takes, and then the questions that still run are of no use.
//!
//! Rows are taken in their order, so what a query returns does not depend on which answer came first: the limit is met once the last row
//! that it takes, and every row before it, has its answer.

use std::sync::Arc;

use datafusion::common::{Result, ScalarValue};

use crate::operators::call::PhysicalCall;
use crate::operators::conjunction::{Conjunct, passing};
use crate::operators::distinct::{NO_QUESTION, Questions};
use crate::operators::memo::Outcome;

/// Follows the answers of one call over a window until enough rows pass.
#[derive(Debug)]
pub(super) struct Enough {
    over_answer: Conjunct,
    call: Arc<PhysicalCall>,
    questions: Arc<Questions>,
    /// The rows that are looked at: whether each passes, where that is known without this call.
    known: Vec<Option<bool>>,
    /// Rows that are still wanted.
    missing: usize,
    /// The first row that is not looked at yet.
    row: usize,
}

impl Enough {
    /// Waits for `missing` rows of a window to pass a predicate over the answer of a call.
    pub(super) fn new(over_answer: Conjunct, call: Arc<PhysicalCall>, questions: Arc<Questions>, missing: usize) -> Self {
        let known = vec![None; questions.of_row.len()];
        Enough { over_answer, call, questions, known, missing, row: 0 }
    }

    /// Waits for `missing` of the first rows of a window to pass, of which some are decided already: `known`, row by row.
    pub(super) fn among(self, known: Vec<Option<bool>>) -> Self {
        Enough { known, ..self }
    }

    /// Looks at the rows up to the first without an answer. Returns whether enough of them pass; `outcomes` are by question.
    pub(super) fn is_met(&mut self, outcomes: &[Option<Outcome>]) -> Result<bool> {
        while self.missing > 0 {
            let Some(known) = self.known.get(self.row) else { return Ok(false) };
            let passes = match known {
                Some(passes) => *passes,
                None => {
                    let answer = match self.questions.of_row[self.row] {
                        NO_QUESTION => ScalarValue::try_from(self.call.output.data_type())?,
                        question => match &outcomes[question as usize] {
                            Some(outcome) => self.call.value_of(outcome),
                            None => return Ok(false),
                        },
                    };
                    passing(&self.over_answer, &self.call, answer.to_array()?)? == [true]
                }
            };
            self.missing -= usize::from(passes);
            self.row += 1;
        }
        Ok(true)
    }
}
