//! One statement that runs on a server. Whatever ends it early here ends it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::{Action, CancelFlightInfoRequest, FlightInfo};
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use futures::TryStreamExt;
use prost::Message;
use prost::bytes::Bytes;
use tokio::sync::watch;

use super::connection::{Client, Remote, act, read, ticket};
use crate::Progress;
use crate::cli::error::Outcome;
use crate::cli::place::{Account, Statement};
use crate::flight::shell::{LAST_QUERY, QueryReport};

/// How often the server is asked how far a statement is.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A statement on a server.
pub(super) struct RemoteStatement {
    schema: SchemaRef,
    /// `None` once it is cancelled.
    rows: Option<FlightRecordBatchStream>,
    client: Client,
    accounted: Arc<AtomicU64>,
    progress: Option<(watch::Receiver<Progress>, SpawnedTask<()>)>,
}

impl Remote {
    /// Plans and starts a statement.
    pub(super) async fn start_statement(&self, sql: &str) -> Outcome<RemoteStatement> {
        let mut client = self.client();
        let info = client.execute(sql.to_owned(), None).await?;
        let mut offered = Offered { client: client.clone(), info: Some(info.clone()) };
        let schema = Arc::new(info.clone().try_decode_schema()?);
        let rows = client.do_get(ticket(&info)?).await?;
        offered.info = None;
        Ok(RemoteStatement { schema, rows: Some(rows), client, accounted: Arc::clone(&self.accounted), progress: None })
    }
}

/// What the server has given a ticket for, until its rows are asked for. A change runs by then, so leaving cancels it.
struct Offered {
    client: Client,
    info: Option<FlightInfo>,
}

impl Drop for Offered {
    fn drop(&mut self) {
        let Some(info) = self.info.take() else { return };
        let mut client = self.client.clone();
        tokio::spawn(async move {
            let action = Action::new("CancelFlightInfo", CancelFlightInfoRequest::new(info).encode_to_vec());
            // What has ended by itself needs no end.
            let _ = client.do_action(action).await;
        });
    }
}

#[async_trait]
impl Statement for RemoteStatement {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    async fn next(&mut self) -> Outcome<Option<RecordBatch>> {
        let Some(rows) = &mut self.rows else { return Ok(None) };
        // A batch of no rows carries a notice, which the account tells better.
        loop {
            match rows.try_next().await? {
                Some(batch) if batch.num_rows() == 0 => {}
                next => return Ok(next),
            }
        }
    }

    fn progress(&mut self) -> watch::Receiver<Progress> {
        let (receiver, _) = self.progress.get_or_insert_with(|| {
            let (sender, receiver) = watch::channel(Progress::default());
            let (client, accounted) = (self.client.clone(), Arc::clone(&self.accounted));
            let task = SpawnedTask::spawn(async move {
                while !sender.is_closed() {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    // A server that does not answer is noticed where its rows are read.
                    if let Ok(Some(report)) = report(&client, &accounted).await {
                        sender.send_replace(report.progress);
                    }
                }
            });
            (receiver, task)
        });
        receiver.clone()
    }

    fn cancel(&mut self) {
        self.rows = None;
    }

    async fn account(&mut self) -> Outcome<Account> {
        self.progress = None;
        let Some(report) = report(&self.client, &self.accounted).await? else { return Ok(Account::default()) };
        self.accounted.store(report.id, Ordering::Relaxed);
        Ok(Account { id: report.id, usage: report.usage, failed: report.failed })
    }
}

/// Asks for the session's last statement; `None` if it is one that has been accounted for.
async fn report(client: &Client, accounted: &AtomicU64) -> Outcome<Option<QueryReport>> {
    let report: QueryReport = read(&act(client, LAST_QUERY, Bytes::new()).await?)?;
    Ok((report.id > accounted.load(Ordering::Relaxed)).then_some(report))
}
