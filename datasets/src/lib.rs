//! Tables to try Refrain with and to measure it on: what they are, where they lie or come from, and tables that are generated in their shape.
//!
//! | part | what it is |
//! |---|---|
//! | [`catalogue`] | what is known of each benchmark table: columns, rows, sources, licence, digests |
//! | [`queries`] | the queries of the benchmarks, with what the paper measured of them |
//! | [`mod@generate`] | a table in the shape of each one of the catalogue, from a seed |
//! | [`local`] | tables by name, in folders that the caller names |
//! | `tpch` | the tables of TPC-H at any scale (feature `tpch`) |
//! | `fetch`, `digest` | tables from public addresses, resumed and checked (feature `fetch`) |
//! | [`demo`] | reviews of products, generated from a seed, for the demonstration |
//!
//! A benchmark takes the queries of a suite, and for each of their tables the local copy, or else a generated one:
//!
//! ```
//! use refrain_datasets::{catalogue::dataset, generate::generate, local, queries::{Suite, queries}};
//!
//! let folders = local::folders(None, std::path::Path::new("."));
//! for query in queries().iter().filter(|query| query.suite == Suite::LlmSql) {
//!     for table in query.tables.iter().filter_map(|name| dataset(name)) {
//!         match table.local(&folders) {
//!             Some(file) => println!("register {} from {}", table.name, file.display()),
//!             None => println!("register {} from {} generated rows", table.name, generate(table, 2, 1)?.num_rows()),
//!         }
//!     }
//!     println!("run {}, of which the paper reports {:?}", query.sql, query.paper);
//! }
//! # Ok::<(), arrow_schema::ArrowError>(())
//! ```

pub mod catalogue;
pub mod demo;
#[cfg(feature = "fetch")]
pub mod digest;
#[cfg(feature = "fetch")]
pub mod fetch;
pub mod generate;
pub mod local;
pub mod queries;
#[cfg(feature = "tpch")]
pub mod tpch;

mod products;
mod random;
