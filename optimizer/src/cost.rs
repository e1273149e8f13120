//! Numbers that estimates are made of: distinct values behind a sample, intervals of shares and means, seconds of tokens.

/// An estimate and the interval that holds the truth 95 times in a hundred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub estimate: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Standard deviations on either side of a mean that hold 95 % of a normal distribution.
const Z_95: f64 = 1.96;

impl Interval {
    /// Returns the interval of a share of which `hits` of `trials` were seen: Wilson's, which stays within 0 and 1 and is right
    /// for few trials and shares near the ends (E. B. Wilson, 1927).
    pub fn of_share(hits: f64, trials: f64) -> Option<Interval> {
        if trials <= 0.0 {
            return None;
        }
        let share = hits / trials;
        let z2 = Z_95 * Z_95;
        let centre = (share + z2 / (2.0 * trials)) / (1.0 + z2 / trials);
        let spread = share * (1.0 - share) / trials + z2 / (4.0 * trials * trials);
        let half = Z_95 * spread.sqrt() / (1.0 + z2 / trials);
        Some(Interval { estimate: share, low: (centre - half).max(0.0), high: (centre + half).min(1.0) })
    }

    /// Returns the interval of a mean.
    pub fn of_mean(values: &[f64]) -> Option<Interval> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let half = Z_95 * (variance / n).sqrt();
        Some(Interval { estimate: mean, low: (mean - half).max(0.0), high: mean + half })
    }

    /// Returns the interval times a factor.
    pub fn scaled(self, factor: f64) -> Interval {
        Interval { estimate: self.estimate * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// Estimates how many distinct values `rows` rows have, of which `sampled` were drawn at random and held `distinct` values,
/// `once` of them a single time: Duj1 of Haas and Stokes, "Estimating the Number of Classes in a Finite Population" (1998), as
/// PostgreSQL does. Values seen more than once were hardly missed; those seen once stand for others that were not seen.
pub fn distinct_in_all(sampled: u64, distinct: u64, once: u64, rows: u64) -> f64 {
    if sampled >= rows || sampled == 0 {
        return distinct as f64;
    }
    let (n, d, f1, all) = (sampled as f64, distinct as f64, once as f64, rows as f64);
    (n * d / (n - f1 + f1 * n / all)).clamp(d, d + all - n)
}

/// What a token of an answer takes beside one of a prompt, before the difference was measured.
const OUTPUT_TOKEN_COST: f64 = 8.0;

/// How long a model has taken for what: sums for a least-squares fit of `seconds = a · computed + b · output`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    computed_computed: f64,
    computed_output: f64,
    output_output: f64,
    computed_seconds: f64,
    output_seconds: f64,
}

impl Timing {
    /// Adds a run that computed so many prompt tokens and wrote so many tokens in so many seconds.
    pub fn add(&mut self, computed: f64, output: f64, seconds: f64) {
        // Older runs count half, so that the fit follows a machine whose load changes.
        for sum in [
            &mut self.computed_computed,
            &mut self.computed_output,
            &mut self.output_output,
            &mut self.computed_seconds,
            &mut self.output_seconds,
        ] {
            *sum *= 0.5;
        }
        self.computed_computed += computed * computed;
        self.computed_output += computed * output;
        self.output_output += output * output;
        self.computed_seconds += computed * seconds;
        self.output_seconds += output * seconds;
    }

    /// Returns the seconds that so many tokens should take; `None` before anything was measured.
    pub fn seconds(&self, computed: f64, output: f64) -> Option<f64> {
        let (per_computed, per_output) = self.per_token()?;
        Some(per_computed * computed + per_output * output)
    }

    /// Returns seconds for each computed prompt token and for each token of an answer.
    pub fn per_token(&self) -> Option<(f64, f64)> {
        let determinant = self.computed_computed * self.output_output - self.computed_output.powi(2);
        // Runs of one mixture say nothing about the parts.
        if determinant > 0.01 * self.computed_computed * self.output_output {
            let computed =
                (self.computed_seconds * self.output_output - self.output_seconds * self.computed_output) / determinant;
            let output =
                (self.output_seconds * self.computed_computed - self.computed_seconds * self.computed_output) / determinant;
            if computed > 0.0 && output >= 0.0 {
                return Some((computed, output));
            }
        }
        let weight = OUTPUT_TOKEN_COST;
        let all = self.computed_computed + 2.0 * weight * self.computed_output + weight * weight * self.output_output;
        let seconds = self.computed_seconds + weight * self.output_seconds;
        (all > 0.0).then(|| (seconds / all, weight * seconds / all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(got: f64, expected: f64) {
        assert!((got - expected).abs() <= 1e-9 + 0.01 * expected.abs(), "{got}, expected {expected}");
    }

    #[test]
    fn shares_have_intervals_within_bounds() {
        let half = Interval::of_share(50.0, 100.0).unwrap();
        near(half.low, 0.404);
        near(half.high, 0.596);
        let none = Interval::of_share(0.0, 10.0).unwrap();
        assert_eq!((none.estimate, none.low), (0.0, 0.0));
        near(none.high, 0.278);
        assert_eq!(Interval::of_share(0.0, 0.0), None);
    }

    #[test]
    fn means_have_intervals() {
        let mean = Interval::of_mean(&[1.0, 3.0]).unwrap();
        near(mean.estimate, 2.0);
        near(mean.high, 2.0 + 1.96);
        assert_eq!(Interval::of_mean(&[5.0]).unwrap().high, 5.0);
    }

    #[test]
    fn distinct_values_are_not_scaled_with_the_rows() {
        near(distinct_in_all(100, 10, 0, 10_000), 10.0);
        near(distinct_in_all(100, 100, 100, 10_000), 10_000.0);
        near(distinct_in_all(100, 40, 0, 100), 40.0);
        let some = distinct_in_all(1000, 500, 250, 10_000);
        assert!((500.0..1000.0).contains(&some), "{some}");
        assert_eq!(distinct_in_all(0, 0, 0, 10), 0.0);
    }

    #[test]
    fn seconds_follow_from_runs() {
        let mut timing = Timing::default();
        assert_eq!(timing.seconds(1.0, 1.0), None);
        timing.add(1000.0, 0.0, 2.0);
        near(timing.seconds(500.0, 0.0).unwrap(), 1.0);
        timing.add(1000.0, 100.0, 4.0);
        near(timing.seconds(2000.0, 0.0).unwrap(), 4.0);
        near(timing.seconds(0.0, 50.0).unwrap(), 1.0);
    }
}
