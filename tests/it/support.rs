//! Sessions over a scripted model, and their rows as text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionConfig;
use refrain::serving::mock::{MockBackend, MockReply};
use refrain::serving::{Backend, RowFailure};
use refrain::{ModelSource, Refrain, Result};
use refrain_datasets::queries::Query;

/// Counts what the model was asked.
#[derive(Clone)]
pub(crate) struct Oracle(pub Arc<MockBackend>);

impl Oracle {
    /// Returns the number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.0.calls() as usize
    }

    /// Returns the prompts so far.
    pub(crate) fn prompts(&self) -> Vec<String> {
        self.0.prompts()
    }
}

/// A session whose only model answers by rule: a filter is true if the data holds the instruction, free text is the instruction
/// with the data in parentheses, JSON is `{"n": 1, "b": DATA}`, anything else is the mock's own choice. Data that holds `FAIL` fails.
pub(crate) async fn session(settings: &[(&str, &str)]) -> (Refrain, Oracle) {
    session_with(settings, MockBackend::new(1)).await
}

/// As [`session`], over a mock that has rules of its own, which are asked first.
pub(crate) async fn session_with(settings: &[(&str, &str)], mock: MockBackend) -> (Refrain, Oracle) {
    let oracle = Oracle(Arc::new(mock.answer(reply)));
    let model = Arc::clone(&oracle.0) as Arc<dyn Backend>;
    let mut builder =
        Refrain::builder().config(SessionConfig::new().with_target_partitions(4)).model("mock", ModelSource::Backend(model));
    for (key, value) in settings {
        builder = builder.setting(*key, *value);
    }
    (builder.build().await.unwrap(), oracle)
}

fn reply(prompt: &str) -> Option<MockReply> {
    let user = prompt.split("<|assistant|>").next().unwrap_or(prompt);
    let user = user.rsplit("<|user|>").next().unwrap_or(user);
    let (instruction, data) = instruction_and_data(user);
    let data = values(data);
    if data.contains("FAIL") {
        return Some(MockReply::Fail(RowFailure::Schema("nonsense".to_owned())));
    }
    if let Some(wanted) = instruction.strip_suffix(" Answer with ONLY 'Yes' or 'No'.") {
        let wanted = wanted.trim_end_matches(['.', '?']);
        return Some(MockReply::text(if data.contains(wanted) { "Yes" } else { "No" }));
    }
    if instruction.len() > 40 {
        return instruction.contains("JSON").then(|| MockReply::text(format!("{{\"n\": 1, \"b\": \"{data}\"}}")));
    }
    Some(MockReply::text(format!("{instruction}({data})")))
}

/// Takes a prompt apart, whichever of the two comes first.
fn instruction_and_data(user: &str) -> (&str, &str) {
    let (query, given) = ("Answer the below query:\n\n", "Given the following data:\n");
    if let Some((data, instruction)) = user.strip_prefix(given).and_then(|rest| rest.split_once(&format!("\n\n{query}"))) {
        return (instruction, data);
    }
    let question = user.split_once(query).map_or(user, |(_, question)| question);
    question.split_once(&format!("\n\n{given}")).unwrap_or((question, ""))
}

/// Joins the values of a JSON object; NULL is nothing. Of several rows, one a line, it joins those of each by commas.
fn values(data: &str) -> String {
    if data.ends_with('\n') {
        return data.lines().map(values).collect::<Vec<_>>().join(",");
    }
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(data) else { return String::new() };
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    // In the order of their labels, so that reordering of fields does not show.
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields.into_iter().map(|(_, value)| text(value)).collect()
}

/// Runs one statement and returns its rows, cells joined by `|`.
pub(crate) async fn rows(db: &Refrain, sql: &str) -> Result<Vec<String>> {
    let batches = db.sql(sql).await?.execute().await?.fetch_all().await?;
    Ok(batches.iter().flat_map(text_rows).collect())
}

/// Returns the rows of a batch, cells joined by `|`.
pub(crate) fn text_rows(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}

/// Prepares what a query of a benchmark needs besides its tables, and returns its text with the values of its parameters.
pub(crate) async fn run_setup(db: &Refrain, query: &Query) -> String {
    if let Some(setup) = query.setup {
        rows(db, setup).await.unwrap();
    }
    let mut sql = query.sql.to_owned();
    for (name, value) in query.parameters {
        sql = sql.replace(&format!("${name}"), &rows(db, value).await.unwrap()[0]);
    }
    sql
}

/// The folders where real tables may lie: in `REFRAIN_DATA`, or in `shared/data` beside the checkout.
pub(crate) fn real_folders() -> Vec<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    refrain_datasets::local::folders(std::env::var_os("REFRAIN_DATA").map(PathBuf::from), &checkout)
}

/// Returns the file of a real table, if it is there.
pub(crate) fn real_table(name: &str) -> Option<PathBuf> {
    refrain_datasets::local::find(name, &real_folders())
}
