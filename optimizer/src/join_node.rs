//! `LlmJoinNode`: the logical operator that joins two inputs on a condition which asks a model about pairs of their rows.
//!
//! ```text
//! SELECT … FROM a LEFT JOIN b ON a.k = b.k AND a.n < b.n AND ai_filter('Is it the same product?', a.text, b.text)
//!
//! LlmJoinNode: Left, on=[a.k = b.k], filter=a.n < b.n, ask ai_filter('Is it …', fields=[a.text, b.text]) AS __llm_1, keep __llm_1
//!   TableScan: a
//!   TableScan: b
//! ```
//!
//! The pairs that pass `on` and `filter` are its candidates. They go through its steps in order: a step adds answers as columns, or
//! keeps the pairs for which a predicate is TRUE. A pair that comes out at the end is a match; the kind of the join says what becomes
//! of rows with and without one.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use datafusion::common::{DFSchema, DFSchemaRef, JoinType, NullEquality, Result, internal_datafusion_err, internal_err};
use datafusion::logical_expr::logical_plan::builder::build_join_schema;
use datafusion::logical_expr::{
    Expr, Extension, InvariantLevel, Join, JoinConstraint, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
};
use refrain_udf::contains_llm_call;

use crate::node::NodeCall;

/// What decides whether two rows match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JoinCondition {
    /// Pairs of expressions, over the left and the right input, that must be equal.
    pub on: Vec<(Expr, Expr)>,
    /// Whether NULL equals NULL in `on`.
    pub null_equality: NullEquality,
    /// A predicate over both inputs that asks nobody.
    pub filter: Option<Expr>,
    /// What the candidates go through.
    pub steps: Vec<JoinStep>,
}

/// One step of the way of a candidate pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JoinStep {
    /// Asks about each pair; the answers become columns.
    Ask(Vec<NodeCall>),
    /// Keeps the pairs for which this is TRUE, over the columns of both inputs and the answers so far.
    Keep(Expr),
}

/// How far a join goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct JoinEffort {
    /// Whether a row that needs one match only is asked about until it has one. Set for semi, anti and mark joins.
    pub stops_at_match: bool,
    /// Rows that a limit above wants.
    pub wanted: Option<usize>,
    /// Whether rows may be asked which values of the other input match, instead of asking about each pair.
    pub may_classify: bool,
}

/// Joins `left` and `right` on a condition that asks a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LlmJoinNode {
    /// The left input.
    pub left: LogicalPlan,
    /// The right input.
    pub right: LogicalPlan,
    /// What becomes of rows with and without a match.
    pub join_type: JoinType,
    /// What a match is.
    pub condition: JoinCondition,
    /// How much is asked.
    pub effort: JoinEffort,
    schema: DFSchemaRef,
}

impl LlmJoinNode {
    /// Builds a node. Fails if the inputs have columns of the same name, or a condition has no step.
    pub fn try_new(
        left: LogicalPlan,
        right: LogicalPlan,
        join_type: JoinType,
        condition: JoinCondition,
        effort: JoinEffort,
    ) -> Result<Self> {
        if condition.steps.is_empty() {
            return internal_err!("LlmJoinNode asks nothing");
        }
        let schema = Arc::new(build_join_schema(left.schema(), right.schema(), &join_type)?);
        Ok(LlmJoinNode { left, right, join_type, condition, effort, schema })
    }

    /// Wraps the node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// Returns the node behind an extension plan, if it is one.
    pub fn from_plan(plan: &LogicalPlan) -> Option<&LlmJoinNode> {
        match plan {
            LogicalPlan::Extension(extension) => LlmJoinNode::from_node(extension.node.as_ref()),
            _ => None,
        }
    }

    /// Returns the `LlmJoinNode` behind a user-defined node, if it is one.
    pub fn from_node(node: &dyn UserDefinedLogicalNode) -> Option<&LlmJoinNode> {
        node.as_any().downcast_ref::<LlmJoinNode>()
    }

    /// Returns the calls of all steps.
    pub fn calls(&self) -> impl Iterator<Item = &NodeCall> {
        self.condition.steps.iter().flat_map(|step| match step {
            JoinStep::Ask(calls) => calls.as_slice(),
            JoinStep::Keep(_) => &[],
        })
    }

    /// Returns the columns that a pair has: those of the left input, then those of the right one.
    pub fn pair_schema(&self) -> Result<DFSchema> {
        self.left.schema().join(self.right.schema())
    }

    /// Returns the positions, in a pair, of the columns that the steps read.
    pub fn columns_read(&self) -> Result<Vec<usize>> {
        let pair = self.pair_schema()?;
        let mut read = BTreeSet::new();
        for step in &self.condition.steps {
            let exprs: Vec<&Expr> = match step {
                JoinStep::Ask(calls) => calls.iter().flat_map(|c| c.call.inputs.iter().chain(&c.guard)).collect(),
                JoinStep::Keep(predicate) => vec![predicate],
            };
            let columns = exprs.into_iter().flat_map(Expr::column_refs);
            // What is not found is an answer of an earlier step.
            read.extend(columns.filter_map(|column| pair.maybe_index_of_column(column)));
        }
        Ok(read.into_iter().collect())
    }

    /// Returns the plan of the candidates: an inner join that asks nobody.
    pub fn candidates(&self) -> Result<LogicalPlan> {
        let JoinCondition { on, null_equality, filter, .. } = self.condition.clone();
        let (left, right) = (Arc::new(self.left.clone()), Arc::new(self.right.clone()));
        let join = Join::try_new(left, right, on, filter, JoinType::Inner, JoinConstraint::On, null_equality, false)?;
        Ok(LogicalPlan::Join(join))
    }

