//! The best values of a group: each method is a [`Ranker`] that knows numbers alone; here they get texts and answers.

mod listwise;
mod pairwise;
mod ranker;
mod score;

use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::common::{HashMap, ScalarValue};
use refrain_udf::aggregate::{LISTWISE_ROWS_MAX, PAIR_LABELS, listwise_stage};
use refrain_udf::{Method, row_line};

use self::listwise::Listwise;
use self::pairwise::Pairwise;
pub(super) use self::ranker::{Ranker, Verdict};
use self::score::Score;
use super::groups::Item;
use super::measure::Measure;
use super::reducer::{Ask, Reduced, Reducer, Skipped, overflow};
use crate::operators::memo::{Failure, Outcome};

/// Tokens that the frame of a value takes in a comparison: its label, or its id.
const FRAME_TOKENS: usize = 16;

/// See the module documentation.
pub(super) struct TopK {
    k: usize,
    method: Method,
    labels: Arc<[String]>,
    items: Vec<Item>,
    /// The items of equal text, by number, for each distinct value that is ranked.
    equal: Vec<Vec<usize>>,
    /// The text of each distinct value, for methods that show several in one prompt.
    texts: Vec<Arc<str>>,
    /// `None` before the values have been measured.
    ranker: Option<Box<dyn Ranker>>,
    asked: Vec<Vec<usize>>,
    failed: Option<Failure>,
    skipped: Vec<Skipped>,
}

impl TopK {
    pub(super) fn new(items: Vec<Item>, k: usize, method: Method, labels: Arc<[String]>) -> Self {
        let mut numbers: HashMap<Arc<[Arc<str>]>, usize> = HashMap::new();
        let mut equal: Vec<Vec<usize>> = vec![];
        for (idx, item) in items.iter().enumerate() {
            let number = *numbers.entry(Arc::clone(&item.fields)).or_insert(equal.len());
            if number == equal.len() {
                equal.push(vec![]);
            }
            equal[number].push(idx);
        }
        let (texts, ranker, asked, failed, skipped) = (vec![], None, vec![], None, vec![]);
        TopK { k, method, labels, items, equal, texts, ranker, asked, failed, skipped }
    }

    /// Returns the ranker of a method for so many values, of which `per_prompt` are shown together where it ranks lists.
    pub(super) fn ranker(method: Method, n_values: usize, k: usize, per_prompt: usize) -> Box<dyn Ranker> {
        match method {
            Method::Score => Box::new(Score::new(n_values, k)),
            Method::Pairwise => Box::new(Pairwise::new(n_values, k)),
            Method::Listwise => Box::new(Listwise::new(n_values, k, per_prompt)),
        }
    }

    /// Leaves out values of which two would not fit into a prompt, and starts ranking the rest.
    fn start(&mut self, measure: &Measure) -> Box<dyn Ranker> {
        if self.method == Method::Score {
            return Self::ranker(self.method, self.equal.len(), self.k, 1);
        }
        let room = measure.room(0);
        let mut longest = 1;
        for equal in std::mem::take(&mut self.equal) {
            match self.text(&self.items[equal[0]], measure, (room / 2).saturating_sub(FRAME_TOKENS)) {
                Ok(text) => {
                    longest = longest.max(measure.len(&text) + FRAME_TOKENS);
                    self.texts.push(text);
                    self.equal.push(equal);
                }
                Err(len) => {
                    let message = format!("a value has {len} tokens, and a prompt has room for two of {}", room / 2);
                    self.skip(&equal, &overflow(message));
                }
            }
        }
        let per_prompt = (room / longest).clamp(2, LISTWISE_ROWS_MAX);
        Self::ranker(self.method, self.equal.len(), self.k, per_prompt)
    }

    /// Returns the JSON text of a value, cut where it is too long and that is asked for; the tokens of the whole as error.
    fn text(&self, item: &Item, measure: &Measure, room: usize) -> Result<Arc<str>, usize> {
        let fit = |labels: &[String]| measure.line(labels, &item.fields, room);
        match item.fields.as_ref() {
            // A label costs a few tokens, which the frame has room for.
            [_] => fit(&["value".to_string()]).map(|line| only_value(&line)),
            _ => fit(&self.labels).map(|line| line.trim_end().into()),
        }
    }

    fn skip(&mut self, equal: &[usize], failure: &Failure) {
        for item in equal {
            let text = self.items[*item].fields.join(", ").into();
            self.skipped.push(Skipped { text, failure: failure.clone() });
        }
    }

