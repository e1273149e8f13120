//! A server for Flight SQL: the protocol that ADBC, JDBC and ODBC drivers of Arrow speak, over gRPC.
//!
//! [`run`] serves the sessions of many clients over one engine. A client plans in `GetFlightInfo`, gets a ticket, and fetches in
//! `DoGet`, where the query runs; dropping that stream cancels it. Statements that change something run in `GetFlightInfo`, since
//! some clients never fetch.
//!
//! | part | what it is |
//! |---|---|
//! | [`server`] | listener, TLS, shutdown |
//! | [`config`] | limits and times |
//! | `connection` | TCP connections with a number, whose end is told |
//! | [`auth`] | who a client is: tokens and passwords |
//! | `sessions` | the session of a request, by token, cookie or connection |
//! | `service` | the RPCs of Flight, each handed on |
//! | `actions` | the actions among them |
//! | `handles` | names that nobody can guess, for tickets and prepared statements |
//! | `statements` | planning, tickets, updates, parameters |
//! | `results` | queries that run, row by row to the client |
//! | `deadline` | how long a client waits for them |
//! | `plain` | types that every client reads |
//! | `order` | changes of a session, one after the other |
//! | `ingest` | tables that clients send |
//! | `admission` | how many queries run at once, and which is next |
//! | `catalog`, `sql_info`, `type_info` | metadata |
//! | `session_options` | settings as the protocol's session options |
//! | `shell` | what our own shell asks beside SQL |
//! | `metrics`, `monitor` | counters, and the pages that show them |
//! | `traces`, [`otlp`], `otlp_messages` | spans of statements, the collector they are sent to, and how they are written |
//! | `status` | errors as gRPC says them |
//!
//! What the page asks of the server is in [`ui`](crate::ui).

mod actions;
mod admission;
pub mod auth;
mod catalog;
pub mod config;
mod connection;
mod deadline;
mod handles;
mod ingest;
mod metrics;
mod monitor;
mod order;
pub mod otlp;
mod otlp_messages;
mod plain;
mod results;
pub mod server;
mod service;
mod session_options;
mod sessions;
pub(crate) mod shell;
mod sql_info;
mod statements;
mod status;
mod traces;
mod type_info;

pub(crate) use auth::Credentials;
pub use auth::{Auth, Users};
pub use config::{Limits, ServerConfig, Times, Tls};
pub use server::run;
pub(crate) use service::Shared;
pub(crate) use sessions::Session;
pub(crate) use statements::Reading;
