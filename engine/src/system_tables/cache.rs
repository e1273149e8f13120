//! `ai_cache()`: answers that outlive their query, by function, prompt, model and tier.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use futures::FutureExt;
use refrain_udf::Settings;

use super::columns::Columns;
use super::table::SystemTable;
use crate::answers::{AnswerCache, CacheStats};

pub(super) fn table() -> Result<SystemTable> {
    SystemTable::try_new_async("ai_cache", columns, |_, context| rows(context).boxed())
}

/// Reads what the session keeps, and the files that its settings name.
async fn rows(context: Arc<TaskContext>) -> Result<Vec<CacheStats>> {
    let config = context.session_config();
    let Some(cache) = config.get_extension::<AnswerCache>() else { return Ok(vec![]) };
    let settings = config.options().extensions.get::<Settings>().cloned().unwrap_or_default();
    cache.stats(&settings).await
}

fn columns(groups: &[CacheStats]) -> Result<RecordBatch> {
    let time = |seconds: u64| -> Option<SystemTime> { UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) };
    Columns::of(groups)
        .text("tier", |group| Some(group.tier.name()))
        .text("function", |group| Some(group.function.as_str()))
        .text("model_digest", |group| Some(group.model_digest.as_str()))
        .text("prompt_hash", |group| Some(group.prompt_hash.as_str()))
        .count("entries", |group| Some(group.entries))
        .count("bytes", |group| Some(group.bytes))
        .count("hits", |group| Some(group.hits))
        .time("oldest", |group| time(group.oldest).filter(|_| group.entries > 0))
        .time("newest", |group| time(group.newest).filter(|_| group.entries > 0))
        .finish()
}
