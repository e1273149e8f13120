//! Listings of what a session knows: tables, columns, functions, models, settings, failed rows.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Documentation;
use datafusion::prelude::SessionContext;

use super::commands;
use super::error::{Failure, Outcome};
use crate::system_tables::SCHEMA;
use crate::{Error, ModelInfo};

/// Builds a listing of text columns.
pub(crate) fn listing<const N: usize>(names: [&str; N], rows: Vec<[String; N]>) -> Result<RecordBatch, ArrowError> {
    let column = |index: usize| Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row[index]))) as ArrayRef;
    RecordBatch::try_from_iter(names.into_iter().enumerate().map(|(index, name)| (name, column(index))))
}

/// A table or view, by its full name.
pub(crate) struct TableName {
    /// Catalog.
    pub(crate) catalog: String,
    /// Schema.
    pub(crate) schema: String,
    /// Name.
    pub(crate) table: String,
}

/// Returns the names of all tables and views but those that describe the session itself.
pub(crate) fn table_names(ctx: &SessionContext) -> Vec<TableName> {
    let mut names = Vec::new();
    for catalog in ctx.catalog_names() {
        let Some(provider) = ctx.catalog(&catalog) else { continue };
        let describes_session = |schema: &String| schema == "information_schema" || schema == SCHEMA;
        for schema in provider.schema_names().into_iter().filter(|schema| !describes_session(schema)) {
            let mut tables = provider.schema(&schema).map_or_else(Vec::new, |provider| provider.table_names());
            tables.sort_unstable();
            names.extend(tables.into_iter().map(|table| TableName {
                catalog: catalog.clone(),
                schema: schema.clone(),
                table,
            }));
        }
    }
    names
}

/// Lists tables and views.
pub(crate) async fn tables(ctx: &SessionContext) -> Outcome<RecordBatch> {
    let mut rows = Vec::new();
    for TableName { catalog, schema, table } in table_names(ctx) {
        let provider = ctx.catalog(&catalog).and_then(|catalog| catalog.schema(&schema));
        let found = match provider {
            Some(provider) => provider.table(&table).await.map_err(Error::from)?,
            None => None,
        };
        let Some(found) = found else { continue };
        let kind = format!("{:?}", found.table_type()).to_lowercase();
        rows.push([catalog, schema, table, kind, found.schema().fields().len().to_string()]);
    }
    Ok(listing(["catalog", "schema", "table", "type", "columns"], rows)?)
}

/// Lists the columns of a table; the name is read as SQL reads it.
pub(crate) async fn columns(ctx: &SessionContext, table: &str) -> Outcome<RecordBatch> {
    let provider = ctx.table_provider(table).await.map_err(Error::from)?;
    let row = |field: &Arc<datafusion::arrow::datatypes::Field>| {
        [field.name().clone(), field.data_type().to_string(), if field.is_nullable() { "YES" } else { "NO" }.to_owned()]
    };
    Ok(listing(["column", "type", "nullable"], provider.schema().fields().iter().map(row).collect())?)
}

/// A function as the listing shows it.
struct Function {
    name: String,
    kind: &'static str,
    documentation: Option<Documentation>,
}

fn all_functions(ctx: &SessionContext) -> Vec<Function> {
    let state = ctx.state();
    let scalar = state.scalar_functions().iter().map(|(name, f)| (name, "scalar", f.documentation().cloned()));
    let aggregate = state.aggregate_functions().iter().map(|(name, f)| (name, "aggregate", f.documentation().cloned()));
    let window = state.window_functions().iter().map(|(name, f)| (name, "window", f.documentation().cloned()));
    let table = state.table_functions().keys().map(|name| (name, "table", None));
    let all = scalar.chain(aggregate).chain(window).chain(table);
    let mut functions: Vec<Function> =
        all.map(|(name, kind, documentation)| Function { name: name.clone(), kind, documentation }).collect();
    functions.sort_by(|a, b| (&a.name, a.kind).cmp(&(&b.name, b.kind)));
    functions
}

/// Returns the names of all functions, in order.
pub(crate) fn function_names(ctx: &SessionContext) -> Vec<String> {
    let mut names: Vec<String> = all_functions(ctx).into_iter().map(|function| function.name).collect();
    names.dedup();
    names
}

/// Lists the functions whose names match a pattern in which `*` stands for anything.
pub(crate) fn functions(ctx: &SessionContext, pattern: &str) -> Outcome<RecordBatch> {
    let matching = all_functions(ctx).into_iter().filter(|function| matches(&function.name, pattern));
    let rows = matching.map(|Function { name, kind, documentation }| {
        let (syntax, description) = documentation.map_or_else(Default::default, |doc| (doc.syntax_example, doc.description));
        let description = description.lines().next().unwrap_or_default().to_owned();
        [name, kind.to_owned(), syntax, description]
    });
    Ok(listing(["function", "kind", "syntax", "description"], rows.collect())?)
}

