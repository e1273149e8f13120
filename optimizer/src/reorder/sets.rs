//! Sets: cells of a row that may stand in any order, such as the passages found for a question.
//!
//! The same passage stands at rank 1 here and at rank 3 there, so as columns they share little. As sets, rows that hold one item in
//! common can all put it first: the greedy group recursion of [`super::ggr`] with items in the place of cells. The item that saves
//! most, its length times the rows it saves it in, opens all rows that hold it; these are solved without it, the others go on. What
//! an item saves only falls while rows are taken, so a heap with late updates finds the best one, and the cost is that of sorting
//! the items of all rows once for each depth.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::partition::Partition;
use super::schedule::{FieldOrder, Schedule};
use super::table::Table;

/// In which order each row has the cells of its columns: those of a set in the order chosen for it, all others in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrangement {
    /// For each row, the stored column of the cell that stands at each column.
    stored: Vec<u32>,
    columns: usize,
}

impl Arrangement {
    /// Arranges the sets of `table` for rows of which those in one class of `classes` share what stands in front of the set.
    pub(super) fn of(table: &Table, classes: &Partition) -> Self {
        let columns = table.columns().len();
        let stored = (0..table.rows()).flat_map(|_| 0..columns as u32).collect();
        let mut arrangement = Self { stored, columns };
        for set in table.sets() {
            arrangement.fill_up_last(table, set);
            for (rows, _) in classes.classes() {
                Solver { table, set: set.clone(), arrangement: &mut arrangement }.solve(rows, 0);
            }
        }
        arrangement
    }

    /// Cells without tokens, with which rows fill up, stand behind those with tokens.
    fn fill_up_last(&mut self, table: &Table, set: &Range<usize>) {
        for row in 0..table.rows() as u32 {
            self.members(row, set).sort_by_key(|&column| table.columns()[column as usize].length_at(row) == 0);
        }
    }

    /// Returns the stored column of each cell of a row.
    pub(super) fn of_row(&self, row: u32) -> &[u32] {
        &self.stored[row as usize * self.columns..][..self.columns]
    }

    /// Returns where the cell of a stored column stands in a row.
    pub(super) fn arranged(&self, row: u32, column: u32) -> u32 {
        let at = self.of_row(row).iter().position(|&stored| stored == column);
        at.expect("an arrangement permutes the columns of each row") as u32
    }

    /// Turns a schedule of the arranged table into one of the stored table.
    pub(super) fn restore(&self, schedule: Schedule) -> Schedule {
        let order = |(position, &row): (usize, &u32)| {
            let stored = self.of_row(row);
            schedule.fields_of(position).iter().map(|&column| stored[column as usize]).collect()
        };
        let orders = schedule.rows().iter().enumerate().map(order).collect();
        Schedule::from_solver(schedule.rows().to_vec(), FieldOrder::PerRow(orders))
    }

    fn members(&mut self, row: u32, set: &Range<usize>) -> &mut [u32] {
        let row = row as usize * self.columns;
        &mut self.stored[row + set.start..row + set.end]
    }

    /// Returns the table with the cells of sets in the order chosen; its columns are no sets any more.
    pub(super) fn apply(&self, table: &Table) -> Table {
        let columns = (0..self.columns).map(|at| {
            let column = &table.columns()[at];
            if !table.sets().iter().any(|set| set.contains(&at)) {
                return column.clone();
            }
            let code = |row: u32| table.columns()[self.of_row(row)[at] as usize].codes()[row as usize];
            column.with_codes((0..table.rows() as u32).map(code).collect())
        });
        table.with_columns(columns.collect())
    }
}

struct Solver<'a> {
    table: &'a Table,
    set: Range<usize>,
    arrangement: &'a mut Arrangement,
}

impl Solver<'_> {
    /// Orders the items of `rows` behind the first `placed`, which they share.
    fn solve(&mut self, rows: &[u32], placed: usize) {
        if rows.len() < 2 || placed == self.set.len() {
            return;
        }
        let mut items = Items::of(rows.iter().map(|&row| self.open_items(row, placed)));
        while let Some(item) =
            items.take_best(|code| u64::from(self.table.columns()[self.set.start].lengths()[code as usize]))
        {
            let group: Vec<u32> = items.rows_with(item).map(|at| rows[at as usize]).collect();
            items.remove_rows(item);
            for &row in &group {
                self.place(row, placed, items.codes[item]);
            }
            self.solve(&group, placed + 1);
        }
    }

    /// Returns the items of a row that have no place yet.
    fn open_items(&mut self, row: u32, placed: usize) -> Vec<u32> {
        let open = &self.arrangement.of_row(row)[self.set.start + placed..self.set.end];
        open.iter().map(|&column| self.table.columns()[column as usize].codes()[row as usize]).collect()
    }

    /// Puts an item of a row behind those placed; the rest keep their order.
    fn place(&mut self, row: u32, placed: usize, code: u32) {
        let columns = self.table.columns();
        let open = &mut self.arrangement.members(row, &self.set)[placed..];
        if let Some(at) = open.iter().position(|&column| columns[column as usize].codes()[row as usize] == code) {
            open[..=at].rotate_right(1);
        }
    }
}

