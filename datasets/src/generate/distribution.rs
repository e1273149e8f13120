//! Distributions as they were measured: quantiles of a number, and how much of a table its most frequent values hold.

use crate::random::SplitMix64;

/// The shares of values, in percent, that [`Quantiles`] name.
const AT: [f64; 8] = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 99.0, 100.0];

/// Numbers below which 0, 10, 25, 50, 75, 90, 99 and 100 percent of the values lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantiles(pub [f64; 8]);

impl Quantiles {
    /// Draws a number; between two quantiles all are as likely.
    pub(super) fn draw(&self, random: &mut SplitMix64) -> f64 {
        self.at(random.fraction())
    }

    /// Returns the number below which this fraction of the values lies.
    pub(super) fn at(&self, fraction: f64) -> f64 {
        let at = 100.0 * fraction;
        let upper = AT.partition_point(|share| *share <= at).min(AT.len() - 1);
        let (low, high) = (self.0[upper - 1], self.0[upper]);
        low + (high - low) * (at - AT[upper - 1]) / (AT[upper] - AT[upper - 1])
    }

    /// Draws a length.
    pub(super) fn length(&self, random: &mut SplitMix64) -> usize {
        self.draw(random).round().max(0.0) as usize
    }

    /// Draws the length of a value that is frequent, where frequent values are longer: the longer of two.
    pub(super) fn longer(&self, random: &mut SplitMix64) -> usize {
        self.length(random).max(self.length(random))
    }

    /// Draws the length of a value that is frequent, where frequent values are shorter: the shorter of two.
    pub(super) fn shorter(&self, random: &mut SplitMix64) -> usize {
        self.length(random).min(self.length(random))
    }
}

/// How rows are spread over values: a number of most frequent values, and the percent of rows that they hold; the last entry names all
/// values and 100. Between two entries values are as frequent as each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skew(pub &'static [(usize, f64)]);

impl Skew {
    /// The number of values.
    pub(super) fn n_values(&self) -> usize {
        self.0.last().map_or(1, |(rank, _)| *rank)
    }

    /// Draws a value, by its rank from 0.
    pub(super) fn draw(&self, random: &mut SplitMix64) -> u32 {
        let at = 100.0 * random.fraction();
        let upper = self.0.partition_point(|(_, held)| *held <= at).min(self.0.len() - 1);
        let (first, held) = if upper == 0 { (0, 0.0) } else { self.0[upper - 1] };
        let (last, all) = self.0[upper];
        let width = (last - first) as f64;
        (first + (((at - held) / (all - held)) * width) as usize).min(last - 1) as u32
    }

    /// Returns how many of `units` each value gets, the most frequent first: at least one each, where there are enough.
    pub(super) fn counts(&self, units: usize) -> Vec<usize> {
        let n_values = self.n_values().min(units);
        let spare = units - n_values;
        let held = |rank: usize| {
            let upper = self.0.partition_point(|(last, _)| *last < rank).min(self.0.len() - 1);
            let (first, before) = if upper == 0 { (0, 0.0) } else { self.0[upper - 1] };
            let (last, all) = self.0[upper];
            before + (all - before) * (rank - first) as f64 / (last - first) as f64
        };
        // What each value should get in all, cumulated, so that rounding cannot add up.
        let mut given = 0;
        let mut counts: Vec<usize> = (1..=n_values)
            .map(|rank| {
                let wanted = ((held(rank) / 100.0 * units as f64).round() as usize).saturating_sub(given).max(1);
                let count = wanted.min(1 + spare - (given + 1 - rank).min(spare));
                given += count;
                count
            })
            .collect();
        if let Some(last) = counts.last_mut() {
            *last += units - given;
        }
        counts
    }

    /// Gives each of `units` a value, in no order.
    pub(super) fn assign(&self, units: usize, random: &mut SplitMix64) -> Vec<u32> {
        let counts = self.counts(units);
        let mut values: Vec<u32> =
            (0..counts.len() as u32).zip(counts).flat_map(|(value, count)| vec![value; count]).collect();
        random.shuffle(&mut values);
        values
    }

