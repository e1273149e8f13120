//! What all ways to find the best values have in common: they ask about sets of values and are told what the model says.

/// What the model says about a set of values.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::operators::aggregate) enum Verdict {
    /// The score of the only one.
    Score(f64),
    /// Their order: positions within the set, the best first; a permutation.
    Order(Vec<usize>),
}

/// Finds the best of some values, which are known by number; the lower number comes first in the group.
pub(in crate::operators::aggregate) trait Ranker: Send {
    /// Returns sets of values to ask about in one round; none when the best are known.
    fn ask(&mut self) -> Vec<Vec<usize>>;

    /// Takes what the model says of each set that was asked about last. `None` is a failure, after which the last value of the set
    /// is left out.
    fn tell(&mut self, verdicts: Vec<Option<Verdict>>);

    /// Returns the best values, the best first.
    fn ranked(&self) -> Vec<usize>;
}

/// Ranks as a model would that scores value `n` with `scores[n]` and prefers the earlier of two that are equal. Returns the best
/// values and the number of questions.
#[cfg(test)]
pub(super) fn rank(mut ranker: impl Ranker, scores: &[f64]) -> (Vec<usize>, usize) {
    let mut questions = 0;
    loop {
        let sets = ranker.ask();
        if sets.is_empty() {
            return (ranker.ranked(), questions);
        }
        questions += sets.len();
        let verdict = |set: &Vec<usize>| match set[..] {
            [only] => Some(Verdict::Score(scores[only])),
            _ => {
                let mut order: Vec<usize> = (0..set.len()).collect();
                order.sort_by(|a, b| scores[set[*b]].total_cmp(&scores[set[*a]]).then(set[*a].cmp(&set[*b])));
                Some(Verdict::Order(order))
            }
        };
        ranker.tell(sets.iter().map(verdict).collect());
    }
}

/// Returns the best `k` values by sorting.
#[cfg(test)]
pub(super) fn sorted(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}
