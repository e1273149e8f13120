//! Greedy group recursion (GGR): the paper's algorithm 1, with the details its artifact adds.
//!
//! GGR takes the cell that promises most, puts it first in all rows that hold it, and recurses into
//! those rows without the column and into the other rows with all columns. A cell's promise is its
//! squared length, times how often it repeats. The recursion is cut short, by depth and by promise,
//! to one order by column statistics. The artifact, in addition, merges one-to-one columns, leaves
//! columns of mostly unique values out and appends them, sorts the whole table by statistics first,
//! and then solves chunks of it independently. Kept for comparison with [`super::Strategy::Search`].

use std::borrow::Cow;
use std::collections::VecDeque;

use super::dependencies::Dependencies;
use super::partition::Splitter;
use super::schedule::{FieldOrder, Schedule};
use super::table::{Column, Table};

/// The knobs of GGR. The defaults are those of the artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct GgrOptions {
    /// Recursion ends where no cell promises this much, in squared tokens: the artifact's 100 000
    /// squared characters at four characters a token.
    pub early_stop: f64,
    /// How many groups may be taken one after the other at one level.
    pub row_stop: usize,
    /// How many columns may be taken one inside the other.
    pub col_stop: usize,
    /// Columns with more distinct values than this share of the rows are appended last.
    pub distinct_threshold: f64,
    /// The table is halved until its parts have no more rows than this, each solved by itself.
    pub chunk_rows: usize,
    /// Whether all rows are sorted by column statistics before they are cut into chunks.
    pub presort: bool,
    /// Whether a cell brings the cells it determines without being determined by them, as in the
    /// paper; the artifact knows one-to-one columns only, which are always merged.
    pub strict_dependencies: bool,
}

impl Default for GgrOptions {
    fn default() -> Self {
        Self {
            early_stop: 6_250.0,
            row_stop: 4,
            col_stop: 2,
            distinct_threshold: 0.7,
            chunk_rows: 2_000,
            presort: true,
            strict_dependencies: false,
        }
    }
}

/// Orders rows and fields by greedy group recursion.
pub(super) fn ggr(table: &Table, options: &GgrOptions) -> Schedule {
    // The paper knows no sets: their columns are columns like any others.
    let dependencies = Dependencies::between(table.columns(), &[]);
    let columns: Vec<Cow<'_, Column>> = dependencies.merge(table, &[]).into_iter().flatten().collect();
    let limit = options.distinct_threshold * table.rows() as f64;
    let (mut taking_part, mut appended) = (Vec::new(), Vec::new());
    for (field, column) in (0..).zip(&columns) {
        let distinct = column.counts().iter().filter(|&&count| count > 0).count();
        if distinct as f64 > limit { appended.push(field) } else { taking_part.push(field) }
    }
    let mut solver = Solver {
        columns: &columns,
        dependencies: &dependencies,
        options,
        splitter: Splitter::default(),
        counts: Vec::new(),
        prefix: Vec::new(),
        rows: Vec::with_capacity(table.rows()),
        orders: Vec::with_capacity(table.rows()),
    };
    let mut rows: Vec<u32> = (0..table.rows() as u32).collect();
    if options.presort {
        let order = solver.order_by_statistics(&rows, &taking_part);
        solver.sort(&mut rows, &order);
    }
    for chunk in halved(&rows, options.chunk_rows) {
        solver.solve(chunk.to_vec(), &taking_part, 0);
    }
    let orders = solver.orders.iter_mut().map(|order| {
        order.extend(&appended);
        dependencies.expand(order)
    });
    let orders = orders.collect();
    Schedule::from_solver(solver.rows, FieldOrder::PerRow(orders))
}

/// Cuts `rows` in halves until no part is longer than `rows_max`.
fn halved(rows: &[u32], rows_max: usize) -> Vec<&[u32]> {
    let mut parts = Vec::new();
    let mut open = VecDeque::from([rows]);
    while let Some(part) = open.pop_front() {
        if part.len() <= rows_max.max(1) {
            parts.push(part);
        } else {
            let (left, right) = part.split_at(part.len() / 2);
            open.push_front(right);
            open.push_front(left);
        }
    }
    parts
}

struct Solver<'a> {
    columns: &'a [Cow<'a, Column>],
    dependencies: &'a Dependencies,
    options: &'a GgrOptions,
    splitter: Splitter,
    /// By code; all zero between uses.
    counts: Vec<u32>,
    /// The fields already placed in the rows being solved.
    prefix: Vec<u32>,
    rows: Vec<u32>,
    orders: Vec<Vec<u32>>,
}

