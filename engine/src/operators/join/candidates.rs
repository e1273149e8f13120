//! The candidates of a join: the pairs of rows that pass the part of its condition that asks nobody.
//!
//! DataFusion's own joins find them, over the columns that the condition reads and a row number; what comes out is numbers.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::common::{DataFusionError, JoinSide, JoinType, NullEquality, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::utils::{ColumnIndex, JoinFilter};
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, PartitionMode};
use futures::TryStreamExt;

use crate::operators::join::side::Side;

/// The column of row numbers.
const ROW: &str = "row";

/// The part of a join condition that asks nobody.
#[derive(Clone, Debug)]
pub struct Pairing {
    /// Expressions over the left and the right input that must be equal.
    pub on: Vec<(Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>)>,
    /// Whether NULL equals NULL in `on`.
    pub null_equality: NullEquality,
    /// What else must be TRUE.
    pub filter: Option<PairFilter>,
}

/// A predicate over both inputs.
#[derive(Clone, Debug)]
pub struct PairFilter {
    /// Over `columns`, in their order.
    pub predicate: Arc<dyn PhysicalExpr>,
    /// The columns that it reads.
    pub columns: Vec<ColumnIndex>,
    /// Their fields.
    pub schema: SchemaRef,
}

/// Pairs of rows, by the row of the input that stands in front; ordered by it, then by the other row. Of all rows in front, or of some that
/// follow each other.
#[derive(Debug)]
pub(super) enum Candidates {
    /// Every pair.
    All {
        /// Rows in front.
        n_outer: usize,
        /// Rows of the other input.
        n_inner: usize,
    },
    /// Some pairs.
    Listed {
        /// The first row in front.
        first: usize,
        /// Where the pairs of each row begin; one more than there are rows.
        starts: Vec<usize>,
        /// The other row of each pair.
        inner: Vec<u32>,
    },
}

impl Candidates {
    /// Returns the number of pairs.
    pub(super) fn len(&self) -> u64 {
        match self {
            Candidates::All { n_outer, n_inner } => *n_outer as u64 * *n_inner as u64,
            Candidates::Listed { inner, .. } => inner.len() as u64,
        }
    }

    /// Returns the rows in front, with and without a pair.
    pub(super) fn rows(&self) -> Range<usize> {
        match self {
            Candidates::All { n_outer, .. } => 0..*n_outer,
            Candidates::Listed { first, starts, .. } => *first..*first + starts.len() - 1,
        }
    }

    /// Returns the number of rows in front that have a pair.
    pub(super) fn n_paired(&self) -> u64 {
        self.rows().filter(|outer| self.n_of(*outer) > 0).count() as u64
    }

    /// Returns the number of pairs of a row.
    pub(super) fn n_of(&self, outer: usize) -> usize {
        match self {
            Candidates::All { n_inner, .. } => *n_inner,
            Candidates::Listed { first, starts, .. } => starts[outer - first + 1] - starts[outer - first],
        }
    }

    /// Returns the other row of the `nth` pair of a row.
    pub(super) fn inner(&self, outer: usize, nth: usize) -> u32 {
        match self {
            Candidates::All { .. } => nth as u32,
            Candidates::Listed { first, starts, inner } => inner[starts[outer - first] + nth],
        }
    }

    /// Returns the pairs of a listing for the rows `outer` in front, sorted by these.
    fn listed(mut pairs: Vec<(u32, u32)>, outer: Range<usize>) -> Candidates {
        pairs.sort_unstable();
        let mut starts = Vec::with_capacity(outer.len() + 1);
        let mut end = 0;
        for row in outer.start..=outer.end {
            end += pairs[end..].partition_point(|pair| (pair.0 as usize) < row);
            starts.push(end);
        }
        Candidates::Listed { first: outer.start, starts, inner: pairs.into_iter().map(|pair| pair.1).collect() }
    }
}

impl Pairing {
    /// Returns whether every row is compared with every other, so that the pairs of some rows cost no more than their share.
    pub(super) fn compares_all(&self) -> bool {
        self.on.is_empty() && self.filter.is_some()
    }

