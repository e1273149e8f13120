//! Claims about people and things, in no order: `fever_claims`, `fever_evidence_pairs`, and `fever_rag` with the passages that a search finds.
//!
//! A claim begins with what it is about, and finds first a passage about it. What it finds then are mostly the same passages for all claims
//! about one thing. Most passages are sentences; the rarer ones are paragraphs.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, numbered};
use super::distribution::{Quantiles, Skew};
use super::retrieval::draw_ranks;
use super::text::Words;
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

const ROWS: usize = 9_999;
/// Rows that repeat an earlier one.
const REPEATED: usize = 256;
/// What claims are about, by the first passage that they find.
const SUBJECTS: Skew = Skew(&[
    (1, 0.6),
    (2, 1.1),
    (4, 2.1),
    (8, 3.7),
    (16, 6.7),
    (32, 11.9),
    (64, 20.5),
    (128, 34.4),
    (256, 53.6),
    (512, 74.1),
    (1_024, 90.0),
    (1_929, 100.0),
]);
/// Passages that are sentences and paragraphs.
const SENTENCES: u32 = 3_050;
const PARAGRAPHS: u32 = 1_400;
/// Chances in a hundred that a neighbour is a paragraph.
const PARAGRAPH_PERCENT: usize = 16;
/// How much nearer the nearest passages are.
const STEEPNESS: f64 = 2.2;
const CLAIM_CHARACTERS: Quantiles = Quantiles([13.0, 28.0, 35.0, 45.0, 57.0, 72.0, 102.0, 219.0]);
const SUBJECT_CHARACTERS: Quantiles = Quantiles([4.0, 8.0, 10.0, 13.0, 16.0, 20.0, 30.0, 40.0]);
const SENTENCE_CHARACTERS: Quantiles = Quantiles([13.0, 75.0, 105.0, 145.0, 200.0, 270.0, 400.0, 480.0]);
const PARAGRAPH_CHARACTERS: Quantiles = Quantiles([400.0, 505.0, 575.0, 705.0, 905.0, 1_155.0, 2_060.0, 2_760.0]);
const PAIRS: usize = 9_095;
/// Claims with five sentences each; the others have one or two.
const CLAIMS_WITH_FIVE: u32 = 1_535;

/// The subject of each claim, and which row it repeats: mostly itself.
fn claims(seed: &SplitMix64) -> (Vec<u32>, Vec<u32>) {
    let random = &mut seed.part("structure", 0);
    let subjects = SUBJECTS.assign(ROWS, random);
    let mut repeats = numbered(ROWS);
    for _ in 0..REPEATED {
        let row = 1 + random.below(ROWS - 1);
        repeats[row] = repeats[random.below(row)];
    }
    (subjects, repeats)
}

/// Returns the four passages that a claim about this finds, the best first.
fn found(subject: u32, random: &mut SplitMix64) -> [u32; 4] {
    let own = match subject {
        700.. if subject % 2 == 1 => SENTENCES + subject % PARAGRAPHS,
        _ => subject,
    };
    let ranks = draw_ranks(random, usize::MAX, STEEPNESS, 3);
    let neighbour = |rank: usize| {
        let mut of_subject = SplitMix64::new(u64::from(subject)).part("neighbours", rank as u64);
        match of_subject.percent(PARAGRAPH_PERCENT) {
            true => SENTENCES + of_subject.below(PARAGRAPHS as usize) as u32,
            // Sentences about the subject itself come first; they are those of nobody else.
            false if rank == 0 && subject.is_multiple_of(2) => 1_929 + subject % (SENTENCES - 1_929),
            false => of_subject.below(SENTENCES as usize) as u32,
        }
    };
    let [second, third, fourth] = [0, 1, 2].map(|at| ranks.get(at).map_or(own, |rank| neighbour(*rank)));
    [own, second, third, fourth]
}

/// Writes the passage of this number, the same in both tables.
fn passage(words: &Words, seed: &SplitMix64, number: u32) -> String {
    let random = &mut seed.part("passage", u64::from(number));
    let lengths = if number < SENTENCES { SENTENCE_CHARACTERS } else { PARAGRAPH_CHARACTERS };
    words.prose(lengths.length(random), 6, random)
}

