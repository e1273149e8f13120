//! Pages about the server, on an address of their own: counters for Prometheus, and whether it lives and takes queries.
//!
//! | page | answer |
//! |---|---|
//! | `/metrics` | the counters |
//! | `/healthz` | 200 while the process answers |
//! | `/readyz` | 200 while it takes queries, else 503 |

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::service::Shared;

/// Serves the pages until `shutdown`.
pub(super) async fn serve(
    socket: TcpListener,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let pages = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(shared);
    axum::serve(socket, pages).with_graceful_shutdown(shutdown).await
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.text(&shared) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the counters: {error}\n")).into_response(),
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match shared.is_draining() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "the server stops\n").into_response(),
        false => "ready\n".into_response(),
    }
}