    fn question(&self, set: &[usize]) -> Ask {
        match self.method {
            Method::Score => Ask { stage: 0, inputs: self.items[self.equal[set[0]][0]].fields.to_vec() },
            Method::Pairwise => Ask { stage: 0, inputs: set.iter().map(|value| Arc::clone(&self.texts[*value])).collect() },
            Method::Listwise => {
                let labels = ["id".to_string(), "value".to_string()];
                let line =
                    |(idx, value): (usize, &usize)| row_line(&labels, [(idx + 1).to_string().as_str(), &self.texts[*value]]);
                let lines: String = set.iter().enumerate().map(line).collect();
                Ask { stage: listwise_stage(set.len()), inputs: vec![lines.into()] }
            }
        }
    }
}

/// Returns the value of `{"value": …}`.
fn only_value(line: &str) -> Arc<str> {
    let value = line.split_once(": ").map_or(line, |(_, value)| value).trim_end();
    value.strip_suffix('}').unwrap_or(value).into()
}

impl Reducer for TopK {
    fn ask(&mut self, measure: &Measure) -> Vec<Ask> {
        if self.failed.is_some() {
            return vec![];
        }
        let mut ranker = match self.ranker.take() {
            Some(ranker) => ranker,
            None => self.start(measure),
        };
        self.asked = ranker.ask();
        self.ranker = Some(ranker);
        self.asked.iter().map(|set| self.question(set)).collect()
    }

    fn tell(&mut self, outcomes: Vec<Outcome>) {
        let asked = std::mem::take(&mut self.asked);
        let mut verdicts = Vec::with_capacity(asked.len());
        for (set, outcome) in asked.iter().zip(outcomes) {
            match outcome {
                Ok(value) => verdicts.push(verdict(&value, set.len())),
                Err(failure) if self.method == Method::Listwise => {
                    self.failed = Some(failure);
                    return;
                }
                Err(failure) => {
                    // The last of the set is what is asked about; the first of two is the pivot.
                    let equal = set.last().map(|value| self.equal[*value].clone()).unwrap_or_default();
                    self.skip(&equal, &failure);
                    verdicts.push(None);
                }
            }
        }
        if let Some(ranker) = &mut self.ranker {
            ranker.tell(verdicts);
        }
    }

    fn finish(self: Box<Self>) -> (Reduced, Vec<Skipped>) {
        if let Some(failure) = self.failed {
            return (Reduced::Failed(failure), self.skipped);
        }
        let ranked = self.ranker.map(|ranker| ranker.ranked()).unwrap_or_default();
        let items: Vec<usize> = ranked.into_iter().flat_map(|value| self.equal[value].clone()).take(self.k).collect();
        let reduced = match (items.is_empty(), self.skipped.first()) {
            (false, _) => Reduced::Ranked(items),
            (true, None) => Reduced::Empty,
            (true, Some(skipped)) => {
                let message = format!("every value of the group failed: {}", skipped.failure.message);
                Reduced::Failed(Failure { message, ..skipped.failure.clone() })
            }
        };
        (reduced, self.skipped)
    }
}

/// Reads what an answer says about a set of values: a score, a label of the better of two, or ids in order.
fn verdict(value: &ScalarValue, n_values: usize) -> Option<Verdict> {
    match value {
        ScalarValue::Float64(score) => score.map(Verdict::Score),
        ScalarValue::Utf8(Some(label)) => {
            let best = PAIR_LABELS.iter().position(|known| known == label)?;
            Some(Verdict::Order(vec![best, 1 - best]))
        }
        ScalarValue::List(ids) => {
            let ids = ids.value(0);
            let ids = ids.as_primitive_opt::<Int64Type>()?.iter().flatten();
            let ids: Vec<usize> = ids.filter_map(|id| usize::try_from(id.checked_sub(1)?).ok()).collect();
            Some(Verdict::Order(permutation(&ids, n_values)))
        }
        _ => None,
    }
}

/// Makes a permutation of `0..n` of an order that may name some twice: the first time counts, and what is not named comes last.
fn permutation(order: &[usize], n: usize) -> Vec<usize> {
    let mut named = vec![false; n];
    let mut permutation = Vec::with_capacity(n);
    for value in order.iter().copied().chain(0..n) {
        if value < n && !named[value] {
            named[value] = true;
            permutation.push(value);
        }
    }
    permutation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_becomes_a_permutation() {
        assert_eq!(permutation(&[2, 0, 2], 4), [2, 0, 1, 3]);
        assert_eq!(permutation(&[7, 1], 2), [1, 0]);
        assert_eq!(permutation(&[], 3), [0, 1, 2]);
    }

    #[test]
    fn values_are_taken_out_of_their_row() {
        assert_eq!(only_value("{\"value\": \"a: {b}\"}\n").as_ref(), "\"a: {b}\"");
        assert_eq!(only_value("{\"value\": {\"x\": 1}}\n").as_ref(), "{\"x\": 1}");
    }
}
