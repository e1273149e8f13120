//! The generator of each table of the catalogue.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::ArrowError;
use arrow_select::concat::concat_batches;

use super::{beer, bird, fever, movies, music, products, sheet_music, squad};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

/// Generates the first `rows` rows of a table in the shape of `dataset`, or all that it has. The same seed gives the same rows, however
/// many are asked for; tables of one seed fit together as the real ones do.
///
/// # Errors
/// If the catalogue has no such table, or lists other columns than its generator makes.
pub fn generate(dataset: &Dataset, rows: usize, seed: u64) -> Result<RecordBatch, ArrowError> {
    of_seed(dataset, rows, SplitMix64::new(seed))
}

fn of_seed(dataset: &Dataset, rows: usize, seed: SplitMix64) -> Result<RecordBatch, ArrowError> {
    match dataset.name {
        "movies" => movies::movies(dataset, rows, seed),
        "movies_15k" => movies::movies_15k(dataset, rows, seed),
        "products" => products::products(dataset, rows, seed),
        "bird" => bird::bird(dataset, rows, seed),
        "pdmx" => music::pdmx(dataset, rows, seed),
        "beer" => beer::beer(dataset, rows, seed),
        "squad" => squad::squad(dataset, rows, seed),
        "squad_rag" => squad::squad_rag(dataset, rows, seed),
        "fever_claims" => fever::fever_claims(dataset, rows, seed),
        "fever_evidence_pairs" => fever::fever_evidence_pairs(dataset, rows, seed),
        "fever_rag" => fever::fever_rag(dataset, rows, seed),
        name => Err(ArrowError::InvalidArgumentError(format!("cannot generate a table {name}: the catalogue has none"))),
    }
}

/// Generates the first `rows` rows of a table with the rows and columns of the paper's table that `dataset` stands for. Where it stands
/// for none, the table is that of [`generate`].
///
/// Tables that are smaller than the paper's are made longer by further ones of other seeds; nothing is in two of them.
///
/// # Errors
/// As [`generate`].
pub fn generate_as_in_the_paper(dataset: &Dataset, rows: usize, seed: u64) -> Result<RecordBatch, ArrowError> {
    let Some(paper) = dataset.paper else { return generate(dataset, rows, seed) };
    let (rows, seed) = (rows.min(paper.rows), SplitMix64::new(seed));
    match dataset.name {
        "movies" => return movies::movies_as_in_the_paper(dataset, rows, seed),
        "pdmx" => return sheet_music::pdmx(dataset, rows, seed),
        _ => {}
    }
    let mut parts = vec![of_seed(dataset, rows, seed.clone())?];
    let mut missing = rows - parts[0].num_rows();
    while missing > 0 {
        let number = parts.len() as u64;
        let part = of_seed(dataset, missing, seed.part("further", number))?;
        missing -= part.num_rows();
        parts.push(if dataset.name == "bird" { with_posts_of_its_own(&part, number)? } else { part });
    }
    concat_batches(&parts[0].schema(), &parts)
}

/// Gives the posts of a further part of `bird` numbers that no part before it has.
fn with_posts_of_its_own(part: &RecordBatch, number: u64) -> Result<RecordBatch, ArrowError> {
    let mut columns = part.columns().to_vec();
    let posts = part.column(0).as_primitive::<Int64Type>().values();
    columns[0] = Arc::new(Int64Array::from_iter_values(posts.iter().map(|post| post + 3_000_000 * number as i64)));
    RecordBatch::try_new(part.schema(), columns)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::catalogue::{dataset, datasets};

    #[test]
    fn every_table_has_its_rows_and_columns() {
        for dataset in datasets() {
            let table = generate(dataset, usize::MAX, 1).unwrap();
            assert_eq!((table.num_rows(), table.num_columns()), (dataset.rows, dataset.columns.len()), "{}", dataset.name);
        }
    }

    #[test]
    fn tables_are_as_large_as_the_papers() {
        let expected = [
            ("movies", 15_000, 8),
            ("movies_15k", 15_000, 11),
            ("products", 14_890, 8),
            ("bird", 14_920, 4),
            ("pdmx", 10_000, 57),
            ("beer", 28_479, 9),
            ("squad_rag", 22_665, 5),
            ("fever_rag", 19_929, 5),
        ];
        let sized = datasets().iter().filter(|dataset| dataset.paper.is_some()).map(|dataset| {
            let table = generate_as_in_the_paper(dataset, usize::MAX, 1).unwrap();
            assert_eq!(table.slice(0, 20), generate_as_in_the_paper(dataset, 20, 1).unwrap(), "{}", dataset.name);
            (dataset.name, table.num_rows(), table.num_columns())
        });
        assert_eq!(sized.collect::<Vec<_>>(), expected);
        let squad = dataset("squad").unwrap();
        assert_eq!(generate_as_in_the_paper(squad, 9, 1).unwrap(), generate(squad, 9, 1).unwrap());
    }

    #[test]
    fn further_parts_have_values_of_their_own() {
        let bird = generate_as_in_the_paper(dataset("bird").unwrap(), usize::MAX, 1).unwrap();
        let (first, further) = (bird.slice(0, 10_418), bird.slice(10_418, 4_502));
        let posts = |part: &RecordBatch| part.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert!(posts(&first).iter().max() < posts(&further).iter().min());
        let bodies = |part: &RecordBatch| -> HashSet<String> {
            part.column(2).as_string::<i32>().iter().flatten().map(str::to_owned).collect()
        };
        assert!(bodies(&first).is_disjoint(&bodies(&further)));
    }

    #[test]
    fn any_seed_gives_a_table() {
        for dataset in datasets() {
            (2..8).for_each(|seed| assert_eq!(generate(dataset, 3, seed).unwrap().num_rows(), 3, "{} {seed}", dataset.name));
        }
    }

    #[test]
    fn a_seed_gives_one_table_whose_beginning_does_not_depend_on_its_length() {
        for dataset in datasets() {
            let table = generate(dataset, 200, 1).unwrap();
            assert_eq!(table.slice(0, 50), generate(dataset, 50, 1).unwrap(), "{}", dataset.name);
            assert_ne!(table, generate(dataset, 200, 2).unwrap(), "{}", dataset.name);
        }
    }
}
