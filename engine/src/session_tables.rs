//! The tables that a session sees: its temporary ones, in a schema of their own, before those that all sessions of an engine share.
//!
//! A name without a schema finds a temporary table first. `CREATE TABLE` makes a shared table, `CREATE TEMPORARY TABLE t` makes
//! `temp.t`, which goes with the session.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::logical_expr::TableType;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::{self, Ident, ObjectName, ObjectNamePart};

use crate::system_tables;

/// The schema of temporary tables.
pub(crate) const SCHEMA: &str = "temp";

/// The catalogs that a session sees: those of the engine, its default one with the session's own schemas before it.
#[derive(Debug)]
pub(crate) struct SessionCatalogs {
    shared: Arc<dyn CatalogProviderList>,
    /// Name and catalog; `None` where a program has chosen to have no default catalog.
    default: Option<(String, Arc<SessionCatalog>)>,
}

impl SessionCatalogs {
    /// Lays a session's own schemas over the default catalog, whose schema without a name is `default_schema`.
    pub(crate) fn new(shared: Arc<dyn CatalogProviderList>, default: &str, default_schema: &str) -> Self {
        let catalog =
            shared.catalog(default).map(|catalog| Arc::new(SessionCatalog::new(catalog, default_schema.to_owned())));
        SessionCatalogs { shared, default: catalog.map(|catalog| (default.to_owned(), catalog)) }
    }

    /// Returns the same catalogs for another session, which has no temporary tables yet.
    pub(crate) fn of_another_session(&self) -> Self {
        let default = self.default.as_ref().map(|(name, catalog)| {
            let catalog = SessionCatalog::new(Arc::clone(&catalog.shared), catalog.default_schema.clone());
            (name.clone(), Arc::new(catalog))
        });
        SessionCatalogs { shared: Arc::clone(&self.shared), default }
    }
}

impl CatalogProviderList for SessionCatalogs {
    fn register_catalog(&self, name: String, catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        self.shared.register_catalog(name, catalog)
    }

    fn catalog_names(&self) -> Vec<String> {
        self.shared.catalog_names()
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        match &self.default {
            Some((default, catalog)) if default == name => Some(Arc::clone(catalog) as Arc<dyn CatalogProvider>),
            _ => self.shared.catalog(name),
        }
    }
}

/// A catalog of the engine with a session's own schemas before it: temporary tables, and system tables.
#[derive(Debug)]
struct SessionCatalog {
    shared: Arc<dyn CatalogProvider>,
    own: MemoryCatalogProvider,
    temporary: Arc<dyn SchemaProvider>,
    default_schema: String,
}

impl SessionCatalog {
    fn new(shared: Arc<dyn CatalogProvider>, default_schema: String) -> Self {
        let temporary: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
        SessionCatalog { shared, own: MemoryCatalogProvider::new(), temporary, default_schema }
    }
}

impl CatalogProvider for SessionCatalog {
    fn schema_names(&self) -> Vec<String> {
        let own = self.own.schema_names().into_iter().chain([SCHEMA.to_owned()]);
        own.chain(self.shared.schema_names()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == SCHEMA {
            return Some(Arc::clone(&self.temporary));
        }
        if let Some(own) = self.own.schema(name) {
            return Some(own);
        }
        let shared = self.shared.schema(name)?;
        if name != self.default_schema {
            return Some(shared);
        }
        Some(Arc::new(DefaultSchema { temporary: Arc::clone(&self.temporary), shared }))
    }

    fn register_schema(&self, name: &str, schema: Arc<dyn SchemaProvider>) -> Result<Option<Arc<dyn SchemaProvider>>> {
        match name {
            SCHEMA => plan_err!("schema {SCHEMA} holds the temporary tables of the session and cannot be replaced"),
            system_tables::SCHEMA => self.own.register_schema(name, schema),
            _ => self.shared.register_schema(name, schema),
        }
    }

    fn deregister_schema(&self, name: &str, cascade: bool) -> Result<Option<Arc<dyn SchemaProvider>>> {
        match name {
            SCHEMA | system_tables::SCHEMA => plan_err!("schema {name} belongs to the session and cannot be dropped"),
            _ => self.shared.deregister_schema(name, cascade),
        }
    }
}

/// The schema that a name without one means. It finds temporary tables first, and lists the shared ones.
#[derive(Debug)]
struct DefaultSchema {
    temporary: Arc<dyn SchemaProvider>,
    shared: Arc<dyn SchemaProvider>,
}

#[async_trait]
impl SchemaProvider for DefaultSchema {
    fn table_names(&self) -> Vec<String> {
        self.shared.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match self.temporary.table(name).await? {
            Some(table) => Ok(Some(table)),
            None => self.shared.table(name).await,
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        self.shared.table_type(name).await
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        self.shared.register_table(name, table)
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.temporary.table_exist(name) {
            true => self.temporary.deregister_table(name),
            false => self.shared.deregister_table(name),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.temporary.table_exist(name) || self.shared.table_exist(name)
    }
}

/// Turns `CREATE TEMPORARY TABLE t`, and likewise views and external tables, into the creation of `temp.t`: DataFusion plans no
/// temporary tables.
pub(crate) fn place_temporary(statement: &mut DataFusionStatement) -> Result<()> {
    let (name, temporary) = match statement {
        DataFusionStatement::Statement(statement) => match statement.as_mut() {
            ast::Statement::CreateTable(table) => (&mut table.name, &mut table.temporary),
            ast::Statement::CreateView(view) => (&mut view.name, &mut view.temporary),
            _ => return Ok(()),
        },
        DataFusionStatement::CreateExternalTable(table) => (&mut table.name, &mut table.temporary),
        _ => return Ok(()),
    };
    if !std::mem::take(temporary) {
        return Ok(());
    }
    let ObjectName(parts) = name;
    let schema = parts.len().checked_sub(2).and_then(|idx| parts[idx].as_ident()).map(|ident| ident.value.clone());
    match schema.as_deref() {
        None => parts.insert(0, ObjectNamePart::Identifier(Ident::new(SCHEMA))),
        Some(SCHEMA) => {}
        Some(schema) => {
            return plan_err!("temporary tables lie in schema {SCHEMA}, not in {schema}; leave the schema of {name} out");
        }
    }
    Ok(())
}
