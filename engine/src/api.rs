//! The embedded API: a session, its queries, and queries that run.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::config::ExtensionOptions;
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{ParamValues, plan_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder};
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement as PlannedStatement};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, dialect_from_str};
use futures::future::{AbortHandle, Abortable};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use refrain_serving::device::FoundDevice;
use refrain_udf::{NamedPrompts, Settings};
use tokio::sync::watch;

use crate::answers::AnswerCache;
use crate::error::{Error, Result};
use crate::explain::{self, ExplainOptions};
use crate::model_options::ModelType;
use crate::models::{ModelCatalog, ModelInfo, ModelSource};
#[cfg(feature = "flight")]
use crate::operators::NodeStats;
use crate::operators::{CallEstimate, Limits, Progress, QueryScope, QueryUsage, RowError};
use crate::own_statements::own_schema;
use crate::planner::{EstimateCosts, described_calls};
#[cfg(feature = "flight")]
use crate::queries::QueryRecord;
use crate::queries::{HistoryLimits, QueryLog, QueryState, RunningQuery};
use crate::secrets::SecretStore;
use crate::session_tables::{self, SessionCatalogs};
use crate::statement::{self, Statement};
use crate::{desugared, redact, session};

/// How often the progress of a running query is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What `SHOW MODELS` means.
const SHOW_MODELS: &str = "SELECT name, kind, type, location, state, max_context, digest FROM ai_models() ORDER BY name";

/// What `SHOW PROMPTS` means.
const SHOW_PROMPTS: &str =
    "SELECT name, version, signature, return_type, model, template FROM ai_prompts() WHERE is_current ORDER BY name";

/// A session: tables, models and settings. Clones are the same session.
#[derive(Clone)]
pub struct Refrain {
    pub(crate) context: SessionContext,
    catalogs: Arc<SessionCatalogs>,
    pub(crate) models: Arc<ModelCatalog>,
    pub(crate) secrets: Arc<SecretStore>,
    pub(crate) queries: Arc<QueryLog>,
}

/// Collects what a session starts with.
#[derive(Default)]
pub struct Builder {
    models: Vec<(String, ModelSource)>,
    settings: Vec<(String, String)>,
    config: SessionConfig,
    secrets_folder: Option<PathBuf>,
    kernel_cache: Option<PathBuf>,
}

impl Builder {
    /// Adds a model. Where there is exactly one it answers every call that names none; with none, the bundled model does.
    pub fn model(mut self, name: impl Into<String>, source: ModelSource) -> Self {
        self.models.push((name.into(), source));
        self
    }

    /// Changes a setting, as `SET refrain.key = value` would.
    pub fn setting(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Names the folder of persistent secrets; without one, `CREATE PERSISTENT SECRET` is refused.
    pub fn secrets_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.secrets_folder = Some(folder.into());
        self
    }

    /// Names the folder where kernels are kept that were compiled for a GPU; without one they are compiled each time a model is
    /// loaded, which takes seconds.
    pub fn kernel_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.kernel_cache = Some(folder.into());
        self
    }

    /// Replaces DataFusion's part of the configuration.
    pub fn config(mut self, config: SessionConfig) -> Self {
        self.config = config;
        self
    }

    /// Builds the session. Fails on an unknown setting or a model that is not there; loads nothing.
    pub async fn build(self) -> Result<Refrain> {
        let mut settings = Settings::default();
        for (key, value) in &self.settings {
            settings.set(key, value)?;
        }
        let secrets = Arc::new(SecretStore::new(self.secrets_folder));
        let models = Arc::new(ModelCatalog::new(Arc::clone(&secrets), self.kernel_cache));
        #[cfg(feature = "bundled-model")]
        models.add_fallback("mini", ModelSource::Bundled(refrain_serving::load::BundledModel::Mini));
        for (name, source) in self.models {
            models.add(&name, source, true)?;
        }
        let queries = Arc::new(QueryLog::default());
        let (context, catalogs) = session::new_session(&models, &queries, settings, self.config)?;
        Ok(Refrain { context, catalogs, models, secrets, queries })
    }
}

