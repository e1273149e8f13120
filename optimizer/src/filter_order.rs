//! The order in which the predicates of an AND are asked, learnt from the rows that have been through them.
//!
//! Predicates are ranked by `cost / (1 − selectivity)`, lowest first, each given the ones before it: the greedy order of "Adaptive
//! Ordering of Pipelined Stream Filters" (Babu et al., SIGMOD 2004, A-Greedy). As there, a small share of rows is asked every
//! predicate, so that the selectivity of one among the survivors of others is known whatever order runs; all other rows are
//! asked until one predicate drops them, and count for the predicates that they have met.
//!
//! Knows no plans and no rows: a predicate is a number, a set of them a bit mask.

use std::collections::HashMap;

/// A set of predicates, one bit for each.
pub type Predicates = u32;

/// The most predicates that are ordered together.
pub const PREDICATES_MAX: usize = 16;

/// Rows below which the pooled rate of a predicate says more than its rate in the very situation asked about.
const ROWS_MIN: u64 = 8;
/// How many rows a guess is worth against rows that were seen.
const GUESS_ROWS: f64 = 2.0;
/// The share of its cost by which another order must be better than the written one. What was seen of few rows is not sure; without a
/// margin, predicates that are nearly equal would be put into the wrong order as often as into the right one.
const GAIN_MIN: f64 = 0.05;
/// The share of rows that pass a predicate of which nothing is known.
pub const UNKNOWN_SELECTIVITY: f64 = 0.5;

/// What asking one predicate of all rows that are left would cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredicateCost {
    /// Rows that are left.
    pub rows: f64,
    /// Distinct questions of these rows that have no answer yet.
    pub questions: f64,
    /// The cost of one question, in any unit common to all predicates.
    pub per_question: f64,
}

impl PredicateCost {
    /// Returns the cost for one of the rows left, if only a share of them is asked. Rows of one question are taken to survive
    /// independently, so a share `f` meets `1 − (1 − f)^r` of the questions that `r` rows have each.
    fn per_row(&self, share: f64) -> f64 {
        if self.questions <= 0.0 || share <= 0.0 {
            return 0.0;
        }
        let met = 1.0 - (1.0 - share.min(1.0)).powf(self.rows / self.questions);
        self.per_question * self.questions * met / (self.rows * share)
    }
}

/// Rows that met a predicate, and those of them that passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Rows for which the predicate was decided.
    pub rows: u64,
    /// Rows for which it was TRUE.
    pub passed: u64,
}

impl Passed {
    fn add(&mut self, other: Passed) {
        self.rows += other.rows;
        self.passed += other.passed;
    }

    /// Returns the share of rows that pass, where a guess counts as [`GUESS_ROWS`] rows.
    fn share(self, guess: f64) -> f64 {
        (self.passed as f64 + GUESS_ROWS * guess) / (self.rows as f64 + GUESS_ROWS)
    }
}

/// What has been seen of the predicates of one AND.
#[derive(Clone, Debug)]
pub struct FilterOrder {
    guesses: Vec<f64>,
    /// Rows that were asked everything, by the set of predicates they passed.
    profile: HashMap<Predicates, u64>,
    /// Of each predicate: rows that met it, by the set of predicates they had passed before.
    met: Vec<HashMap<Predicates, Passed>>,
}

impl FilterOrder {
    /// Starts with a guess of each predicate's selectivity, such as that of an earlier run; `None` where there is none.
    pub fn new(guesses: &[Option<f64>]) -> Self {
        debug_assert!(guesses.len() <= PREDICATES_MAX);
        FilterOrder {
            guesses: guesses.iter().map(|guess| guess.unwrap_or(UNKNOWN_SELECTIVITY)).collect(),
            profile: HashMap::new(),
            met: vec![HashMap::new(); guesses.len()],
        }
    }

    /// Notes rows that were asked every predicate and passed exactly these.
    pub fn note_profile(&mut self, passed: Predicates, rows: u64) {
        *self.profile.entry(passed).or_default() += rows;
    }

    /// Notes rows that had passed the predicates `given` when they met `predicate`.
    pub fn note(&mut self, predicate: usize, given: Predicates, seen: Passed) {
        self.met[predicate].entry(given).or_default().add(seen);
    }

    /// Returns the rows that met a predicate in whatever order, and those of them that passed.
    pub fn seen(&self, predicate: usize) -> Passed {
        let mut all = self.profiled(predicate, 0);
        self.met[predicate].values().for_each(|seen| all.add(*seen));
        all
    }

    /// Returns the share of rows that pass `predicate` among those that pass all of `given`, 0 to 1.
    pub fn selectivity(&self, predicate: usize, given: Predicates) -> f64 {
        // Both were asked for no other reason than `given`, so neither is biased by predicates outside it.
        let mut unbiased = self.profiled(predicate, given);
        unbiased.add(self.met[predicate].get(&given).copied().unwrap_or_default());
        let pooled = || self.seen(predicate).share(self.guesses[predicate]);
        if unbiased.rows >= ROWS_MIN { unbiased.share(pooled()) } else { pooled() }
    }