/// Writes a claim, which begins with its subject.
fn claim(words: &Words, seed: &SplitMix64, subject: u32, random: &mut SplitMix64) -> String {
    let of_subject = &mut seed.part("subject", u64::from(subject));
    let name = words.title(SUBJECT_CHARACTERS.length(of_subject), 35, of_subject);
    let characters = CLAIM_CHARACTERS.length(random).saturating_sub(name.len() + 2).max(6);
    let verb = random.pick(&["is", "was", "is a", "was a", "has", "did not"]);
    format!("{name} {verb} {}.", words.prose(characters.saturating_sub(verb.len()).max(3), 4, random).to_lowercase())
}

pub(super) fn fever_rag(dataset: &Dataset, rows: usize, seed: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let (words, (subjects, repeats)) = (Words::new(), claims(&seed));
    let found = |row: &u32| found(subjects[*row as usize], &mut seed.part("found", u64::from(*row)));
    let found: Vec<[u32; 4]> = repeats.iter().map(found).collect();
    let mut columns = Columns::new(dataset, seed.clone(), rows);
    columns.text(&repeats, |row, random| claim(&words, &seed, subjects[row as usize], random));
    for place in 0..4 {
        let passages: Vec<u32> = found.iter().map(|found| found[place]).collect();
        columns.text(&passages, |number, _| passage(&words, &seed, number));
    }
    columns.finish()
}

pub(super) fn fever_claims(dataset: &Dataset, rows: usize, seed: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let (words, (subjects, repeats)) = (Words::new(), claims(&seed));
    // A third of the claims have no page; a page is that of the subject.
    let labels: Vec<u32> = (0..ROWS as u64).map(|row| seed.part("label", row).below(3) as u32).collect();
    let pages: Vec<u32> =
        subjects.iter().zip(&labels).map(|(subject, label)| if *label == 2 { 0 } else { 1 + subject % 1_210 }).collect();
    let mut columns = Columns::new(dataset, seed.clone(), rows);
    columns.integer(&numbered(ROWS), |row, random| 11 + 23 * i64::from(row) + random.below(23) as i64);
    columns.text(&repeats, |row, random| claim(&words, &seed, subjects[row as usize], random));
    columns.text(&labels, |label, _| ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"][label as usize]);
    columns.nullable_text(&pages, |page, random| {
        (page > 0).then(|| words.title(6 + random.below(30), 70, random).replace(' ', "_"))
    });
    columns.finish()
}

pub(super) fn fever_evidence_pairs(dataset: &Dataset, rows: usize, seed: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let words = Words::new();
    let claim_of = |row: u32| match row {
        row if row < 5 * CLAIMS_WITH_FIVE => row / 5,
        row => CLAIMS_WITH_FIVE + row - 5 * CLAIMS_WITH_FIVE,
    };
    let claims: Vec<u32> = (0..PAIRS as u32).map(claim_of).collect();
    let evidence: Vec<u32> = (0..PAIRS as u64).map(|row| seed.part("evidence", row).below(5_888) as u32).collect();
    let sources: Vec<u32> =
        claims.iter().map(|claim| u32::from(*claim >= CLAIMS_WITH_FIVE) + u32::from(*claim >= 2_240)).collect();
    let articles: Vec<u32> =
        sources.iter().zip(&evidence).map(|(source, evidence)| if *source > 0 { 0 } else { 1 + evidence % 1_343 }).collect();
    let labels = |name: &str, numbers: &[u32], kinds: usize| -> Vec<u32> {
        numbers.iter().map(|number| seed.part(name, u64::from(*number)).below(kinds) as u32).collect()
    };
    const LABELS: [&str; 4] = ["SUPPORTS", "REFUTES", "NOT_ENOUGH_INFO", "DISPUTED"];
    let mut columns = Columns::new(dataset, seed.clone(), rows);
    columns.integer(&claims, |claim, _| i64::from(claim) + 1);
    columns.text(&claims, |_, random| words.prose(40 + random.below(150), 12, random));
    columns.text(&labels("claim_label", &claims, 4), |label, _| LABELS[label as usize]);
    columns.nullable_text(&articles, |article, random| (article > 0).then(|| words.title(8 + random.below(22), 40, random)));
    columns.text(&evidence, |number, _| passage(&words, &seed, number % SENTENCES));
    columns.text(&labels("evidence_label", &numbered(PAIRS), 3), |label, _| LABELS[label as usize]);
    columns.text(&sources, |source, _| ["climate", "symmetric-dev", "symmetric-test"][source as usize]);
    columns.finish()
}
