//! What a server may be told: who may come, how much they may use, and how long things wait.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::auth::Auth;
use super::otlp::Collector;

/// How a server behaves.
#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// Who may come.
    pub auth: Auth,
    /// Certificates; without them the server speaks plaintext.
    pub tls: Option<Tls>,
    /// Whether the address of clients serves the page as well, to browsers.
    pub ui: bool,
    /// Whether plaintext, or no authentication, is allowed on an address that other machines reach.
    pub allow_insecure: bool,
    /// How much clients may use.
    pub limits: Limits,
    /// How long things wait.
    pub times: Times,
    /// Who is told of statements as spans of OpenTelemetry; see [`otlp`](super::otlp).
    pub traces: Option<Collector>,
}

/// Certificates in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The server's certificate, with those between it and its root.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// The root of the clients' certificates; with it, clients must show one.
    pub client_root: Option<Vec<u8>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("client_root", &self.client_root.is_some()).finish_non_exhaustive()
    }
}

/// How much clients may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest message that is taken, in bytes.
    pub message_bytes: usize,
    /// Queries that run at once; others wait.
    pub running_queries: NonZeroUsize,
    /// Queries that wait; others are refused.
    pub waiting_queries: usize,
    /// Sessions that are open at once.
    pub sessions: usize,
    /// Tickets of one session, and its prepared statements.
    pub handles: usize,
    /// Rows of one result, if there is a limit.
    pub rows: Option<u64>,
    /// Tokens of all prompts and answers of one session, if there is a limit.
    pub session_tokens: Option<u64>,
    /// Bytes of one table that a client sends.
    pub ingest_bytes: usize,
    /// Bytes of a result that are kept for a client that polls before it fetches.
    pub polled_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 64 << 20,
            running_queries: NonZeroUsize::new(16).expect("16 is not 0"),
            waiting_queries: 1000,
            sessions: 10_000,
            handles: 1000,
            rows: None,
            session_tokens: None,
            ingest_bytes: 4 << 30,
            polled_bytes: 256 << 20,
        }
    }
}

/// How long things wait.
#[derive(Clone, Debug)]
pub struct Times {
    /// A session that nobody uses is closed after this.
    pub session: Duration,
    /// A ticket that nobody fetches is void after this.
    pub ticket: Duration,
    /// A result whose reader stops reading is cancelled after this.
    pub unread: Duration,
    /// A statement that changes something, and takes longer than this, goes on after its ticket is given.
    pub update: Duration,
    /// A statement waits no longer than this for one of its session that changes something.
    pub turn: Duration,
    /// A client that polls is answered after this at the latest.
    pub poll: Duration,
    /// Running queries are let finish for this long when the server stops.
    pub drain: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            session: Duration::from_secs(30 * 60),
            ticket: Duration::from_secs(5 * 60),
            unread: Duration::from_secs(5 * 60),
            update: Duration::from_secs(2),
            turn: Duration::from_secs(60 * 60),
            poll: Duration::from_secs(1),
            drain: Duration::from_secs(30),
        }
    }
}
