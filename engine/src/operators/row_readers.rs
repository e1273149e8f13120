//! Tells the operators below which calls above them read the same rows, through plans that only hand columns on. What the lower one
//! computes of a row, the upper one then finds in the cache.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;

use crate::operators::call::PhysicalCall;
use crate::operators::layout::{CallAbove, may_share_rows, reads_the_same};
use crate::operators::llm_exec::LlmExec;

/// A call above, and what it reads of the plan that is looked at.
struct Reader {
    call: Arc<PhysicalCall>,
    seen_from_here: PhysicalCall,
}

/// Tells the operators in `input` of the `calls` above it.
pub(super) fn tell_below(calls: &[Arc<PhysicalCall>], input: &Arc<dyn ExecutionPlan>) -> Result<()> {
    let reader = |call: &Arc<PhysicalCall>| Reader { call: Arc::clone(call), seen_from_here: PhysicalCall::clone(call) };
    let mut readers: Vec<Reader> = calls.iter().filter(|call| may_share_rows(call)).map(reader).collect();
    let mut plan = Arc::clone(input);
    while !readers.is_empty() {
        if let Some(exec) = plan.downcast_ref::<LlmExec>() {
            for Reader { call, seen_from_here } in &readers {
                let reads_as =
                    exec.calls().iter().position(|own| may_share_rows(own) && reads_the_same(own, seen_from_here));
                if let Some(reads_as) = reads_as {
                    exec.add_call_above(CallAbove { call: Arc::clone(call), reads_as });
                }
            }
            // Its input columns keep their places; an answer is nothing that an operator below it reads.
            let n_inputs = exec.input().schema().fields().len();
            readers.retain(|reader| !reads_beyond(&reader.seen_from_here, n_inputs));
        } else if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            for reader in &mut readers {
                substitute(&mut reader.seen_from_here, projection)?;
            }
        } else if !matches!(plan.children()[..], [only] if only.schema() == plan.schema()) {
            return Ok(());
        }
        let children = plan.children();
        let [only] = children[..] else { return Ok(()) };
        plan = Arc::clone(only);
    }
    Ok(())
}

fn read_by(call: &PhysicalCall) -> impl Iterator<Item = &Arc<dyn PhysicalExpr>> {
    call.inputs.iter().chain(&call.guard)
}

/// Returns whether a call reads a column behind the first `n_columns`.
fn reads_beyond(call: &PhysicalCall, n_columns: usize) -> bool {
    let is_beyond =
        |expr: &Arc<dyn PhysicalExpr>| Ok(expr.downcast_ref::<Column>().is_some_and(|column| column.index() >= n_columns));
    // Looking never fails.
    read_by(call).any(|expr| expr.exists(is_beyond).unwrap_or(true))
}

/// Writes what a call reads of a projection in terms of what the projection reads.
fn substitute(call: &mut PhysicalCall, projection: &ProjectionExec) -> Result<()> {
    for expr in call.inputs.iter_mut().chain(&mut call.guard) {
        let below = |node: Arc<dyn PhysicalExpr>| {
            let column = node.downcast_ref::<Column>().and_then(|column| projection.expr().get(column.index()));
            Ok(match column {
                Some(below) => Transformed::yes(Arc::clone(&below.expr)),
                None => Transformed::no(node),
            })
        };
        *expr = Arc::clone(expr).transform_up(below).data()?;
    }
    Ok(())
}
