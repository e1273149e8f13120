//! Rows grouped by their leading cells, refined one column at a time.
//!
//! Class-id refinement without hashing or sorting: dictionary codes index a stamp array, so a
//! refinement costs one pass over the rows that still share something. A row alone in its class is
//! dropped, for it can share nothing further on; on real tables few rows are left after some columns.

use std::ops::Range;

use super::table::Column;

/// Rows that are equal in all columns so far, class after class; classes of one row are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    rows: Vec<u32>,
    classes: Vec<Class>,
}

#[derive(Clone, Copy, Debug)]
struct Class {
    /// Where its rows end; they begin where the class before it ends.
    end: usize,
    /// Tokens of the shared cells past the last full page.
    offset: u64,
}

impl Partition {
    /// One class of all rows: no column has been looked at.
    pub(super) fn whole(rows: usize) -> Self {
        Self::of((0..rows as u32).collect())
    }

    /// One class of some rows.
    pub(super) fn of(rows: Vec<u32>) -> Self {
        match rows.len() {
            0 | 1 => Self::default(),
            end => Self { rows, classes: vec![Class { end, offset: 0 }] },
        }
    }

    /// Whether no two rows share all columns so far.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = (&[u32], u64)> {
        let starts = std::iter::once(0).chain(self.classes.iter().map(|class| class.end));
        let spans = starts.zip(&self.classes);
        spans.map(|(start, class)| (&self.rows[start..class.end], class.offset))
    }
}

/// Splits and counts classes; keeps the scratch arrays from one call to the next.
pub(super) struct Refiner {
    /// Tokens are shared in units of this many.
    page: u64,
    splitter: Splitter,
    /// Cells looked at so far: the search's measure of time.
    visited: u64,
}

impl Refiner {
    pub(super) fn new(page: u32) -> Self {
        Self { page: u64::from(page.max(1)), splitter: Splitter::default(), visited: 0 }
    }

    pub(super) fn visited(&self) -> u64 {
        self.visited
    }

    /// Returns the cells looked at so far, and counts from zero again.
    pub(super) fn take_visited(&mut self) -> u64 {
        std::mem::take(&mut self.visited)
    }

    /// Counts cells looked at elsewhere.
    pub(super) fn add_visited(&mut self, cells: u64) {
        self.visited += cells;
    }

    /// Returns the tokens saved by placing `column` next: in each class, every cell but the first
    /// of its kind, and of those that are the first what all cells of the column begin with.
    pub(super) fn gain(&mut self, partition: &Partition, column: &Column) -> u64 {
        self.visited += partition.rows.len() as u64;
        self.splitter.reserve(column, partition.classes.len());
        let mut gain = 0;
        for (rows, offset) in partition.classes() {
            self.splitter.epoch += 1;
            let mut distinct = 0;
            for &row in rows {
                let code = column.codes()[row as usize] as usize;
                if self.splitter.stamps[code] == self.splitter.epoch {
                    gain += self.credit(offset, column.lengths()[code]);
                } else {
                    distinct += 1;
                }
                self.splitter.stamps[code] = self.splitter.epoch;
            }
            gain += (distinct - 1) * self.credit(offset, column.common_len());
        }
        gain
    }

    /// Splits every class by `column`. Returns the tokens saved, as [`Refiner::gain`], and the
    /// finer partition.
    pub(super) fn refine(&mut self, partition: &Partition, column: &Column) -> (u64, Partition) {
        self.visited += partition.rows.len() as u64;
        self.splitter.reserve(column, partition.classes.len());
        let mut gain = 0;
        let mut finer = Partition::default();
        for (rows, offset) in partition.classes() {
            let (mut rest, parts) = self.splitter.split(rows, column.codes(), |_| ());
            gain += (parts.len() as u64 - 1) * credit(self.page, offset, column.common_len());
            for &(size, code) in parts {
                let (part, tail) = rest.split_at(size as usize);
                rest = tail;
                if size > 1 {
                    let length = column.lengths()[code as usize];
                    gain += u64::from(size - 1) * credit(self.page, offset, length);
                    finer.rows.extend_from_slice(part);
                    let offset = (offset + u64::from(length)) % self.page;
                    finer.classes.push(Class { end: finer.rows.len(), offset });
                }
            }
        }
        (gain, finer)
    }

    /// Splits every class by one column after the other.
    pub(super) fn refine_by<'a>(
        &mut self,
        partition: &Partition,
        columns: impl IntoIterator<Item = &'a Column>,
    ) -> (u64, Partition) {
        let mut columns = columns.into_iter();
        let Some(first) = columns.next() else { return (0, partition.clone()) };
        let start = self.refine(partition, first);
        columns.fold(start, |(saved, partition), column| {
            let (gain, finer) = self.refine(&partition, column);
            (saved + gain, finer)
        })
    }

    /// Returns what placing the columns in this order saves in the rows of `partition`, sorted accordingly.
    pub(super) fn total<'a>(&mut self, mut partition: Partition, columns: impl IntoIterator<Item = &'a Column>) -> u64 {
        let mut total = 0;
        for column in columns {
            if partition.is_empty() {
                break;
            }
            let (gain, finer) = self.refine(&partition, column);
            total += gain;
            partition = finer;
        }
        total
    }

    fn credit(&self, offset: u64, length: u32) -> u64 {
        credit(self.page, offset, length)
    }
}

/// Whole pages that `length` more tokens complete, in tokens, `offset` tokens into a page.
fn credit(page: u64, offset: u64, length: u32) -> u64 {
    match page {
        1 => u64::from(length),
        _ => (offset + u64::from(length)) / page * page,
    }
}

