//! LLM functions in a session that a program has already.

use std::sync::Arc;

use datafusion::common::plan_datafusion_err;
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::sqlparser::dialect::GenericDialect;

use crate::error::Result;
use crate::models::ModelCatalog;
use crate::statement::{self, Statement};
use crate::{desugared, session};

/// Adds the LLM functions, their rules and their planner to a session that a program has already.
///
/// The session's query planner is replaced; a program that has one of its own composes it with
/// [`extension_planner`](crate::extension_planner) instead.
///
/// ```
/// use std::sync::Arc;
///
/// use refrain::ModelCatalog;
/// use refrain::ModelSource;
/// use refrain::datafusion::prelude::SessionContext;
/// use refrain::serving::mock::MockBackend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> refrain::Result<()> {
/// let models = Arc::new(ModelCatalog::default());
/// models.add("mock", ModelSource::Backend(Arc::new(MockBackend::new(7))), false)?;
/// let context = SessionContext::new();
/// refrain::register(&context, &models)?;
///
/// let frame = context.sql("SELECT ai_sentiment('lovely')").await?;
/// assert_eq!(frame.collect().await?[0].num_rows(), 1);
/// // `name => value` goes through `sql` of this crate.
/// let frame = refrain::sql(&context, "SELECT ai_summarize('A long story.', max_words => 5)").await?;
/// assert_eq!(frame.collect().await?[0].num_rows(), 1);
/// # Ok(())
/// # }
/// ```
pub fn register(context: &SessionContext, models: &Arc<ModelCatalog>) -> Result<()> {
    Ok(session::register(context, models)?)
}

/// Plans one SQL query in a session that [`register`] has prepared; the way to named arguments of `ai_*` functions there,
/// as its example shows.
pub async fn sql(context: &SessionContext, query: &str) -> Result<DataFrame> {
    let parsed = statement::parse(query, &GenericDialect {})?;
    let statement = match parsed {
        Statement::DataFusion(statement) => desugared(context, *statement).await?,
        _ => return Err(plan_datafusion_err!("statements about models need a session of refrain: Refrain::sql").into()),
    };
    let plan = context.state().statement_to_plan(statement).await?;
    Ok(context.execute_logical_plan(plan).await?)
}