/// Returns what is documented of one function.
pub(crate) fn help_on(ctx: &SessionContext, name: &str) -> Outcome<String> {
    let functions = all_functions(ctx);
    let name = name.to_lowercase();
    let Some(function) = functions.iter().find(|function| function.name == name) else {
        let nearest = commands::nearest(&name, functions.iter().map(|function| function.name.as_str())).unwrap_or_default();
        return Err(Failure::usage(format!("no function {name}; did you mean {nearest}?")));
    };
    let Some(doc) = &function.documentation else {
        return Ok(format!("{name} is a function of kind {}", function.kind));
    };
    let mut text = format!("{}\n\n{}\n", doc.syntax_example, doc.description.trim());
    for (argument, meaning) in doc.arguments.iter().flatten() {
        text += &format!("\n  {argument}: {meaning}");
    }
    if let Some(example) = &doc.sql_example {
        text += &format!("\n\n{}", example.trim().trim_start_matches("```sql").trim_matches('`').trim());
    }
    Ok(text)
}

/// Lists models.
pub(crate) fn models(models: &[ModelInfo]) -> Outcome<RecordBatch> {
    let row = |model: &ModelInfo| {
        let max_context = model.max_context.map_or_else(String::new, |tokens| tokens.to_string());
        let device = model.device.clone().unwrap_or_default();
        [
            model.name.clone(),
            model.model_type.to_string(),
            model.location.clone(),
            model.state.to_owned(),
            device,
            max_context,
            model.credential.clone().unwrap_or_default(),
        ]
    };
    let columns = ["model", "type", "location", "state", "device", "max_context", "credential"];
    Ok(listing(columns, models.iter().map(row).collect())?)
}

/// Lists the failed rows of a query.
pub(crate) fn row_errors(failed: Vec<[String; 4]>) -> Outcome<RecordBatch> {
    Ok(listing(["function", "reason", "message", "inputs"], failed)?)
}

/// A session setting.
pub(crate) struct Setting {
    /// Full name.
    pub(crate) name: String,
    /// Current value, if it has one.
    pub(crate) value: Option<String>,
    /// What it is for.
    pub(crate) description: &'static str,
}

/// Returns all session settings in order of their names.
pub(crate) fn all_settings(ctx: &SessionContext) -> Vec<Setting> {
    let entries = ctx.state().config_options().entries();
    let setting = |entry: datafusion::common::config::ConfigEntry| Setting {
        name: entry.key,
        value: entry.value,
        description: entry.description,
    };
    let mut settings: Vec<Setting> = entries.into_iter().map(setting).collect();
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    settings
}

/// Lists the settings whose names match a pattern.
pub(crate) fn settings(ctx: &SessionContext, pattern: &str) -> Outcome<RecordBatch> {
    let matching = all_settings(ctx).into_iter().filter(|setting| matches(&setting.name, pattern));
    let rows: Vec<_> =
        matching.map(|setting| [setting.name, setting.value.unwrap_or_default(), setting.description.to_owned()]).collect();
    if rows.is_empty() && !pattern.contains('*') {
        let missing = DataFusionError::Configuration(format!("there is no setting {pattern}"));
        return Err(Error::from(missing).into());
    }
    Ok(listing(["setting", "value", "description"], rows)?)
}

/// Whether `name` matches `pattern`, in which `*` stands for any text; letter case does not matter.
pub(crate) fn matches(name: &str, pattern: &str) -> bool {
    let (name, pattern) = (name.to_lowercase(), pattern.to_lowercase());
    let Some((head, tail)) = pattern.split_once('*') else { return name == pattern };
    let Some(mut rest) = name.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = tail.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (name, pattern) in [("ai_filter", "ai_*"), ("abs", "ABS"), ("ai_summarize_agg", "*_sum*agg"), ("x", "*")] {
            assert!(matches(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in [("abs", "ab"), ("main_x", "ai_*"), ("aba", "aba*a"), ("ab", "*c*")] {
            assert!(!matches(name, pattern), "{name} {pattern}");
        }
    }

    #[test]
    fn help_names_the_nearest_function() {
        let ctx = SessionContext::new();
        assert!(help_on(&ctx, "ABS").unwrap().starts_with("abs("));
        assert!(help_on(&ctx, "substrr").unwrap_err().to_string().contains("did you mean substr?"));
    }
}
