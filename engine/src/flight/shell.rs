//! What the shell asks of its server beside SQL: who the two are, what a statement would cost, and how its last one is going.
//!
//! Actions with names of our own, bodies and answers in JSON or plain text. They wait for nobody, and are entered in no log.

use std::sync::Arc;

use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::service::Shared;
use super::sessions::Session;
use super::status::malformed;
use crate::forecast::Forecast;
use crate::operators::{Progress, QueryUsage, RowError};
use crate::queries::QueryRecord;

/// Asks for a [`Greeting`].
pub(crate) const GREET: &str = "refrain.Greet";

/// Asks for the text of an estimate; the body is the statement.
pub(crate) const ESTIMATE: &str = "refrain.Estimate";

/// Asks for a [`Forecast`], or null where there is nothing to ask about; the body is the statement.
pub(crate) const FORECAST: &str = "refrain.Forecast";

/// Asks whether a statement would change something; the body is the statement.
pub(crate) const CHANGES: &str = "refrain.Changes";

/// Asks for a [`QueryReport`] of the session's last statement.
pub(crate) const LAST_QUERY: &str = "refrain.LastQuery";

/// Who the server is, and who it takes the client for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The server's version.
    pub(crate) version: String,
    /// The session's number in `ai_queries()`.
    pub(crate) session: String,
    /// The user.
    pub(crate) user: String,
}

/// How a statement is going, or has gone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct QueryReport {
    /// Its number in `ai_queries()`; 0 where the session has run none.
    pub(crate) id: u64,
    /// How far its calls are.
    pub(crate) progress: Progress,
    /// What they have cost.
    pub(crate) usage: QueryUsage,
    /// Inputs that failed, once the statement has ended, as [`RowError::listed`] tells them.
    pub(crate) failed: Vec<[String; 4]>,
}

impl QueryReport {
    fn of(query: &QueryRecord) -> Self {
        let nodes = query.nodes();
        let failed = match query.is_running() {
            true => vec![],
            false => query.errors().into_iter().map(RowError::listed).collect(),
        };
        QueryReport { id: query.id, progress: Progress::of(&nodes), usage: QueryUsage::of(&nodes), failed }
    }
}

impl Shared {
    /// Answers a shell that has connected.
    pub(super) fn greet(&self, session: &Session) -> Result<Bytes, Status> {
        json(&Greeting {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            session: session.id.to_string(),
            user: session.user.to_string(),
        })
    }

    /// Estimates a statement; calls no model.
    pub(super) async fn estimate(&self, session: &Session, body: &[u8]) -> Result<Bytes, Status> {
        Ok(self.plan(session, text(body)?).await?.estimate().await?.to_string().into())
    }

    /// Tells what a statement is expected to cost, if its user wants to be asked; calls no model.
    pub(super) async fn forecast(&self, session: &Session, body: &[u8]) -> Result<Bytes, Status> {
        if session.db.settings().confirm_above.is_none() {
            return json(&None::<Forecast>);
        }
        json(&self.plan(session, text(body)?).await?.forecast().await?)
    }

    /// Tells whether a statement would change something.
    pub(super) async fn changes(&self, session: &Session, body: &[u8]) -> Result<Bytes, Status> {
        json(&self.plan(session, text(body)?).await?.changes_something())
    }

    /// Tells how the session's last statement is going.
    pub(super) fn last_query(&self, session: &Arc<Session>) -> Result<Bytes, Status> {
        let last = session.db.last_query();
        json(&last.map(|query| QueryReport::of(&query)).unwrap_or_default())
    }
}

fn text(body: &[u8]) -> Result<&str, Status> {
    std::str::from_utf8(body).map_err(|error| malformed("the statement", error))
}

fn json(value: &impl Serialize) -> Result<Bytes, Status> {
    let text = serde_json::to_vec(value).map_err(|error| Status::internal(format!("cannot write an answer: {error}")))?;
    Ok(text.into())
}