    /// Returns which columns of the two inputs are needed for some columns of the output.
    fn columns_of_inputs(&self, output: &[usize]) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let (n_left, n_right) = (self.left.schema().fields().len(), self.right.schema().fields().len());
        let (mut left, mut right) = (BTreeSet::new(), BTreeSet::new());
        for column in output {
            match self.join_type {
                JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.extend([*column]),
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right.extend([*column]),
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => match column.checked_sub(n_left) {
                    None => left.extend([*column]),
                    Some(column) => right.extend([column]),
                },
            }
        }
        // The last column of a mark join is the mark.
        left.retain(|column| *column < n_left);
        right.retain(|column| *column < n_right);
        (left, right)
    }
}

/// Total on equal nodes only, as the trait demands; otherwise by the inputs and what EXPLAIN shows.
impl PartialOrd for LlmJoinNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if self == other {
            return Some(Ordering::Equal);
        }
        let inputs = |node: &Self| (node.left.clone(), node.right.clone());
        match inputs(self).partial_cmp(&inputs(other)) {
            Some(Ordering::Equal) => {
                let shown = |node: &Self| format!("{:?}{:?}{:?}", node.join_type, node.condition, node.effort);
                Some(shown(self).cmp(&shown(other))).filter(|order| order.is_ne())
            }
            unequal => unequal,
        }
    }
}

impl UserDefinedLogicalNodeCore for LlmJoinNode {
    fn name(&self) -> &str {
        "LlmJoinNode"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    // As for `LlmNode`: inputs and guards, never the calls themselves, nor predicates over answers.
    fn expressions(&self) -> Vec<Expr> {
        let on = self.condition.on.iter().flat_map(|(left, right)| [left, right]);
        let asked = self.calls().flat_map(|c| c.call.inputs.iter().chain(&c.guard));
        on.chain(&self.condition.filter).chain(asked).cloned().collect()
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(right), Some(left), true) = (inputs.pop(), inputs.pop(), inputs.is_empty()) else {
            return internal_err!("LlmJoinNode takes two inputs");
        };
        // Rules put aliases around the rewritten expressions of an extension node to keep its names.
        let mut exprs = exprs.into_iter().map(|expr| expr.unalias_nested().data);
        let mut next = || exprs.next().ok_or_else(|| internal_datafusion_err!("LlmJoinNode got too few expressions"));
        let JoinCondition { on, null_equality, filter, steps } = &self.condition;
        let on = on.iter().map(|_| Ok((next()?, next()?))).collect::<Result<_>>()?;
        let filter = filter.as_ref().map(|_| next()).transpose()?;
        let mut call = |NodeCall { call, guard, output, notes }: &NodeCall| {
            let inputs = call.inputs.iter().map(|_| next()).collect::<Result<_>>()?;
            let guard = guard.as_ref().map(|_| next()).transpose()?;
            Ok(NodeCall { call: call.clone().with_inputs(inputs), guard, output: Arc::clone(output), notes: notes.clone() })
        };
        let step = |step: &JoinStep| match step {
            JoinStep::Ask(calls) => Ok(JoinStep::Ask(calls.iter().map(&mut call).collect::<Result<_>>()?)),
            JoinStep::Keep(predicate) => Ok(JoinStep::Keep(predicate.clone())),
        };
        let steps = steps.iter().map(step).collect::<Result<_>>()?;
        let condition = JoinCondition { on, null_equality: *null_equality, filter, steps };
        Self::try_new(left, right, self.join_type, condition, self.effort)
    }

    // DataFusion's own joins have had all predicates before this node was made.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let (mut left, mut right) = self.columns_of_inputs(output_columns);
        // Predicates over answers are no expressions of the node, so what else they read is added here.
        let n_left = self.left.schema().fields().len();
        for column in self.columns_read().ok()? {
            match column.checked_sub(n_left) {
                None => left.insert(column),
                Some(column) => right.insert(column),
            };
        }
        Some(vec![left.into_iter().collect(), right.into_iter().collect()])
    }

    fn check_invariants(&self, _check: InvariantLevel) -> Result<()> {
        if UserDefinedLogicalNodeCore::expressions(self).iter().any(contains_llm_call) {
            return internal_err!("an LLM call was left inside an LlmJoinNode");
        }
        Ok(())
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "LlmJoinNode: {}", self.join_type)?;
        let JoinCondition { on, null_equality: _, filter, steps } = &self.condition;
        if !on.is_empty() {
            let keys: Vec<String> = on.iter().map(|(left, right)| format!("{left} = {right}")).collect();
            write!(f, ", on=[{}]", keys.join(", "))?;
        }
        if let Some(filter) = filter {
            write!(f, ", filter={filter}")?;
        }
        for step in steps {
            match step {
                JoinStep::Ask(calls) => {
                    for NodeCall { call, guard, output, .. } in calls {
                        write!(f, ", ask {} AS {}", call.describe(), output.name())?;
                        if let Some(guard) = guard {
                            write!(f, " IF {guard}")?;
                        }
                    }
                }
                JoinStep::Keep(predicate) => write!(f, ", keep {predicate}")?,
            }
        }
        write!(f, "{}", self.effort)
    }
}

impl fmt::Display for JoinEffort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let JoinEffort { stops_at_match, wanted, may_classify } = self;
        if *stops_at_match {
            f.write_str(", stops at the first match")?;
        }
        if let Some(wanted) = wanted {
            write!(f, ", fetch={wanted}")?;
        }
        if *may_classify {
            f.write_str(", may classify")?;
        }
        Ok(())
    }
}