impl Refrain {
    /// Starts a session of its own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Opens a session beside this one: it has the same models, secrets, prompts, answers and tables, settings that begin as this session's
    /// are now, and temporary tables and queries of its own. `id` is what `ai_queries()` calls it.
    pub fn new_session(&self, id: &str) -> Result<Refrain> {
        self.session_beside(id, Arc::default())
    }

    /// As [`new_session`](Self::new_session), with a log that other sessions may share.
    pub(crate) fn session_beside(&self, id: &str, queries: Arc<QueryLog>) -> Result<Refrain> {
        let (context, catalogs) = session::session_beside(&self.context, &self.catalogs, id, &self.models, &queries)?;
        let (models, secrets) = (Arc::clone(&self.models), Arc::clone(&self.secrets));
        Ok(Refrain { context, catalogs, models, secrets, queries })
    }

    /// Plans one statement. No model is called, and nothing is changed before the query is executed.
    pub async fn sql(&self, statement: &str) -> Result<Query> {
        // Parsed apart, since a dialect cannot cross an await.
        let parsed = {
            let dialect = self.dialect();
            statement::parse(&statement::number_placeholders(statement, dialect.as_ref())?, dialect.as_ref())?
        };
        let parsed = match parsed {
            Statement::ShowModels => statement::parse(SHOW_MODELS, &GenericDialect {})?,
            Statement::ShowPrompts => statement::parse(SHOW_PROMPTS, &GenericDialect {})?,
            other => other,
        };
        let kind = match parsed {
            Statement::DataFusion(mut parsed) => {
                session_tables::place_temporary(&mut parsed)?;
                let parsed = desugared(&self.context, *parsed).await?;
                Kind::Plan(Box::new(self.context.state().statement_to_plan(parsed).await?))
            }
            Statement::Explain { options, statement } => {
                let explained = desugared(&self.context, *statement).await?;
                let plan = self.context.state().statement_to_plan(explained).await?;
                Kind::Explain { plan: Box::new(plan), options }
            }
            own => Kind::Own(own),
        };
        Ok(Query { db: self.clone(), kind, sql: redact::statement(statement), is_estimated: false })
    }

    /// Splits a script at its semicolons.
    pub fn statements(&self, script: &str) -> Result<Vec<String>> {
        Ok(statement::split(script, self.dialect().as_ref())?)
    }

