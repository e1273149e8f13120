//! A server from its listener to its end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_server::FlightServiceServer;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{internal_datafusion_err, plan_datafusion_err};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::auth::Auth;
use super::config::{ServerConfig, Times, Tls};
use super::connection::accept;
use super::monitor;
use super::service::{Service, Shared};
use super::sessions::Sessions;
use crate::{Error, Refrain, Result, ui};

/// How often old sessions and tickets are looked for, unless they are old sooner.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
const SWEEP_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// How often a server that stops looks whether all queries have ended.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes of one stream, and of one connection, that may be under way before the reader has confirmed any.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// The largest frame of HTTP/2.
const FRAME_BYTES: u32 = 1 << 20;

/// A connection that does not answer for this long is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Serves sessions beside `db` until `shutdown`, then lets queries finish for [`Times::drain`](super::Times::drain) and cancels the
/// rest. Counters and health are on `monitor`, if there is one; the page is on `socket`, if the configuration says so.
///
/// Fails before anything is served where plaintext, or no authentication, would be reached by other machines, unless that is allowed.
pub async fn run(
    socket: TcpListener,
    monitor: Option<TcpListener>,
    db: Refrain,
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let address = socket.local_addr().map_err(|error| internal_datafusion_err!("cannot tell the address: {error}"))?;
    check_exposure(address, &config)?;
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        // What browsers speak without TLS.
        .accept_http1(config.ui)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE));
    if let Some(tls) = &config.tls {
        server = server.tls_config(tls_config(tls)).map_err(|error| {
            plan_datafusion_err!("cannot use the certificate and key of the server: {}", with_source(&error))
        })?;
    }
    let times = config.times.clone();
    let (message_bytes, has_page) = (config.limits.message_bytes, config.ui);
    let shared = Arc::new(Shared::new(db, config)?);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlightServiceServer<Service>>().await;
    let service = FlightServiceServer::new(Service(Arc::clone(&shared)))
        .max_decoding_message_size(message_bytes)
        .max_encoding_message_size(usize::MAX);

    let (stop, stopped) = watch::channel(false);
    let _sweep = SpawnedTask::spawn(sweep(Arc::clone(&shared.sessions), times.clone()));
    let _monitor =
        monitor.map(|socket| SpawnedTask::spawn(monitor::serve(socket, Arc::clone(&shared), until(stopped.clone()))));
    let connections = accept(socket, Arc::clone(&shared.sessions));
    let mut routes = Routes::new(health_service).add_service(service);
    if has_page {
        routes = routes.into_axum_router().merge(ui::routes(Arc::clone(&shared))).into();
    }
    let serving = server.add_routes(routes).serve_with_incoming_shutdown(connections, until(stopped));
    let mut serving = std::pin::pin!(serving);

    let failed =
        |error: tonic::transport::Error| Error::from(internal_datafusion_err!("the server failed: {}", with_source(&error)));
    tokio::select! {
        ended = &mut serving => return ended.map_err(failed),
        () = shutdown => {}
    }
    shared.drain();
    health.set_not_serving::<FlightServiceServer<Service>>().await;
    let deadline = Instant::now() + times.drain;
    let drained = async {
        while shared.sessions.unfinished() > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    };
    tokio::select! {
        ended = &mut serving => return ended.map_err(failed),
        () = drained => {}
    }
    // What still runs is cancelled, and its clients are told.
    shared.sessions.end_all();
    stop.send_replace(true);
    // Idle connections are closed by now; one that does not close holds nothing that is worth waiting for.
    match tokio::time::timeout(times.drain.min(KEEP_ALIVE), serving).await {
        Ok(ended) => ended.map_err(failed),
        Err(_) => Ok(()),
    }
}

/// Refuses to be reached by other machines without encryption or authentication.
pub(crate) fn check_exposure(address: SocketAddr, config: &ServerConfig) -> Result<()> {
    if address.ip().is_loopback() || config.allow_insecure {
        return Ok(());
    }
    if config.tls.is_none() {
        let mend = "give it a certificate and key, listen on 127.0.0.1, or allow it by --insecure";
        return Err(plan_datafusion_err!("{address} is reached by other machines, and the server has no TLS; {mend}").into());
    }
    let demands_certificate = config.tls.as_ref().is_some_and(|tls| tls.client_root.is_some());
    if matches!(config.auth, Auth::Nobody) && !demands_certificate {
        let mend =
            "give it tokens, passwords or a root of client certificates, listen on 127.0.0.1, or allow it by --insecure";
        return Err(plan_datafusion_err!(
            "{address} is reached by other machines, and the server asks nobody who they are; {mend}"
        )
        .into());
    }
    Ok(())
}

fn tls_config(tls: &Tls) -> ServerTlsConfig {
    let config = ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
    match &tls.client_root {
        Some(root) => config.client_ca_root(Certificate::from_pem(root)),
        None => config,
    }
}

async fn sweep(sessions: Arc<Sessions>, times: Times) {
    let mut ticks = tokio::time::interval(times.session.min(times.ticket).clamp(SWEEP_INTERVAL_MIN, SWEEP_INTERVAL));
    loop {
        ticks.tick().await;
        sessions.end_unused(Instant::now(), &times);
    }
}

/// Waits until a flag is raised.
async fn until(mut flag: watch::Receiver<bool>) {
    // A sender that is gone raises no flag, and there is nothing left to wait for.
    let _ = flag.wait_for(|raised| *raised).await;
}

/// Returns what an error says, with what caused it.
fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_source(source)),
        None => error.to_string(),
    }
}
