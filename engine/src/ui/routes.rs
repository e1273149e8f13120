//! What the page may ask, by path.
//!
//! | path | answer |
//! |---|---|
//! | `POST /api/login` | the token of a session, for the credentials in the header `authorization` |
//! | `GET /api/state` | the server, its models, and the queries of the user |
//! | `POST /api/run` | what statements give, as lines of JSON; closing the connection cancels |
//! | `POST /api/plan` | the plan of a statement, with estimates and prompts; calls no model |
//! | `GET /api/queries/{id}` | one query, with its plan and its failed rows |
//! | `POST /api/queries/{id}/cancel` | whether it was running |

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde_json::{Value, json};
use tonic::Status;

use super::assets::{assets, headers};
use super::caller::{Caller, Refused, answer, credentials};
use super::guard::{Names, guard};
use super::script::{Script, lines};
use super::state;
use crate::flight::{Auth, Shared};

/// Prompts of a call that the page shows.
const PROMPTS: usize = 200;

/// Rows that the page shows where it does not say how many, and at most.
const ROWS: u64 = 1_000;
const ROWS_MAX: u64 = 10_000;

/// Returns the routes of a server.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let config = &shared.config;
    let names = match config.tls.is_some() || matches!(config.auth, Auth::Users(_)) {
        true => Names::Any,
        false => Names::Own,
    };
    Router::new()
        .route("/api/login", post(log_in))
        .route("/api/state", get(all))
        .route("/api/run", post(run))
        .route("/api/plan", post(plan))
        .route("/api/queries/{id}", get(query))
        .route("/api/queries/{id}/cancel", post(cancel))
        .merge(assets())
        .route_layer(middleware::from_fn_with_state(names, guard))
        .with_state(shared)
}

type Answer = Result<Response, Refused>;

async fn log_in(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Answer {
    let session = shared.log_in(&credentials(&headers)?).await?;
    Ok(answer(&json!({"token": session.secret(), "user": *session.user, "model": session.db.banner()})).into_response())
}

async fn all(State(shared): State<Arc<Shared>>, Caller(session): Caller) -> Answer {
    Ok(answer(&state::all(&shared, &session)).into_response())
}

async fn run(State(shared): State<Arc<Shared>>, Caller(session): Caller, body: Bytes) -> Answer {
    let body = object(&body)?;
    let script = Script {
        sql: text(&body, "sql")?,
        rows_max: body["rows"].as_u64().unwrap_or(ROWS).min(ROWS_MAX),
        estimates: body["estimates"].as_bool().unwrap_or(false),
    };
    Ok((headers("application/x-ndjson"), Body::from_stream(lines(shared, session, script))).into_response())
}

async fn plan(State(shared): State<Arc<Shared>>, Caller(session): Caller, body: Bytes) -> Answer {
    let statements = session.db.statements(&text(&object(&body)?, "sql")?)?;
    let last = statements.last().ok_or_else(|| Status::invalid_argument("there is no statement to explain"))?;
    let query = shared.plan(&session, last).await?;
    // It reads a sample of the tables.
    let _permit = shared.admission.admit(&session.id, session.db.priority()).await?;
    Ok(answer(&query.plan_with_prompts(PROMPTS).await?).into_response())
}

async fn query(Caller(session): Caller, Path(id): Path<String>) -> Answer {
    let found = number(&id).and_then(|id| session.db.query_log().find(id)).ok_or_else(|| unknown(&id))?;
    Ok(answer(&state::query_in_full(found)).into_response())
}

async fn cancel(Caller(session): Caller, Path(id): Path<String>) -> Answer {
    let number = number(&id).ok_or_else(|| unknown(&id))?;
    Ok(answer(&json!({"cancelled": session.db.query_log().kill(number)})).into_response())
}

fn object(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body).map_err(|error| Status::invalid_argument(format!("cannot read the request: {error}")))
}

fn text(body: &Value, field: &str) -> Result<String, Status> {
    let text = body[field].as_str().map(str::to_owned);
    text.ok_or_else(|| Status::invalid_argument(format!("the request has no text {field:?}")))
}

fn number(id: &str) -> Option<u64> {
    id.parse().ok()
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("query {id} is unknown, or no longer remembered"))
}
