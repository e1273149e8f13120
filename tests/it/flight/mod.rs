//! The server for Flight SQL, asked by arrow-rs's client over TCP, and by raw requests where a client would not send them.

mod auth;
mod cancellation;
pub(crate) mod harness;
mod ingest;
mod load;
mod malformed;
mod metadata;
mod order;
mod polling;
mod prepared;
mod queries;
mod sessions;
mod sharing;
mod shell;
mod shutdown;
mod tls;
mod traces;
