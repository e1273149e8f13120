//! `LlmAggregateNode`: the logical operator that turns lists of inputs, one for each group, into the values of LLM aggregates.
//!
//! ```text
//! SELECT product, ai_agg(review, 'What do they praise?'), count(*) FROM reviews GROUP BY product
//!
//! Projection: product, __llm_2, count(*)
//!   LlmAggregateNode: ai_agg('What do they praise?', fields=[review]) OF __llm_1 AS __llm_2
//!     Aggregate: groupBy=[[product]], aggr=[[count(*), array_agg(review) FILTER (WHERE review IS NOT NULL) AS __llm_1]]
//!       TableScan: reviews
//! ```
//!
//! An item of a list is an input, or `STRUCT(value, key1, key2, …)` where the call has an ORDER BY: groups are put in order by
//! the operator, so that the order does not depend on how the rows below were spread.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_datafusion_err, internal_err};
use datafusion::logical_expr::{
    Expr, Extension, InvariantLevel, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
};
use refrain_udf::{LlmAggregate, contains_llm_call};

use crate::rewrite_notes::RewriteNotes;

/// One aggregate of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAggregate {
    /// What is asked.
    pub aggregate: LlmAggregate,
    /// The column that holds the inputs of each group.
    pub list: Expr,
    /// How the keys of the items are ordered: ascending, NULLs first. Empty where items have no keys.
    pub order: Vec<(bool, bool)>,
    /// The column that holds the values.
    pub output: FieldRef,
    /// What rules did to the aggregate.
    pub notes: RewriteNotes,
}

/// Replaces the lists of its input by the values of its aggregates: columns are those of `input` that are no list, then the values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LlmAggregateNode {
    /// Where the groups come from.
    pub input: LogicalPlan,
    /// The aggregates, over list columns of `input`.
    pub aggregates: Vec<NodeAggregate>,
    schema: DFSchemaRef,
}

impl LlmAggregateNode {
    /// Builds a node. Fails if an output column has the name of an input column.
    pub fn try_new(input: LogicalPlan, aggregates: Vec<NodeAggregate>) -> Result<Self> {
        let lists = list_columns(&input, &aggregates);
        let passed = input.schema().iter().enumerate().filter(|(idx, _)| !lists.contains(idx));
        let mut fields: Vec<_> = passed.map(|(_, (qualifier, field))| (qualifier.cloned(), Arc::clone(field))).collect();
        fields.extend(aggregates.iter().map(|aggregate| (None, Arc::clone(&aggregate.output))));
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?;
        Ok(LlmAggregateNode { input, aggregates, schema: Arc::new(schema) })
    }

    /// Wraps the node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// Returns the node behind an extension plan, if it is one.
    pub fn from_plan(plan: &LogicalPlan) -> Option<&LlmAggregateNode> {
        match plan {
            LogicalPlan::Extension(extension) => LlmAggregateNode::from_node(extension.node.as_ref()),
            _ => None,
        }
    }

    /// Returns the `LlmAggregateNode` behind a user-defined node, if it is one.
    pub fn from_node(node: &dyn UserDefinedLogicalNode) -> Option<&LlmAggregateNode> {
        node.as_any().downcast_ref::<LlmAggregateNode>()
    }

    /// Returns the positions of the input's columns that are passed on, in order.
    pub fn passed_columns(&self) -> Vec<usize> {
        let lists = list_columns(&self.input, &self.aggregates);
        (0..self.input.schema().fields().len()).filter(|idx| !lists.contains(idx)).collect()
    }
}

/// Returns the positions of the columns that hold lists.
fn list_columns(input: &LogicalPlan, aggregates: &[NodeAggregate]) -> HashSet<usize> {
    let columns = aggregates.iter().flat_map(|aggregate| aggregate.list.column_refs());
    columns.filter_map(|column| input.schema().maybe_index_of_column(column)).collect()
}

/// Total on equal nodes only, as the trait demands; otherwise by what EXPLAIN shows.
impl PartialOrd for LlmAggregateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if self == other {
            return Some(Ordering::Equal);
        }
        match self.input.partial_cmp(&other.input) {
            Some(Ordering::Equal) => {
                let shown = |node: &Self| format!("{:?}", node.aggregates);
                Some(shown(self).cmp(&shown(other))).filter(|order| order.is_ne())
            }
            unequal => unequal,
        }
    }
}

impl UserDefinedLogicalNodeCore for LlmAggregateNode {
    fn name(&self) -> &str {
        "LlmAggregateNode"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.aggregates.iter().map(|aggregate| aggregate.list.clone()).collect()
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(input), true) = (inputs.pop(), inputs.is_empty()) else {
            return internal_err!("LlmAggregateNode takes one input");
        };
        // Rules put aliases around the rewritten expressions of an extension node to keep its names.
        let mut lists = exprs.into_iter().map(|expr| expr.unalias_nested().data);
        let with_list = |aggregate: &NodeAggregate| {
            let list = lists.next().ok_or_else(|| internal_datafusion_err!("LlmAggregateNode got too few expressions"))?;
            Ok(NodeAggregate { list, ..aggregate.clone() })
        };
        let aggregates = self.aggregates.iter().map(with_list).collect::<Result<_>>()?;
        Self::try_new(input, aggregates)
    }

    // The default keeps every predicate above; those over groups and ordinary aggregates may pass, so that a group which HAVING
    // drops is not asked about.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.aggregates.iter().map(|aggregate| aggregate.output.name().clone()).collect()
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let passed = self.passed_columns();
        let read = output_columns.iter().filter_map(|idx| passed.get(*idx)).copied();
        let mut columns: Vec<usize> = read.chain(list_columns(&self.input, &self.aggregates)).collect();
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }

    // One row out for each row in, in order.
    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn check_invariants(&self, _check: InvariantLevel) -> Result<()> {
        if UserDefinedLogicalNodeCore::expressions(self).iter().any(contains_llm_call) {
            return internal_err!("an LLM call was left inside an LlmAggregateNode");
        }
        Ok(())
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("LlmAggregateNode: ")?;
        for (idx, NodeAggregate { aggregate, list, output, .. }) in self.aggregates.iter().enumerate() {
            let comma = if idx > 0 { ", " } else { "" };
            write!(f, "{comma}{} OF {list} AS {}", aggregate.describe(), output.name())?;
        }
        Ok(())
    }
}
