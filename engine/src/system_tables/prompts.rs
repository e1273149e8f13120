//! `ai_prompts()`: the prompts with names, a row for each version.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use futures::FutureExt;
use refrain_udf::{NamedPrompt, NamedPrompts};

use super::columns::Columns;
use super::table::SystemTable;

pub(super) fn table() -> Result<SystemTable> {
    SystemTable::try_new_async("ai_prompts", columns, |_, context| std::future::ready(Ok(rows(&context))).boxed())
}

fn rows(context: &Arc<TaskContext>) -> Vec<NamedPrompt> {
    context.session_config().get_extension::<NamedPrompts>().map_or_else(Vec::new, |prompts| prompts.list())
}

fn columns(prompts: &[NamedPrompt]) -> Result<RecordBatch> {
    Columns::of(prompts)
        .text("name", |prompt| Some(prompt.definition.name.as_str()))
        .count("version", |prompt| Some(prompt.version.into()))
        .flag("is_current", |prompt| Some(prompt.is_current))
        .text("signature", |prompt| Some(prompt.definition.signature()))
        .text("return_type", |prompt| Some(prompt.definition.return_type.as_str()))
        .text("model", |prompt| prompt.definition.model.as_deref())
        .text("template", |prompt| Some(prompt.definition.template.as_str()))
        .text("hash", |prompt| Some(prompt.definition.hash()))
        .time("created_at", |prompt| Some(prompt.created_at))
        .finish()
}