    /// Returns the DataFusion session, to register tables and functions of the program's own.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Lists the models of the session.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.models.list()
    }

    /// Returns the models, to add to them or to give them to another session.
    pub fn model_catalog(&self) -> &Arc<ModelCatalog> {
        &self.models
    }

    /// Returns the queries of the session.
    #[cfg(feature = "flight")]
    pub(crate) fn query_log(&self) -> &Arc<QueryLog> {
        &self.queries
    }

    /// Returns the answers that outlive their query, to look at them or to forget them.
    pub fn answer_cache(&self) -> Arc<AnswerCache> {
        self.context.state().config().get_extension::<AnswerCache>().unwrap_or_default()
    }

    /// Returns the prompts with names, which sessions share as they do models.
    pub fn prompts(&self) -> Arc<NamedPrompts> {
        self.context.state().config().get_extension::<NamedPrompts>().unwrap_or_default()
    }

    /// Says in one line which model answers by default.
    pub fn banner(&self) -> String {
        match self.models.resolve(self.settings().model.as_deref(), ModelType::Completion) {
            Ok(name) if self.models.is_fallback(&name) => {
                format!(
                    "model {name}: bundled, small, for demonstration and tests; for real work: CREATE MODEL name FROM 'folder'"
                )
            }
            Ok(name) => format!("model {name}"),
            Err(error) => error.strip_backtrace(),
        }
    }

    /// Says in one line where models run that are loaded from now on, and if that is not a GPU, why. Looks for a GPU, which may
    /// take half a second.
    pub fn device(&self) -> String {
        let settings = self.settings();
        match FoundDevice::find(settings.device, settings.threads.and_then(NonZeroUsize::new)) {
            Ok(found) => format!("device: {found}"),
            Err(error) => error.to_string(),
        }
    }

    /// Returns the last query of the session, if it has run one.
    #[cfg(feature = "flight")]
    pub(crate) fn last_query(&self) -> Option<Arc<QueryRecord>> {
        self.queries.last_of(&self.context.session_id())
    }

    /// Returns whether a statement is `KILL QUERY`, without planning it.
    #[cfg(feature = "flight")]
    pub(crate) fn is_kill(&self, statement: &str) -> bool {
        matches!(statement::parse(statement, self.dialect().as_ref()), Ok(Statement::KillQuery { .. }))
    }

    /// Returns how urgent the queries of the session are.
    #[cfg(feature = "flight")]
    pub(crate) fn priority(&self) -> refrain_udf::Priority {
        self.settings().priority
    }

    pub(crate) fn settings(&self) -> Settings {
        crate::planner::settings(&self.context.state())
    }

    fn dialect(&self) -> Box<dyn Dialect> {
        let name = self.context.state().config().options().sql_parser.dialect.to_string();
        dialect_from_str(name).unwrap_or_else(|| Box::new(GenericDialect {}))
    }

    /// Makes the physical plan of a query in a scope of its own, and runs at once what DataFusion runs while planning.
    async fn physical_plan(
        &self,
        plan: LogicalPlan,
        scope: &Arc<QueryScope>,
        is_estimated: bool,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // SET and PREPARE change this session, so they must not run in a copy of it; what makes tables may.
        let context = match &plan {
            LogicalPlan::Statement(_) => self.context.clone(),
            _ => SessionContext::new_with_state(session::state_with(&self.context, Arc::clone(scope))),
        };
        let frame = context.execute_logical_plan(plan).await?;
        let state = session::state_with(&self.context, Arc::clone(scope));
        let state = if is_estimated { estimating(state, EstimateCosts::default()) } else { state };
        Ok(state.create_physical_plan(frame.logical_plan()).await?)
    }

    /// Makes the physical plan of a query with estimates, in a scope of its own.
    async fn estimated_plan(&self, plan: &LogicalPlan, costs: EstimateCosts) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(estimating(self.context.state(), costs).create_physical_plan(plan).await?)
    }
}

/// Returns a state whose plans carry estimates.
fn estimating(state: SessionState, costs: EstimateCosts) -> SessionState {
    let config = state.config().clone().with_extension(Arc::new(costs));
    SessionStateBuilder::new_from_existing(state).with_config(config).build()
}

impl fmt::Debug for Refrain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refrain").field("session_id", &self.context.session_id()).finish_non_exhaustive()
    }
}

/// Adds the LLM functions, their rules and their planner to a session that a program has already.
pub fn register(context: &SessionContext, models: &Arc<ModelCatalog>) -> Result<()> {
    Ok(session::register(context, models)?)
}

/// Plans one SQL query in a session that [`register`] has prepared; the way to named arguments of `ai_*` functions there.
pub async fn sql(context: &SessionContext, query: &str) -> Result<datafusion::prelude::DataFrame> {
    let parsed = statement::parse(query, &GenericDialect {})?;
    let statement = match parsed {
        Statement::DataFusion(statement) => desugared(context, *statement).await?,
        _ => return Err(plan_datafusion_err!("statements about models need a session of refrain: Refrain::sql").into()),
    };
    let plan = context.state().statement_to_plan(statement).await?;
    Ok(context.execute_logical_plan(plan).await?)
}

