//! What a search finds: passages drawn without replacement from the neighbours of a question, the nearest most often.
//!
//! A neighbour of rank i is drawn with a weight of (i + 1)^-steepness (Plackett and Luce's model of rankings). So questions about one thing find much the
//! same passages, in orders that differ.

use crate::random::SplitMix64;

/// Neighbours that are considered.
const NEIGHBOURS: usize = 48;

/// Draws `count` ranks of neighbours, all different.
pub(super) fn draw_ranks(random: &mut SplitMix64, neighbours: usize, steepness: f64, count: usize) -> Vec<usize> {
    let mut weights: Vec<f64> = (0..neighbours.min(NEIGHBOURS)).map(|rank| ((rank + 1) as f64).powf(-steepness)).collect();
    let mut ranks = vec![];
    while ranks.len() < count.min(weights.len()) {
        let mut at = random.fraction() * weights.iter().sum::<f64>();
        let reached = |weight: &f64| {
            at -= weight;
            at < 0.0
        };
        let rank = weights
            .iter()
            .position(reached)
            .unwrap_or_else(|| weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0));
        weights[rank] = 0.0;
        ranks.push(rank);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ranks_differ_and_the_first_is_drawn_most() {
        let mut random = SplitMix64::new(1);
        let drawn: Vec<Vec<usize>> = (0..1_000).map(|_| draw_ranks(&mut random, 20, 2.0, 3)).collect();
        assert!(drawn.iter().all(|ranks| ranks.iter().collect::<HashSet<_>>().len() == 3));
        let first = drawn.iter().filter(|ranks| ranks[0] == 0).count();
        assert!((570..680).contains(&first), "1 of the sum of inverse squares is 63 %: {first}");
        assert_eq!(draw_ranks(&mut random, 2, 1.0, 4).len(), 2);
    }
}
