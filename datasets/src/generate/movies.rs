//! Reviews of films, stored film by film: `movies` and `movies_15k`.
//!
//! Link, title, description, genres, company, director and rating are those of the film, and the description is most of a row. How many
//! reviews are favourable differs from film to film. A publisher is a top critic or not, and has its own way to write scores.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, grouped, numbered, of_units};
use super::distribution::{Quantiles, Skew};
use super::text::{Words, invent};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

/// What differs between the two tables.
struct Shape {
    rows: usize,
    reviews_of_film: Skew,
    review_characters: Quantiles,
    info_characters: Quantiles,
    genres: Skew,
    companies: Skew,
    company_characters: Quantiles,
    top_critics_percent: usize,
}

const MOVIES: Shape = Shape {
    rows: 4_877,
    reviews_of_film: Skew(&[(1, 4.1), (2, 7.8), (4, 13.9), (8, 25.6), (16, 44.0), (32, 66.4), (64, 88.9), (118, 100.0)]),
    review_characters: Quantiles([4.0, 52.0, 85.0, 126.0, 167.0, 207.0, 249.0, 259.0]),
    info_characters: Quantiles([62.0, 112.0, 152.0, 410.0, 481.0, 492.0, 500.0, 500.0]),
    genres: Skew(&[(1, 13.2), (2, 21.0), (4, 33.2), (8, 49.9), (16, 73.7), (32, 92.2), (59, 100.0)]),
    companies: Skew(&[(1, 12.1), (2, 19.8), (4, 29.1), (8, 43.3), (16, 63.0), (32, 81.2), (64, 96.3), (88, 100.0)]),
    company_characters: Quantiles([4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 29.0, 32.0]),
    top_critics_percent: 32,
};

const MOVIES_15K: Shape = Shape {
    rows: 15_000,
    reviews_of_film: Skew(&[
        (1, 1.7),
        (2, 3.3),
        (4, 6.2),
        (8, 11.5),
        (16, 21.0),
        (32, 36.9),
        (64, 59.4),
        (128, 84.2),
        (256, 98.1),
        (367, 100.0),
    ]),
    review_characters: Quantiles([4.0, 48.0, 78.0, 118.0, 159.0, 195.0, 247.0, 259.0]),
    info_characters: Quantiles([20.0, 204.0, 309.0, 656.0, 1_010.0, 1_411.0, 2_026.0, 3_005.0]),
    genres: Skew(&[(1, 9.4), (2, 17.4), (4, 31.5), (8, 46.2), (16, 61.6), (32, 78.7), (64, 94.8), (134, 100.0)]),
    companies: Skew(&[(1, 23.2), (2, 31.9), (4, 42.9), (8, 57.5), (16, 71.7), (32, 87.5), (64, 99.6), (74, 100.0)]),
    company_characters: Quantiles([2.0, 9.0, 14.0, 17.0, 21.0, 25.0, 32.0, 40.0]),
    top_critics_percent: 25,
};

const TITLE_CHARACTERS: Quantiles = Quantiles([1.0, 7.0, 9.0, 12.0, 18.0, 28.0, 51.0, 66.0]);
const DIRECTORS: Skew = Skew(&[
    (1, 10.9),
    (2, 14.9),
    (4, 18.2),
    (8, 23.9),
    (16, 33.3),
    (32, 49.0),
    (64, 70.3),
    (128, 90.4),
    (256, 99.6),
    (305, 100.0),
]);
const RATINGS: Skew = Skew(&[(1, 44.8), (2, 77.2), (4, 98.0), (5, 100.0)]);
const PUBLISHERS: Skew = Skew(&[
    (1, 1.4),
    (2, 2.6),
    (4, 4.8),
    (8, 8.6),
    (16, 14.6),
    (32, 24.7),
    (64, 39.3),
    (128, 58.1),
    (256, 78.0),
    (512, 93.0),
    (1_009, 100.0),
]);
const PUBLISHER_CHARACTERS: Quantiles = Quantiles([2.0, 8.0, 11.0, 15.0, 19.0, 24.0, 33.0, 42.0]);

