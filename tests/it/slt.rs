//! SQL answers as files: every `.slt` runs with the optimisations on and off, and must answer the same.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use refrain::serving::RowFailure;
use refrain::serving::mock::{MockBackend, MockReply};
use refrain::{ModelSource, Refrain};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

use crate::support::session;

/// Settings that change cost and must not change answers.
const OPTIMIZED: &[(&str, &str)] = &[];
const BASELINE: &[(&str, &str)] = &[
    ("layout", "instruction_first"),
    ("reorder", "none"),
    ("dedup", "off"),
    ("prefix_cache", "false"),
    ("cache", "off"),
    ("disabled_rewrites", "all"),
];
const ROWS_ONLY: &[(&str, &str)] = &[("reorder", "rows"), ("reorder_window", "2"), ("cache", "session")];
const DATA_FIRST: &[(&str, &str)] = &[("layout", "data_first")];

async fn run(file: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("slt").join(file);
    let folder = tempfile::tempdir().unwrap();
    let persistent = [("cache", "persistent"), ("cache_dir", folder.path().to_str().unwrap())];
    // The second time all answers are those of the first.
    for settings in [OPTIMIZED, BASELINE, ROWS_ONLY, DATA_FIRST, &persistent, &persistent] {
        let mut runner = Runner::new(|| async {
            let db = session(settings).await.0;
            if file == "embeddings.slt" {
                db.model_catalog().add("vectors", word_counter(), true).unwrap();
            }
            Ok(Database { db })
        });
        if let Err(error) = runner.run_file_async(&path).await {
            panic!("{file} with {settings:?}: {error}");
        }
    }
}

/// A model that counts words in 64 dimensions and fails texts that hold `FAIL`.
fn word_counter() -> ModelSource {
    let fails = |prompt: &str| prompt.contains("FAIL").then(|| MockReply::Fail(RowFailure::Schema("nonsense".to_owned())));
    ModelSource::Backend(Arc::new(MockBackend::new(1).embedding(64).answer(fails)))
}

macro_rules! files {
    ($($name:ident)+) => { $(#[tokio::test] async fn $name() { run(concat!(stringify!($name), ".slt")).await; })+ };
}

files! { aggregates functions embeddings joins modes nulls options passages cache errors models prompts secrets system_tables }

/// Every file in the folder is run.
#[test]
fn no_file_is_forgotten() {
    let here = include_str!("slt.rs");
    for entry in std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("slt")).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(here.contains(&name), "{name}.slt is not run");
    }
}

struct Database {
    db: Refrain,
}

#[derive(Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

#[async_trait::async_trait]
impl AsyncDB for Database {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failed> {
        let failed = |error: refrain::Error| Failed(error.to_string());
        let mut run = self.db.sql(sql).await.map_err(failed)?.execute().await.map_err(failed)?;
        let types: Vec<_> = run.schema().fields().iter().map(|field| column_type(field.data_type())).collect();
        let batches = run.fetch_all().await.map_err(failed)?;
        if types.is_empty() {
            return Ok(DBOutput::StatementComplete(0));
        }
        let options = FormatOptions::default().with_null("NULL");
        let mut rows = vec![];
        for batch in &batches {
            let columns: Vec<_> =
                batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
            for row in 0..batch.num_rows() {
                let cells = columns.iter().map(|column| column.value(row).to_string());
                rows.push(cells.map(|cell| if cell.is_empty() { "(empty)".to_owned() } else { cell }).collect());
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "refrain"
    }

    async fn sleep(duration: std::time::Duration) {
        tokio::time::sleep(duration).await;
    }
}

fn column_type(data_type: &DataType) -> DefaultColumnType {
    match data_type {
        t if t.is_integer() => DefaultColumnType::Integer,
        t if t.is_floating() => DefaultColumnType::FloatingPoint,
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Boolean => DefaultColumnType::Text,
        _ => DefaultColumnType::Any,
    }
}
