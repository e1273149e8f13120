//! A test of the sign of a sum, by betting: is the sum of all values of a finite population at least zero?
//!
//! Somebody who believes that it is bets on the values as they are drawn without replacement. If the sum is negative no way of
//! betting gains on average, so by Ville's inequality the capital ever reaches `1 / p` with a probability of at most `p`, however
//! small the sample is and whenever the betting stops. After Waudby-Smith and Ramdas, "Estimating means of bounded random
//! variables by betting" (arXiv 2010.09686, sections 4 and 5).

/// Shares of the greatest possible stake; the capital is spread over them evenly, since the best one is not known.
const STAKES: [f64; 8] = [0.03, 0.08, 0.16, 0.28, 0.42, 0.58, 0.75, 0.92];

/// What sums of a few thousand values may be off by; values differ by far more.
const ROUNDING: f64 = 1e-9;

/// The capital of a bettor, who starts with 1.
#[derive(Clone, Debug)]
pub(super) struct Bets {
    /// No value is smaller than minus this.
    loss_max: f64,
    /// Values not drawn yet.
    left: f64,
    /// Sum of the values drawn.
    sum: f64,
    /// Logarithm of what each stake has made of its share.
    logs: [f64; STAKES.len()],
    /// Whether a negative sum has become impossible.
    is_certain: bool,
}

impl Bets {
    /// Begins to bet on a population of `count` values, none of them smaller than `-loss_max`, which is positive.
    pub(super) fn new(count: u64, loss_max: f64) -> Self {
        Bets { loss_max, left: count as f64, sum: 0.0, logs: [0.0; STAKES.len()], is_certain: false }
    }

    /// Takes the next value.
    pub(super) fn draw(&mut self, value: f64) {
        // What the value is on average if the sum of all is zero; less if it is negative.
        let fair = -self.sum / self.left;
        let stake_max = self.loss_max + fair;
        if stake_max <= 0.0 {
            self.is_certain = true;
        } else {
            for (log, stake) in self.logs.iter_mut().zip(STAKES) {
                *log += (stake / stake_max * (value - fair)).ln_1p();
            }
        }
        self.sum += value;
        self.left -= 1.0;
        self.is_certain |= self.sum + ROUNDING >= self.loss_max * self.left;
    }

    /// Returns whether the sum is at least zero, if that may be wrong with a probability of `error`.
    pub(super) fn prove(&self, error: f64) -> bool {
        if self.is_certain {
            return true;
        }
        let greatest = self.logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scaled: f64 = self.logs.iter().map(|log| (log - greatest).exp()).sum();
        greatest + (scaled / STAKES.len() as f64).ln() >= -error.ln()
    }

    /// Returns how many draws of the greatest value prove it, where values lie between `-target` and `1 - target` and the population
    /// is large.
    pub(super) fn draws_needed(target: f64, error: f64) -> u64 {
        let gain = (STAKES[STAKES.len() - 1] * (1.0 - target) / target).ln_1p();
        ((STAKES.len() as f64 / error).ln() / gain).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws `right` values that are as they should be, then `wrong` ones, from a population of `count`.
    fn bets(count: u64, target: f64, right: u64, wrong: u64) -> Bets {
        let mut bets = Bets::new(count, target);
        (0..right).for_each(|_| bets.draw(1.0 - target));
        (0..wrong).for_each(|_| bets.draw(-target));
        bets
    }

    #[test]
    fn faultless_draws_prove_when_there_are_enough() {
        let needed = Bets::draws_needed(0.9, 0.05);
        assert_eq!(needed, 53);
        assert!(bets(1_000_000, 0.9, needed, 0).prove(0.05));
        assert!(!bets(1_000_000, 0.9, needed / 2, 0).prove(0.05));
        assert!(!bets(1_000_000, 0.9, needed, needed / 10).prove(0.05));
    }

    #[test]
    fn a_population_that_is_known_whole_is_certain() {
        assert!(bets(10, 0.9, 9, 1).prove(0.0));
        assert!(!bets(10, 0.9, 8, 2).prove(0.5));
        // One more wrong value can no longer make the sum negative.
        assert!(bets(20, 0.9, 19, 0).prove(0.0));
        assert!(!bets(20, 0.9, 17, 0).prove(0.0));
    }
}
