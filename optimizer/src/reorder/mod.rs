//! Reordering of rows and fields, so that consecutive prompts share long prefixes.
//!
//! A [`Table`] holds dictionary codes and token lengths; a [`Strategy`] turns it into a
//! [`Schedule`]: a permutation of the rows and, for each row, an order of its fields. Nothing here
//! knows Arrow, DataFusion, prompts or models. The setting and the published baseline are those of
//! "Optimizing LLM Queries in Relational Data Analytics Workloads" (arXiv 2403.05821).
//!
//! | module | what it holds |
//! |---|---|
//! | [`table`] | cells as codes and lengths |
//! | [`mod@schedule`] | the strategies, their options and what they return |
//! | [`objective`] | what a schedule is worth: saved tokens, prefix hit count |
//! | [`dependencies`] | which columns determine which, and the order that follows from it |
//! | `partition` | classes of rows that share their leading cells |
//! | `rows` | the stored field order with sorted rows |
//! | `search` | the default: one searched field order for the whole table |
//! | [`ggr`] | the paper's greedy algorithm, per row |
//! | [`ophr`] | the exact algorithm, exponential: the oracle of the tests |

pub mod dependencies;
mod error;
pub mod ggr;
pub mod objective;
pub mod ophr;
mod partition;
mod rows;
pub mod schedule;
mod search;
pub mod table;

#[cfg(test)]
mod properties;

pub use self::dependencies::Dependencies;
pub use self::error::ReorderError;
pub use self::ggr::GgrOptions;
pub use self::objective::{adjacent_tokens, prefix_hit_count, saved_tokens};
pub use self::ophr::HitWeight;
pub use self::schedule::{FieldOrder, Options, Schedule, Strategy, schedule};
pub use self::table::{Column, Table};
