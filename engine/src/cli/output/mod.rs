//! Results on their way out: formats, and the place they are written to.
//!
//! | part | what it is |
//! |---|---|
//! | [`mod@format`] | the formats by name, and the writer of each |
//! | [`delimited`] | CSV and TSV, batch by batch |
//! | [`json`] | an array of objects, or an object a line, batch by batch |
//! | [`parquet`] | a Parquet file |
//! | [`grid`] | tables, Markdown and one-value-a-line records |
//! | [`plan`] | the plans of EXPLAIN |
//! | [`sink`] | standard output or a file |

mod delimited;
mod format;
mod grid;
mod json;
mod parquet;
mod plan;
mod sink;

pub(crate) use format::{Format, Layout, writer};
pub(crate) use sink::Sink;