/// A statement that has been planned and not run.
#[derive(Clone, Debug)]
pub struct Query {
    db: Refrain,
    kind: Kind,
    /// Its text without secrets.
    sql: String,
    /// Whether it is estimated before it runs.
    is_estimated: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Plan(Box<LogicalPlan>),
    /// EXPLAIN in a form of ours.
    Explain {
        plan: Box<LogicalPlan>,
        options: ExplainOptions,
    },
    Own(Statement),
}

impl Query {
    /// Returns the session that has planned it.
    #[cfg(any(feature = "cli", feature = "flight"))]
    pub(crate) fn db(&self) -> &Refrain {
        &self.db
    }

    /// Returns the columns of the result.
    pub fn schema(&self) -> SchemaRef {
        match &self.kind {
            Kind::Plan(plan) => Arc::new(plan.schema().as_arrow().clone()),
            Kind::Explain { options, .. } if options.json => explain::json_schema(),
            Kind::Explain { .. } => LogicalPlan::explain_schema(),
            Kind::Own(statement) => own_schema(statement),
        }
    }

    /// Returns whether the statement is asked for its rows, as SELECT and EXPLAIN are. Others change something: tables, settings,
    /// models, files.
    pub fn returns_rows(&self) -> bool {
        match &self.kind {
            Kind::Plan(plan) => match plan.as_ref() {
                LogicalPlan::Statement(statement) => matches!(statement, PlannedStatement::Execute(_)),
                plan => !matches!(plan, LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_)),
            },
            Kind::Explain { .. } => true,
            Kind::Own(statement) => !own_schema(statement).fields().is_empty(),
        }
    }

    /// Returns whether running the statement changes more than settings of the session: tables, files, models, secrets, prompts, kept
    /// answers, or queries that run.
    pub fn changes_something(&self) -> bool {
        match &self.kind {
            Kind::Plan(plan) => changes_something(plan),
            Kind::Explain { plan, options } => options.analyze && changes_something(plan),
            Kind::Own(Statement::Reset { .. }) => false,
            Kind::Own(statement) => own_schema(statement).fields().is_empty(),
        }
    }

    /// Returns the statement without secrets.
    #[cfg(feature = "flight")]
    pub(crate) fn text(&self) -> &str {
        &self.sql
    }

    /// Returns whether the statement is `KILL QUERY`.
    #[cfg(feature = "flight")]
    pub(crate) fn is_kill(&self) -> bool {
        matches!(self.kind, Kind::Own(Statement::KillQuery { .. }))
    }

    /// Returns the parameters of the statement, in order: `?`, `$1` and `$name`. Text is assumed where nothing tells the type.
    pub fn parameters(&self) -> Result<SchemaRef> {
        let field =
            |(name, data_type): (String, Option<DataType>)| Field::new(name, data_type.unwrap_or(DataType::Utf8), true);
        Ok(Arc::new(Schema::new(self.parameter_types()?.into_iter().map(field).collect::<Vec<_>>())))
    }

    /// Returns name and, where the statement tells it, type of every parameter.
    fn parameter_types(&self) -> Result<Vec<(String, Option<DataType>)>> {
        let Some(plan) = self.logical_plan() else { return Ok(vec![]) };
        let mut found: Vec<_> = plan.get_parameter_types()?.into_iter().collect();
        found.sort_by_cached_key(|(name, _)| (name[1..].parse::<usize>().ok(), name.clone()));
        Ok(found.into_iter().map(|(name, data_type)| (name[1..].to_owned(), data_type.filter(|t| !t.is_null()))).collect())
    }

    /// Gives the parameters values, in the order of [`parameters`](Self::parameters). Fails unless there is one for each, and where a
    /// value would be changed on its way into a table.
    pub fn bind(&self, values: &[ScalarValue]) -> Result<Query> {
        let types = self.parameter_types()?;
        if types.len() != values.len() {
            let (wanted, given) = (types.len(), values.len());
            return Err(plan_datafusion_err!("the statement has {wanted} parameters, and {given} values were given").into());
        }
        let is_stored = matches!(self.logical_plan(), Some(LogicalPlan::Dml(_)));
        let mut bound = vec![];
        for ((name, data_type), value) in types.into_iter().zip(values) {
            let value = match data_type {
                Some(data_type) => match lossless(value, &data_type) {
                    None if is_stored => {
                        return Err(
                            plan_datafusion_err!("value {value} of parameter {name} does not fit type {data_type}").into()
                        );
                    }
                    fitting => fitting.unwrap_or_else(|| value.clone()),
                },
                None => value.clone(),
            };
            bound.push((name, value));
        }
        let values = match bound.iter().all(|(name, _)| name.parse::<usize>().is_ok()) {
            true => ParamValues::from(bound.into_iter().map(|(_, value)| value).collect::<Vec<_>>()),
            false => {
                ParamValues::Map(bound.into_iter().map(|(name, value)| (name, ScalarAndMetadata::from(value))).collect())
            }
        };
        let bind = |plan: &LogicalPlan| plan.clone().with_param_values(values.clone()).map(Box::new);
        let kind = match &self.kind {
            Kind::Plan(plan) => Kind::Plan(bind(plan)?),
            Kind::Explain { plan, options } => Kind::Explain { plan: bind(plan)?, options: *options },
            Kind::Own(statement) => Kind::Own(statement.clone()),
        };
        Ok(Query { kind, ..self.clone() })
    }

    /// Returns the plan before optimisation; `None` for statements about models and settings.
    pub fn logical_plan(&self) -> Option<&LogicalPlan> {
        match &self.kind {
            Kind::Plan(plan) | Kind::Explain { plan, .. } => Some(plan),
            Kind::Own(_) => None,
        }
    }

    /// Estimates what the query costs, from a sample of its tables. Calls no model.
    pub async fn estimate(&self) -> Result<Estimate> {
        let plan = match &self.kind {
            Kind::Plan(plan) => match plan.as_ref() {
                LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => create.input.as_ref(),
                LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => return Ok(Estimate::default()),
                plan => plan,
            },
            Kind::Explain { plan, options } if options.analyze => plan.as_ref(),
            Kind::Explain { .. } | Kind::Own(_) => return Ok(Estimate::default()),
        };
        let physical = self.db.estimated_plan(plan, EstimateCosts::default()).await?;
        Ok(Estimate { calls: described_calls(&physical)? })
    }

    /// Returns the plan with its estimates as JSON, and with the first `prompts` of each call as they would be asked. Calls no model.
    #[cfg(feature = "flight")]
    pub(crate) async fn plan_with_prompts(&self, prompts: usize) -> Result<serde_json::Value> {
        let plan = self.logical_plan().map(|plan| match plan {
            LogicalPlan::Explain(explain) => explain.plan.as_ref(),
            LogicalPlan::Analyze(analyze) => analyze.input.as_ref(),
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => create.input.as_ref(),
            plan => plan,
        });
        match plan {
            None | Some(LogicalPlan::Ddl(_) | LogicalPlan::Statement(_)) => {
                Err(plan_datafusion_err!("the statement asks nothing and has no plan to show").into())
            }
            Some(plan) => {
                let costs = EstimateCosts { prompts: Some(prompts), ..EstimateCosts::default() };
                Ok(explain::to_json(&self.db.estimated_plan(plan, costs).await?))
            }
        }
    }

    /// Has the query estimated before it runs, so that [`Run::plan`] shows the estimates beside what happened. That reads a sample of
    /// its tables and calls no model.
    pub fn with_estimates(self) -> Query {
        Query { is_estimated: true, ..self }
    }

    /// Starts the query. Rows come as they are finished; dropping the result cancels the rest.
    pub async fn execute(self) -> Result<Run> {
        let Query { db, kind, sql, is_estimated } = self;
        let (handle, registration) = AbortHandle::new_pair();
        let settings = db.settings();
        let limits = HistoryLimits { queries: settings.query_history, errors: settings.error_history };
        let query = db.queries.begin(&sql, &db.context.session_id(), handle, Limits::of(&settings), limits);
        // Planning runs what DataFusion runs while it plans, such as CREATE TABLE AS.
        let started = tokio::select! {
            started = start(&db, kind, &query, is_estimated) => started,
            () = query.scope.cancelled() => Err(Error::Cancelled),
        };
        let rows = started.inspect_err(|error| query.end(end_state(error)))?;
        let schema = rows.schema();
        let rows = Box::pin(Abortable::new(rows, registration));
        Ok(Run { schema, rows: Some(rows), query, progress: None })
    }
}

