//! Where statements run: in this process, or on a server. What commands ask of either is the same.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use tokio::sync::watch;

use super::complete::Vocabulary;
use super::error::Outcome;
use crate::forecast::Forecast;
use crate::{Progress, QueryUsage};

/// Something that runs statements, and knows what they may name.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// Says what this is: version, place, default model.
    async fn about(&self) -> Outcome<String>;

    /// Says which model answers by default.
    async fn default_model(&self) -> Outcome<String>;

    /// What stands before the line that the user types.
    fn prompt(&self) -> String;

    /// Plans and starts a statement. Dropping the future, or what it returns, stops the statement.
    async fn start(&self, sql: &str) -> Outcome<Box<dyn Statement>>;

    /// Says what a statement would cost. Calls no model.
    async fn estimate(&self, sql: &str) -> Outcome<String>;

    /// Says what a statement is expected to cost, if that exceeds `refrain.confirm_above` or is not known. Calls no model.
    async fn forecast(&self, sql: &str) -> Outcome<Option<Forecast>>;

    /// Says whether a statement would change more than settings of the session.
    async fn changes_something(&self, sql: &str) -> Outcome<bool>;

    /// Lists tables and views.
    async fn tables(&self) -> Outcome<RecordBatch>;

    /// Lists the columns of a table; the name is read as SQL reads it.
    async fn columns(&self, table: &str) -> Outcome<RecordBatch>;

    /// Lists models.
    async fn models(&self) -> Outcome<RecordBatch>;

    /// Lists the functions whose names match a pattern in which `*` stands for anything.
    async fn functions(&self, pattern: &str) -> Outcome<RecordBatch>;

    /// Lists the settings whose names match a pattern.
    async fn settings(&self, pattern: &str) -> Outcome<RecordBatch>;

    /// Returns what is documented of one function.
    async fn help_on(&self, function: &str) -> Outcome<String>;

    /// Gathers the names that statements may use now.
    async fn vocabulary(&self) -> Vocabulary;

    /// Ends the session, if somebody else keeps it.
    async fn leave(&self) {}
}

/// A statement that runs. Dropping it stops it.
#[async_trait]
pub(crate) trait Statement: Send {
    /// The columns of its result; none where it gives no rows.
    fn schema(&self) -> SchemaRef;

    /// Returns the next rows, `None` after the last. A call that is dropped before its end loses nothing.
    async fn next(&mut self) -> Outcome<Option<RecordBatch>>;

    /// Returns how far it is, from now on.
    fn progress(&mut self) -> watch::Receiver<Progress>;

    /// Stops it.
    fn cancel(&mut self);

    /// Returns what it has come to, once it has ended or was stopped.
    async fn account(&mut self) -> Outcome<Account>;
}

/// What a statement has come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Its number.
    pub(crate) id: u64,
    /// What its model calls came to.
    pub(crate) usage: QueryUsage,
    /// Its failed inputs: function, reason, message, inputs.
    pub(crate) failed: Vec<[String; 4]>,
}
