//! A join on one AI predicate over pairs may ask each row of one input which values of the other match.
//!
//! ```text
//! SELECT … FROM reviews r JOIN topics t ON ai_filter('Is the review about the topic?', r.text, t.name)
//!
//! ask ai_filter('Is …', fields=[text, name])           for each pair of a text and a name
//! ask ai_classify('Is …', name of ["price", "taste"], fields=[text])       for each text
//! ```
//!
//! Whether it does is decided once both inputs are there: if the values of one of them are few and one column, and what else the join
//! compares leaves more than one of them to a row. The answers are those of another question, so it needs
//! `optimization_mode = 'minimize_cost'`.

use datafusion::common::{DFSchema, JoinType, Result};
use datafusion::logical_expr::Expr;
use refrain_udf::Shape;

use crate::join_node::{JoinStep, LlmJoinNode};
use crate::node::NodeCall;

/// The name under which the rewrite is switched off.
pub const CLASSIFY_JOIN: &str = "classify_join";

/// The inputs of a question about pairs, by number, as columns of the left and of the right input of a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halves {
    /// Those that read the left input.
    pub left: Vec<usize>,
    /// Those that read the right input.
    pub right: Vec<usize>,
}

/// Takes the question of a join apart. The inner error says why the join must ask about pairs.
pub fn halves(join: &LlmJoinNode) -> Result<Result<Halves, &'static str>> {
    match join.join_type {
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::LeftSemi | JoinType::RightSemi => {}
        // What they return hangs on pairs that do not match, of which there are many more to get wrong.
        JoinType::LeftAnti | JoinType::RightAnti | JoinType::Full | JoinType::LeftMark | JoinType::RightMark => {
            return Ok(Err("the join looks for rows without a match"));
        }
    }
    let [JoinStep::Ask(calls), JoinStep::Keep(Expr::Column(kept))] = join.condition.steps.as_slice() else {
        return Ok(Err("the condition is more than one AI predicate"));
    };
    let [NodeCall { call, guard: None, output, .. }] = calls.as_slice() else {
        return Ok(Err("the condition is more than one AI predicate"));
    };
    if call.task.shape != Shape::Boolean || kept.name != *output.name() {
        return Ok(Err("the condition is no bare ai_filter"));
    }
    let reads_only = |expr: &Expr, schema: &DFSchema| {
        let columns = expr.column_refs();
        !columns.is_empty() && columns.iter().all(|column| schema.has_column(column))
    };
    let (mut left, mut right) = (vec![], vec![]);
    for (number, input) in call.inputs.iter().enumerate() {
        if reads_only(input, join.left.schema()) {
            left.push(number);
        } else if reads_only(input, join.right.schema()) {
            right.push(number);
        } else {
            return Ok(Err("an input of the question is of neither side"));
        }
    }
    match left.is_empty() || right.is_empty() {
        true => Ok(Err("the question is about one side alone")),
        false => Ok(Ok(Halves { left, right })),
    }
}
