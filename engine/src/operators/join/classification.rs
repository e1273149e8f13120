//! A join whose one side has few values: each row of the other side is asked which of them match.
//!
//! ```text
//! review, topic  ->  Yes or No               for each pair
//! review         ->  [price, taste]          for each review, where topics are price, taste and smell
//! ```
//!
//! The rows that hold a value that was named match, if what else the join compares holds as well. A NULL matches nothing.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::Field;
use datafusion::common::{HashMap, JoinSide, JoinType, Result, internal_datafusion_err};
use datafusion::physical_expr::PhysicalExpr;
use refrain_serving::Tokenizer;
use refrain_udf::{NullPolicy, Prompt};
use serde_json::Value;

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::{NO_QUESTION, Questions};

/// More values are not put into one question.
const VALUES_MAX: usize = 32;

/// The question of a join, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct PairHalves {
    /// Yes or No about a pair.
    pub(crate) call: Arc<PhysicalCall>,
    /// The inputs that read the left side.
    pub(crate) left: Half,
    /// The inputs that read the right side.
    pub(crate) right: Half,
}

/// The inputs of a question that read one side.
#[derive(Clone, Debug)]
pub(crate) struct Half {
    /// Which inputs of the call they are.
    pub(crate) numbers: Vec<usize>,
    /// Over the columns of the side.
    pub(crate) inputs: Vec<Arc<dyn PhysicalExpr>>,
}

/// How rows are asked which values match.
#[derive(Debug)]
pub(crate) struct Classification {
    /// The side whose rows are asked.
    pub(crate) asked: JoinSide,
    /// Which values match a row, over the columns of that side.
    pub(crate) call: Arc<PhysicalCall>,
    values: Values,
}

/// The values of one side.
#[derive(Debug)]
struct Values {
    texts: Vec<String>,
    /// The value of each row of the side; [`NO_QUESTION`] for NULL.
    of_row: Vec<u32>,
}

/// Says why not, if asking about so many rows is not much cheaper than asking about so many pairs.
pub(crate) fn is_worth_classifying(rows: u64, pairs: u64) -> Result<(), String> {
    match pairs >= rows.saturating_mul(2) {
        true => Ok(()),
        false => Err("a row has fewer than two pairs".to_owned()),
    }
}

impl PairHalves {
    /// Chooses the side whose values are listed: of those with few enough values the one with more, so that the fewer are asked; for a
    /// semi join the one that is searched for a match. The inner error says why rows are not asked.
    pub(crate) fn classification(
        &self,
        join_type: JoinType,
        [left, right]: [&[RecordBatch]; 2],
        tokenizer: &dyn Tokenizer,
    ) -> Result<Result<Classification, String>> {
        let of_left = (JoinSide::Left, &self.left, left);
        let of_right = (JoinSide::Right, &self.right, right);
        let sides = match join_type {
            JoinType::LeftSemi => vec![of_right],
            JoinType::RightSemi => vec![of_left],
            _ => vec![of_right, of_left],
        };
        let (mut found, mut reason): (Option<(JoinSide, usize, Values)>, _) = (None, String::new());
        for (side, half, batches) in sides {
            match self.values(half, batches, tokenizer)? {
                Ok((number, values)) => {
                    if found.as_ref().is_none_or(|(.., most)| values.texts.len() > most.texts.len()) {
                        found = Some((side, number, values));
                    }
                }
                Err(why) if reason.is_empty() => reason = why,
                Err(_) => {}
            }
        }
        let Some((side, number, values)) = found else { return Ok(Err(reason)) };
        let Some(call) = self.call.call.which_of(number, &values.texts) else {
            return Ok(Err("the question is not about one value".to_owned()));
        };
        let (asked, half) = match side {
            JoinSide::Right => (JoinSide::Left, &self.left),
            _ => (JoinSide::Right, &self.right),
        };
        let output = Field::new(self.call.output.name(), call.output_type(), true);
        let call = PhysicalCall {
            call: Arc::new(call),
            inputs: half.inputs.clone(),
            guard: None,
            output: Arc::new(output),
            model: self.call.model.clone(),
            options: self.call.options.clone(),
            cascade: None,
            notes: self.call.notes.clone(),
        };
        Ok(Ok(Classification { asked, call: Arc::new(call), values }))
    }

