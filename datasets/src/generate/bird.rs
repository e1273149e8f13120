//! Posts with the comments on them, in the order of the comments: `bird`.
//!
//! Three sites come one after the other. Comments on a post come soon after it, so those of a few posts alternate.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, numbered};
use super::distribution::{Quantiles, Skew};
use super::text::Words;
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

const ROWS: usize = 10_418;
/// A site.
struct Site {
    posts: usize,
    /// The year of the first post.
    year: i64,
    /// What is added to ids, so that they differ between sites.
    offset: i64,
    /// How much more its posts are commented on than others, and how much longer they are.
    attention: f64,
    length: f64,
}

static SITES: [Site; 3] = [
    Site { posts: 917, year: 2018, offset: 0, attention: 1.3, length: 1.23 },
    Site { posts: 1_466, year: 2023, offset: 1_000_000, attention: 1.2, length: 1.04 },
    Site { posts: 884, year: 2021, offset: 2_000_000, attention: 0.55, length: 0.63 },
];
const COMMENTS: Skew = Skew(&[
    (1, 0.2),
    (2, 0.5),
    (4, 0.9),
    (8, 1.7),
    (16, 3.2),
    (32, 5.7),
    (64, 9.8),
    (128, 16.3),
    (256, 26.5),
    (512, 41.9),
    (1_024, 63.2),
    (2_048, 86.8),
    (3_267, 100.0),
]);
const BODY_CHARACTERS: Quantiles = Quantiles([40.0, 269.0, 512.0, 954.0, 1_734.0, 3_111.0, 8_223.0, 18_929.0]);
const TEXT_CHARACTERS: Quantiles = Quantiles([15.0, 57.0, 109.0, 197.0, 332.0, 498.0, 600.0, 636.0]);
/// Comments of a post that is longer than others on average.
const BUSY: usize = 8;
/// Posts that are written while a comment is on its way, on average.
const DELAY_POSTS: f64 = 0.7;

pub(super) fn bird(dataset: &Dataset, rows: usize, mut random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let words = Words::new();
    let counts = comments(&mut random);
    let mut posts: Vec<u32> = vec![];
    let mut first = 0;
    for site in &SITES {
        // When each comment is made, counted in posts.
        let mut made: Vec<(f64, u32)> = vec![];
        for (post, count) in counts.iter().enumerate().skip(first).take(site.posts) {
            made.extend((0..*count).map(|_| (post as f64 - DELAY_POSTS * (1.0 - random.fraction()).ln(), post as u32)));
        }
        made.sort_by(|a, b| a.0.total_cmp(&b.0));
        posts.extend(made.into_iter().map(|(_, post)| post));
        first += site.posts;
    }
    let mut columns = Columns::new(dataset, random, rows);
    columns.integer(&posts, |post, random| {
        let (at, site) = place(post);
        site.offset + 3 + 4 * at + random.below(4) as i64
    });
    columns.text(&posts, date);
    columns.text(&posts, |post, random| {
        let is_busy = counts[post as usize] >= BUSY;
        let characters = if is_busy { BODY_CHARACTERS.longer(random) } else { BODY_CHARACTERS.length(random) };
        body(&words, (characters as f64 * place(post).1.length) as usize, random)
    });
    columns.text(&numbered(ROWS), |_, random| words.prose(TEXT_CHARACTERS.length(random), 6, random));
    columns.finish()
}

/// Returns the comments of each post: most where a site has most attention.
fn comments(random: &mut SplitMix64) -> Vec<usize> {
    let attention = SITES.iter().flat_map(|site| vec![site.attention; site.posts]);
    let mut ranked: Vec<(f64, usize)> =
        attention.enumerate().map(|(post, attention)| (-(1.0 - random.fraction()).ln() / attention, post)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut counts = vec![0; ranked.len()];
    ranked.into_iter().zip(COMMENTS.counts(ROWS)).for_each(|((_, post), count)| counts[post] = count);
    counts
}

/// Returns the place of a post among those of its site, and the site.
fn place(post: u32) -> (i64, &'static Site) {
    let mut at = post as usize;
    for site in &SITES[..2] {
        if at < site.posts {
            return (at as i64, site);
        }
        at -= site.posts;
    }
    (at as i64, &SITES[2])
}

/// Writes when a post was made, to the millisecond.
fn date(post: u32, random: &mut SplitMix64) -> String {
    let (at, site) = place(post);
    let day = at / 6;
    let month = 1 + day / 28 % 12;
    let (hour, minute, second) = (random.below(24), random.below(60), random.below(60));
    let year = site.year + day / 336;
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{:03}", 1 + day % 28, random.below(1_000))
}

/// Writes a post in paragraphs of HTML.
fn body(words: &Words, characters: usize, random: &mut SplitMix64) -> String {
    let mut body = String::new();
    while body.len() < characters {
        let paragraph = (120 + random.below(500)).min(characters - body.len()).max(20);
        body += &format!("<p>{}</p>\n\n", words.prose(paragraph, 24, random));
    }
    body
}
