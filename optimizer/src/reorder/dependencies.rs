//! Functional dependencies found on the data, and the field order that follows from them.
//!
//! A determines B (A → B) when rows with equal A have equal B; NULL counts as a value. Columns that
//! determine each other are one field to the solvers. If A → B only, B is the coarser one, and the
//! rule is: **B immediately before A**. Moving B there from behind A leaves the classes of rows that
//! share A or any later field unchanged, and B's own classes only grow, so no row shares less.

use std::borrow::Cow;

use super::table::{Column, Table};

/// The one-to-one groups of a table's columns, and which group determines which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependencies {
    groups: Vec<Vec<u32>>,
    determined: Vec<Vec<u32>>,
}

impl Dependencies {
    /// Finds the dependencies between single columns that hold on all rows of `table`.
    pub fn of(table: &Table) -> Self {
        let columns = table.columns();
        let distinct: Vec<usize> = columns.iter().map(distinct_count).collect();
        let mut images = Images::default();
        let mut groups: Vec<Vec<u32>> = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            let twin = groups.iter_mut().find(|group| {
                let first = group[0] as usize;
                distinct[first] == distinct[at] && images.determine(&columns[first], column)
            });
            match twin {
                Some(group) => group.push(at as u32),
                None => groups.push(vec![at as u32]),
            }
        }
        let first_of = |group: &u32| groups[*group as usize][0] as usize;
        let determined = groups.iter().map(|group| {
            let finer = group[0] as usize;
            let mut coarser: Vec<u32> = (0..groups.len() as u32)
                .filter(|other| distinct[first_of(other)] < distinct[finer])
                .filter(|other| images.determine(&columns[finer], &columns[first_of(other)]))
                .collect();
            coarser.sort_by_key(|other| distinct[first_of(other)]);
            coarser
        });
        Self { determined: determined.collect(), groups }
    }

    /// Returns the groups of columns that determine each other, most of them of one column, in stored
    /// order.
    pub fn groups(&self) -> &[Vec<u32>] {
        &self.groups
    }

    /// Returns the groups that `group` determines without being determined by them, coarsest first.
    pub fn determined_by(&self, group: u32) -> &[u32] {
        &self.determined[group as usize]
    }

    /// Applies the rule to an order of groups: whatever stands behind a group that determines it
    /// moves to just before that group, the coarsest first. Never lowers what an order saves.
    pub fn coarser_first(&self, order: &[u32]) -> Vec<u32> {
        let mut placed = vec![false; self.groups.len()];
        let mut ordered = Vec::with_capacity(order.len());
        for &group in order {
            for &next in self.determined_by(group).iter().chain([&group]) {
                if !std::mem::replace(&mut placed[next as usize], true) {
                    ordered.push(next);
                }
            }
        }
        ordered
    }

    /// Returns one column for each group: the codes of its first, the lengths of all.
    pub(super) fn merge<'a>(&self, table: &'a Table) -> Vec<Cow<'a, Column>> {
        let merged = self.groups.iter().map(|group| {
            let columns = group.iter().map(|&column| &table.columns()[column as usize]);
            columns.map(Cow::Borrowed).reduce(|glued, next| Cow::Owned(glued.into_owned().glue(&next)))
        });
        merged.flatten().collect()
    }

    /// Returns the columns of an order of groups.
    pub(super) fn expand(&self, order: &[u32]) -> Vec<u32> {
        order.iter().flat_map(|&group| &self.groups[group as usize]).copied().collect()
    }
}

fn distinct_count(column: &Column) -> usize {
    column.counts().iter().filter(|&&count| count > 0).count()
}

/// Scratch for testing dependencies: what each code was last seen with, and in which test.
#[derive(Default)]
struct Images {
    images: Vec<(u64, u32)>,
    test: u64,
}

impl Images {
    /// Whether rows with equal cells in `finer` have equal cells in `coarser`.
    fn determine(&mut self, finer: &Column, coarser: &Column) -> bool {
        self.test += 1;
        if self.images.len() < finer.lengths().len() {
            self.images.resize(finer.lengths().len(), (0, 0));
        }
        finer.codes().iter().zip(coarser.codes()).all(|(&code, &image)| {
            let known = &mut self.images[code as usize];
            if known.0 != self.test {
                *known = (self.test, image);
            }
            known.1 == image
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&[u32]]) -> Table {
        let rows = columns[0].len();
        let columns = columns.iter().map(|codes| Column::new(codes.to_vec(), vec![1; 9]).unwrap());
        Table::new(columns.collect(), rows).unwrap()
    }

    #[test]
    fn finds_twins_and_coarser_columns() {
        // A beer's id and name are one-to-one, both determine its style, nothing the score.
        let id: &[u32] = &[0, 1, 2, 0, 1];
        let score: &[u32] = &[0, 0, 1, 1, 1];
        let style: &[u32] = &[4, 4, 8, 4, 4];
        let name: &[u32] = &[7, 6, 5, 7, 6];
        let found = Dependencies::of(&table(&[id, score, style, name]));
        assert_eq!(found.groups(), [vec![0, 3], vec![1], vec![2]]);
        assert_eq!(found.determined_by(0), [2]);
        assert_eq!(found.determined_by(1), [] as [u32; 0]);
        assert_eq!(found.coarser_first(&[1, 0, 2]), [1, 2, 0]);
        assert_eq!(found.coarser_first(&[2, 1, 0]), [2, 1, 0]);
        assert_eq!(found.expand(&[2, 0, 1]), [2, 0, 3, 1]);
    }

    #[test]
    fn a_key_determines_all_and_a_constant_nothing() {
        let found = Dependencies::of(&table(&[&[0, 1, 2, 3], &[0, 0, 1, 1], &[5, 5, 5, 5]]));
        assert_eq!(found.determined_by(0), [2, 1]);
        assert_eq!(found.determined_by(1), [2]);
        assert_eq!(found.coarser_first(&[0, 1, 2]), [2, 1, 0]);
    }
}
