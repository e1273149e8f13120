//! Refrain: a SQL engine for tables that a language model has to read.
//!
//! A statement is parsed (`statement`), its named arguments are folded away (`refrain_udf::desugar`), and DataFusion plans it
//! with the rules of `refrain_optimizer`. LLM calls become `LlmExec` (`operators`, `planner`), which asks the model through a
//! backend of `refrain_serving`. `docs/life_of_a_query.md` follows one query through all of it.
//!
//! | part | what it is |
//! |---|---|
//! | [`api`] | [`Refrain`], [`Query`], [`Run`]: the embedded API |
//! | `session`, `session_tables` | a DataFusion session with our functions, rules and planner; temporary tables before shared ones |
//! | [`functions`] | calls of the `ai_*` functions as expressions, for DataFrames |
//! | `statement`, `own_statements` | statements of our own: how they are read, and what they do |
//! | [`models`], [`model_options`], `loading` | names, what may be said of a model, and backends made at the first call |
//! | `devices` | one engine for each device, and how a model gets onto it |
//! | [`secrets`], `redact` | keys of external models, and SQL text without them |
//! | `queries`, `system_tables` | the queries of the session, and the tables that show them |
//! | `planner` | `LlmNode` to `LlmExec`, and estimates |
//! | `join_planner` | `LlmJoinNode` to `LlmJoinExec` |
//! | `sample`, `explain` | rows that estimates are made from, and how plans are shown |
//! | `forecast` | an estimate in sum, for those who ask before they run |
//! | `operators` | the operator and its parts |
//! | [`answers`] | answers that outlive their query: cache and checkpoint |
//! | `flight`, `ui` | the server for Flight SQL, and its page; feature `flight` |
//! | `cells` | values as text |
//! | `cli` | the shell, scripts, `demo` and `bench`; feature `cli` |

pub mod answers;
pub mod api;
#[cfg(any(feature = "cli", feature = "flight"))]
mod cells;
#[cfg(feature = "cli")]
pub mod cli;
mod devices;
pub mod error;
mod explain;
#[cfg(feature = "flight")]
pub mod flight;
#[cfg(any(feature = "cli", feature = "flight"))]
mod forecast;
pub mod functions;
mod join_planner;
mod lex;
mod loading;
pub mod model_options;
pub mod models;
// Plans hold its types; what a program reads of them is exported below.
#[doc(hidden)]
pub mod operators;
mod own_statements;
mod planner;
mod queries;
mod redact;
mod sample;
pub mod secrets;
mod session;
mod session_tables;
mod statement;
mod system_tables;
#[cfg(feature = "flight")]
mod ui;
mod wildcard;
mod without_answers;

pub use answers::{AnswerCache, CacheStats, Tier};
pub use api::{Builder, CancelHandle, Estimate, Query, Refrain, Run, register, sql};
pub use datafusion;
pub use devices::DeviceOptions;
pub use error::{Error, Result};
pub use loading::{LoadFacts, Loading};
pub use model_options::ModelType;
pub use models::{ModelCatalog, ModelInfo, ModelSource};
pub use operators::{
    Basis, CallEstimate, Chunked, NodeProgress, PrefixNode, PrefixTree, Progress, QueryUsage, RowError, Selectivity,
};
pub use planner::extension_planner;
pub use refrain_serving as serving;
pub use statement::{Existing, SecretFields};

use wildcard::desugared;

/// The program in the readme compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The programs in the page on clients compile.
#[cfg(all(doctest, feature = "flight"))]
#[doc = include_str!("../../docs/clients.md")]
struct Clients;