/// Genres of films, of which a film has one to five.
const GENRES: [&str; 14] = [
    "Action & Adventure",
    "Animation",
    "Art House & International",
    "Classics",
    "Comedy",
    "Documentary",
    "Drama",
    "Horror",
    "Kids & Family",
    "Musical & Performing Arts",
    "Mystery & Suspense",
    "Romance",
    "Science Fiction & Fantasy",
    "Western",
];

/// The films, and what is known of each.
struct Films {
    /// Reviews of each.
    sizes: Vec<usize>,
    of_row: Vec<u32>,
    genres: Vec<u32>,
    companies: Vec<u32>,
    directors: Vec<u32>,
    ratings: Vec<u32>,
    /// By row: 0 for a favourable review.
    review_types: Vec<u32>,
}

impl Films {
    fn new(shape: &Shape, random: &mut SplitMix64) -> Self {
        let mut sizes = shape.reviews_of_film.counts(shape.rows);
        random.shuffle(&mut sizes);
        let of_row = grouped(&sizes);
        // How a film is received lies anywhere between all reviews and none.
        let favourable: Vec<f64> = sizes.iter().map(|_| random.fraction()).collect();
        let review_types = of_row.iter().map(|film| u32::from(random.fraction() > favourable[*film as usize])).collect();
        Self {
            sizes: sizes.clone(),
            of_row,
            genres: shape.genres.assign_weighted(&sizes),
            companies: shape.companies.assign_weighted(&sizes),
            directors: DIRECTORS.assign_weighted(&sizes),
            ratings: RATINGS.assign_weighted(&sizes),
            review_types,
        }
    }

    /// Writes what a film is about: somewhat longer for films with many reviews.
    fn info(&self, film: u32, shape: &Shape, words: &Words, random: &mut SplitMix64) -> String {
        let is_large = self.sizes[film as usize] * self.sizes.len() > 2 * shape.rows;
        let characters = if is_large { shape.info_characters.longer(random) } else { shape.info_characters.length(random) };
        words.prose(characters, 2, random)
    }
}

pub(super) fn movies(dataset: &Dataset, rows: usize, random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    reviews(&MOVIES, dataset, rows, random)
}

/// As many reviews of as many films as `movies_15k` has, in the columns of `movies`, which are the paper's.
pub(super) fn movies_as_in_the_paper(dataset: &Dataset, rows: usize, random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    reviews(&MOVIES_15K, dataset, rows, random)
}

fn reviews(shape: &Shape, dataset: &Dataset, rows: usize, mut random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let (films, words) = (Films::new(shape, &mut random), Words::new());
    let critics: Vec<u32> = (0..shape.rows).map(|_| u32::from(random.percent(shape.top_critics_percent))).collect();
    let mut columns = Columns::new(dataset, random, rows);
    review_columns(&mut columns, shape, &films, &critics, &words);
    columns.text(&films.of_row, |film, random| {
        let name = [invent(random), "_".to_owned(), invent(random)].concat();
        match random.percent(25) {
            true => format!("m/{name}"),
            false => format!("m/{}-{name}", 1_000_000 + 113 * film + random.below(100) as u32),
        }
    });
    columns.text(&films.of_row, |_, random| words.title(TITLE_CHARACTERS.length(random), 25, random));
    columns.text(&films.of_row, |film, random| films.info(film, shape, &words, random));
    columns.text(&of_units(&films.of_row, &films.genres), |_, random| genres(random));
    company_column(&mut columns, shape, &films, &words);
    columns.finish()
}

