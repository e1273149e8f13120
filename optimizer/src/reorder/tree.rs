//! Field orders by row: where groups of rows gain by another order than the one that serves the whole table.
//!
//! Starts from one order for all rows and improves on it, part by part. In a part, what all rows share goes first. Then the rows
//! that hold some value are taken out to form a group of their own, that value first, if together they save more by that than
//! they lose by leaving; the value for which the difference is greatest goes first, as in greedy group recursion, but scored with
//! the tokens that all fields of the group save, behind the value, against what its rows save where they are. What remains is
//! split by the first field of the order, and groups and classes are parts in turn. So no step loses: by whole cells a tree saves
//! at least what the order does.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::dependencies::Unit;
use super::partition::{Partition, Refiner};
use super::schedule::Options;

/// Marks a row that shares nothing at a level.
const ALONE: u32 = u32::MAX;

/// Returns the rows in groups, and for each the order of its units, starting from `order` for all. `None` if that order is kept for
/// all rows.
pub(super) fn orders(
    units: &[Unit<'_>],
    rows: usize,
    order: &[u32],
    options: &Options,
) -> Option<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut tree = Tree {
        units,
        order,
        refiner: Refiner::new(options.page),
        cells_max: options.tree_cells,
        local: vec![0; rows],
        rows: Vec::with_capacity(rows),
        orders: Vec::with_capacity(rows),
        has_changed: false,
    };
    tree.solve((0..rows as u32).collect(), &mut Vec::new(), order);
    tree.has_changed.then_some((tree.rows, tree.orders))
}

struct Tree<'a> {
    units: &'a [Unit<'a>],
    /// The order that is improved on.
    order: &'a [u32],
    refiner: Refiner,
    cells_max: u64,
    /// By row: its position in the part being looked at.
    local: Vec<u32>,
    rows: Vec<u32>,
    orders: Vec<Vec<u32>>,
    has_changed: bool,
}

/// Rows with one value in one field.
struct Group {
    unit: u32,
    rows: Vec<u32>,
}

