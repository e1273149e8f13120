//! Questions about paragraphs of articles, stored article by article: `squad`, and `squad_rag` with the paragraphs that a search finds.
//!
//! A question finds its own paragraph first in three cases of four, then mostly paragraphs of the same article, of which some are near to
//! the first and found by most of its questions, and the rest anywhere.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, grouped, numbered, of_units};
use super::distribution::{Quantiles, Skew};
use super::retrieval::draw_ranks;
use super::text::{Words, code};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

const ROWS: usize = 10_570;
const QUESTIONS: Skew = Skew(&[
    (1, 0.3),
    (2, 0.5),
    (4, 1.0),
    (16, 3.2),
    (32, 5.4),
    (64, 9.2),
    (128, 15.1),
    (256, 22.9),
    (512, 35.0),
    (1_024, 59.2),
    (2_067, 100.0),
]);
const ARTICLES: Skew = Skew(&[(1, 7.7), (2, 12.5), (4, 20.9), (8, 32.3), (16, 51.7), (32, 82.1), (48, 100.0)]);
const QUESTION_CHARACTERS: Quantiles = Quantiles([12.0, 36.0, 45.0, 57.0, 72.0, 88.0, 123.0, 197.0]);
const CONTEXT_CHARACTERS: Quantiles = Quantiles([157.0, 502.0, 574.0, 701.0, 904.0, 1_153.0, 2_055.0, 4_077.0]);
const TITLE_CHARACTERS: Quantiles = Quantiles([5.0, 7.0, 10.0, 13.0, 19.0, 21.0, 41.0, 41.0]);
const ANSWER_CHARACTERS: Quantiles = Quantiles([1.0, 5.0, 9.0, 15.0, 25.0, 43.0, 110.0, 160.0]);
/// Chances in a thousand, cumulated, that a question finds its own paragraph first, second, third and fourth.
const OWN: [usize; 4] = [771, 857, 890, 907];
/// Neighbours in a hundred that are of another article.
const ELSEWHERE_PERCENT: usize = 30;
/// How much nearer the nearest paragraphs of an article are.
const STEEPNESS: f64 = 1.7;

struct Questions {
    paragraph: Vec<u32>,
    /// By paragraph.
    article: Vec<u32>,
}

impl Questions {
    fn new(random: &mut SplitMix64) -> Self {
        let mut counts = QUESTIONS.counts(ROWS);
        random.shuffle(&mut counts);
        let mut sizes = ARTICLES.counts(counts.len());
        random.shuffle(&mut sizes);
        Self { paragraph: grouped(&counts), article: grouped(&sizes) }
    }

    /// Returns the four paragraphs that a question finds, the best first.
    fn found(&self, question: usize, random: &mut SplitMix64) -> [u32; 4] {
        let own = self.paragraph[question];
        let article = self.article[own as usize];
        let first = self.article.partition_point(|other| *other < article);
        let n_paragraphs = self.article.partition_point(|other| *other <= article) - first;
        // The neighbours of a paragraph are those of its article in an order of its own, some in between from elsewhere.
        let mut of_own = SplitMix64::new(u64::from(own)).part("neighbours", 0);
        let mut near: Vec<u32> =
            (first as u32..(first + n_paragraphs) as u32).filter(|paragraph| *paragraph != own).collect();
        of_own.shuffle(&mut near);
        for neighbour in &mut near {
            if of_own.percent(ELSEWHERE_PERCENT) {
                *neighbour = of_own.below(self.article.len()) as u32;
            }
        }
        let mut ranks = draw_ranks(random, near.len(), STEEPNESS, 4).into_iter();
        let chance = random.below(1_000);
        let place = OWN.iter().position(|below| chance < *below);
        std::array::from_fn(|at| match (place == Some(at), ranks.next()) {
            (false, Some(rank)) => near[rank],
            _ => own,
        })
    }
}

/// Writes the paragraph of this number, the same in both tables.
fn paragraph(words: &Words, seed: &SplitMix64, number: u32) -> String {
    let random = &mut seed.part("paragraph", u64::from(number));
    words.prose(CONTEXT_CHARACTERS.length(random), 2, random)
}

/// Writes a question.
fn question(words: &Words, random: &mut SplitMix64) -> String {
    const BEGINNINGS: [&str; 12] = [
        "What is the ",
        "What did the ",
        "What ",
        "Who was the ",
        "Who ",
        "How many ",
        "How did ",
        "When did the ",
        "When was ",
        "Where ",
        "In what year did the ",
        "Which ",
    ];
    let beginning = random.pick(&BEGINNINGS);
    let characters = QUESTION_CHARACTERS.length(random).saturating_sub(beginning.len() + 1).max(4);
    format!("{beginning}{}?", words.prose(characters, 1, random).to_lowercase())
}

pub(super) fn squad(dataset: &Dataset, rows: usize, seed: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let (words, questions) = (Words::new(), Questions::new(&mut seed.part("structure", 0)));
    let numbers = numbered(ROWS);
    let answer = |question: u32| {
        let random = &mut seed.part("answer", u64::from(question));
        words.title(ANSWER_CHARACTERS.length(random), 40, random)
    };
    let mut columns = Columns::new(dataset, seed.clone(), rows);
    columns.text(&numbers, |_, random| question(&words, random));
    columns.text(&questions.paragraph, |number, _| paragraph(&words, &seed, number));
    columns.text(&of_units(&questions.paragraph, &questions.article), |_, random| {
        words.title(TITLE_CHARACTERS.length(random), 60, random).replace(' ', "_")
    });
    columns.text(&numbers, |number, random| format!("56{:06x}{}", number / 5, code("", "0123456789abcdef", 16, random)));
    columns.text(&numbers, |question, _| answer(question));
    columns.text(&numbers, |question, random| {
        let answer = answer(question);
        format!("[{}]", vec![format!("\"{answer}\""); 3 + random.below(2)].join(", "))
    });
    columns.finish()
}

pub(super) fn squad_rag(dataset: &Dataset, rows: usize, seed: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let (words, questions) = (Words::new(), Questions::new(&mut seed.part("structure", 0)));
    let numbers = numbered(ROWS);
    let found: Vec<[u32; 4]> =
        (0..ROWS).map(|number| questions.found(number, &mut seed.part("found", number as u64))).collect();
    let mut columns = Columns::new(dataset, seed.clone(), rows);
    columns.text(&numbers, |_, random| question(&words, random));
    for place in 0..4 {
        let paragraphs: Vec<u32> = found.iter().map(|found| found[place]).collect();
        columns.text(&paragraphs, |number, _| paragraph(&words, &seed, number));
    }
    columns.finish()
}