async fn start(db: &Refrain, kind: Kind, query: &RunningQuery, is_estimated: bool) -> Result<SendableRecordBatchStream> {
    match kind {
        Kind::Own(statement) => {
            let schema = own_schema(&statement);
            let batch = db.run_own(statement).await?;
            Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batch.map(Ok)))))
        }
        Kind::Plan(plan) => {
            let is_explained = matches!(plan.as_ref(), LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
            let physical = db.physical_plan(*plan, &query.scope, is_estimated).await?;
            query.planned(&physical);
            let rows = execute_stream(physical, db.context.task_ctx())?;
            Ok(if is_explained { indented(rows) } else { rows })
        }
        Kind::Explain { plan, options } => explained(db, *plan, options, &query.scope).await,
    }
}

/// Returns whether a plan changes something when it runs.
fn changes_something(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Explain(_) => false,
        LogicalPlan::Statement(PlannedStatement::Prepare(prepare)) => changes_something(&prepare.input),
        plan => {
            let changes =
                |node: &LogicalPlan| Ok(matches!(node, LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_)));
            // What cannot be looked through is not trusted.
            plan.exists(changes).unwrap_or(true)
        }
    }
}

/// Explains a statement in a form of ours.
async fn explained(
    db: &Refrain,
    plan: LogicalPlan,
    options: ExplainOptions,
    scope: &Arc<QueryScope>,
) -> Result<SendableRecordBatchStream> {
    let state = session::state_with(&db.context, Arc::clone(scope));
    let state = estimating(state, EstimateCosts { sample: options.sample, prompts: None });
    let plan = state.optimize(&plan)?;
    let physical = state.query_planner().create_physical_plan(&plan, &state).await?;
    if !options.json {
        let batch = explain::text_batch(&plan.display_indent().to_string(), &physical, options.verbose);
        return Ok(Box::pin(RecordBatchStreamAdapter::new(LogicalPlan::explain_schema(), stream::once(async { batch }))));
    }
    let batch = async move {
        if options.analyze {
            let mut rows = execute_stream(Arc::clone(&physical), state.task_ctx())?;
            while rows.try_next().await?.is_some() {}
        }
        explain::json_batch(&physical)
    };
    Ok(Box::pin(RecordBatchStreamAdapter::new(explain::json_schema(), stream::once(batch))))
}