impl Solver<'_> {
    /// Emits `rows`, with `fields` ordered behind the prefix.
    fn solve(&mut self, mut rows: Vec<u32>, fields: &[u32], col_depth: usize) {
        let mut row_depth = 0;
        while rows.len() > 1 && row_depth <= self.options.row_stop && col_depth <= self.options.col_stop {
            let Some((field, code)) = self.most_promising(&rows, fields) else {
                break;
            };
            let codes = self.columns[field as usize].codes();
            let (group, others): (Vec<u32>, Vec<u32>) = rows.iter().partition(|&&row| codes[row as usize] == code);
            let placed = self.prefix.len();
            let determined = self.determined_by(field, fields);
            let rest = fields.iter().copied().filter(|other| *other != field && !determined.contains(other));
            let rest: Vec<u32> = rest.collect();
            self.prefix.push(field);
            self.prefix.extend(determined);
            self.solve(group, &rest, col_depth + 1);
            self.prefix.truncate(placed);
            rows = others;
            row_depth += 1;
        }
        let order = self.order_by_statistics(&rows, fields);
        self.sort(&mut rows, &order);
        let order = [self.prefix.as_slice(), &order].concat();
        self.orders.extend(std::iter::repeat_n(order, rows.len()));
        self.rows.extend(rows);
    }

    /// Returns the field and code of the cell with the highest score, if that reaches `early_stop`;
    /// the first such field, and its value that appears first, where several do.
    fn most_promising(&mut self, rows: &[u32], fields: &[u32]) -> Option<(u32, u32)> {
        let mut best = None;
        let mut best_score = 0.0;
        for &field in fields {
            let determined = self.determined_by(field, fields);
            let column = &self.columns[field as usize];
            count(&mut self.counts, column, rows);
            for &row in rows {
                let code = column.codes()[row as usize];
                // Taken, so that each value is scored once and the counts are left at zero.
                let repeats = f64::from(std::mem::take(&mut self.counts[code as usize])) - 1.0;
                if repeats < 1.0 {
                    continue;
                }
                let lengths = determined.iter().map(|&other| self.columns[other as usize].length_at(row));
                let lengths = lengths.chain([column.lengths()[code as usize]]);
                let score = lengths.map(|length| f64::from(length).powi(2)).sum::<f64>() * repeats;
                if score > best_score {
                    (best, best_score) = (Some((field, code)), score);
                }
            }
        }
        best.filter(|_| best_score >= self.options.early_stop)
    }

    /// Those of `fields` that follow `field` into the prefix.
    fn determined_by(&self, field: u32, fields: &[u32]) -> Vec<u32> {
        if !self.options.strict_dependencies {
            return Vec::new();
        }
        let determined = self.dependencies.determined_by(field).iter();
        determined.copied().filter(|other| fields.contains(other)).collect()
    }

    /// Fields by squared mean length times how often a value repeats on average, descending: the
    /// artifact's order for what the recursion does not reach.
    fn order_by_statistics(&mut self, rows: &[u32], fields: &[u32]) -> Vec<u32> {
        let mut scored: Vec<(f64, u32)> = Vec::with_capacity(fields.len());
        for &field in fields {
            let column = &self.columns[field as usize];
            count(&mut self.counts, column, rows);
            let (mut distinct, mut tokens) = (0.0, 0.0);
            for &row in rows {
                let code = column.codes()[row as usize] as usize;
                tokens += f64::from(column.lengths()[code]);
                if std::mem::take(&mut self.counts[code]) > 0 {
                    distinct += 1.0;
                }
            }
            let n = rows.len().max(1) as f64;
            scored.push(((tokens / n).powi(2) * (n / f64::max(distinct, 1.0) - 1.0), field));
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().map(|(_, field)| field).collect()
    }

    fn sort(&mut self, rows: &mut [u32], order: &[u32]) {
        let columns = order.iter().map(|&field| &*self.columns[field as usize]);
        self.splitter.sort(rows, columns);
    }
}

/// Adds to `counts`, by code, how many of `rows` hold each value.
fn count(counts: &mut Vec<u32>, column: &Column, rows: &[u32]) {
    if counts.len() < column.lengths().len() {
        counts.resize(column.lengths().len(), 0);
    }
    for &row in rows {
        counts[column.codes()[row as usize] as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::prefix_hit_count;

    /// Takes every cell that repeats, however short, and everything in one chunk.
    fn eager() -> GgrOptions {
        GgrOptions { early_stop: 0.0, distinct_threshold: 1.0, presort: false, ..GgrOptions::default() }
    }

    fn table(columns: &[(&[u32], u32)]) -> Table {
        let rows = columns[0].0.len();
        let columns = columns.iter().map(|&(codes, length)| Column::new(codes.to_vec(), vec![length; 16]).unwrap());
        Table::new(columns.collect(), rows).unwrap()
    }

    #[test]
    fn fields_are_ordered_for_each_group() {
        // The first two rows share their first cell, the last two their second.
        let table = table(&[(&[0, 0, 1, 2], 5), (&[0, 1, 2, 2], 4)]);
        let schedule = ggr(&table, &eager());
        assert_eq!(schedule.rows(), [0, 1, 2, 3]);
        assert_eq!(schedule.fields_of(1), [0, 1]);
        assert_eq!(schedule.fields_of(2), [1, 0]);
        assert_eq!(prefix_hit_count(&table, &schedule), 25 + 16);
    }

    #[test]
    fn mostly_unique_columns_go_last() {
        let table = table(&[(&[0, 1, 2, 3], 90), (&[0, 1, 0, 1], 5)]);
        let schedule = ggr(&table, &GgrOptions::default());
        assert_eq!(schedule.rows(), [0, 2, 1, 3]);
        assert!((0..4).all(|position| schedule.fields_of(position) == [1, 0]));
    }

    #[test]
    fn chunks_are_solved_independently() {
        let rows: Vec<u32> = (0..10).collect();
        let lengths: Vec<usize> = halved(&rows, 3).into_iter().map(<[u32]>::len).collect();
        assert_eq!(lengths, [2, 3, 2, 3]);
        let table = table(&[(&[0, 1, 0, 1], 5), (&[0, 1, 2, 2], 5)]);
        let schedule = ggr(&table, &GgrOptions { chunk_rows: 2, ..eager() });
        assert_eq!(schedule.rows(), [0, 1, 2, 3]);
    }

    #[test]
    fn strict_dependencies_follow_their_determinant() {
        let id: &[u32] = &[0, 0, 1, 1, 2, 2];
        let style: &[u32] = &[0, 0, 0, 0, 1, 1];
        let table = table(&[(id, 9), (style, 5)]);
        let schedule = ggr(&table, &GgrOptions { strict_dependencies: true, ..eager() });
        assert!((0..6).all(|position| schedule.fields_of(position) == [0, 1]));
    }
}
