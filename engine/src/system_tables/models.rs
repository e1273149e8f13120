//! `ai_models()`: the models of the session.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;

use super::columns::Columns;
use super::table::SystemTable;
use crate::models::{ModelCatalog, ModelInfo};

pub(super) fn table(models: &Arc<ModelCatalog>) -> Result<SystemTable> {
    let models = Arc::clone(models);
    SystemTable::try_new("ai_models", columns, move |_| models.list())
}

fn columns(models: &[ModelInfo]) -> Result<RecordBatch> {
    Columns::of(models)
        .text("name", |model| Some(model.name.as_str()))
        .text("kind", |model| Some(model.kind))
        .text("type", |model| Some(model.model_type.to_string()))
        .text("location", |model| Some(model.location.as_str()))
        .text("dtype", |model| model.dtype)
        .count("max_context", |model| model.max_context.map(|tokens| tokens as u64))
        .count("dimensions", |model| model.dimensions.map(u64::from))
        .text("digest", |model| model.digest.as_deref())
        .text("state", |model| Some(model.state))
        .text("device", |model| model.device.as_deref())
        .count("held_bytes", |model| model.held_bytes)
        .count("gpu_bytes", |model| model.gpu_bytes)
        .time("loaded_at", |model| model.loaded.as_ref().map(|facts| facts.at))
        .texts("capabilities", |model| &model.capabilities[..])
        .text("reported_version", |model| model.reported_version.as_deref())
        .text("credential", |model| model.credential.as_deref())
        .finish()
}