/// Which rows of a group hold which items, while rows are taken out.
struct Items {
    /// The distinct items.
    codes: Vec<u32>,
    /// By item: where its rows begin in `rows`; one entry more than items.
    starts: Vec<u32>,
    /// Rows as positions within the group, item after item.
    rows: Vec<u32>,
    /// By row: its items, as positions in `codes`.
    of_row: Vec<Vec<u32>>,
    /// By item: how many of its rows are left.
    counts: Vec<u32>,
    is_taken: Vec<bool>,
    heap: Option<BinaryHeap<(u64, Reverse<usize>)>>,
}

impl Items {
    fn of(items_of_rows: impl Iterator<Item = Vec<u32>>) -> Self {
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        let mut n_rows = 0;
        for (row, items) in (0..).zip(items_of_rows) {
            pairs.extend(items.into_iter().map(|code| (code, row)));
            n_rows = row as usize + 1;
        }
        pairs.sort_unstable();
        // A row may hold an item twice, and shares it once at a time.
        pairs.dedup();
        let mut items = Self {
            codes: Vec::new(),
            starts: Vec::new(),
            rows: Vec::with_capacity(pairs.len()),
            of_row: vec![Vec::new(); n_rows],
            counts: Vec::new(),
            is_taken: vec![false; n_rows],
            heap: None,
        };
        for (code, row) in pairs {
            if items.codes.last() != Some(&code) {
                items.codes.push(code);
                items.starts.push(items.rows.len() as u32);
                items.counts.push(0);
            }
            let item = items.codes.len() - 1;
            items.rows.push(row);
            items.counts[item] += 1;
            items.of_row[row as usize].push(item as u32);
        }
        items.starts.push(items.rows.len() as u32);
        items
    }

    /// Returns the item that saves most in the rows that are left, if any saves something.
    fn take_best(&mut self, length: impl Fn(u32) -> u64) -> Option<usize> {
        let saves =
            |item: usize, counts: &[u32], codes: &[u32]| u64::from(counts[item].saturating_sub(1)) * length(codes[item]);
        let heap = self.heap.get_or_insert_with(|| {
            let all = (0..self.codes.len()).map(|item| (saves(item, &self.counts, &self.codes), Reverse(item)));
            all.filter(|&(saved, _)| saved > 0).collect()
        });
        while let Some((promised, Reverse(item))) = heap.pop() {
            let saved = saves(item, &self.counts, &self.codes);
            if saved == promised {
                return Some(item);
            }
            if saved > 0 {
                heap.push((saved, Reverse(item)));
            }
        }
        None
    }

    /// Returns the rows that hold an item and are left.
    fn rows_with(&self, item: usize) -> impl Iterator<Item = u32> {
        let rows = &self.rows[self.starts[item] as usize..self.starts[item + 1] as usize];
        rows.iter().copied().filter(|&row| !self.is_taken[row as usize])
    }

    fn remove_rows(&mut self, item: usize) {
        let rows: Vec<u32> = self.rows_with(item).collect();
        for row in rows {
            self.is_taken[row as usize] = true;
            for &other in &self.of_row[row as usize] {
                self.counts[other as usize] -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::Column;

    /// Each letter is an item whose length is its place in the alphabet, each word a row; a dot fills up.
    fn arranged(words: &[&str]) -> Vec<String> {
        let width = words[0].len();
        let lengths: Vec<u32> = (0..=26).collect();
        let code = |letter: u8| if letter == b'.' { 0 } else { u32::from(letter - b'a') + 1 };
        let columns = (0..width)
            .map(|at| Column::new(words.iter().map(|word| code(word.as_bytes()[at])).collect(), lengths.clone()).unwrap());
        let table = Table::new(columns.collect(), words.len()).unwrap().with_set(0..width).unwrap();
        let arrangement = Arrangement::of(&table, &Partition::whole(words.len()));
        let row = |(row, word): (usize, &&str)| {
            arrangement.of_row(row as u32).iter().map(|&at| char::from(word.as_bytes()[at as usize])).collect()
        };
        words.iter().enumerate().map(row).collect()
    }

    #[test]
    fn what_saves_most_comes_first() {
        // c saves 3 twice, and behind it d saves 4 once; a would save 1.
        assert_eq!(arranged(&["adc", "bcd", "ace"]), ["cda", "cdb", "cae"]);
        assert_eq!(arranged(&["ab", "ab"]), ["ba", "ba"]);
    }

    #[test]
    fn short_rows_fill_up_at_the_end() {
        assert_eq!(arranged(&[".ab", "b..", "..."]), ["ba.", "b..", "..."]);
    }

    #[test]
    fn an_item_that_a_row_holds_twice_is_placed_twice() {
        assert_eq!(arranged(&["bab", "bb.", "b.."]), ["bba", "bb.", "b.."]);
    }
}
