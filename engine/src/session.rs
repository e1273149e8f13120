//! A DataFusion session that understands LLM functions: settings, functions, rules and planner put together.

use std::sync::Arc;

use datafusion::catalog::CatalogProviderList;
use datafusion::common::Result;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use refrain_optimizer::rules::{llm_rules, optimizer_rules};
use refrain_optimizer::statistics::SessionStatistics;
use refrain_udf::{
    EmbedTexts, EmbeddingSource, NameInputs, NamedPrompts, Settings, TokenizerSource, aggregate_functions, scalar_functions,
};

use crate::answers::AnswerCache;
use crate::models::ModelCatalog;
use crate::planner::LlmQueryPlanner;
use crate::queries::QueryLog;
use crate::session_tables::SessionCatalogs;
use crate::system_tables;

/// Makes a session of our own, and tells the catalogs that others beside it may share.
pub(crate) fn new_session(
    models: &Arc<ModelCatalog>,
    queries: &Arc<QueryLog>,
    settings: Settings,
    config: SessionConfig,
) -> Result<(SessionContext, Arc<SessionCatalogs>)> {
    let config = with_memory(config.with_information_schema(true).with_option_extension(settings));
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_optimizer_rules(optimizer_rules())
        .with_analyzer_rule(Arc::new(EmbedTexts))
        .with_analyzer_rule(Arc::new(NameInputs))
        .with_query_planner(Arc::new(LlmQueryPlanner::new(Arc::clone(models))))
        .build();
    let names = state.config_options().catalog.clone();
    let shared = Arc::clone(state.catalog_list());
    let catalogs = Arc::new(SessionCatalogs::new(shared, &names.default_catalog, &names.default_schema));
    let context = with_catalogs(state, &catalogs, None);
    add_functions(&context, models);
    system_tables::register(&context, models, queries)?;
    Ok((context, catalogs))
}

/// Makes a session beside another. Models, prompts, functions, rules, answers, memory and shared tables are those of the other; settings
/// begin as the other's are now; temporary tables and the log of queries are its own.
pub(crate) fn session_beside(
    other: &SessionContext,
    catalogs: &SessionCatalogs,
    id: &str,
    models: &Arc<ModelCatalog>,
    queries: &Arc<QueryLog>,
) -> Result<(SessionContext, Arc<SessionCatalogs>)> {
    let catalogs = Arc::new(catalogs.of_another_session());
    let context = with_catalogs(other.state(), &catalogs, Some(id));
    system_tables::register(&context, models, queries)?;
    Ok((context, catalogs))
}

fn with_catalogs(state: SessionState, catalogs: &Arc<SessionCatalogs>, id: Option<&str>) -> SessionContext {
    let id = id.unwrap_or(state.session_id()).to_owned();
    let state = SessionStateBuilder::new_from_existing(state)
        .with_session_id(id)
        .with_catalog_list(Arc::clone(catalogs) as Arc<dyn CatalogProviderList>)
        .build();
    SessionContext::new_with_state(state).enable_url_table()
}

/// Gives an existing session the LLM functions, their rules and their planner.
///
/// The session's own optimizer rules stay; its query planner is replaced, so a program that has one of its own composes it with
/// [`extension_planner`](crate::extension_planner) instead.
pub(crate) fn register(context: &SessionContext, models: &Arc<ModelCatalog>) -> Result<()> {
    add_functions(context, models);
    let state = context.state();
    let mut rules = state.optimizers().to_vec();
    rules.extend(llm_rules());
    let has_settings = state.config().options().extensions.get::<Settings>().is_some();
    let mut config = state.config().clone();
    if !has_settings {
        config = config.with_option_extension(Settings::default());
    }
    config = with_memory(config);
    let state = SessionStateBuilder::new_from_existing(state)
        .with_config(config)
        .with_optimizer_rules(rules)
        .with_analyzer_rule(Arc::new(EmbedTexts))
        .with_analyzer_rule(Arc::new(NameInputs))
        .with_query_planner(Arc::new(LlmQueryPlanner::new(Arc::clone(models))))
        .build();
    *context.state_ref().write() = state;
    Ok(())
}

/// Gives a session places for what outlives a query, answers, statistics and prompts, unless the program has given it some.
fn with_memory(config: SessionConfig) -> SessionConfig {
    let config = match config.get_extension::<NamedPrompts>() {
        Some(_) => config,
        None => config.with_extension(Arc::new(NamedPrompts::default())),
    };
    let config = match config.get_extension::<SessionStatistics>() {
        Some(_) => config,
        None => config.with_extension(Arc::new(SessionStatistics::default())),
    };
    match config.get_extension::<AnswerCache>() {
        Some(_) => config,
        None => config.with_extension(Arc::new(AnswerCache::default())),
    }
}

fn add_functions(context: &SessionContext, models: &Arc<ModelCatalog>) {
    let (tokenizers, embeddings) =
        (Arc::clone(models) as Arc<dyn TokenizerSource>, Arc::clone(models) as Arc<dyn EmbeddingSource>);
    for function in scalar_functions(tokenizers, embeddings) {
        context.register_udf(function);
    }
    for function in aggregate_functions() {
        context.register_udaf(function);
    }
}

/// Returns a copy of the session's state with an extension of its own; catalogs and functions are shared with the session.
pub(crate) fn state_with<T: Send + Sync + 'static>(context: &SessionContext, extension: Arc<T>) -> SessionState {
    let state = context.state();
    let config = state.config().clone().with_extension(extension);
    SessionStateBuilder::new_from_existing(state).with_config(config).build()
}