pub(super) fn movies_15k(dataset: &Dataset, rows: usize, mut random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let shape = &MOVIES_15K;
    let (films, words) = (Films::new(shape, &mut random), Words::new());
    let publishers: Vec<u32> = (0..shape.rows).map(|_| PUBLISHERS.draw(&mut random)).collect();
    let critics: Vec<u32> = publishers.iter().map(|publisher| u32::from(publisher % 4 == 1)).collect();
    let scores: Vec<u32> =
        publishers.iter().zip(&films.review_types).map(|(who, kind)| score(*who, *kind == 0, &mut random)).collect();
    let mut columns = Columns::new(dataset, random, rows);
    review_columns(&mut columns, shape, &films, &critics, &words);
    columns.integer(&films.of_row, |film, _| i64::from(3 + film * 15 / 8));
    columns.text(&films.of_row, |film, random| films.info(film, shape, &words, random));
    columns.text(&of_units(&films.of_row, &films.genres), |_, random| genres(random));
    columns.text(&of_units(&films.of_row, &films.directors), |director, random| match director {
        0 => String::new(),
        _ => words.title(9 + random.below(9), 30, random),
    });
    company_column(&mut columns, shape, &films, &words);
    columns.text(&of_units(&films.of_row, &films.ratings), |rating, _| ["R", "PG-13", "PG", "NR", "G"][rating as usize]);
    columns.text(&publishers, |_, random| words.title(PUBLISHER_CHARACTERS.length(random), 20, random));
    columns.text(&scores, |score, _| score_text(score));
    columns.finish()
}

/// The first three columns of both tables.
fn review_columns(columns: &mut Columns<'_>, shape: &Shape, films: &Films, critics: &[u32], words: &Words) {
    columns.text(&numbered(shape.rows), |_, random| words.prose(shape.review_characters.length(random), 1, random));
    columns.text(&films.review_types, |kind, _| ["Fresh", "Rotten"][kind as usize]);
    columns.text(critics, |is_top, _| ["False", "True"][is_top as usize]);
}

/// The company that made a film; one of the frequent values is that nobody knows.
fn company_column(columns: &mut Columns<'_>, shape: &Shape, films: &Films, words: &Words) {
    columns.text(&of_units(&films.of_row, &films.companies), |company, random| match company {
        0 => String::new(),
        _ => words.title(shape.company_characters.length(random), 4, random),
    });
}

/// Writes the genres of a film in the order of the alphabet.
fn genres(random: &mut SplitMix64) -> String {
    let first = random.below(6);
    let later = |genre: &&&str| **genre == GENRES[first] || random.percent(22);
    GENRES[first..].iter().filter(later).copied().collect::<Vec<_>>().join(", ")
}

/// Scores out of 5 in halves, out of 4 in halves, letters, out of 10, and out of 100.
const SCORES_BELOW: [u32; 5] = [10, 18, 31, 41, 128];

/// Draws the score of a review: 0 for none, else a number that [`score_text`] writes in the way of the publisher.
fn score(publisher: u32, is_favourable: bool, random: &mut SplitMix64) -> u32 {
    let way = match publisher % 20 {
        0..6 => return if random.percent(75) { 0 } else { 1 + random.below(10) as u32 },
        6..12 => 0,
        12..17 => 1,
        17..19 => 2,
        _ => 3 + random.below(2),
    };
    let first = if way == 0 { 0 } else { SCORES_BELOW[way - 1] };
    let n_scores = SCORES_BELOW[way] - first;
    let better = if is_favourable { (3 + random.below(2)) as u32 } else { 1 + random.below(2) as u32 };
    1 + first + (n_scores * better / 5 + random.below(2) as u32).min(n_scores - 1)
}

/// Writes a score.
fn score_text(score: u32) -> String {
    let Some(score) = score.checked_sub(1) else { return String::new() };
    let halves =
        |halves: u32| if halves.is_multiple_of(2) { format!("{}", halves / 2) } else { format!("{}.5", halves / 2) };
    match score {
        0..10 => format!("{}/5", halves(score + 1)),
        10..18 => format!("{}/4", halves(score - 9)),
        18..31 => {
            ["F", "D-", "D", "D+", "C-", "C", "C+", "B-", "B", "B+", "A-", "A", "A+"][(score - 18) as usize].to_owned()
        }
        31..41 => format!("{}/10", score - 30),
        _ => format!("{}/100", score - 28),
    }
}
