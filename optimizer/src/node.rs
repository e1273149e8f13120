//! `LlmNode`: the logical operator that adds one column for each LLM call to its input.
//!
//! ```text
//! SELECT ai_classify(review, ['praise','complaint']) FROM reviews WHERE stars < 3
//!
//! Projection: __llm_1
//!   LlmNode: ai_classify(review, labels=[praise, complaint]) AS __llm_1
//!     Filter: stars < 3
//! ```
//!
//! With `until`, the node is also a filter: it keeps the rows that pass a predicate over its own columns, asks in an order of its
//! own choice where the predicate is an AND over several answers, and for no more rows than a `LIMIT` above wants.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, internal_datafusion_err, internal_err};
use datafusion::logical_expr::{
    Expr, Extension, InvariantLevel, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
};
use refrain_udf::{LlmCall, contains_llm_call};

use crate::rewrite_notes::RewriteNotes;

/// One call of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeCall {
    /// What is asked; its inputs are expressions over the node's input.
    pub call: LlmCall,
    /// Rows for which this is not TRUE are not asked and get NULL.
    pub guard: Option<Expr>,
    /// The column that holds the answers.
    pub output: FieldRef,
    /// What rules did to the call.
    pub notes: RewriteNotes,
}

/// A filter over the answers, and how many of its rows somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FilterUntil {
    /// Over the columns of the node's output.
    pub predicate: Expr,
    /// Rows that the limit above wants; decides how many rows are asked about first. `None` where all are wanted.
    pub wanted: Option<usize>,
    /// Whether the node ends after `wanted` rows. A stage below another one does not know how many of its rows will survive.
    pub stops: bool,
}

/// Adds the answers of `calls` to each row of `input`, as new columns behind those of the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LlmNode {
    /// Where the rows come from.
    pub input: LogicalPlan,
    /// The calls, all over columns of `input`.
    pub calls: Vec<NodeCall>,
    /// Set where the node is also a filter: below a `LIMIT`, or over several answers whose order is its own to choose.
    pub until: Option<FilterUntil>,
    schema: DFSchemaRef,
}

impl LlmNode {
    /// Builds a node. Fails if an output column has the name of an input column.
    pub fn try_new(input: LogicalPlan, calls: Vec<NodeCall>, until: Option<FilterUntil>) -> Result<Self> {
        let mut fields: Vec<_> = input.schema().iter().map(|(q, f)| (q.cloned(), Arc::clone(f))).collect();
        fields.extend(calls.iter().map(|call| (None, Arc::clone(&call.output))));
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?
            .with_functional_dependencies(input.schema().functional_dependencies().clone())?;
        Ok(LlmNode { input, calls, until, schema: Arc::new(schema) })
    }

    /// Wraps the node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// Returns the node behind an extension plan, if it is one.
    pub fn from_plan(plan: &LogicalPlan) -> Option<&LlmNode> {
        match plan {
            LogicalPlan::Extension(extension) => LlmNode::from_node(extension.node.as_ref()),
            _ => None,
        }
    }

    /// Returns the `LlmNode` behind a user-defined node, if it is one.
    pub fn from_node(node: &dyn UserDefinedLogicalNode) -> Option<&LlmNode> {
        node.as_any().downcast_ref::<LlmNode>()
    }

    fn input_columns(&self) -> usize {
        self.input.schema().fields().len()
    }
}

/// Total on equal nodes only, as the trait demands; otherwise by what EXPLAIN shows.
impl PartialOrd for LlmNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if self == other {
            return Some(Ordering::Equal);
        }
        match self.input.partial_cmp(&other.input) {
            Some(Ordering::Equal) => {
                let shown = |node: &Self| format!("{:?}{:?}", node.calls, node.until);
                Some(shown(self).cmp(&shown(other))).filter(|order| order.is_ne())
            }
            unequal => unequal,
        }
    }
}

impl UserDefinedLogicalNodeCore for LlmNode {
    fn name(&self) -> &str {
        "LlmNode"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    // Inputs and guards only: the call itself must stay out of sight, or a rule would extract or fold it again. The predicate
    // of `until` reads the node's own output, which no rule expects of an expression, and is covered by
    // `necessary_children_exprs`.
    fn expressions(&self) -> Vec<Expr> {
        self.calls.iter().flat_map(|c| c.call.inputs.iter().chain(&c.guard)).cloned().collect()
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(input), true) = (inputs.pop(), inputs.is_empty()) else {
            return internal_err!("LlmNode takes one input");
        };
        // Rules put aliases around the rewritten expressions of an extension node to keep its names.
        let mut exprs = exprs.into_iter().map(|expr| expr.unalias_nested().data);
        let mut next = || exprs.next().ok_or_else(|| internal_datafusion_err!("LlmNode got too few expressions"));
        let mut calls = Vec::with_capacity(self.calls.len());
        for NodeCall { call, guard, output, notes } in &self.calls {
            let inputs = call.inputs.iter().map(|_| next()).collect::<Result<_>>()?;
            let guard = guard.as_ref().map(|_| next()).transpose()?;
            calls.push(NodeCall {
                call: call.clone().with_inputs(inputs),
                guard,
                output: Arc::clone(output),
                notes: notes.clone(),
            });
        }
        Self::try_new(input, calls, self.until.clone())
    }

    // The default keeps every predicate above. A map only adds columns, so predicates over the others may pass; a node that
    // counts its rows for a limit must see all of them.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        match &self.until {
            Some(FilterUntil { wanted: Some(_), .. }) => {
                self.schema.fields().iter().map(|field| field.name().clone()).collect()
            }
            _ => self.calls.iter().map(|call| call.output.name().clone()).collect(),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let read_by_predicate = self.until.iter().flat_map(|until| {
            until.predicate.column_refs().into_iter().filter_map(|column: &Column| self.schema.maybe_index_of_column(column))
        });
        // A sort below a filter decides which rows a limit takes; without its keys the physical plan may lose it.
        let keys = match &self.input {
            LogicalPlan::Sort(sort) if self.until.is_some() => sort.expr.as_slice(),
            _ => &[],
        };
        let sorted_by = keys.iter().flat_map(|key| key.expr.column_refs());
        let sorted_by = sorted_by.filter_map(|column| self.schema.maybe_index_of_column(column));
        let read = output_columns.iter().copied().chain(read_by_predicate).chain(sorted_by);
        let mut columns: Vec<usize> = read.filter(|idx| *idx < self.input_columns()).collect();
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }

    // One row out for each row in, in order, unless the node filters.
    fn supports_limit_pushdown(&self) -> bool {
        self.until.is_none()
    }

    fn check_invariants(&self, _check: InvariantLevel) -> Result<()> {
        if UserDefinedLogicalNodeCore::expressions(self).iter().any(contains_llm_call) {
            return internal_err!("an LLM call was left inside an LlmNode");
        }
        Ok(())
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("LlmNode: ")?;
        for (idx, NodeCall { call, guard, output, .. }) in self.calls.iter().enumerate() {
            if idx > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{} AS {}", call.describe(), output.name())?;
            if let Some(guard) = guard {
                write!(f, " IF {guard}")?;
            }
        }
        if let Some(FilterUntil { predicate, wanted, stops }) = &self.until {
            write!(f, ", filter={predicate}")?;
            if let Some(wanted) = wanted {
                write!(f, ", {}={wanted}", if *stops { "fetch" } else { "wanted" })?;
            }
        }
        Ok(())
    }
}
