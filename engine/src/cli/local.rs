//! Statements that run in this process.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::TryStreamExt;
use tokio::sync::watch;

use super::catalog;
use super::complete::Vocabulary;
use super::dispatch::version;
use super::error::Outcome;
use super::place::{Account, Place, Statement};
use crate::forecast::Forecast;
use crate::{Progress, Refrain, RowError, Run};

#[async_trait]
impl Place for Refrain {
    async fn about(&self) -> Outcome<String> {
        // Looking for a GPU takes a while.
        let db = self.clone();
        let device = tokio::task::spawn_blocking(move || db.device()).await.unwrap_or_else(|error| error.to_string());
        Ok(format!("refrain {}  {}\n{device}", version(), self.banner()))
    }

    async fn default_model(&self) -> Outcome<String> {
        Ok(self.banner())
    }

    fn prompt(&self) -> String {
        "refrain> ".to_owned()
    }

    async fn start(&self, sql: &str) -> Outcome<Box<dyn Statement>> {
        Ok(Box::new(self.sql(sql).await?.execute().await?))
    }

    async fn estimate(&self, sql: &str) -> Outcome<String> {
        Ok(self.sql(sql).await?.estimate().await?.to_string())
    }

    async fn forecast(&self, sql: &str) -> Outcome<Option<Forecast>> {
        if self.settings().confirm_above.is_none() {
            return Ok(None);
        }
        Ok(self.sql(sql).await?.forecast().await?)
    }

    async fn changes_something(&self, sql: &str) -> Outcome<bool> {
        Ok(self.sql(sql).await?.changes_something())
    }

    async fn tables(&self) -> Outcome<RecordBatch> {
        catalog::tables(self.context()).await
    }

    async fn columns(&self, table: &str) -> Outcome<RecordBatch> {
        catalog::columns(self.context(), table).await
    }

    async fn models(&self) -> Outcome<RecordBatch> {
        catalog::models(&Refrain::models(self))
    }

    async fn functions(&self, pattern: &str) -> Outcome<RecordBatch> {
        catalog::functions(self.context(), pattern)
    }

    async fn settings(&self, pattern: &str) -> Outcome<RecordBatch> {
        catalog::settings(self.context(), pattern)
    }

    async fn help_on(&self, function: &str) -> Outcome<String> {
        catalog::help_on(self.context(), function)
    }

    async fn vocabulary(&self) -> Vocabulary {
        Vocabulary::of(self).await
    }
}

#[async_trait]
impl Statement for Run {
    fn schema(&self) -> SchemaRef {
        Run::schema(self)
    }

    async fn next(&mut self) -> Outcome<Option<RecordBatch>> {
        Ok(self.try_next().await?)
    }

    fn progress(&mut self) -> watch::Receiver<Progress> {
        Run::progress(self)
    }

    fn cancel(&mut self) {
        self.cancel_handle().cancel();
    }

    async fn account(&mut self) -> Outcome<Account> {
        let failed = self.row_errors().into_iter().map(RowError::listed).collect();
        Ok(Account { id: self.query_id(), usage: self.usage(), failed })
    }
}
