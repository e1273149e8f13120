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
//! | [`trie`] | the same token by token: parts of cells count |
//! | [`dependencies`] | which columns determine which, and the order that follows from it |
//! | `partition` | classes of rows that share their leading cells |
//! | `rows` | the stored field order with sorted rows |
//! | `search` | one searched field order for the whole table |
//! | `tree` | field orders by group of rows, where they save more |
//! | `sets` | cells whose order within a row is free |
//! | `auto` | the default: the best of these |
//! | [`ggr`] | the paper's greedy algorithm, per row |
//! | [`ophr`] | the exact algorithm, exponential: the oracle of the tests |

mod auto;
pub mod dependencies;
mod error;
pub mod ggr;
pub mod objective;
pub mod ophr;
mod partition;
mod rows;
pub mod schedule;
mod search;
mod sets;
pub mod table;
mod tree;
pub mod trie;

#[cfg(test)]
mod properties;

pub use self::dependencies::{Dependencies, Dependency};
pub use self::error::ReorderError;
pub use self::ggr::GgrOptions;
pub use self::objective::{adjacent_tokens, prefix_hit_count, saved_tokens};
pub use self::ophr::HitWeight;
pub use self::schedule::{FieldOrder, Options, Schedule, Strategy, schedule};
pub use self::table::{Column, Table};
pub use self::trie::{saved_in_trie, saved_of_prompts};