impl Tree<'_> {
    /// Emits `rows`, which share `prefix`, with the units of `order` behind it.
    fn solve(&mut self, rows: Vec<u32>, prefix: &mut Vec<u32>, order: &[u32]) {
        if rows.len() < 2 || order.is_empty() || self.is_spent() {
            return self.emit(&rows, prefix, order);
        }
        let (constant, varied): (Vec<u32>, Vec<u32>) = order.iter().partition(|&&unit| self.is_constant(unit, &rows));
        let placed = prefix.len();
        prefix.extend(constant);
        self.solve_varied(rows, prefix, &varied);
        prefix.truncate(placed);
    }

    /// Emits `rows`, which differ in each unit of `order`.
    fn solve_varied(&mut self, rows: Vec<u32>, prefix: &mut Vec<u32>, order: &[u32]) {
        let Some(&first) = order.first() else { return self.emit(&rows, prefix, order) };
        let (groups, rest) = self.take_groups(rows, order);
        for Group { unit, rows } in groups {
            let others: Vec<u32> = order.iter().copied().filter(|&other| other != unit).collect();
            prefix.push(unit);
            self.solve(rows, prefix, &others);
            prefix.pop();
        }
        let (classes, alone) = self.split(rest, first);
        prefix.push(first);
        for (rows, _) in classes.classes() {
            self.solve(rows.to_vec(), prefix, &order[1..]);
        }
        prefix.pop();
        self.emit(&alone, prefix, order);
    }

    fn emit(&mut self, rows: &[u32], prefix: &[u32], order: &[u32]) {
        let order = [prefix, order].concat();
        self.has_changed |= !rows.is_empty() && order != self.order;
        self.rows.extend(rows);
        self.orders.extend(std::iter::repeat_n(order, rows.len()));
    }

    /// Takes the groups out of `rows` that gain by it, the one that gains most first. Returns them and the rows that stay.
    fn take_groups(&mut self, rows: Vec<u32>, order: &[u32]) -> (Vec<Group>, Vec<u32>) {
        for (at, &row) in (0..).zip(&rows) {
            self.local[row as usize] = at;
        }
        let mut base = Base::of(self, &rows, order);
        let candidates = self.candidates(&rows, order);
        let mut is_taken = vec![false; rows.len()];
        let mut heap: BinaryHeap<(i64, Reverse<usize>)> = BinaryHeap::new();
        for (at, group) in candidates.iter().enumerate() {
            let gain = self.gain(group, &base, order);
            if gain > 0 {
                heap.push((gain, Reverse(at)));
            }
        }
        let mut groups = Vec::new();
        while let Some((promised, Reverse(at))) = heap.pop() {
            let left = candidates[at].rows.iter().copied().filter(|&row| !is_taken[self.local[row as usize] as usize]);
            let group = Group { unit: candidates[at].unit, rows: left.collect() };
            let gain = self.gain(&group, &base, order);
            if gain == promised {
                base.remove(&group.rows, &self.local);
                for &row in &group.rows {
                    is_taken[self.local[row as usize] as usize] = true;
                }
                groups.push(group);
            } else if gain > 0 {
                heap.push((gain, Reverse(at)));
            }
        }
        let rest = rows.into_iter().filter(|&row| !is_taken[self.local[row as usize] as usize]).collect();
        (groups, rest)
    }

    /// Returns the groups of every field that may go first, while the budget lasts; sets stay where they are.
    fn candidates(&mut self, rows: &[u32], order: &[u32]) -> Vec<Group> {
        let whole = Partition::of(rows.to_vec());
        let mut groups = Vec::new();
        for &unit in &order[1..] {
            let [column] = self.units[unit as usize].as_slice() else { continue };
            if self.is_spent() {
                break;
            }
            let (_, classes) = self.refiner.refine(&whole, column);
            groups.extend(classes.classes().map(|(rows, _)| Group { unit, rows: rows.to_vec() }));
        }
        groups
    }

    /// Returns what a group saves by itself, less what it saves where it is; nothing once the budget is spent.
    fn gain(&mut self, group: &Group, base: &Base, order: &[u32]) -> i64 {
        if group.rows.len() < 2 || self.is_spent() {
            return 0;
        }
        let mut saved = 0;
        let mut varied = Vec::with_capacity(order.len());
        for &unit in order {
            if unit == group.unit || self.is_constant(unit, &group.rows) {
                saved += self.length(unit, group.rows[0]) * (group.rows.len() as u64 - 1);
            } else {
                varied.push(unit);
            }
        }
        let units = self.units;
        let columns = varied.iter().flat_map(|&unit| &units[unit as usize]).map(Cow::as_ref);
        saved += self.refiner.total(Partition::of(group.rows.clone()), columns);
        saved as i64 - base.loss_without(&group.rows, &self.local) as i64
    }

    fn is_constant(&mut self, unit: u32, rows: &[u32]) -> bool {
        let mut looked_at = 0;
        let is_constant = self.units[unit as usize].iter().all(|column| {
            let code = column.codes()[rows[0] as usize];
            rows.iter().all(|&row| {
                looked_at += 1;
                column.codes()[row as usize] == code
            })
        });
        self.refiner.add_visited(looked_at);
        is_constant
    }

    fn length(&self, unit: u32, row: u32) -> u64 {
        self.units[unit as usize].iter().map(|column| u64::from(column.length_at(row))).sum()
    }

    /// Returns the rows that share the unit's cells, class by class, and those that share them with no other.
    fn split(&mut self, rows: Vec<u32>, unit: u32) -> (Partition, Vec<u32>) {
        let whole = Partition::of(rows.clone());
        let (_, classes) = self.refiner.refine_by(&whole, self.units[unit as usize].iter().map(Cow::as_ref));
        let mut is_alone = vec![true; rows.len()];
        for (at, &row) in (0..).zip(&rows) {
            self.local[row as usize] = at;
        }
        for (rows, _) in classes.classes() {
            for &row in rows {
                is_alone[self.local[row as usize] as usize] = false;
            }
        }
        let alone = rows.into_iter().filter(|&row| is_alone[self.local[row as usize] as usize]).collect();
        (classes, alone)
    }

    fn is_spent(&self) -> bool {
        self.refiner.visited() > self.cells_max
    }
}