    /// Finds the pairs of two inputs, of which `outer` stands in front, for the rows `rows` of it; of all rows where nothing is compared.
    /// Fails when there are more than `max_pairs`, or their numbers do not fit into `memory`.
    pub(super) async fn candidates(
        &self,
        [left, right]: [&Side; 2],
        outer: JoinSide,
        rows: Range<usize>,
        max_pairs: u64,
        memory: &MemoryReservation,
        context: &Arc<TaskContext>,
    ) -> Result<Candidates> {
        let (n_left, n_right) = (left.n_rows(), right.n_rows());
        let (n_outer, n_inner) = if outer == JoinSide::Right { (n_right, n_left) } else { (n_left, n_right) };
        if n_left == 0 || n_right == 0 {
            return Ok(Candidates::All { n_outer, n_inner });
        }
        if self.on.is_empty() && self.filter.is_none() {
            let all = Candidates::All { n_outer, n_inner };
            return if all.len() > max_pairs { Err(too_many_pairs(Some(all.len()), max_pairs)) } else { Ok(all) };
        }
        let [left_rows, right_rows] = match outer {
            JoinSide::Right => [0..n_left, rows.clone()],
            _ => [rows.clone(), 0..n_right],
        };
        let mut found = self.join((left, left_rows), (right, right_rows))?.execute(0, Arc::clone(context))?;
        let mut pairs: Vec<(u32, u32)> = vec![];
        while let Some(batch) = found.try_next().await? {
            if pairs.len() as u64 + batch.num_rows() as u64 > max_pairs {
                return Err(too_many_pairs(None, max_pairs));
            }
            memory.try_grow(batch.num_rows() * size_of::<(u32, u32)>()).map_err(|error| {
                error.context("the pairs of a join on an LLM predicate must fit into memory; add a condition to ON")
            })?;
            let (l, r) = (batch.column(0).as_primitive::<UInt32Type>(), batch.column(1).as_primitive::<UInt32Type>());
            let numbers = l.values().iter().copied().zip(r.values().iter().copied());
            match outer {
                JoinSide::Right => pairs.extend(numbers.map(|(l, r)| (r, l))),
                _ => pairs.extend(numbers),
            }
        }
        Ok(Candidates::listed(pairs, rows))
    }

    /// Plans the inner join of some rows of two inputs, whose output is the numbers of the two rows.
    fn join(&self, left: (&Side, Range<usize>), right: (&Side, Range<usize>)) -> Result<Arc<dyn ExecutionPlan>> {
        let n_keys = self.on.len();
        let left_keys: Vec<_> = self.on.iter().map(|(left, _)| Arc::clone(left)).collect();
        let right_keys: Vec<_> = self.on.iter().map(|(_, right)| Arc::clone(right)).collect();
        let mut filter_columns = [vec![], vec![]];
        let filter = self.filter.as_ref().map(|filter| {
            // Each side keeps its columns behind its keys.
            let moved = filter.columns.iter().map(|ColumnIndex { index, side }| {
                let columns = &mut filter_columns[usize::from(*side == JoinSide::Right)];
                columns.push(*index);
                ColumnIndex { index: n_keys + columns.len() - 1, side: *side }
            });
            JoinFilter::new(Arc::clone(&filter.predicate), moved.collect(), Arc::clone(&filter.schema))
        });
        let [left_columns, right_columns] = filter_columns;
        let left = numbered(left, &left_keys, &left_columns)?;
        let right = numbered(right, &right_keys, &right_columns)?;
        let (left_row, right_row) = (left.schema().fields().len() - 1, right.schema().fields().len() - 1);
        let projection = Some(vec![left_row, left_row + 1 + right_row]);
        if n_keys == 0 {
            return Ok(Arc::new(NestedLoopJoinExec::try_new(left, right, filter, &JoinType::Inner, projection)?));
        }
        let key = |side: &Arc<dyn ExecutionPlan>, idx: usize| -> Arc<dyn PhysicalExpr> {
            Arc::new(Column::new(side.schema().field(idx).name(), idx))
        };
        let on = (0..n_keys).map(|idx| (key(&left, idx), key(&right, idx))).collect();
        let mode = PartitionMode::CollectLeft;
        let null_equality = self.null_equality;
        let join = HashJoinExec::try_new(left, right, on, filter, &JoinType::Inner, projection, mode, null_equality, false)?;
        Ok(Arc::new(join))
    }
}

