//! Ranking by score: each value is asked about once, by itself. Of equal scores the earlier value comes first.

use super::ranker::{Ranker, Verdict};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Score {
    k: usize,
    /// `None` where a value has failed.
    scores: Vec<Option<f64>>,
    asked: bool,
}

impl Score {
    pub(super) fn new(n_values: usize, k: usize) -> Self {
        Score { k, scores: vec![None; n_values], asked: false }
    }
}

impl Ranker for Score {
    fn ask(&mut self) -> Vec<Vec<usize>> {
        if std::mem::replace(&mut self.asked, true) {
            vec![]
        } else {
            (0..self.scores.len()).map(|value| vec![value]).collect()
        }
    }

    fn tell(&mut self, verdicts: Vec<Option<Verdict>>) {
        for (score, verdict) in self.scores.iter_mut().zip(verdicts) {
            if let Some(Verdict::Score(told)) = verdict {
                *score = Some(told);
            }
        }
    }

    fn ranked(&self) -> Vec<usize> {
        let mut known: Vec<(usize, f64)> =
            self.scores.iter().enumerate().filter_map(|(value, score)| Some((value, (*score)?))).collect();
        // Stable, so equal scores keep their order.
        known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        known.into_iter().take(self.k).map(|(value, _)| value).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ranker::{rank, sorted};
    use super::*;

    #[test]
    fn a_failed_value_is_left_out() {
        let mut ranker = Score::new(3, 2);
        assert_eq!(ranker.ask().len(), 3);
        ranker.tell(vec![Some(Verdict::Score(0.2)), None, Some(Verdict::Score(0.9))]);
        assert_eq!(ranker.ask(), Vec::<Vec<usize>>::new());
        assert_eq!(ranker.ranked(), [2, 0]);
    }

    proptest! {
        #[test]
        fn equals_sorting(scores in prop::collection::vec(0_u8..10, 0..60), k in 1_usize..20) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let (best, questions) = rank(Score::new(scores.len(), k), &scores);
            prop_assert_eq!(best, sorted(&scores, k));
            prop_assert_eq!(questions, scores.len());
        }
    }
}