/// Groups rows by code in order of first appearance.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// By code: the last class that held it, as an epoch.
    stamps: Vec<u32>,
    /// By code: its part within that class.
    part_of: Vec<u32>,
    epoch: u32,
    /// Number of rows and code of each part of the class just split.
    parts: Vec<(u32, u32)>,
    places: Vec<u32>,
    row_parts: Vec<u32>,
    grouped: Vec<u32>,
}

impl Splitter {
    /// Makes room for the codes of `column` and for `classes` further epochs.
    fn reserve(&mut self, column: &Column, classes: usize) {
        let distinct = column.lengths().len();
        if self.stamps.len() < distinct {
            self.stamps.resize(distinct, 0);
            self.part_of.resize(distinct, 0);
        }
        if u32::MAX as usize - (self.epoch as usize) <= classes {
            self.stamps.fill(0);
            self.epoch = 0;
        }
    }

    /// Returns `rows` grouped by code, rows in order of first appearance, and the number of rows and the
    /// code of each group. Groups come in order of first appearance unless `arrange` moves them. Room must
    /// have been reserved.
    fn split(&mut self, rows: &[u32], codes: &[u32], arrange: impl FnOnce(&mut [(u32, u32)])) -> (&[u32], &[(u32, u32)]) {
        self.epoch += 1;
        self.parts.clear();
        self.row_parts.clear();
        for &row in rows {
            let code = codes[row as usize];
            let at = code as usize;
            if self.stamps[at] != self.epoch {
                self.stamps[at] = self.epoch;
                self.part_of[at] = self.parts.len() as u32;
                self.parts.push((0, code));
            }
            let part = self.part_of[at];
            self.parts[part as usize].0 += 1;
            self.row_parts.push(part);
        }
        arrange(&mut self.parts);
        self.places.resize(self.parts.len().max(self.places.len()), 0);
        let mut place = 0;
        for &(size, code) in &self.parts {
            self.places[self.part_of[code as usize] as usize] = place;
            place += size;
        }
        self.grouped.resize(rows.len(), 0);
        for (&row, &part) in rows.iter().zip(&self.row_parts) {
            let place = &mut self.places[part as usize];
            self.grouped[*place as usize] = row;
            *place += 1;
        }
        (&self.grouped, &self.parts)
    }

    /// Sorts `rows` so that rows equal in the leading columns are adjacent, column by column. Groups come in
    /// the order of their tokens where a column knows them, so that cells that begin alike are neighbours;
    /// else in order of first appearance.
    pub(super) fn sort<'a>(&mut self, rows: &mut [u32], columns: impl IntoIterator<Item = &'a Column>) {
        let mut classes: Vec<Range<usize>> = std::iter::once(0..rows.len()).collect();
        for column in columns {
            classes.retain(|class| class.len() > 1);
            self.reserve(column, classes.len());
            let mut finer = Vec::with_capacity(classes.len());
            for class in classes {
                let (grouped, parts) = self.split(&rows[class.clone()], column.codes(), |parts| by_tokens(parts, column));
                rows[class.clone()].copy_from_slice(grouped);
                let mut start = class.start;
                for &(size, _) in parts {
                    finer.push(start..start + size as usize);
                    start += size as usize;
                }
            }
            classes = finer;
        }
    }
}

fn by_tokens(parts: &mut [(u32, u32)], column: &Column) {
    parts.sort_by(|&(_, a), &(_, b)| column.tokens_of(a).cmp(&column.tokens_of(b)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(codes: &[u32], lengths: &[u32]) -> Column {
        Column::new(codes.to_vec(), lengths.to_vec()).unwrap()
    }

    #[test]
    fn refines_classes_and_drops_single_rows() {
        let first = column(&[0, 1, 0, 0, 2], &[5, 7, 9]);
        let second = column(&[4, 4, 4, 1, 1], &[0, 1, 0, 0, 10]);
        let mut refiner = Refiner::new(1);
        let whole = Partition::whole(5);
        assert_eq!(refiner.gain(&whole, &first), 10);
        let (gain, partition) = refiner.refine(&whole, &first);
        assert_eq!((gain, partition.rows.as_slice()), (10, [0, 2, 3].as_slice()));
        let (gain, partition) = refiner.refine(&partition, &second);
        assert_eq!((gain, partition.rows.as_slice()), (10, [0, 2].as_slice()));
        assert_eq!(refiner.total(Partition::whole(5), [&first, &second]), 20);
    }

    #[test]
    fn credits_whole_pages() {
        let columns = [column(&[0, 0], &[10]), column(&[0, 0], &[10]), column(&[0, 1], &[50, 50])];
        assert_eq!(Refiner::new(16).total(Partition::whole(2), &columns), 16);
        assert_eq!(Refiner::new(4).total(Partition::whole(2), &columns), 20);
    }

    #[test]
    fn sorts_by_first_appearance() {
        let columns = [column(&[3, 1, 3, 1, 3], &[1; 4]), column(&[0, 0, 1, 0, 0], &[1; 2])];
        let mut rows = [0, 1, 2, 3, 4];
        Splitter::default().sort(&mut rows, &columns);
        assert_eq!(rows, [0, 4, 2, 1, 3]);
    }

    #[test]
    fn survives_running_out_of_epochs() {
        let columns = [column(&[0, 1, 0, 1], &[1; 2]), column(&[0, 0, 1, 0], &[1; 2])];
        let mut splitter = Splitter { epoch: u32::MAX - 2, ..Splitter::default() };
        let mut rows = [0, 1, 2, 3];
        splitter.sort(&mut rows, &columns);
        assert_eq!(rows, [0, 2, 1, 3]);
    }
}
