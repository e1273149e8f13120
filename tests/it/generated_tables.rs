//! Generated tables against the real ones: strategies of reordering save as much on both, within five points.
//!
//! Both are cut after their first rows, so that the searches end soon; `docs/datasets.md` compares whole tables. After a change of a
//! generator `cargo test --workspace -- generated_tables --nocapture` prints the rates that are kept here.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use refrain::serving::load::{BundledModel, bundled};
use refrain_datasets::catalogue::{Dataset, dataset};
use refrain_datasets::generate::generate;

use crate::hit_rates::{STRATEGIES, hit_rates};
use crate::support::real_folders;

/// Rows of each table.
const ROWS: usize = 2_000;

/// Points that hit rates may be apart.
const TOLERANCE: f64 = 5.0;

/// Hit rates of the first rows of the real tables in percent, and of the generated ones of seed 1, under each of [`STRATEGIES`].
const RATES: [(&str, [f64; 6], [f64; 6]); 8] = [
    ("movies", [2.7, 2.7, 84.4, 84.4, 84.1, 84.4], [2.6, 2.6, 82.5, 82.5, 81.7, 82.5]),
    ("movies_15k", [1.9, 1.9, 85.3, 85.3, 84.8, 85.3], [1.7, 1.7, 84.4, 84.4, 83.7, 84.4]),
    ("products", [8.8, 8.8, 75.4, 75.4, 74.3, 75.4], [8.6, 8.6, 74.3, 74.3, 73.6, 74.3]),
    ("bird", [69.5, 69.5, 69.9, 69.9, 69.5, 69.9], [69.2, 69.2, 69.2, 69.2, 69.2, 69.2]),
    ("pdmx", [6.1, 6.1, 19.4, 21.5, 17.6, 21.5], [6.3, 6.3, 20.1, 21.7, 16.9, 21.7]),
    ("beer", [18.3, 18.3, 63.4, 63.4, 58.7, 63.4], [16.9, 16.9, 60.7, 60.7, 55.7, 60.7]),
    ("squad_rag", [0.8, 0.8, 27.2, 30.5, 27.6, 30.5], [0.8, 0.8, 24.7, 30.7, 25.2, 30.7]),
    ("fever_rag", [2.7, 2.7, 24.4, 28.3, 24.6, 28.3], [2.4, 2.4, 23.2, 27.1, 22.5, 27.1]),
];

#[track_caller]
fn check_close(name: &str, what: &str, rates: [f64; 6], expected: [f64; 6], tolerance: f64) {
    for ((strategy, rate), expected) in STRATEGIES.iter().zip(rates).zip(expected) {
        assert!((rate - expected).abs() <= tolerance, "{name}, {what}, {strategy}: {rate:.1} %, expected {expected:.1} %");
    }
}

fn rates(name: &str, batches: &[RecordBatch]) -> [f64; 6] {
    let tokenizer = bundled(BundledModel::Mini).unwrap().tokenizer;
    let rates = hit_rates(batches, tokenizer.as_ref()).0.map(|rate| (10.0 * rate).round() / 10.0);
    println!("{name} {rates:?}");
    rates
}

/// Reads the first rows of a real table, in the order of the file.
async fn real(table: &Dataset) -> Option<Vec<RecordBatch>> {
    let path = table.local(&real_folders()).filter(|path| path.extension().is_some_and(|ending| ending == "parquet"))?;
    let frame = SessionContext::new().read_parquet(path.display().to_string(), ParquetReadOptions::default()).await.unwrap();
    Some(frame.limit(0, Some(ROWS)).unwrap().collect().await.unwrap())
}

/// Checks the table at this place of [`RATES`].
async fn check(at: usize) {
    let (name, expected, kept) = RATES[at];
    check_close(name, "kept", kept, expected, TOLERANCE);
    let table = dataset(name).unwrap();
    let generated = rates(name, &[generate(table, ROWS, 1).unwrap()]);
    check_close(name, "generated", generated, kept, 0.11);
    match real(table).await {
        Some(real) => check_close(name, "real", rates(name, &real), expected, 0.11),
        None => {
            println!("{name}: only the generated table was checked; there is no real one in REFRAIN_DATA or shared/data")
        }
    }
}

macro_rules! tables {
    ($($name:ident $at:literal)+) => { $(#[tokio::test] async fn $name() { check($at).await; })+ };
}

tables! { movies 0 movies_15k 1 products 2 bird 3 pdmx 4 beer 5 squad_rag 6 fever_rag 7 }

/// Real tables have the columns that the catalogue lists, since generators follow it.
#[tokio::test]
async fn the_catalogue_lists_the_columns_of_the_real_tables() {
    for table in refrain_datasets::catalogue::datasets() {
        let (Some(real), generated) = (real(table).await, generate(table, 1, 1).unwrap()) else { continue };
        let columns = |batch: &RecordBatch| -> Vec<(String, DataType)> {
            let text = |data_type: &DataType| match data_type {
                DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                other => other.clone(),
            };
            batch.schema().fields().iter().map(|field| (field.name().clone(), text(field.data_type()))).collect()
        };
        assert_eq!(columns(&real[0]), columns(&generated), "{}", table.name);
    }
}
