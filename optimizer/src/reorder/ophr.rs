//! Optimal prefix hit recursion (OPHR): the paper's exact algorithm, exponential in rows.
//!
//! Some cell opens the first rows of an optimal list, and all rows that hold it follow each other
//! there. OPHR tries every cell for that place, solves the rows that hold it without its column and
//! the other rows with all columns, and keeps the best. Sub-tables are remembered as bit sets. It is
//! the oracle that tests hold the other strategies to, and plans tables of a few rows.

use ahash::AHashMap;

use super::error::ReorderError;
use super::schedule::{FieldOrder, Schedule};
use super::table::Table;

/// The largest number of rows that OPHR takes.
pub const MAX_ROWS: usize = 12;

/// The largest number of columns that OPHR takes.
pub const MAX_COLUMNS: usize = 8;

/// What a cell that equals the one of the row before counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HitWeight {
    /// Its length squared: the schedule has the greatest prefix hit count of all.
    #[default]
    Squared,
    /// Its length: the schedule saves the most tokens of all.
    Linear,
}

/// Orders rows and fields optimally. Fails on tables beyond [`MAX_ROWS`] or [`MAX_COLUMNS`].
pub(super) fn ophr(table: &Table, weight: HitWeight) -> Result<Schedule, ReorderError> {
    let (rows, columns) = (table.rows(), table.columns().len());
    if rows > MAX_ROWS || columns > MAX_COLUMNS {
        return Err(ReorderError::TooLargeForOphr { rows, columns });
    }
    let mut solver = Solver { table, weight, known: AHashMap::new() };
    let whole = Part { rows: Bits::first(rows), columns: Bits::first(columns) };
    solver.best(whole);
    let (mut order, mut orders) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    solver.emit(whole, &mut Vec::new(), &mut order, &mut orders);
    Ok(Schedule::from_solver(order, FieldOrder::PerRow(orders)))
}

/// A set of small numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bits(u16);

impl Bits {
    fn first(count: usize) -> Self {
        Self(((1_u32 << count) - 1) as u16)
    }

    fn iter(self) -> impl Iterator<Item = u32> {
        (0..u16::BITS).filter(move |bit| self.0 >> bit & 1 == 1)
    }

    fn count(self) -> u32 {
        self.0.count_ones()
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// A sub-table: some rows and the columns not yet placed in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Part {
    rows: Bits,
    columns: Bits,
}

/// The best first cell of a part: its column and the rows that hold it.
#[derive(Clone, Copy, Debug)]
struct Choice {
    column: u32,
    group: Bits,
}

struct Solver<'a> {
    table: &'a Table,
    weight: HitWeight,
    known: AHashMap<Part, (u64, Option<Choice>)>,
}

impl Solver<'_> {
    /// Returns the greatest hit count of any list of `part`.
    fn best(&mut self, part: Part) -> u64 {
        if part.rows.count() < 2 {
            return 0;
        }
        if let Some(&(score, _)) = self.known.get(&part) {
            return score;
        }
        let mut best = (0, None);
        for column in part.columns.iter() {
            for group in self.groups(part.rows, column) {
                let (inside, outside) = split(part, column, group);
                let hits = self.hit(column, group).saturating_mul(u64::from(group.count() - 1));
                let score = hits.saturating_add(self.best(inside)).saturating_add(self.best(outside));
                if best.1.is_none() || score > best.0 {
                    best = (score, Some(Choice { column, group }));
                }
            }
        }
        self.known.insert(part, best);
        best.0
    }

    /// Returns the rows of each value that repeats in `column`. A row that is alone with its value
    /// gains nothing by going first: it can as well wait for a group that it may join.
    fn groups(&self, rows: Bits, column: u32) -> Vec<Bits> {
        let codes = self.table.columns()[column as usize].codes();
        let mut groups: Vec<(u32, Bits)> = Vec::new();
        for row in rows.iter() {
            let code = codes[row as usize];
            match groups.iter_mut().find(|group| group.0 == code) {
                Some((_, group)) => group.0 |= 1 << row,
                None => groups.push((code, Bits(1 << row))),
            }
        }
        let groups = groups.into_iter().map(|(_, group)| group);
        groups.filter(|group| group.count() > 1).collect()
    }

    fn hit(&self, column: u32, group: Bits) -> u64 {
        let row = group.0.trailing_zeros();
        let length = u64::from(self.table.columns()[column as usize].length_at(row));
        match self.weight {
            HitWeight::Squared => length.pow(2),
            HitWeight::Linear => length,
        }
    }

    /// Appends the rows of `part` as [`Solver::best`] chose, their fields behind `prefix`.
    fn emit(&self, part: Part, prefix: &mut Vec<u32>, rows: &mut Vec<u32>, orders: &mut Vec<Vec<u32>>) {
        let choice = self.known.get(&part).and_then(|&(_, choice)| choice);
        let Some(Choice { column, group }) = choice else {
            for row in part.rows.iter() {
                rows.push(row);
                orders.push(prefix.iter().copied().chain(part.columns.iter()).collect());
            }
            return;
        };
        let (inside, outside) = split(part, column, group);
        prefix.push(column);
        self.emit(inside, prefix, rows, orders);
        prefix.pop();
        self.emit(outside, prefix, rows, orders);
    }
}

/// The rows of `group` without `column`, and the other rows with all columns.
fn split(part: Part, column: u32, group: Bits) -> (Part, Part) {
    let inside = Part { rows: group, columns: part.columns.without(Bits(1 << column)) };
    (inside, Part { rows: part.rows.without(group), columns: part.columns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::{Column, prefix_hit_count, saved_tokens};

    #[test]
    fn finds_the_order_that_greedy_choice_misses() {
        // The longest shared cell stands in the way of two others that together save more.
        let long = Column::new(vec![0, 1, 1, 2], vec![6; 3]).unwrap();
        let short = Column::new(vec![0, 0, 1, 1], vec![5; 2]).unwrap();
        let table = Table::new(vec![long, short], 4).unwrap();
        let schedule = ophr(&table, HitWeight::Squared).unwrap();
        assert_eq!(prefix_hit_count(&table, &schedule), 50);
        let schedule = ophr(&table, HitWeight::Linear).unwrap();
        assert_eq!(saved_tokens(&table, &schedule, 1), 10);
    }

    #[test]
    fn refuses_what_would_take_for_ever() {
        let table = Table::new(Vec::new(), MAX_ROWS + 1).unwrap();
        let refused = ophr(&table, HitWeight::Squared);
        assert_eq!(refused, Err(ReorderError::TooLargeForOphr { rows: 13, columns: 0 }));
    }
}
