//! How good answers are, where the data knows what is right.
//!
//! A query says so by its columns: `answer` beside `label` counts as right or wrong; `answer` beside `reference` is scored by the words
//! that both have (F1, as SQuAD does it: without case, punctuation and articles).

use std::collections::HashMap;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::record_batch::RecordBatch;

use super::super::error::Outcome;
use super::results::Quality;

/// The normal deviate of a two-sided confidence of 95 %.
const Z: f64 = 1.959_964;

/// Scores the answers of a result; `None` if it does not say what is right. A lost answer scores nothing.
pub(super) fn quality(rows: &RecordBatch) -> Outcome<Option<Quality>> {
    let text = |name: &str| rows.column_by_name(name).map(|column| cast(column, &DataType::Utf8)).transpose();
    let (answers, labels, references) = (text("answer")?, text("label")?, text("reference")?);
    Ok(match (answers, labels, references) {
        (Some(answers), Some(labels), _) => {
            let right = pairs(&answers, &labels).filter(|(answer, label)| answer.is_some() && answer == label).count();
            Some(share(right, rows.num_rows()))
        }
        (Some(answers), None, Some(references)) => {
            let scores = pairs(&answers, &references).map(|(answer, reference)| match (answer, reference) {
                (Some(answer), Some(reference)) => f1(answer, reference),
                _ => 0.0,
            });
            Some(mean(&scores.collect::<Vec<_>>()))
        }
        _ => None,
    })
}

fn pairs<'a>(a: &'a ArrayRef, b: &'a ArrayRef) -> impl Iterator<Item = (Option<&'a str>, Option<&'a str>)> {
    let (a, b) = (a.as_string::<i32>(), b.as_string::<i32>());
    let text = |array: &'a datafusion::arrow::array::StringArray, row: usize| array.is_valid(row).then(|| array.value(row));
    (0..a.len()).map(move |row| (text(a, row), text(b, row)))
}

/// A share with the interval of Wilson.
fn share(right: usize, n: usize) -> Quality {
    let (count, z2) = (n.max(1) as f64, Z * Z);
    let mean = right as f64 / count;
    let middle = (mean + z2 / (2.0 * count)) / (1.0 + z2 / count);
    let half = Z * (mean * (1.0 - mean) / count + z2 / (4.0 * count * count)).sqrt() / (1.0 + z2 / count);
    Quality { mean, low: (middle - half).max(0.0), high: (middle + half).min(1.0), n }
}

/// A mean with the interval that its standard error gives.
fn mean(scores: &[f64]) -> Quality {
    let n = scores.len();
    let mean = scores.iter().sum::<f64>() / n.max(1) as f64;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / n.saturating_sub(1).max(1) as f64;
    let half = Z * (variance / n.max(1) as f64).sqrt();
    Quality { mean, low: (mean - half).max(0.0), high: (mean + half).min(1.0), n }
}

/// The harmonic mean of the shares of words of each text that the other has.
fn f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    let mut left: HashMap<&str, usize> = HashMap::new();
    reference.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let take = |word: &String| match left.get_mut(word.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    let same = answer.iter().map(take).filter(|taken| *taken).count() as f64;
    match (answer.len(), reference.len()) {
        (0, 0) => 1.0,
        (a, b) => 2.0 * same / (a + b) as f64,
    }
}

fn words(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().filter(|word| !["a", "an", "the"].contains(word)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Int64Array, StringArray};

    use super::*;

    fn batch(columns: [(&str, ArrayRef); 2]) -> RecordBatch {
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn texts(texts: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(texts.to_vec()))
    }

    #[test]
    fn labels_are_met_or_not() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
        let answers = texts(&[Some("1"), Some("3"), None, Some("4")]);
        let found = quality(&batch([("answer", answers), ("label", numbers)])).unwrap().unwrap();
        assert_eq!((found.mean, found.n), (0.5, 4));
        // Wilson's interval of 2 of 4.
        assert!((found.low - 0.15).abs() < 0.001 && (found.high - 0.85).abs() < 0.001, "{found:?}");
        assert_eq!(quality(&batch([("answer", texts(&[None])), ("other", texts(&[None]))])).unwrap(), None);
    }

    #[test]
    fn words_in_common_are_scored() {
        assert_eq!(f1("The cat, sat!", "cat sat"), 1.0);
        assert_eq!(f1("cat cat", "a cat"), 2.0 / 3.0);
        assert_eq!((f1("", "a"), f1("dog", "cat")), (1.0, 0.0));
        let found = quality(&batch([("answer", texts(&[Some("x"), None])), ("reference", texts(&[Some("x"), Some("y")]))]));
        let found = found.unwrap().unwrap();
        assert_eq!((found.mean, found.n), (0.5, 2));
        assert!(found.low == 0.0 && found.high == 1.0, "{found:?}");
    }
}