/// Returns a table of some rows of an input: its keys, some of its columns, and the number of each row.
fn numbered(
    (side, rows): (&Side, Range<usize>),
    keys: &[Arc<dyn PhysicalExpr>],
    columns: &[usize],
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut fields = vec![];
    for (idx, key) in keys.iter().enumerate() {
        fields.push(Field::new(format!("key{idx}"), key.data_type(side.schema())?, true));
    }
    for (idx, column) in columns.iter().enumerate() {
        fields.push(side.schema().field(*column).clone().with_name(format!("column{idx}")));
    }
    fields.push(Field::new(ROW, DataType::UInt32, false));
    let schema = Arc::new(Schema::new(fields));
    let (mut batches, mut row) = (vec![], 0);
    for batch in side.batches() {
        let (start, end) = (rows.start.max(row), rows.end.min(row + batch.num_rows()));
        if start < end {
            let batch = batch.slice(start - row, end - start);
            let mut arrays: Vec<ArrayRef> = vec![];
            for key in keys {
                arrays.push(key.evaluate(&batch)?.into_array(batch.num_rows())?);
            }
            arrays.extend(columns.iter().map(|column| Arc::clone(batch.column(*column))));
            arrays.push(Arc::new(UInt32Array::from_iter_values(start as u32..end as u32)));
            batches.push(RecordBatch::try_new(Arc::clone(&schema), arrays)?);
        }
        row += batch.num_rows();
    }
    Ok(MemorySourceConfig::try_new_exec(&[batches], schema, None)?)
}

/// Returns the error of a join with too many pairs; their number where it is known.
pub(super) fn too_many_pairs(pairs: Option<u64>, max_pairs: u64) -> DataFusionError {
    let pairs = pairs.map_or_else(|| "more".to_owned(), |pairs| pairs.to_string());
    DataFusionError::ResourcesExhausted(format!(
        "a join on an LLM predicate has {pairs} pairs to ask about, and refrain.max_join_pairs = {max_pairs} are allowed; \
         add an equality or another cheap condition to ON, filter the tables first, or SET refrain.max_join_pairs"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_keeps_rows_without_pairs() {
        let candidates = Candidates::listed(vec![(3, 1), (1, 5), (1, 2)], 0..5);
        let counts: Vec<usize> = candidates.rows().map(|outer| candidates.n_of(outer)).collect();
        assert_eq!((counts, candidates.len()), (vec![0, 2, 0, 1, 0], 3));
        assert_eq!([candidates.inner(1, 0), candidates.inner(1, 1), candidates.inner(3, 0)], [2, 5, 1]);
    }

    #[test]
    fn a_listing_may_be_of_some_rows() {
        let candidates = Candidates::listed(vec![(9, 1), (7, 5), (7, 2)], 7..10);
        let counts: Vec<usize> = candidates.rows().map(|outer| candidates.n_of(outer)).collect();
        assert_eq!((candidates.rows(), counts, candidates.n_paired()), (7..10, vec![2, 0, 1], 2));
        assert_eq!([candidates.inner(7, 0), candidates.inner(7, 1), candidates.inner(9, 0)], [2, 5, 1]);
    }

    #[test]
    fn all_pairs_are_not_listed() {
        let candidates = Candidates::All { n_outer: 3, n_inner: 1 << 31 };
        assert_eq!((candidates.len(), candidates.n_of(2), candidates.inner(2, 7)), (3 << 31, 1 << 31, 7));
    }
}
