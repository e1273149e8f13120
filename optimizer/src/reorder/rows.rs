//! Rows sorted for a given field order, so that equal leading cells are adjacent.
//!
//! Values follow each other in order of first appearance rather than by content: adjacency is all
//! that matters, and a table that is stored in groups keeps its order.

use super::partition::Splitter;
use super::schedule::{FieldOrder, Schedule};
use super::table::Table;

/// Schedules every row with the fields in `order`, rows sorted column by column.
pub(super) fn sorted_by(table: &Table, order: Vec<u32>) -> Schedule {
    let mut rows: Vec<u32> = (0..table.rows() as u32).collect();
    let columns = order.iter().map(|&column| &table.columns()[column as usize]);
    Splitter::default().sort(&mut rows, columns);
    Schedule::from_solver(rows, FieldOrder::Same(order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::Column;

    #[test]
    fn equal_leading_cells_become_adjacent() {
        let genre = Column::new(vec![0, 1, 0, 1], vec![1, 1]).unwrap();
        let title = Column::new(vec![0, 0, 1, 2], vec![1, 1, 1]).unwrap();
        let table = Table::new(vec![genre, title], 4).unwrap();
        assert_eq!(sorted_by(&table, vec![0, 1]).rows(), [0, 2, 1, 3]);
        assert_eq!(sorted_by(&table, vec![1, 0]).rows(), [0, 1, 2, 3]);
    }
}
