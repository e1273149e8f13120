//! The actions of Flight SQL: prepared statements, cancellation, session options.

use std::sync::Arc;

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, Command, ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo, IpcMessage, SchemaAsIpc,
};
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::ipc::writer::IpcWriteOptions;
use prost::Message;
use prost::bytes::Bytes;
use tonic::Status;

use super::service::{Shared, command};
use super::session_options::{self, CLOSED, CloseSessionResult, SetSessionOptionsRequest};
use super::sessions::Session;
use super::shell::{CHANGES, ESTIMATE, FORECAST, GREET, LAST_QUERY};
use super::statements::Prepared;
use super::status::{malformed, sql};

const CREATE_PREPARED_STATEMENT: &str = "CreatePreparedStatement";
const CLOSE_PREPARED_STATEMENT: &str = "ClosePreparedStatement";
const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
const CANCEL_QUERY: &str = "CancelQuery";
const SET_SESSION_OPTIONS: &str = "SetSessionOptions";
const GET_SESSION_OPTIONS: &str = "GetSessionOptions";
const CLOSE_SESSION: &str = "CloseSession";

/// Name and meaning of every action.
const ACTIONS: [(&str, &str); 12] = [
    (CREATE_PREPARED_STATEMENT, "Prepares a statement: ActionCreatePreparedStatementRequest"),
    (CLOSE_PREPARED_STATEMENT, "Forgets a prepared statement: ActionClosePreparedStatementRequest"),
    (CANCEL_FLIGHT_INFO, "Cancels a query: CancelFlightInfoRequest"),
    (CANCEL_QUERY, "Cancels a query, in the older form: ActionCancelQueryRequest"),
    (SET_SESSION_OPTIONS, "Changes settings of the session: SetSessionOptionsRequest"),
    (GET_SESSION_OPTIONS, "Returns the settings of the session: GetSessionOptionsRequest"),
    (CLOSE_SESSION, "Ends the session and its queries: CloseSessionRequest"),
    (GREET, "For Refrain's shell: version, session and user as JSON"),
    (ESTIMATE, "For Refrain's shell: what the statement in the body would cost, as text"),
    (
        FORECAST,
        "For Refrain's shell: what the statement in the body would cost in sum, as JSON, or null where nobody need be asked",
    ),
    (CHANGES, "For Refrain's shell: whether the statement in the body would change something, as JSON"),
    (LAST_QUERY, "For Refrain's shell: how the session's last statement is going, as JSON"),
];

/// Lists the actions.
pub(super) fn action_types() -> impl Iterator<Item = ActionType> {
    ACTIONS.iter().map(|(name, meaning)| ActionType { r#type: (*name).to_owned(), description: (*meaning).to_owned() })
}

impl Shared {
    /// Does what an action says. Returns the body of its answer, if it has one.
    pub(super) async fn act(self: &Arc<Self>, session: &Arc<Session>, action: &Action) -> Result<Option<Bytes>, Status> {
        let body = &action.body;
        let answer = match action.r#type.as_str() {
            CREATE_PREPARED_STATEMENT => {
                let request: ActionCreatePreparedStatementRequest = packed(body)?;
                if request.transaction_id.is_some() {
                    return Err(Status::unimplemented("there are no transactions"));
                }
                self.prepare(session, &request.query).await?.as_any().encode_to_vec()
            }
            CLOSE_PREPARED_STATEMENT => {
                let request: ActionClosePreparedStatementRequest = packed(body)?;
                session.prepared.remove(&request.prepared_statement_handle);
                return Ok(None);
            }
            CANCEL_FLIGHT_INFO => {
                let request: CancelFlightInfoRequest = plain(body)?;
                cancel(session, &request.info.unwrap_or_default())?;
                CancelFlightInfoResult::new(CancelStatus::Cancelled).encode_to_vec()
            }
            CANCEL_QUERY => {
                let request: ActionCancelQueryRequest = packed(body)?;
                cancel(session, &plain(&request.info)?)?;
                // Its codes are those of CancelStatus.
                ActionCancelQueryResult { result: CancelStatus::Cancelled as i32 }.as_any().encode_to_vec()
            }
            SET_SESSION_OPTIONS => {
                let request: SetSessionOptionsRequest = plain(body)?;
                session_options::set(session, request).encode_to_vec()
            }
            GET_SESSION_OPTIONS => session_options::get(session).encode_to_vec(),
            CLOSE_SESSION => {
                self.sessions.close(session);
                CloseSessionResult { status: CLOSED }.encode_to_vec()
            }
            GREET => return self.greet(session).map(Some),
            ESTIMATE => return self.estimate(session, body).await.map(Some),
            FORECAST => return self.forecast(session, body).await.map(Some),
            CHANGES => return self.changes(session, body).await.map(Some),
            LAST_QUERY => return self.last_query(session).map(Some),
            other => {
                let known = ACTIONS.map(|(name, _)| name).join(", ");
                return Err(Status::unimplemented(format!("there is no action {other}; known: {known}")));
            }
        };
        Ok(Some(answer.into()))
    }

    async fn prepare(&self, session: &Session, text: &str) -> Result<ActionCreatePreparedStatementResult, Status> {
        let prepared = Prepared::new(self.plan(session, text).await?);
        let (result, parameters) = (prepared.schema(), prepared.parameters()?);
        let handle = session.prepared.insert(Arc::new(prepared))?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into(),
            dataset_schema: ipc(&result)?,
            parameter_schema: ipc(&parameters)?,
        })
    }
}

/// Cancels the statement whose ticket a description holds. Fails if there is none, or none any more.
fn cancel(session: &Session, info: &FlightInfo) -> Result<(), Status> {
    let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
    let mut tickets = tickets.map(|ticket| command(&ticket.ticket));
    let Some(Command::TicketStatementQuery(ticket)) = tickets.next().transpose()? else {
        return Err(Status::invalid_argument("what is to be cancelled has no ticket of a query"));
    };
    let statement = session.statements.get(&ticket.statement_handle)?;
    session.statements.remove(&ticket.statement_handle);
    statement.cancel();
    Ok(())
}

/// Encodes a schema as one message.
fn ipc(schema: &Schema) -> Result<Bytes, Status> {
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into().map_err(sql)?;
    Ok(bytes)
}

/// Reads a message that is packed into an `Any`, as those of Flight SQL are.
fn packed<M: ProstMessageExt>(body: &[u8]) -> Result<M, Status> {
    let any = Any::decode(body).map_err(|error| malformed("the action", error))?;
    let message = any.unpack().map_err(|error| malformed("the action", error))?;
    message.ok_or_else(|| malformed("the action", format!("it holds {}, not {}", any.type_url, M::type_url())))
}

/// Reads a message that is not packed, as those of Flight are.
fn plain<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    M::decode(body).map_err(|error| malformed("the action", error))
}
