//! Puts the system tables into a session: as functions, and as views in a schema of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::prelude::SessionContext;

use super::{cache, errors, models, prompts, queries, usage};
use crate::models::ModelCatalog;
use crate::queries::QueryLog;

/// The schema of the views.
pub(crate) const SCHEMA: &str = "refrain";

/// Registers the tables with a session.
pub(crate) fn register(context: &SessionContext, catalog: &Arc<ModelCatalog>, log: &Arc<QueryLog>) -> Result<()> {
    let mut views = BTreeMap::new();
    let tables = [
        usage::table(log)?,
        queries::table(log)?,
        errors::table(log)?,
        models::table(catalog)?,
        prompts::table()?,
        cache::table()?,
    ];
    for table in tables {
        views.insert(table.name.to_owned(), table.provider(None)?);
        context.register_udtf(table.name, Arc::new(table));
    }
    let default = context.state().config_options().catalog.default_catalog.clone();
    // A program may have chosen to have no default catalog.
    if let Some(default) = context.catalog(&default) {
        default.register_schema(SCHEMA, Arc::new(Views { views }))?;
    }
    Ok(())
}

/// A schema that cannot be changed.
#[derive(Debug)]
struct Views {
    views: BTreeMap<String, Arc<dyn TableProvider>>,
}

#[async_trait]
impl SchemaProvider for Views {
    fn table_names(&self) -> Vec<String> {
        self.views.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self.views.get(name).cloned())
    }

    fn table_exist(&self, name: &str) -> bool {
        self.views.contains_key(name)
    }
}
