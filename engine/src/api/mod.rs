//! The embedded API: a session, its queries, and queries that run.
//!
//! | part | what it is |
//! |---|---|
//! | `builder` | what a session starts with |
//! | `session` | [`Refrain`]: statements are planned, models and settings found |
//! | `query` | [`Query`]: a statement that was planned; parameters, estimates |
//! | `estimate` | what a query is expected to cost |
//! | `run` | [`Run`]: the rows of a query that runs, its progress, and how it is cancelled |
//! | `register` | LLM functions in a session that a program has already |

mod builder;
mod estimate;
mod query;
mod register;
mod run;
mod session;

pub use builder::Builder;
pub use estimate::Estimate;
pub use query::Query;
pub use register::{register, sql};
pub use run::{CancelHandle, Run};
pub use session::Refrain;