/// Puts the details of operators below them.
fn indented(rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = rows.schema();
    Box::pin(RecordBatchStreamAdapter::new(schema, rows.map(|batch| explain::indent_details(batch?))))
}

/// Converts a value to a type, unless that would change it.
fn lossless(value: &ScalarValue, data_type: &DataType) -> Option<ScalarValue> {
    let cast = value.cast_to(data_type).ok()?;
    let is_same = value.is_null() || cast.cast_to(&value.data_type()).is_ok_and(|back| back == *value);
    is_same.then_some(cast)
}

/// Returns how a query has ended that ended with this error.
fn end_state(error: &Error) -> QueryState {
    match error {
        Error::Cancelled => QueryState::Cancelled,
        _ => QueryState::Failed,
    }
}

/// What a query is expected to cost.
#[derive(Clone, Debug, Default)]
pub struct Estimate {
    /// Each call with its estimate; `None` where the input of a call depends on the answers of another.
    pub calls: Vec<(String, Option<CallEstimate>)>,
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.calls.is_empty() {
            return f.write_str("no model is asked");
        }
        for (idx, (call, estimate)) in self.calls.iter().enumerate() {
            if idx > 0 {
                writeln!(f)?;
            }
            match estimate {
                Some(estimate) => write!(f, "{call}\n  {estimate}")?,
                None => write!(f, "{call}\n  not estimated: its rows depend on the answers below it")?,
            }
        }
        Ok(())
    }
}

