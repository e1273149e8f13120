//! Ratings of beers, stored beer by beer: `beer`.
//!
//! A few beers have most of the ratings, and so have a few people, who rate several beers on a day. The four scores of a rating agree with
//! each other, and less so with the quality of the beer.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, grouped, of_units};
use super::distribution::{Quantiles, Skew, normal};
use super::text::{Words, nickname};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

const ROWS: usize = 28_479;
const BEERS: Skew = Skew(&[
    (1, 10.0),
    (2, 17.9),
    (4, 27.9),
    (8, 35.3),
    (16, 43.3),
    (32, 51.1),
    (64, 61.2),
    (128, 72.2),
    (256, 82.1),
    (512, 91.8),
    (1_024, 98.4),
    (1_423, 100.0),
]);
const STYLES: Skew = Skew(&[(1, 13.5), (2, 22.3), (4, 35.3), (8, 49.0), (16, 70.0), (32, 88.4), (64, 99.5), (78, 100.0)]);
const PEOPLE: Skew = Skew(&[
    (1, 0.7),
    (2, 1.4),
    (4, 2.5),
    (8, 4.3),
    (16, 7.2),
    (32, 11.4),
    (64, 17.3),
    (128, 26.1),
    (256, 37.9),
    (512, 52.7),
    (1_024, 69.3),
    (2_048, 85.1),
    (4_096, 97.3),
    (4_862, 100.0),
]);
const DAYS: Skew = Skew(&[
    (1, 0.3),
    (4, 0.8),
    (16, 2.0),
    (64, 5.7),
    (128, 10.0),
    (256, 17.5),
    (512, 30.3),
    (1_024, 50.8),
    (2_048, 79.7),
    (3_738, 100.0),
]);
/// Seconds since 1970 of the days on which somebody rated something.
const SECONDS: Quantiles = Quantiles([
    957_052_800.0,
    1_029_715_200.0,
    1_081_814_400.0,
    1_163_116_800.0,
    1_245_628_800.0,
    1_294_099_200.0,
    1_323_216_000.0,
    1_326_412_800.0,
]);
const DAY_SECONDS: i64 = 86_400;
/// Ratings that a person writes on one day, on average.
const RATINGS_OF_A_DAY: f64 = 1.4;
/// Ratings in a hundred that a person writes of beers that stand near to each other, and how near: a share of the table.
const NEAR_PERCENT: usize = 80;
const NEAR: f64 = 0.02;
const PERSON_CHARACTERS: Quantiles = Quantiles([3.0, 5.0, 7.0, 8.0, 10.0, 12.0, 14.0, 21.0]);
const BEER_CHARACTERS: Quantiles = Quantiles([4.0, 16.0, 21.0, 26.0, 31.0, 37.0, 52.0, 69.0]);
const STYLE_CHARACTERS: Quantiles = Quantiles([4.0, 6.0, 9.0, 12.0, 17.0, 20.0, 23.0, 31.0]);

/// A score: the largest, the mean and the deviation, and how much of it is common to all scores of a rating (a correlation).
struct Score {
    largest: i64,
    mean: f64,
    deviation: f64,
    common: f64,
}

const SCORES: [Score; 4] = [
    Score { largest: 20, mean: 13.4, deviation: 2.75, common: 0.93 },
    Score { largest: 10, mean: 6.6, deviation: 1.35, common: 0.93 },
    Score { largest: 5, mean: 3.3, deviation: 0.8, common: 0.72 },
    Score { largest: 5, mean: 3.4, deviation: 0.78, common: 0.62 },
];

/// Share of what is common to the scores of a rating that the beer explains (a correlation).
const OF_THE_BEER: f64 = 0.5;

pub(super) fn beer(dataset: &Dataset, rows: usize, mut random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let words = Words::new();
    let mut sizes = BEERS.counts(ROWS);
    random.shuffle(&mut sizes);
    let (beers, styles) = (grouped(&sizes), STYLES.assign_weighted(&sizes));
    let people = people(&mut random);
    let days = days(&people, &mut random);
    let quality: Vec<f64> = sizes.iter().map(|_| normal(&mut random)).collect();
    let mut scores: [Vec<u32>; 4] = Default::default();
    for beer in &beers {
        let common = mixed(quality[*beer as usize], OF_THE_BEER, &mut random);
        for (score, column) in SCORES.iter().zip(&mut scores) {
            let value = score.mean + score.deviation * mixed(common, score.common, &mut random);
            column.push((value.round() as i64).clamp(1, score.largest) as u32);
        }
    }
    let mut columns = Columns::new(dataset, random, rows);
    columns.text(&people, |_, random| nickname(PERSON_CHARACTERS.length(random), random));
    // Every day is another one, and how often a day occurs has nothing to do with when it was.
    let n_days = DAYS.n_values() as u32;
    columns.integer(&days, |day, _| {
        let fraction = (f64::from(day * 1_009 % n_days) + 0.5) / f64::from(n_days);
        SECONDS.at(fraction) as i64 / DAY_SECONDS * DAY_SECONDS
    });
    for (score, values) in SCORES.iter().zip(&scores) {
        columns.text(values, |value, _| format!("{value}/{}", score.largest));
    }
    columns.text(&beers, |_, random| words.title(BEER_CHARACTERS.length(random), 38, random));
    columns.text(&of_units(&beers, &styles), |_, random| words.title(STYLE_CHARACTERS.length(random), 45, random));
    columns.integer(&beers, |beer, random| 51 + 114 * i64::from(beer) + random.below(114) as i64);
    columns.finish()
}

/// Gives each rating a person. Most people rate beers that stand near to each other, as those of one brewery do.
fn people(random: &mut SplitMix64) -> Vec<u32> {
    let mut rated: Vec<(f64, u32)> = vec![];
    for (person, count) in PEOPLE.counts(ROWS).into_iter().enumerate() {
        let home = random.fraction();
        rated.extend((0..count).map(|_| {
            let anywhere = random.fraction();
            let near = (home + NEAR * normal(random)).rem_euclid(1.0);
            (if random.percent(NEAR_PERCENT) { near } else { anywhere }, person as u32)
        }));
    }
    rated.sort_by(|a, b| a.0.total_cmp(&b.0));
    rated.into_iter().map(|(_, person)| person).collect()
}

/// Returns a normal number that correlates with another one so much.
fn mixed(with: f64, correlation: f64, random: &mut SplitMix64) -> f64 {
    correlation * with + (1.0 - correlation * correlation).sqrt() * normal(random)
}

/// Gives each rating a day. A person has some days, and rates on each about as often.
fn days(people: &[u32], random: &mut SplitMix64) -> Vec<u32> {
    let mut ratings = vec![0_usize; PEOPLE.n_values()];
    people.iter().for_each(|person| ratings[*person as usize] += 1);
    let own_days = |count: &usize| {
        let n_days = (*count as f64 / RATINGS_OF_A_DAY).ceil() as usize;
        (0..n_days).map(|_| DAYS.draw(random)).collect()
    };
    let of_person: Vec<Vec<u32>> = ratings.iter().map(own_days).collect();
    let day = |person: &u32| {
        let days = &of_person[*person as usize];
        days.get(random.below(days.len())).copied().unwrap_or(0)
    };
    people.iter().map(day).collect()
}
