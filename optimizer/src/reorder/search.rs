//! One field order for the whole table, searched for by the tokens it saves.
//!
//! With rows sorted by an order, what it saves is a sum over its fields that class-id refinement
//! computes without sorting, and the classes after some fields do not depend on their order. So:
//! merge one-to-one columns; choose greedily the field that saves most given those before it, the
//! fields that it determines in front of it; then move single fields while that helps. Large tables are
//! searched on a sample of whole groups, then on larger ones.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::thread;

use super::dependencies::{Dependencies, Unit};
use super::partition::{Partition, Refiner};
use super::schedule::Options;

/// Rows from which on moves are tried on several threads.
const ROWS_MIN_IN_PARALLEL: usize = 4096;

/// Units by mean length times rows over distinct values, descending: the order of the paper's first
/// version, which looks at each field by itself.
pub(super) fn scored_order(units: &[Unit<'_>]) -> Vec<u32> {
    let score = |unit: &Unit<'_>| {
        let scores = unit.iter().map(|column| {
            let distinct = column.counts().iter().filter(|&&count| count > 0).count();
            column.tokens() as f64 / distinct.max(1) as f64
        });
        scores.fold(0.0, f64::max)
    };
    let scores: Vec<f64> = units.iter().map(score).collect();
    let mut order: Vec<u32> = (0..units.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    order
}

/// Returns the order of units found within the budget of `options`.
pub(super) fn searched_order(units: &[Unit<'_>], rows: usize, dependencies: &Dependencies, options: &Options) -> Vec<u32> {
    let mut refiner = Refiner::new(options.page);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(units.len());
    let mut others: Vec<Refiner> = (1..threads).map(|_| Refiner::new(options.page)).collect();
    let mut order: Option<Vec<u32>> = None;
    let mut target = options.sample_rows.max(1);
    loop {
        let sample = sample_rows(units, rows, target);
        let sampled = sample.as_ref().map(|sample| {
            let select = |unit: &Unit<'_>| unit.iter().map(|column| Cow::Owned(column.select(sample))).collect();
            units.iter().map(select).collect::<Vec<Unit<'_>>>()
        });
        let mut search = Search {
            units: sampled.as_deref().unwrap_or(units),
            rows: sample.as_ref().map_or(rows, Vec::len),
            dependencies,
            refiner: &mut refiner,
            others: &mut others,
            cells_max: options.search_cells,
        };
        let start = order.take().unwrap_or_else(|| search.greedy());
        let improved = dependencies.coarser_first(&search.improve(start));
        // Most moves are found on few rows; more rows correct what those could not show.
        target = target.saturating_mul(4);
        let cells_next = (target.min(rows) as u64).saturating_mul(units.len() as u64);
        if sample.is_none() || refiner.visited() + cells_next > options.search_cells {
            return improved;
        }
        order = Some(improved);
    }
}

/// Picks about `target` of the rows, or returns `None` if there are no more than that.
///
/// Takes all rows of a value or none, for the coarsest field whose groups are small enough to choose
/// among: a uniform sample would make groups look unique that are merely rarer than its step.
fn sample_rows(units: &[Unit<'_>], rows: usize, target: usize) -> Option<Vec<u32>> {
    if rows <= target {
        return None;
    }
    let counted = units.iter().flatten().map(|column| (column, column.counts()));
    let eligible = counted.filter(|(_, counts)| {
        let largest = counts.iter().copied().max().unwrap_or(0) as usize;
        largest > 1 && largest * 4 <= target
    });
    let coarsest = eligible.min_by_key(|(_, counts)| counts.iter().filter(|&&n| n > 0).count());
    let Some((column, counts)) = coarsest else {
        let step = rows.div_ceil(target.max(1));
        return Some((0..rows as u32).step_by(step).collect());
    };
    let mut codes: Vec<u32> = (0..counts.len() as u32).collect();
    codes.sort_by_key(|&code| mix(code));
    let mut taken = 0;
    let mut keep = vec![false; counts.len()];
    for code in codes {
        if taken >= target {
            break;
        }
        keep[code as usize] = true;
        taken += counts[code as usize] as usize;
    }
    Some((0..rows as u32).filter(|&row| keep[column.codes()[row as usize] as usize]).collect())
}

/// The finaliser of SplitMix64: codes in an order that has nothing to do with the data's.
fn mix(code: u32) -> u64 {
    let mut bits = (u64::from(code) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

struct Search<'a> {
    units: &'a [Unit<'a>],
    rows: usize,
    dependencies: &'a Dependencies,
    refiner: &'a mut Refiner,
    /// Those of the other threads that try moves.
    others: &'a mut [Refiner],
    cells_max: u64,
}

impl Search<'_> {
    /// Appends, again and again, the field that saves most behind those chosen, after the fields
    /// that it determines. When no two rows share all of them, the rest follows, short fields first.
    fn greedy(&mut self) -> Vec<u32> {
        let mut order = Vec::with_capacity(self.units.len());
        let mut rest: Vec<u32> = (0..self.units.len() as u32).collect();
        let mut partition = Partition::whole(self.rows);
        while !partition.is_empty() && !rest.is_empty() && self.may_go_on() {
            let gains = rest.iter().map(|&field| (self.gain(&partition, field), field));
            let Some((_, best)) = gains.max_by_key(|&(gain, field)| (gain, !field)) else {
                break;
            };
            for &field in self.dependencies.determined_by(best).iter().chain([&best]) {
                if let Some(at) = rest.iter().position(|&other| other == field) {
                    rest.remove(at);
                    order.push(field);
                    partition = self.refine(&partition, field).1;
                }
            }
        }
        rest.sort_by_key(|&field| self.units[field as usize].iter().map(|column| column.tokens()).sum::<u64>());
        order.extend(rest);
        order
    }

    /// Moves one field at a time while that saves more and the budget lasts.
    fn improve(&mut self, order: Vec<u32>) -> Vec<u32> {
        let mut path = Path::new(order, self.rows);
        path.extend(self);
        loop {
            let mut improved = false;
            for from in 0..path.order.len() {
                let mut to = 0;
                while let Some(better) = self.first_better(&path, from, to) {
                    self.make_move(&mut path, from, better);
                    improved = true;
                    to = better + 1;
                }
            }
            if !improved || !self.may_go_on() {
                return path.order;
            }
        }
    }

    /// Returns the first position from `start` on that saves more for the field at `from`, as far as the budget lasts. Positions are tried on
    /// all threads; what is found and counted is what one thread would find and count.
    fn first_better(&mut self, path: &Path, from: usize, start: usize) -> Option<usize> {
        // Behind the last shared field, positions differ in nothing.
        let end = path.order.len().min(path.depth() + 1);
        let moves: Vec<usize> = (start..end).filter(|&to| from != to && from.min(to) < path.depth()).collect();
        let Search { units, rows, refiner, others, cells_max, .. } = self;
        if *rows < ROWS_MIN_IN_PARALLEL || others.is_empty() || moves.len() < 2 {
            return moves
                .into_iter()
                .find(|&to| refiner.visited() < *cells_max && saves_more(units, refiner, path, from, to));
        }
        let before = refiner.take_visited();
        let threads = others.len() + 1;
        let (units, moves) = (*units, &moves);
        let refiners = std::iter::once(&mut **refiner).chain(others.iter_mut());
        let mut tried: Vec<(usize, bool, u64)> = thread::scope(|scope| {
            let of_thread = |nth: usize, refiner: &mut Refiner| {
                let mut try_move = |&to: &usize| (to, saves_more(units, refiner, path, from, to), refiner.take_visited());
                moves.iter().skip(nth).step_by(threads).map(&mut try_move).collect::<Vec<_>>()
            };
            let running: Vec<_> =
                refiners.enumerate().map(|(nth, refiner)| scope.spawn(move || of_thread(nth, refiner))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().flat_map(join).collect()
        });
        tried.sort_unstable_by_key(|(to, ..)| *to);
        refiner.add_visited(before);
        for (to, is_better, visited) in tried {
            if refiner.visited() >= *cells_max {
                return None;
            }
            refiner.add_visited(visited);
            if is_better {
                return Some(to);
            }
        }
        None
    }

    fn make_move(&mut self, path: &mut Path, from: usize, to: usize) {
        let (first, moved) = moved(path, from, to);
        path.order[first..first + moved.len()].copy_from_slice(&moved);
        path.cut(first);
        path.extend(self);
    }

    fn may_go_on(&self) -> bool {
        self.refiner.visited() < self.cells_max
    }

    fn gain(&mut self, partition: &Partition, field: u32) -> u64 {
        gain(self.units, self.refiner, partition, field)
    }

    fn refine(&mut self, partition: &Partition, field: u32) -> (u64, Partition) {
        refine(self.units, self.refiner, partition, field)
    }
}

/// Returns the fields between two positions, from the first of them on, once the field at `from` stands at `to`.
fn moved(path: &Path, from: usize, to: usize) -> (usize, Vec<u32>) {
    let (first, last) = (from.min(to), from.max(to));
    let mut moved = path.order[first..=last].to_vec();
    if from < to {
        moved.rotate_left(1)
    } else {
        moved.rotate_right(1)
    }
    (first, moved)
}

/// Whether moving a field saves more. Only the fields between the two positions need looking at.
fn saves_more(units: &[Unit<'_>], refiner: &mut Refiner, path: &Path, from: usize, to: usize) -> bool {
    let (first, moved) = moved(path, from, to);
    let end = first + moved.len();
    let saved_so_far = path.saved_between(first, end);
    // A field that moved forward makes the classes of those it passed finer, and finer classes
    // save no more: once it cannot catch up, the rest need not be looked at.
    let is_forward = moved[0] == path.order[end - 1];
    let mut partition = Cow::Borrowed(&path.before[first]);
    let mut saved = 0;
    for (at, &field) in (first + 1..).zip(&moved) {
        if partition.is_empty() {
            break;
        }
        if at == end {
            saved += gain(units, refiner, &partition, field);
            break;
        }
        let (gain, finer) = refine(units, refiner, &partition, field);
        saved += gain;
        partition = Cow::Owned(finer);
        if is_forward && saved + path.saved_between(at - 1, end - 1) <= saved_so_far {
            return false;
        }
    }
    saved > saved_so_far
}

fn gain(units: &[Unit<'_>], refiner: &mut Refiner, partition: &Partition, field: u32) -> u64 {
    match units[field as usize].as_slice() {
        [column] => refiner.gain(partition, column),
        _ => refine(units, refiner, partition, field).0,
    }
}

fn refine(units: &[Unit<'_>], refiner: &mut Refiner, partition: &Partition, field: u32) -> (u64, Partition) {
    refiner.refine_by(partition, units[field as usize].iter().map(Cow::as_ref))
}

/// A field order with what is known in front of each field, as far as rows share anything.
struct Path {
    order: Vec<u32>,
    /// At `d`: the rows that share the first `d` fields.
    before: Vec<Partition>,
    /// At `d`: what the first `d` fields save.
    saved: Vec<u64>,
}

impl Path {
    fn new(order: Vec<u32>, rows: usize) -> Self {
        Self { order, before: vec![Partition::whole(rows)], saved: vec![0] }
    }

    /// How many leading fields are shared by any rows, or tried to be.
    fn depth(&self) -> usize {
        self.before.len() - 1
    }

    fn saved_between(&self, start: usize, end: usize) -> u64 {
        let at = |field: usize| self.saved[field.min(self.depth())];
        at(end) - at(start)
    }

    /// Forgets what lies behind the first `fields` fields.
    fn cut(&mut self, fields: usize) {
        self.before.truncate(fields + 1);
        self.saved.truncate(fields + 1);
    }

    fn extend(&mut self, search: &mut Search<'_>) {
        while self.depth() < self.order.len() && !self.before[self.depth()].is_empty() {
            let depth = self.depth();
            let (gain, finer) = search.refine(&self.before[depth], self.order[depth]);
            self.before.push(finer);
            self.saved.push(self.saved[depth] + gain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::{Column, Strategy, Table, schedule};

    fn field_order(table: &Table, options: &Options) -> Vec<u32> {
        schedule(table, Strategy::Search, options).unwrap().fields_of(0).to_vec()
    }

    fn table(columns: &[(&[u32], u32)]) -> Table {
        let rows = columns[0].0.len();
        let columns = columns.iter().map(|&(codes, length)| Column::new(codes.to_vec(), vec![length; rows]).unwrap());
        Table::new(columns.collect(), rows).unwrap()
    }

    #[test]
    fn long_repeated_fields_come_first() {
        let review: &[u32] = &[0, 1, 2, 3];
        let movie: &[u32] = &[0, 1, 0, 1];
        let genre: &[u32] = &[0, 0, 0, 0];
        let table = table(&[(review, 90), (movie, 50), (genre, 5)]);
        assert_eq!(field_order(&table, &Options::default()), [2, 1, 0]);
    }

    #[test]
    fn the_stored_order_wins_ties() {
        let table = table(&[(&[0, 0, 1], 3), (&[1, 1, 0], 3), (&[0, 1, 2], 9)]);
        assert_eq!(field_order(&table, &Options::default()), [0, 1, 2]);
    }

    #[test]
    fn without_a_budget_an_order_is_still_returned() {
        let table = table(&[(&[0, 1, 2, 3], 9), (&[0, 0, 0, 1], 3), (&[1, 0, 1, 0], 4)]);
        let options = Options { search_cells: 0, ..Options::default() };
        let mut order = field_order(&table, &options);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2]);
    }

    #[test]
    fn threads_find_what_one_finds() {
        let rows = 2 * ROWS_MIN_IN_PARALLEL as u32;
        let column = |of: &dyn Fn(u32) -> u32, length: u32| {
            Cow::Owned(Column::new((0..rows).map(of).collect(), vec![length; rows as usize]).unwrap())
        };
        let units: Vec<Unit<'_>> = vec![
            vec![column(&|row| row, 9)],
            vec![column(&|row| mix(row) as u32 % 40, 5)],
            vec![column(&|row| mix(row) as u32 % 7, 2)],
            vec![column(&|row| mix(row / 3) as u32 % 300, 30)],
            vec![column(&|row| row % 11, 1)],
        ];
        for cells_max in [0, 100_000, 1_000_000, u64::MAX] {
            let found = [0, 1, 3].map(|n_others| {
                let (mut refiner, mut others) =
                    (Refiner::new(1), (0..n_others).map(|_| Refiner::new(1)).collect::<Vec<_>>());
                let dependencies = Dependencies::none(&Table::new(vec![], rows as usize).unwrap());
                let mut search = Search {
                    units: &units,
                    rows: rows as usize,
                    dependencies: &dependencies,
                    refiner: &mut refiner,
                    others: &mut others,
                    cells_max,
                };
                let order = search.improve(vec![0, 1, 2, 3, 4]);
                (order, refiner.visited())
            });
            assert_eq!((&found[0], &found[0]), (&found[1], &found[2]));
        }
    }

    #[test]
    fn samples_keep_groups_whole() {
        let groups: Vec<u32> = (0..600).map(|row| row % 60).collect();
        let keys: Vec<u32> = (0..600).collect();
        let columns = [
            vec![Cow::Owned(Column::new(keys, vec![1; 600]).unwrap())],
            vec![Cow::Owned(Column::new(groups.clone(), vec![1; 60]).unwrap())],
        ];
        assert_eq!(sample_rows(&columns, 600, 600), None);
        let sample = sample_rows(&columns, 600, 100).unwrap();
        assert_eq!(sample.len(), 100);
        for group in 0..60 {
            let kept = sample.iter().filter(|&&row| groups[row as usize] == group).count();
            assert!(kept == 0 || kept == 10, "group {group} is cut to {kept} rows");
        }
    }
}
