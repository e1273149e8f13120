//! The session of a request, and answers that refuse.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::assets::headers;
use crate::flight::{Credentials, Session, Shared};

/// Whoever shows the token of a session.
pub(super) struct Caller(pub(super) Arc<Session>);

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refused> {
        let session = match credentials(&parts.headers)? {
            Credentials::Bearer(secret) => shared.sessions.find(&secret),
            _ => None,
        };
        Ok(Caller(session.ok_or_else(|| Status::unauthenticated("the session has ended, or there is none; sign in"))?))
    }
}

/// Reads who a request says that it comes from.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Credentials, Status> {
    Credentials::of(&MetadataMap::from_headers(headers.clone()))
}

/// An answer that refuses, in the words of the clients of Flight.
pub(super) struct Refused(Status);

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Refused(status)
    }
}

impl From<crate::Error> for Refused {
    fn from(error: crate::Error) -> Self {
        Refused(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refusal(status, self.0.message()).into_response()
    }
}

/// Returns an answer that says what is wrong.
pub(super) fn refusal(status: StatusCode, why: &str) -> impl IntoResponse + use<> {
    (status, answer(&json!({"error": why})))
}

/// Returns an answer of JSON.
pub(super) fn answer(value: &Value) -> impl IntoResponse + use<> {
    (headers("application/json"), value.to_string())
}
