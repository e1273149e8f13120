//! Ranking by comparison: quickselect for the best `k`, and quicksort among them, in rounds.
//!
//! Values are kept as segments, the best first; a segment of several values is not ordered yet. In a round every segment that
//! reaches into the first `k` is compared with one of its own, the pivot, and falls into those that are better, the pivot, and
//! those that are worse. All comparisons of a round are independent and share the pivot as prefix. Expected: O(n + k log k)
//! comparisons; at most n (n - 1) / 2, since each round takes the pivots out. The pivot is the middle value of its segment, so
//! the same group is always asked the same.

use super::ranker::{Ranker, Verdict};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Pairwise {
    k: usize,
    /// All values, the best first, in segments that are not empty.
    segments: Vec<Vec<usize>>,
    /// The pivot of each segment that was asked about last, by number of the segment.
    pivots: Vec<(usize, usize)>,
}

impl Pairwise {
    pub(super) fn new(n_values: usize, k: usize) -> Self {
        let segments = if n_values == 0 { vec![] } else { vec![(0..n_values).collect()] };
        Pairwise { k, segments, pivots: vec![] }
    }
}

impl Ranker for Pairwise {
    fn ask(&mut self) -> Vec<Vec<usize>> {
        self.pivots.clear();
        let (mut sets, mut rank) = (vec![], 0);
        for (number, segment) in self.segments.iter().enumerate() {
            if rank >= self.k {
                break;
            }
            if segment.len() > 1 {
                let pivot = segment[segment.len() / 2];
                self.pivots.push((number, pivot));
                sets.extend(segment.iter().filter(|value| **value != pivot).map(|value| vec![pivot, *value]));
            }
            rank += segment.len();
        }
        sets
    }

    fn tell(&mut self, verdicts: Vec<Option<Verdict>>) {
        let mut verdicts = verdicts.into_iter();
        let mut pivots = std::mem::take(&mut self.pivots).into_iter().peekable();
        for (number, segment) in std::mem::take(&mut self.segments).into_iter().enumerate() {
            let Some((_, pivot)) = pivots.next_if(|(asked, _)| *asked == number) else {
                self.segments.push(segment);
                continue;
            };
            let (mut better, mut worse) = (vec![], vec![]);
            for value in segment.into_iter().filter(|value| *value != pivot) {
                match verdicts.next().flatten() {
                    Some(Verdict::Order(order)) if order.first() == Some(&1) => better.push(value),
                    Some(_) => worse.push(value),
                    None => {}
                }
            }
            self.segments.extend([better, vec![pivot], worse].into_iter().filter(|segment| !segment.is_empty()));
        }
    }

    fn ranked(&self) -> Vec<usize> {
        self.segments.iter().flatten().copied().take(self.k).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ranker::{rank, sorted};
    use super::*;

    #[test]
    fn a_value_whose_comparison_failed_is_left_out() {
        let mut ranker = Pairwise::new(3, 3);
        assert_eq!(ranker.ask(), [[1, 0], [1, 2]]);
        ranker.tell(vec![None, Some(Verdict::Order(vec![1, 0]))]);
        assert_eq!(ranker.ask(), Vec::<Vec<usize>>::new());
        assert_eq!(ranker.ranked(), [2, 1]);
    }

    #[test]
    fn comparisons_are_few() {
        // A fixed shuffle of a thousand values.
        let scores: Vec<f64> = (0..1000_u32).map(|value| f64::from(value * 617 % 1009)).collect();
        let (best, questions) = rank(Pairwise::new(1000, 10), &scores);
        assert_eq!(best, sorted(&scores, 10));
        assert!(questions < 4000, "{questions} comparisons");
    }

    proptest! {
        #[test]
        fn equals_sorting(scores in prop::collection::vec(0_u8..30, 0..60), k in 1_usize..20) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let (best, questions) = rank(Pairwise::new(scores.len(), k), &scores);
            prop_assert_eq!(best, sorted(&scores, k));
            prop_assert!(questions <= scores.len() * scores.len().saturating_sub(1) / 2);
        }

        #[test]
        fn ends_whatever_the_model_says(n in 0_usize..40, k in 1_usize..10, says in prop::collection::vec(0_u8..3, 1..50)) {
            let mut ranker = Pairwise::new(n, k);
            let mut says = says.into_iter().cycle();
            let mut questions = 0;
            loop {
                let sets = ranker.ask();
                if sets.is_empty() {
                    break;
                }
                questions += sets.len();
                let mut verdict = || match says.next() {
                    Some(0) => None,
                    Some(1) => Some(Verdict::Order(vec![0, 1])),
                    _ => Some(Verdict::Order(vec![1, 0])),
                };
                ranker.tell(sets.iter().map(|_| verdict()).collect());
            }
            prop_assert!(questions <= n * n.saturating_sub(1) / 2);
            prop_assert!(ranker.ranked().len() <= k);
        }
    }
}
