//! The session: statements are planned, and models, settings and answers are found.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, dialect_from_str};
use refrain_serving::device::FoundDevice;
use refrain_udf::{NamedPrompts, Settings};

use super::query::Kind;
use super::{Builder, Query};
use crate::answers::AnswerCache;
use crate::error::Result;
use crate::model_options::ModelType;
use crate::models::{ModelCatalog, ModelInfo};
use crate::operators::QueryScope;
use crate::planner::EstimateCosts;
use crate::queries::QueryLog;
#[cfg(feature = "flight")]
use crate::queries::QueryRecord;
use crate::secrets::SecretStore;
use crate::session_tables::{self, SessionCatalogs};
use crate::statement::{self, Statement};
use crate::{desugared, redact, session};

/// What `SHOW MODELS` means.
const SHOW_MODELS: &str = "SELECT name, kind, type, location, state, max_context, digest FROM ai_models() ORDER BY name";

/// What `SHOW PROMPTS` means.
const SHOW_PROMPTS: &str =
    "SELECT name, version, signature, return_type, model, template FROM ai_prompts() WHERE is_current ORDER BY name";

/// A session: tables, models and settings. Clones are the same session.
///
/// ```
/// use std::sync::Arc;
///
/// use futures::TryStreamExt;
/// use refrain::serving::mock::MockBackend;
/// use refrain::{ModelSource, Refrain};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> refrain::Result<()> {
/// // Without a model of the program's own, the bundled one answers.
/// let model = ModelSource::Backend(Arc::new(MockBackend::new(7)));
/// let db = Refrain::builder().model("mock", model).setting("max_calls", "1000").build().await?;
///
/// let reviews = "(VALUES ('lovely'), ('dull'), ('dull')) AS reviews(review)";
/// let query = db.sql(&format!("SELECT review, ai_sentiment(review) FROM {reviews}")).await?;
/// let mut run = query.execute().await?;
/// let mut rows = 0;
/// while let Some(batch) = run.try_next().await? {
///     rows += batch.num_rows();
/// }
/// // Equal questions are one call.
/// assert_eq!((rows, run.usage().calls), (3, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Refrain {
    pub(crate) context: SessionContext,
    pub(super) catalogs: Arc<SessionCatalogs>,
    pub(crate) models: Arc<ModelCatalog>,
    pub(crate) secrets: Arc<SecretStore>,
    pub(crate) queries: Arc<QueryLog>,
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
        Ok(Query::new(self.clone(), kind, redact::statement(statement)))
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
    pub(super) async fn physical_plan(
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
    pub(super) async fn estimated_plan(&self, plan: &LogicalPlan, costs: EstimateCosts) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(estimating(self.context.state(), costs).create_physical_plan(plan).await?)
    }
}

/// Returns a state whose plans carry estimates.
pub(super) fn estimating(state: SessionState, costs: EstimateCosts) -> SessionState {
    let config = state.config().clone().with_extension(Arc::new(costs));
    SessionStateBuilder::new_from_existing(state).with_config(config).build()
}

impl fmt::Debug for Refrain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refrain").field("session_id", &self.context.session_id()).finish_non_exhaustive()
    }
}
