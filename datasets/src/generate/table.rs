//! The generator of each table of the catalogue.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::{beer, bird, fever, movies, music, products, squad};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

/// Generates the first `rows` rows of a table in the shape of `dataset`, or all that it has. The same seed gives the same rows, however
/// many are asked for; tables of one seed fit together as the real ones do.
///
/// # Errors
/// If the catalogue has no such table, or lists other columns than its generator makes.
pub fn generate(dataset: &Dataset, rows: usize, seed: u64) -> Result<RecordBatch, ArrowError> {
    let seed = SplitMix64::new(seed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::datasets;

    #[test]
    fn every_table_has_its_rows_and_columns() {
        for dataset in datasets() {
            let table = generate(dataset, usize::MAX, 1).unwrap();
            assert_eq!((table.num_rows(), table.num_columns()), (dataset.rows, dataset.columns.len()), "{}", dataset.name);
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