    /// Gives each unit, which stands for so many rows, a value, so that the rows are spread as measured.
    pub(super) fn assign_weighted(&self, weights: &[usize]) -> Vec<u32> {
        let mut room: Vec<i64> = self.counts(weights.iter().sum()).into_iter().map(|count| count as i64).collect();
        let mut largest_first: Vec<usize> = (0..weights.len()).collect();
        largest_first.sort_by_key(|unit| std::cmp::Reverse(weights[*unit]));
        let mut values = vec![0; weights.len()];
        for unit in largest_first {
            // Of equal room the first value wins, so the result does not depend on anything else.
            let value = (0..room.len()).rev().max_by_key(|value| room[*value]).unwrap_or(0);
            room[value] -= weights[unit] as i64;
            values[unit] = value as u32;
        }
        fill_gaps(&mut values, weights, room.len());
        values
    }
}

/// Gives each value that no unit has the smallest unit of a value that has several.
fn fill_gaps(values: &mut [u32], weights: &[usize], n_values: usize) {
    let mut units = vec![0; n_values];
    values.iter().for_each(|value| units[*value as usize] += 1);
    let mut smallest_first: Vec<usize> = (0..values.len()).collect();
    smallest_first.sort_by_key(|unit| weights[*unit]);
    let mut smallest = smallest_first.into_iter();
    for gap in (0..n_values).filter(|value| units[*value] == 0).collect::<Vec<_>>() {
        let Some(unit) = smallest.find(|unit| units[values[*unit] as usize] > 1) else { return };
        units[values[unit] as usize] -= 1;
        values[unit] = gap as u32;
    }
}

/// Draws from the normal distribution with mean 0 and deviation 1, as a sum of twelve.
pub(super) fn normal(random: &mut SplitMix64) -> f64 {
    (0..12).map(|_| random.fraction()).sum::<f64>() - 6.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Skew = Skew(&[(1, 50.0), (2, 70.0), (4, 80.0), (10, 100.0)]);

    #[test]
    fn counts_follow_the_curve_and_leave_no_value_out() {
        assert_eq!(SKEW.counts(100), [50, 20, 5, 5, 3, 4, 3, 3, 4, 3]);
        for units in [1, 5, 10, 11, 17, 1000] {
            let counts = SKEW.counts(units);
            assert_eq!((counts.len(), counts.iter().sum::<usize>()), (units.min(10), units));
            assert!(counts.iter().all(|count| *count > 0), "{units}: {counts:?}");
        }
    }

    #[test]
    fn draws_follow_the_curve() {
        let mut random = SplitMix64::new(1);
        let mut counts = [0; 10];
        (0..10_000).for_each(|_| counts[SKEW.draw(&mut random) as usize] += 1);
        assert!((4_800..5_200).contains(&counts[0]) && (1_800..2_200).contains(&counts[1]), "{counts:?}");
        assert!(counts[4..].iter().all(|count| (250..420).contains(count)), "{counts:?}");
    }

    #[test]
    fn weights_are_spread_as_rows_are() {
        let weights: Vec<usize> = (1..=40).collect();
        let values = SKEW.assign_weighted(&weights);
        let rows =
            |value: u32| weights.iter().zip(&values).filter(|(_, v)| **v == value).map(|(weight, _)| weight).sum::<usize>();
        assert!((390..430).contains(&rows(0)) && (150..180).contains(&rows(1)), "{} {}", rows(0), rows(1));
        assert!((0..10).all(|value| rows(value) > 0));
    }

    #[test]
    fn quantiles_are_met() {
        let quantiles = Quantiles([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 100.0]);
        let mut random = SplitMix64::new(2);
        let mut drawn: Vec<f64> = (0..10_001).map(|_| quantiles.draw(&mut random)).collect();
        drawn.sort_by(f64::total_cmp);
        assert!((drawn[5_000] - 30.0).abs() < 1.0 && (drawn[1_000] - 10.0).abs() < 1.0);
        assert!(drawn[0] >= 0.0 && drawn[10_000] <= 100.0);
    }

    #[test]
    fn the_normal_distribution_has_mean_0_and_deviation_1() {
        let mut random = SplitMix64::new(3);
        let drawn: Vec<f64> = (0..10_000).map(|_| normal(&mut random)).collect();
        let mean = drawn.iter().sum::<f64>() / 10_000.0;
        let variance = drawn.iter().map(|x| x * x).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.05 && (0.95..1.05).contains(&variance), "{mean} {variance}");
    }
}
