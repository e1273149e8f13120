//! Chooses a token from logits.
//!
//! Temperature 0 takes the largest logit, ties to the smaller id. Otherwise `top_k` and then `top_p` restrict the softmax of
//! `logits / temperature`, and one uniform number picks by inverse transform over the kept tokens in ascending id, so the
//! choice depends on the set of allowed tokens and not on how it was given. The number is a function of the request's seed
//! and the draw's number alone.
//!
//! Logits that are not numbers are never chosen while another token is allowed.

use std::cmp::Ordering;

use crate::request::{Sampling, TokenId, TokenLogprobs};
use crate::split_mix::bits;

/// A token and its logit.
pub(super) type Scored = (TokenId, f32);

/// Chooses one of `scored`, which it may reorder and shorten. `None` only for an empty list.
pub(super) fn choose(scored: &mut Vec<Scored>, sampling: &Sampling, draw: u32) -> Option<TokenId> {
    if sampling.temperature == 0.0 || scored.len() < 2 {
        return greedy(scored);
    }
    let max = scored.iter().map(|&(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return greedy(scored);
    }
    if sampling.top_k > 0 {
        keep_largest(scored, sampling.top_k as usize);
    }
    let weight =
        |logit: f32| if logit.is_nan() { 0.0 } else { (f64::from(logit - max) / f64::from(sampling.temperature)).exp() };
    if sampling.top_p < 1.0 {
        keep_largest(scored, usize::MAX);
        let target = f64::from(sampling.top_p) * scored.iter().map(|&(_, logit)| weight(logit)).sum::<f64>();
        let mut sum = 0.0;
        let enough = scored.iter().position(|&(_, logit)| {
            sum += weight(logit);
            sum >= target
        });
        scored.truncate(enough.map_or(scored.len(), |last| last + 1));
    }
    scored.sort_unstable_by_key(|&(token, _)| token);
    let total: f64 = scored.iter().map(|&(_, logit)| weight(logit)).sum();
    let mut left = uniform(sampling.seed, draw) * total;
    let picked = scored.iter().find(|&&(_, logit)| {
        left -= weight(logit);
        left < 0.0
    });
    // Rounding may leave a remainder after the last token.
    picked.or(scored.iter().rfind(|&&(_, logit)| weight(logit) > 0.0)).map(|&(token, _)| token)
}

/// Returns the logarithms of the softmax of `scored`: of `token`, and of the `top` most probable. What is not a number counts
/// for nothing.
pub(super) fn logprobs(mut scored: Vec<Scored>, token: TokenId, top: usize) -> TokenLogprobs {
    scored.retain(|(_, logit)| !logit.is_nan());
    let max = scored.iter().map(|&(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scored.iter().map(|&(_, logit)| f64::from(logit - max).exp()).sum();
    let total = f64::from(max) + sum.ln();
    let log = |logit: f32| if total.is_finite() { (f64::from(logit) - total) as f32 } else { f32::NEG_INFINITY };
    let chosen = scored.iter().find(|&&(other, _)| other == token);
    let logprob = chosen.map_or(f32::NEG_INFINITY, |&(_, logit)| log(logit));
    keep_largest(&mut scored, top);
    TokenLogprobs { logprob, top: scored.into_iter().map(|(token, logit)| (token, log(logit))).collect() }
}

/// Returns the token of the largest logit, the smaller id of equals.
pub(super) fn greedy(scored: &[Scored]) -> Option<TokenId> {
    scored.iter().min_by(|a, b| descending(a, b)).map(|&(token, _)| token)
}

/// Keeps the `count` largest logits, in descending order.
pub(super) fn keep_largest(scored: &mut Vec<Scored>, count: usize) {
    if (1..scored.len()).contains(&count) {
        scored.select_nth_unstable_by(count - 1, descending);
    }
    scored.truncate(count);
    scored.sort_unstable_by(descending);
}

/// Larger logits first, then smaller ids; what is not a number comes last.
fn descending(a: &Scored, b: &Scored) -> Ordering {
    let by_logit = b.1.partial_cmp(&a.1).unwrap_or_else(|| a.1.is_nan().cmp(&b.1.is_nan()));
    by_logit.then(a.0.cmp(&b.0))
}

/// Returns the uniform number in [0, 1) of a draw.
fn uniform(seed: u64, draw: u32) -> f64 {
    (bits(seed, draw.into()) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, f32::NAN];

    fn scored() -> Vec<Scored> {
        (0..).zip(LOGITS).collect()
    }

    fn frequencies(sampling: Sampling, draws: u32) -> [f64; 5] {
        let mut counts = [0.0f64; 5];
        for draw in 0..draws {
            counts[choose(&mut scored(), &sampling, draw).unwrap() as usize] += 1.0;
        }
        counts.map(|count| count / f64::from(draws))
    }

    #[test]
    fn greedy_takes_the_smaller_id_of_equals() {
        assert_eq!(choose(&mut scored(), &Sampling::GREEDY, 0), Some(1));
        assert_eq!(choose(&mut vec![(9, f32::NAN), (4, -1.0)], &Sampling::GREEDY, 0), Some(4));
        assert_eq!(choose(&mut vec![(9, f32::NAN)], &Sampling::GREEDY, 0), Some(9));
        assert_eq!(choose(&mut Vec::new(), &Sampling::GREEDY, 0), None);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let sampling = Sampling { temperature: 0.7, top_p: 1.0, top_k: 0, seed: 42 };
        let weights = LOGITS.map(|l| if l.is_nan() { 0.0 } else { (f64::from(l) / 0.7).exp() });
        let total: f64 = weights.iter().sum();
        for (seen, weight) in frequencies(sampling, 40_000).iter().zip(weights) {
            assert!((seen - weight / total).abs() < 0.01, "{seen} for {}", weight / total);
        }
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_probable() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 2, seed: 1 };
        let seen = frequencies(sampling, 2000);
        assert!(seen[0] + seen[2] + seen[4] == 0.0 && (seen[1] - 0.5).abs() < 0.05);
        // The two most probable tokens have 0.4 and 0.4, the third 0.15.
        let seen = frequencies(Sampling { top_p: 0.85, top_k: 0, ..sampling }, 2000);
        assert!(seen[0] == 0.0 && seen[2] > 0.05);
        let seen = frequencies(Sampling { top_p: 0.0, top_k: 0, ..sampling }, 100);
        assert_eq!(seen, [0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_draw_depends_on_seed_and_number_alone() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 7 };
        let mut reversed: Vec<_> = scored().into_iter().rev().collect();
        for draw in 0..100 {
            assert_eq!(choose(&mut scored(), &sampling, draw), choose(&mut reversed, &sampling, draw));
        }
        let draws: Vec<_> = (0..64).map(|draw| uniform(7, draw)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        assert_ne!(draws, (0..64).map(|draw| uniform(8, draw)).collect::<Vec<_>>());
    }

    #[test]
    fn largest_come_in_descending_order() {
        let mut kept = scored();
        keep_largest(&mut kept, 3);
        assert_eq!(kept, [(1, 3.0), (3, 3.0), (2, 2.0)]);
        keep_largest(&mut kept, 0);
        assert_eq!(kept, []);
    }

    #[test]
    fn logarithms_are_those_of_the_softmax() {
        let TokenLogprobs { logprob, top } = logprobs(scored(), 2, 2);
        let total: f64 = [1.0f64, 3.0, 2.0, 3.0].iter().map(|logit| logit.exp()).sum();
        assert!((f64::from(logprob) - (2.0 - total.ln())).abs() < 1e-6);
        assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3]);
        assert!((f64::from(top[0].1) - (3.0 - total.ln())).abs() < 1e-6);
        let whole: f64 = logprobs(scored(), 2, 9).top.iter().map(|(_, log)| f64::from(*log).exp()).sum();
        assert!((whole - 1.0).abs() < 1e-6);
        assert_eq!(logprobs(vec![(9, f32::NAN)], 9, 1), TokenLogprobs { logprob: f32::NEG_INFINITY, top: vec![] });
    }

    #[test]
    fn seeds_are_independent_draws() {
        let sampling = Sampling { temperature: 0.9, top_p: 1.0, top_k: 4, seed: 0 };
        let mut counts = [0.0f64; 5];
        for seed in 0..20_000 {
            counts[choose(&mut scored(), &Sampling { seed, ..sampling }, 3).unwrap() as usize] += 1.0;
        }
        let weights = LOGITS.map(|logit| if logit.is_nan() { 0.0 } else { (f64::from(logit) / 0.9).exp() });
        let total: f64 = weights.iter().sum();
        let cells = counts.iter().zip(weights).filter(|(_, weight)| *weight > 0.0);
        let chi_square: f64 =
            cells.map(|(seen, weight)| (seen - 20_000.0 * weight / total).powi(2) * total / weight / 20_000.0).sum();
        // Three degrees of freedom: 25 is passed by chance once in 60,000.
        assert!(chi_square < 25.0, "{chi_square}");
    }

    proptest! {
        /// What may be drawn is the shortest beginning of the tokens by probability that both limits allow, and all of it is.
        #[test]
        fn limits_cut_exactly(
            logits in prop::collection::vec(-3.0f32..3.0, 1..10), top_k in 0..12u32, top_p in 0.05f32..1.0, temperature in 0.3f32..2.0,
        ) {
            let sampling = Sampling { temperature, top_p, top_k, seed: 5 };
            let scored: Vec<Scored> = (0..).zip(logits).collect();
            let mut kept = scored.clone();
            kept.sort_by(descending);
            if top_k > 0 {
                kept.truncate(top_k as usize);
            }
            let weights: Vec<f64> =
                kept.iter().map(|(_, logit)| (f64::from(logit - kept[0].1) / f64::from(temperature)).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let enough = weights.iter().position(|weight| {
                sum += weight;
                sum >= f64::from(top_p) * total
            });
            kept.truncate(enough.map_or(kept.len(), |last| last + 1));
            let kept_total: f64 = weights[..kept.len()].iter().sum();
            let seen: BTreeSet<TokenId> = (0..600).map(|draw| choose(&mut scored.clone(), &sampling, draw).unwrap()).collect();
            for ((token, _), weight) in kept.iter().zip(weights) {
                // A token of this probability is missed once in 10^13 cases.
                prop_assert!(weight / kept_total < 0.05 || seen.contains(token));
            }
            prop_assert!(seen.iter().all(|token| kept.iter().any(|(other, _)| other == token)));
        }
    }
}