    /// Returns all predicates in the order that should cost least; as written, unless another is clearly better.
    pub fn order(&self, costs: &[PredicateCost]) -> Vec<usize> {
        let written: Vec<usize> = (0..self.guesses.len()).collect();
        let greedy = self.greedy(costs);
        let is_better = self.cost(&greedy, costs) < (1.0 - GAIN_MIN) * self.cost(&written, costs);
        if is_better { greedy } else { written }
    }

    /// Returns the expected cost of an order, for one of the rows left.
    fn cost(&self, order: &[usize], costs: &[PredicateCost]) -> f64 {
        let (mut given, mut share, mut cost) = (0, 1.0, 0.0);
        for predicate in order {
            cost += share * costs[*predicate].per_row(share);
            share *= self.selectivity(*predicate, given);
            given |= 1 << *predicate;
        }
        cost
    }

    fn greedy(&self, costs: &[PredicateCost]) -> Vec<usize> {
        let mut left: Vec<usize> = (0..self.guesses.len()).collect();
        let (mut order, mut given, mut share) = (Vec::with_capacity(left.len()), 0, 1.0);
        while !left.is_empty() {
            let rank = |predicate: usize| {
                let dropped = 1.0 - self.selectivity(predicate, given);
                costs[predicate].per_row(share) / dropped.max(f64::EPSILON)
            };
            let mut best = 0;
            for candidate in 1..left.len() {
                if rank(left[candidate]) < rank(left[best]) {
                    best = candidate;
                }
            }
            let next = left.remove(best);
            share *= self.selectivity(next, given);
            given |= 1 << next;
            order.push(next);
        }
        order
    }

    fn profiled(&self, predicate: usize, given: Predicates) -> Passed {
        let mut found = Passed::default();
        for (passed, rows) in &self.profile {
            if passed & given == given {
                let passes = passed & (1 << predicate) != 0;
                found.add(Passed { rows: *rows, passed: if passes { *rows } else { 0 } });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal_costs(n: usize) -> Vec<PredicateCost> {
        vec![PredicateCost { rows: 1000.0, questions: 1000.0, per_question: 1.0 }; n]
    }

    #[test]
    fn without_knowledge_the_written_order_stands() {
        assert_eq!(FilterOrder::new(&[None; 3]).order(&equal_costs(3)), [0, 1, 2]);
    }

    #[test]
    fn cheap_predicates_come_first_and_then_those_that_drop_most() {
        let order = FilterOrder::new(&[Some(0.5), Some(0.1), None]);
        assert_eq!(order.order(&equal_costs(3)), [1, 0, 2]);
        let mut costs = equal_costs(3);
        costs[2].per_question = 0.1;
        assert_eq!(order.order(&costs), [2, 1, 0]);
    }

    #[test]
    fn a_small_gain_does_not_change_the_order() {
        assert_eq!(FilterOrder::new(&[Some(0.50), Some(0.47)]).order(&equal_costs(2)), [0, 1]);
        assert_eq!(FilterOrder::new(&[Some(0.50), Some(0.40)]).order(&equal_costs(2)), [1, 0]);
    }

    #[test]
    fn few_questions_for_many_rows_are_cheap() {
        let mut costs = equal_costs(2);
        costs[1].questions = 10.0;
        assert_eq!(FilterOrder::new(&[Some(0.5), Some(0.9)]).order(&costs), [1, 0]);
        costs[1].questions = 0.0;
        assert_eq!(FilterOrder::new(&[Some(0.01), Some(0.5)]).order(&costs), [1, 0], "what is known costs nothing");
    }

    #[test]
    fn what_was_seen_outweighs_the_guess() {
        let mut order = FilterOrder::new(&[Some(0.1), Some(0.9)]);
        order.note(0, 0, Passed { rows: 200, passed: 190 });
        order.note(1, 1, Passed { rows: 190, passed: 10 });
        assert_eq!(order.order(&equal_costs(2)), [1, 0]);
    }

    #[test]
    fn selectivity_among_survivors_is_that_of_the_profile() {
        // Each passes half of the rows; the first two pass the same ones.
        let mut order = FilterOrder::new(&[None; 3]);
        for (passed, rows) in [(0b011, 25), (0b000, 25), (0b111, 25), (0b100, 25)] {
            order.note_profile(passed, rows);
        }
        assert!((order.selectivity(1, 0) - 0.5).abs() < 0.02);
        assert!(order.selectivity(1, 0b001) > 0.9);
        assert!((order.selectivity(2, 0b001) - 0.5).abs() < 0.02);
        assert_eq!(order.order(&equal_costs(3)), [0, 2, 1]);
    }
}