/// A query that runs: a stream of its rows.
pub struct Run {
    schema: SchemaRef,
    rows: Option<Pin<Box<Abortable<SendableRecordBatchStream>>>>,
    query: RunningQuery,
    progress: Option<(watch::Receiver<Progress>, SpawnedTask<()>)>,
}

/// Cancels a running query from elsewhere.
#[derive(Clone, Debug)]
pub struct CancelHandle {
    rows: AbortHandle,
    scope: Arc<QueryScope>,
}

impl CancelHandle {
    pub(crate) fn new(rows: AbortHandle, scope: Arc<QueryScope>) -> Self {
        CancelHandle { rows, scope }
    }

    /// Cancels the query: its stream ends with [`Error::Cancelled`], and its model calls stop within one step.
    pub fn cancel(&self) {
        self.scope.cancel();
        self.rows.abort();
    }
}

impl Run {
    /// Returns the columns of the rows.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Returns how far the query is, ten times a second. Must be called within a tokio runtime.
    pub fn progress(&mut self) -> watch::Receiver<Progress> {
        let scope = Arc::clone(&self.query.scope);
        let (receiver, _) = self.progress.get_or_insert_with(|| {
            let (sender, receiver) = watch::channel(scope.progress());
            let task = SpawnedTask::spawn(async move {
                let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
                while !sender.is_closed() {
                    ticks.tick().await;
                    sender.send_replace(scope.progress());
                }
            });
            (receiver, task)
        });
        receiver.clone()
    }

    /// Returns a handle that cancels the query.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.query.cancel.clone()
    }

    /// Returns the number of the query, by which `ai_queries()` lists it and `KILL QUERY` ends it.
    pub fn query_id(&self) -> u64 {
        self.query.id()
    }

    /// Returns the plan that runs as JSON, with what it has done so far, in the form of `EXPLAIN (ANALYZE, FORMAT json)`; `None` for a
    /// statement without one.
    pub fn plan(&self) -> Option<String> {
        self.query.plan()
    }

    /// Returns what the query has cost so far.
    pub fn usage(&self) -> QueryUsage {
        self.query.scope.usage()
    }

    /// Returns the counters of its calls.
    #[cfg(feature = "flight")]
    pub(crate) fn nodes(&self) -> Vec<Arc<NodeStats>> {
        self.query.scope.nodes()
    }

    /// Returns the inputs that failed so far, at most a thousand.
    pub fn row_errors(&self) -> Vec<RowError> {
        self.query.scope.row_errors()
    }

    /// Runs the query to its end and returns all rows.
    pub async fn fetch_all(&mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = vec![];
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }
}

impl Stream for Run {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(rows) = &mut self.rows else { return Poll::Ready(None) };
        match rows.as_mut().poll_next(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(batch))) => {
                self.query.add_rows(batch.num_rows());
                Poll::Ready(Some(Ok(batch)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.rows = None;
                let error = Error::from(error);
                self.query.end(end_state(&error));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                // Dropping the operators is what stops their model calls.
                let cancelled = rows.is_aborted();
                self.rows = None;
                self.query.end(if cancelled { QueryState::Cancelled } else { QueryState::Finished });
                Poll::Ready(cancelled.then_some(Err(Error::Cancelled)))
            }
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("schema", &self.schema).finish_non_exhaustive()
    }
}