    /// Returns the distinct values of a side and the input that they are of. The inner error says why they are no labels.
    fn values(
        &self,
        half: &Half,
        batches: &[RecordBatch],
        tokenizer: &dyn Tokenizer,
    ) -> Result<Result<(usize, Values), String>> {
        let ([number], [input]) = (half.numbers.as_slice(), half.inputs.as_slice()) else {
            let labels: Vec<&str> = half.numbers.iter().map(|number| self.label(*number)).collect();
            return Ok(Err(format!("a side gives several inputs, {}", labels.join(", "))));
        };
        let mut distinct = Questions::new(1, true, 0);
        for batch in batches {
            let column = input.evaluate(batch)?.into_array(batch.num_rows())?;
            distinct.push(&[column], None, NullPolicy::SkipIfAny, 0, batch.num_rows(), VALUES_MAX + 1)?;
            if distinct.len() > VALUES_MAX {
                return Ok(Err(format!("{} has more than {VALUES_MAX} values", self.label(*number))));
            }
        }
        let text = |value: u32| match serde_json::from_str(distinct.text(value, 0)) {
            Ok(Value::String(text)) => text,
            _ => distinct.text(value, 0).to_string(),
        };
        let texts: Vec<String> = (0..distinct.len() as u32).map(text).collect();
        if texts.is_empty() || texts.iter().any(|text| text.trim().is_empty()) {
            return Ok(Err(format!("{} has an empty value, or none", self.label(*number))));
        }
        let listed = tokenizer.encode(&Value::from(texts.as_slice()).to_string()).len();
        let room = self.call.options.max_tokens as usize;
        if listed > room {
            return Ok(Err(format!(
                "the {} values of {} have {listed} tokens, and an answer has at most max_tokens = {room}",
                texts.len(),
                self.label(*number)
            )));
        }
        Ok(Ok((*number, Values { texts, of_row: distinct.of_row })))
    }

    fn label(&self, number: usize) -> &str {
        match &self.call.call.prompt {
            Prompt::Fields { labels, .. } | Prompt::Rows { labels } => &labels[number],
            Prompt::Template(template) => &template.labels[number],
        }
    }
}

impl Classification {
    /// Returns for each row that was asked which values its answer names; none where it has no answer.
    pub(super) fn named(&self, answered: &[RecordBatch]) -> Result<Vec<Vec<bool>>> {
        let numbers: HashMap<&str, usize> =
            self.values.texts.iter().enumerate().map(|(number, text)| (text.as_str(), number)).collect();
        let mut named = vec![];
        for batch in answered {
            let answers = batch.columns().last().and_then(|answers| answers.as_list_opt::<i32>());
            let answers = answers.ok_or_else(|| internal_datafusion_err!("a row was not answered by a list of values"))?;
            for row in 0..answers.len() {
                let mut of_row = vec![false; numbers.len()];
                if answers.is_valid(row) {
                    for text in answers.value(row).as_string::<i32>().iter().flatten() {
                        if let Some(number) = numbers.get(text) {
                            of_row[*number] = true;
                        }
                    }
                }
                named.push(of_row);
            }
        }
        Ok(named)
    }

    /// Returns whether the value of a row of the other side is among those that were named.
    pub(super) fn matches(&self, named: &[bool], row: u32) -> bool {
        match self.values.of_row[row as usize] {
            NO_QUESTION => false,
            value => named[value as usize],
        }
    }
}

impl fmt::Display for Classification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.asked == JoinSide::Right { "right" } else { "left" };
        write!(f, "{} for each row of the {side} input", self.call.call.describe())
    }
}
