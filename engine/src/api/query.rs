//! A statement that has been planned: its columns and parameters, what it would cost, and how it starts.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{ParamValues, ScalarValue, plan_datafusion_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement as PlannedStatement};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::{AbortHandle, Abortable};
use futures::{StreamExt, TryStreamExt, stream};

use super::session::estimating;
use super::{Estimate, Refrain, Run};
use crate::error::{Error, Result};
use crate::explain::{self, ExplainOptions};
use crate::operators::{Limits, QueryScope};
use crate::own_statements::own_schema;
use crate::planner::{EstimateCosts, described_calls};
use crate::queries::{HistoryLimits, QueryState, RunningQuery};
use crate::session;
use crate::statement::Statement;

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
pub(super) enum Kind {
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

    /// `sql` is the statement without secrets.
    pub(super) fn new(db: Refrain, kind: Kind, sql: String) -> Self {
        Query { db, kind, sql, is_estimated: false }
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
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use refrain::serving::mock::MockBackend;
    /// use refrain::{ModelSource, Refrain};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> refrain::Result<()> {
    /// let mock = Arc::new(MockBackend::new(7));
    /// let db = Refrain::builder().model("mock", ModelSource::Backend(mock.clone())).build().await?;
    /// let reviews = "(VALUES ('lovely'), ('dull'), ('dull')) AS reviews(review)";
    /// let query = db.sql(&format!("SELECT ai_filter('Is it a complaint?', review) FROM {reviews}")).await?;
    ///
    /// let estimate = query.estimate().await?;
    /// println!("{estimate}");
    /// let (call, expected) = &estimate.calls[0];
    /// let expected = expected.as_ref().expect("it depends on no other answers");
    /// assert!(call.starts_with("ai_filter("));
    /// assert_eq!((expected.rows, expected.distinct, mock.calls()), (3, 2, 0));
    /// # Ok(())
    /// # }
    /// ```
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
        Ok(Run::new(schema, rows, query))
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
pub(super) fn end_state(error: &Error) -> QueryState {
    match error {
        Error::Cancelled => QueryState::Cancelled,
        _ => QueryState::Failed,
    }
}
