//! `refrain serve`: the session of the command line, shared with clients of Flight SQL; `refrain password` for its file of users.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::error::{Failure, Outcome};
use super::session::Session;
use crate::Error;
use crate::flight::auth::hash_password;
use crate::flight::otlp::Collector;
use crate::flight::{self, Auth, Limits, ServerConfig, Times, Tls, Users};

/// Options of `refrain serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address for clients
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:31337", env = "REFRAIN_LISTEN")]
    listen: String,

    /// Address for /metrics, /healthz and /readyz; none unless given
    #[arg(long, value_name = "HOST:PORT", env = "REFRAIN_MONITOR")]
    monitor: Option<String>,

    /// Serve the page at the address for clients, for browsers
    #[arg(long)]
    ui: bool,

    /// The server's certificate, with those between it and its root, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Root of client certificates, in PEM; clients must then show one
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,

    /// Users with tokens, one `user:token` a line
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// Users with hashes of passwords, lines that `refrain password USER` makes
    #[arg(long, value_name = "FILE")]
    passwords: Option<PathBuf>,

    /// Allow plaintext, and clients that say not who they are, on addresses that other machines reach
    #[arg(long)]
    insecure: bool,

    /// Queries that run at once; others wait
    #[arg(long, value_name = "N", default_value_t = Limits::default().running_queries)]
    max_queries: NonZeroUsize,

    /// Queries that wait; others are refused
    #[arg(long, value_name = "N", default_value_t = Limits::default().waiting_queries)]
    max_waiting: usize,

    /// Sessions that are open at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().sessions)]
    max_sessions: usize,

    /// Largest message that is taken, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().message_bytes)]
    max_message_bytes: usize,

    /// Largest table that a client may send, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().ingest_bytes)]
    max_ingest_bytes: usize,

    /// Rows of one result
    #[arg(long, value_name = "N")]
    max_rows: Option<u64>,

    /// Tokens of all prompts and answers of one session
    #[arg(long, value_name = "N")]
    max_session_tokens: Option<u64>,

    /// Address of an OpenTelemetry collector that is told of statements, over HTTP, such as http://127.0.0.1:4318
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,

    /// Name of this server among those that the collector hears of
    #[arg(long, value_name = "NAME", default_value = "refrain", env = "OTEL_SERVICE_NAME")]
    otlp_service: String,

    /// Seconds after which a session is closed that nobody uses
    #[arg(long, value_name = "SECONDS", default_value_t = Times::default().session.as_secs())]
    session_timeout: u64,

    /// Seconds that running queries have to finish when the server stops
    #[arg(long, value_name = "SECONDS", default_value_t = Times::default().drain.as_secs())]
    drain_timeout: u64,
}

/// Options of `refrain password`.
#[derive(Debug, clap::Args)]
pub(crate) struct PasswordArgs {
    /// Name of the user
    user: String,
}

/// Serves until SIGTERM or Ctrl-C.
pub(crate) async fn run(session: &mut Session, args: &ServeArgs) -> Outcome<()> {
    let config = config(args)?;
    let scheme = if config.tls.is_some() { "grpc+tls" } else { "grpc" };
    let encryption = config.tls.is_some();
    let socket = bind(&args.listen).await?;
    let monitor = match &args.monitor {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let address = local_address(&socket)?;
    // Before it is said that the address is served.
    flight::server::check_exposure(address, &config)?;
    session.notice(&format!("serving {scheme}://{address} (jdbc:arrow-flight-sql://{address}?useEncryption={encryption})"));
    if config.ui {
        session.notice(&format!("page at http{}://{address}/", if encryption { "s" } else { "" }));
    }
    if let Some(monitor) = &monitor {
        session.notice(&format!("metrics at http://{}/metrics", local_address(monitor)?));
    }
    session.notice(&session.db.banner());

    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Failure::io("cannot hear SIGTERM", error))?;
    let (mut interrupts, quiet) = (session.interrupts.clone(), session.view.quiet);
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            () = interrupts.next() => {}
        }
        if !quiet {
            super::error::complain("stopping: no more statements are taken, and running queries may finish");
        }
    };
    let traces = config.traces.clone();
    let served = flight::run(socket, monitor, session.db.clone(), config, shutdown).await;
    if let Some(traces) = traces {
        traces.flush().await;
    }
    Ok(served?)
}

/// Writes a line for the file of passwords; the password is read from standard input.
pub(crate) fn password(session: &mut Session, args: &PasswordArgs) -> Outcome<()> {
    if args.user.contains(':') || args.user.starts_with('#') || args.user.trim().is_empty() {
        return Err(Failure::usage(format!(
            "{:?} cannot be the name of a user: it is empty, begins with # or holds a colon",
            args.user
        )));
    }
    let mut password = String::new();
    io::stdin().read_to_string(&mut password).map_err(|error| Failure::io("cannot read the password", error))?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::usage("the password is empty; write it to standard input"));
    }
    session.print(&format!("{}:{}", args.user, hash_password(password).map_err(Error::from)?))
}

fn config(args: &ServeArgs) -> Outcome<ServerConfig> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls {
            certificate: read(certificate)?,
            key: read(key)?,
            client_root: args.tls_client_ca.as_deref().map(read).transpose()?,
        }),
        _ => None,
    };
    Ok(ServerConfig {
        auth: auth(args)?,
        tls,
        ui: args.ui,
        allow_insecure: args.insecure,
        limits: Limits {
            message_bytes: args.max_message_bytes,
            running_queries: args.max_queries,
            waiting_queries: args.max_waiting,
            sessions: args.max_sessions,
            rows: args.max_rows,
            session_tokens: args.max_session_tokens,
            ingest_bytes: args.max_ingest_bytes,
            ..Limits::default()
        },
        times: Times {
            session: Duration::from_secs(args.session_timeout),
            drain: Duration::from_secs(args.drain_timeout),
            ..Times::default()
        },
        traces: match &args.otlp {
            Some(endpoint) => Some(Collector::at(endpoint, &args.otlp_service).map_err(Error::from)?),
            None => None,
        },
    })
}

fn auth(args: &ServeArgs) -> Outcome<Auth> {
    if args.tokens.is_none() && args.passwords.is_none() {
        return Ok(Auth::Nobody);
    }
    let mut users = Users::default();
    if let Some(path) = &args.tokens {
        users.add_tokens(&String::from_utf8_lossy(&read(path)?)).map_err(Error::from)?;
    }
    if let Some(path) = &args.passwords {
        users.add_passwords(&String::from_utf8_lossy(&read(path)?)).map_err(Error::from)?;
    }
    Ok(Auth::Users(users))
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|error| Failure::file("read", path, error))
}

async fn bind(address: &str) -> Outcome<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| Failure::io(format!("cannot listen on {address}"), error))
}

fn local_address(socket: &TcpListener) -> Outcome<SocketAddr> {
    socket.local_addr().map_err(|error| Failure::io("cannot tell the address", error))
}