/// What the rows of a part save by the order that they have.
struct Base {
    levels: Vec<Level>,
}

/// The classes of rows that share the first units of the order.
struct Level {
    /// By position in the part: the class of a row, or [`ALONE`].
    class_of: Vec<u32>,
    /// By class: how many rows are left in it.
    sizes: Vec<u32>,
    /// By class: the length of the cell that it shares at this level.
    lengths: Vec<u32>,
}

impl Base {
    fn of(tree: &mut Tree<'_>, rows: &[u32], order: &[u32]) -> Self {
        let mut levels = Vec::new();
        let mut partition = Partition::of(rows.to_vec());
        for &unit in order {
            for column in &tree.units[unit as usize] {
                partition = tree.refiner.refine(&partition, column).1;
                if partition.is_empty() {
                    return Self { levels };
                }
                let mut level = Level { class_of: vec![ALONE; rows.len()], sizes: Vec::new(), lengths: Vec::new() };
                for (class, _) in partition.classes() {
                    for &row in class {
                        level.class_of[tree.local[row as usize] as usize] = level.sizes.len() as u32;
                    }
                    level.sizes.push(class.len() as u32);
                    level.lengths.push(column.length_at(class[0]));
                }
                levels.push(level);
            }
        }
        Self { levels }
    }

    /// Returns how much less the other rows save when these are gone, plus what these save now.
    fn loss_without(&self, rows: &[u32], local: &[u32]) -> u64 {
        let mut loss = 0;
        let mut classes: Vec<u32> = Vec::with_capacity(rows.len());
        for level in &self.levels {
            classes.clear();
            classes.extend(
                rows.iter().map(|&row| level.class_of[local[row as usize] as usize]).filter(|&class| class != ALONE),
            );
            if classes.is_empty() {
                break;
            }
            classes.sort_unstable();
            for same in classes.chunk_by(|a, b| a == b) {
                let (size, leaving) = (level.sizes[same[0] as usize], same.len() as u32);
                loss += u64::from(level.lengths[same[0] as usize]) * u64::from(leaving.min(size.saturating_sub(1)));
            }
        }
        loss
    }

    fn remove(&mut self, rows: &[u32], local: &[u32]) {
        for level in &mut self.levels {
            for &row in rows {
                let class = level.class_of[local[row as usize] as usize];
                if class != ALONE {
                    level.sizes[class as usize] -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::{Column, Strategy, Table, saved_tokens, schedule};

    fn table(columns: &[(&[u32], u32)]) -> Table {
        let rows = columns[0].0.len();
        let columns = columns.iter().map(|&(codes, length)| Column::new(codes.to_vec(), vec![length; 16]).unwrap());
        Table::new(columns.collect(), rows).unwrap()
    }

    #[track_caller]
    fn check(table: &Table, search: u64, tree: u64) {
        let saved = |strategy| saved_tokens(table, &schedule(table, strategy, &Options::default()).unwrap(), 1);
        assert_eq!((saved(Strategy::Search), saved(Strategy::Tree)), (search, tree));
    }

    #[test]
    fn groups_get_orders_of_their_own() {
        // The first two rows share their first cell, the last two their second.
        check(&table(&[(&[0, 0, 1, 2], 5), (&[0, 1, 2, 2], 4)]), 5, 9);
    }

    #[test]
    fn what_a_class_shares_goes_before_what_splits_it() {
        let city: &[u32] = &[0, 0, 0, 1, 1, 1];
        let shop: &[u32] = &[0, 1, 2, 3, 3, 4];
        let kind: &[u32] = &[0, 0, 0, 1, 2, 3];
        check(&table(&[(city, 9), (shop, 5), (kind, 4)]), 9 * 4 + 8, 9 * 4 + 8 + 5);
    }

    #[test]
    fn one_order_is_kept_where_nothing_is_gained() {
        let table = table(&[(&[0, 0, 1, 1], 5), (&[0, 1, 2, 3], 4)]);
        let found = schedule(&table, Strategy::Tree, &Options::default()).unwrap();
        assert!(matches!(found.fields(), crate::reorder::FieldOrder::Same(_)));
    }
}
