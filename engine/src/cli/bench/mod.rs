//! `refrain bench`: one query under several settings, measured side by side in one process.
//!
//! | part | what it is |
//! |---|---|
//! | [`measure`] | the query, its settings, and the table of what each cost |
//! | [`limit`] | the time that arithmetic and memory alone would take |
//! | [`prompts`] | the prompts of the query as files, for other engines |

mod limit;
mod measure;
mod prompts;

pub(crate) use measure::{BenchArgs, run};
