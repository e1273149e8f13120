//! Ranking by lists: windows of values are ranked by the model, and ranked runs are merged as in a tournament.
//!
//! First the values are cut into windows; each ranking gives a run, of which the best `k` go on. Then several runs become one,
//! again and again. A merge shows the first `h` values of each of its runs in one window and takes the best `h` of that: the
//! best `h` of all runs are among the first `h` of each, so nothing better can wait behind them. All windows of a round are
//! asked together.

use std::collections::VecDeque;

use super::ranker::{Ranker, Verdict};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Listwise {
    k: usize,
    /// Values in a window, at least 2.
    window: usize,
    /// Merges of this level.
    merges: Vec<Merge>,
    /// Those that were asked about last, with what they showed.
    asked: Vec<(usize, Vec<usize>)>,
    /// Whether the level is the first, whose windows are not ordered.
    is_first: bool,
}

/// Runs on their way to one.
#[derive(Debug, Default)]
struct Merge {
    runs: Vec<VecDeque<usize>>,
    merged: Vec<usize>,
}

impl Merge {
    /// Returns the values to show next: all that are left if they fit, or the first `step` of each run.
    fn shown(&self, window: usize, step: usize) -> Vec<usize> {
        let left: usize = self.runs.iter().map(VecDeque::len).sum();
        let step = if left <= window { left } else { step };
        self.runs.iter().flat_map(|run| run.iter().take(step)).copied().collect()
    }

    /// Hands on a run that is alone: it is in order.
    fn settle(&mut self, k: usize) {
        self.runs.retain(|run| !run.is_empty());
        if let [only] = self.runs.as_mut_slice() {
            self.merged.extend(only.drain(..));
        }
        self.merged.truncate(k);
    }

    fn is_done(&self, k: usize) -> bool {
        self.merged.len() >= k || self.runs.iter().all(VecDeque::is_empty)
    }
}

impl Listwise {
    pub(super) fn new(n_values: usize, k: usize, window: usize) -> Self {
        let window = window.max(2);
        let values: Vec<usize> = (0..n_values).collect();
        // In the first level each value is a run of its own, and a window takes all of them.
        let merge = |values: &[usize]| Merge { runs: values.iter().map(|value| [*value].into()).collect(), merged: vec![] };
        let mut merges: Vec<Merge> = values.chunks(window).map(merge).collect();
        merges.iter_mut().for_each(|merge| merge.settle(k));
        Listwise { k, window, merges, asked: vec![], is_first: true }
    }

    /// Returns how many values a merge takes at a time.
    fn step(&self) -> usize {
        if self.is_first { self.window } else { self.k.min(self.window / 2) }
    }

    /// Makes merges of the runs of the level before, as many in each as a window shows.
    fn next_level(&mut self) {
        self.is_first = false;
        let per_merge = (self.window / self.step()).max(2);
        let runs: Vec<VecDeque<usize>> = self.merges.drain(..).map(|merge| merge.merged.into()).collect();
        self.merges = runs.chunks(per_merge).map(|runs| Merge { runs: runs.to_vec(), merged: vec![] }).collect();
        self.merges.iter_mut().for_each(|merge| merge.settle(self.k));
    }
}

impl Ranker for Listwise {
    fn ask(&mut self) -> Vec<Vec<usize>> {
        while self.merges.len() > 1 && self.merges.iter().all(|merge| merge.is_done(self.k)) {
            self.next_level();
        }
        let (window, step) = (self.window, self.step());
        let open = self.merges.iter().enumerate().filter(|(_, merge)| !merge.is_done(self.k));
        self.asked = open.map(|(number, merge)| (number, merge.shown(window, step))).collect();
        self.asked.iter().map(|(_, shown)| shown.clone()).collect()
    }

    fn tell(&mut self, verdicts: Vec<Option<Verdict>>) {
        let step = self.step();
        for ((number, shown), verdict) in std::mem::take(&mut self.asked).into_iter().zip(verdicts) {
            let merge = &mut self.merges[number];
            let order = match verdict {
                Some(Verdict::Order(order)) => order,
                _ => (0..shown.len()).collect(),
            };
            let left: usize = merge.runs.iter().map(VecDeque::len).sum();
            let taken = if left == shown.len() { left } else { step };
            let best: Vec<usize> = order.into_iter().take(taken).map(|position| shown[position]).collect();
            merge.runs.iter_mut().for_each(|run| run.retain(|value| !best.contains(value)));
            merge.merged.extend(best);
            merge.settle(self.k);
        }
    }

    fn ranked(&self) -> Vec<usize> {
        self.merges.first().map(|merge| merge.merged.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ranker::{rank, sorted};
    use super::*;

    #[test]
    fn a_window_that_holds_all_is_asked_once() {
        assert_eq!(rank(Listwise::new(4, 2, 10), &[1.0, 4.0, 2.0, 3.0]), (vec![1, 3], 1));
        assert_eq!(rank(Listwise::new(1, 2, 10), &[1.0]), (vec![0], 0));
    }

    #[test]
    fn questions_are_few() {
        let scores: Vec<f64> = (0..1000_u32).map(|value| f64::from(value * 617 % 1009)).collect();
        let (best, questions) = rank(Listwise::new(1000, 1, 10), &scores);
        assert_eq!((best, questions), (sorted(&scores, 1), 111), "100 windows, then 10, then 1");
        let (best, questions) = rank(Listwise::new(1000, 20, 10), &scores);
        assert_eq!(best, sorted(&scores, 20));
        assert!(questions < 500, "{questions} questions");
    }

    proptest! {
        #[test]
        fn equals_sorting(
            scores in prop::collection::vec(0_u8..30, 0..80),
            k in 1_usize..30,
            window in 2_usize..12,
        ) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let (best, _) = rank(Listwise::new(scores.len(), k, window), &scores);
            prop_assert_eq!(best, sorted(&scores, k));
        }
    }
}
