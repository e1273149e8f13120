//! Statements that run one after the other, and what they give as lines of JSON, one object a line.
//!
//! | line | when |
//! |---|---|
//! | `{"columns": […]}` | a statement that returns rows is planned |
//! | `{"query": {…}}` | four times a second while it runs: how far it is |
//! | `{"rows": [[…], …]}` | rows, as they are finished, up to a limit |
//! | `{"end": {…}}` | it has ended |
//! | `{"error": "…"}` | it has failed, and what follows does not run |
//! | `{}` | while a statement runs that returns no rows |
//!
//! Lines come also while there is nothing to tell, so that a reader that has gone is noticed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::common::runtime::SpawnedTask;
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::{Code, Status};

use super::state;
use crate::cells::column_texts;
use crate::flight::{Reading, Session, Shared};

/// How often it is told how far a query is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Lines that wait for their reader.
const LINES_WAITING: usize = 16;

/// Rows of one line.
const ROWS_OF_LINE: usize = 500;

/// The longest text of a cell, in bytes; the page is for looking at.
const CELL_BYTES_MAX: usize = 8 << 10;

/// What is to run.
pub(super) struct Script {
    /// Statements, parted by semicolons.
    pub(super) sql: String,
    /// Rows of each result that are sent; all of them are made and counted.
    pub(super) rows_max: u64,
    /// Whether queries are estimated before they run.
    pub(super) estimates: bool,
}

/// Runs a script. Dropping the lines cancels what still runs.
pub(super) fn lines(
    shared: Arc<Shared>,
    session: Arc<Session>,
    script: Script,
) -> impl Stream<Item = Result<String, Infallible>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(LINES_WAITING);
    let running = Running { shared, session, script, lines: Lines(sender) };
    let task = SpawnedTask::spawn(async move {
        if let Err(status) = running.run().await {
            let line = json!({"error": status.message(), "cancelled": status.code() == Code::Cancelled});
            // Whoever does not read any more needs no error.
            let _ = running.lines.send(&line).await;
        }
    });
    stream::unfold((receiver, task), |(mut receiver, task)| async move {
        let line = receiver.recv().await?;
        Some((Ok(line), (receiver, task)))
    })
}

struct Running {
    shared: Arc<Shared>,
    session: Arc<Session>,
    script: Script,
    lines: Lines,
}

struct Lines(mpsc::Sender<String>);

impl Lines {
    async fn send(&self, line: &Value) -> Result<(), Status> {
        self.0.send(format!("{line}\n")).await.map_err(|_| Status::cancelled("nobody reads the result any more"))
    }
}

impl Running {
    async fn run(&self) -> Result<(), Status> {
        let statements = self.session.db.statements(&self.script.sql)?;
        if statements.is_empty() {
            return Err(Status::invalid_argument("there is no statement to run"));
        }
        for statement in &statements {
            self.run_statement(statement).await?;
        }
        Ok(())
    }

    async fn run_statement(&self, statement: &str) -> Result<(), Status> {
        let trace = self.shared.trace(&self.session, statement);
        let query = trace.part("plan", self.shared.plan(&self.session, statement)).await?;
        let mut ticks = interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if query.returns_rows() {
            let query = if self.script.estimates { query.with_estimates() } else { query };
            return self.send_rows(self.shared.read(&self.session, query, trace)?, ticks).await;
        }
        let mut update = std::pin::pin!(self.shared.update(&self.session, vec![query], trace));
        let changed = loop {
            tokio::select! {
                changed = &mut update => break changed?,
                _ = ticks.tick() => self.lines.send(&json!({})).await?,
            }
        };
        self.lines.send(&json!({"end": {"changed": changed}})).await
    }

    /// Sends the rows of a statement, and between them how far it is.
    async fn send_rows(&self, mut reading: Reading, mut ticks: Interval) -> Result<(), Status> {
        let flow = reading.rows.flow();
        let columns: Vec<Value> = reading.schema.fields().iter().map(column).collect();
        self.lines.send(&json!({"columns": columns})).await?;
        let (mut sent, mut count) = (0, 0);
        loop {
            tokio::select! {
                batch = reading.rows.next() => {
                    let Some(batch) = batch.transpose()? else { break };
                    let wanted = (self.script.rows_max - sent).min(batch.num_rows() as u64);
                    self.send_batch(&batch.slice(0, wanted as usize), &reading.schema).await?;
                    sent += wanted;
                    count += batch.num_rows();
                }
                _ = ticks.tick() => self.lines.send(&self.progress(flow.query_id())).await?,
            }
        }
        if flow.query_id().is_some() {
            self.lines.send(&self.progress(flow.query_id())).await?;
        }
        self.lines.send(&json!({"end": {"rows": count, "shown": sent, "notice": flow.notice()}})).await
    }

    async fn send_batch(&self, batch: &RecordBatch, schema: &SchemaRef) -> Result<(), Status> {
        for start in (0..batch.num_rows()).step_by(ROWS_OF_LINE) {
            let part = batch.slice(start, ROWS_OF_LINE.min(batch.num_rows() - start));
            self.lines.send(&json!({"rows": rows(&part, schema)?})).await?;
        }
        Ok(())
    }

    fn progress(&self, query_id: Option<u64>) -> Value {
        let found = query_id.and_then(|id| self.session.db.query_log().find(id));
        found.map_or_else(|| json!({}), |query| json!({"query": state::query(query)}))
    }
}

fn column(field: &FieldRef) -> Value {
    let data_type = field.data_type();
    json!({"name": field.name(), "type": data_type.to_string(), "is_number": data_type.is_numeric()})
}

/// Returns rows as lists of texts; NULL is null.
fn rows(batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<Vec<Option<String>>>, Status> {
    let failed = |error| Status::internal(format!("cannot write a value as text: {error}"));
    let mut columns = vec![];
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        columns.push(column_texts(field, column).map_err(failed)?.into_iter());
    }
    let row = |_| columns.iter_mut().map(|column| column.next().flatten().map(shortened)).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}

fn shortened(mut text: String) -> String {
    if text.len() > CELL_BYTES_MAX {
        text.truncate(text.floor_char_boundary(CELL_BYTES_MAX));
        text.push('…');
    }
    text
}
