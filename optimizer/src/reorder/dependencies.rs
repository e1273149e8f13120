//! Functional dependencies found on the data, and the field order that follows from them.
//!
//! A determines B (A → B) when rows with equal A have equal B; NULL counts as a value. Columns that
//! determine each other are one field to the solvers. If A → B only, B is the coarser one, and the
//! rule is: **B immediately before A**. Moving B there from behind A leaves the classes of rows that
//! share A or any later field unchanged, and B's own classes only grow, so no row shares less.

use std::borrow::Cow;
use std::ops::Range;

use super::table::{Column, Table};

/// Rows that a dependency is tested on first. Most fail there, at a small part of the cost of all rows.
const SAMPLE_ROWS: usize = 1_024;

/// The one-to-one groups of a table's columns, and which group determines which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependencies {
    groups: Vec<Vec<u32>>,
    determined: Vec<Vec<u32>>,
}

/// One functional dependency between columns, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dependency {
    /// The column that determines.
    pub determinant: u32,
    /// The column that is determined.
    pub determined: u32,
    /// Whether it holds in both directions.
    pub is_mutual: bool,
}

impl Dependency {
    /// Returns the dependency in words, given the names of all columns: `FD title <-> movie_id`.
    ///
    /// A column without a name is shown by its position.
    pub fn describe(&self, names: &[impl AsRef<str>]) -> String {
        let name =
            |column: u32| names.get(column as usize).map_or_else(|| format!("#{column}"), |name| name.as_ref().to_owned());
        let arrow = if self.is_mutual { "<->" } else { "->" };
        format!("FD {} {arrow} {}", name(self.determinant), name(self.determined))
    }
}

/// The fields of the prompt that move together: columns that determine each other, glued to one, or the columns of a set.
pub(super) type Unit<'a> = Vec<Cow<'a, Column>>;

impl Dependencies {
    /// Finds the dependencies between single columns that hold on all rows of `table`. The columns of a
    /// set are one group and take part in none.
    pub fn of(table: &Table) -> Self {
        Self::between(table.columns(), table.sets())
    }

    /// Takes the columns of `table` to be independent, whatever they hold.
    pub(super) fn none(table: &Table) -> Self {
        let is_inner = |column: usize| table.sets().iter().any(|set| set.contains(&column) && set.start != column);
        let group = |column: usize| match table.sets().iter().find(|set| set.start == column) {
            Some(set) => set.clone().map(|member| member as u32).collect(),
            None => vec![column as u32],
        };
        let groups: Vec<Vec<u32>> = (0..table.columns().len()).filter(|column| !is_inner(*column)).map(group).collect();
        Self { determined: vec![vec![]; groups.len()], groups }
    }

    /// Finds the dependencies between `columns`, some of which are sets.
    pub(super) fn between(columns: &[Column], sets: &[Range<usize>]) -> Self {
        let distinct: Vec<usize> = columns.iter().map(distinct_count).collect();
        let is_set = |column: usize| sets.iter().any(|set| set.contains(&column));
        let mut images = Images::default();
        let mut groups: Vec<Vec<u32>> = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            if let Some(set) = sets.iter().find(|set| set.contains(&at)) {
                if set.start == at {
                    groups.push(set.clone().map(|member| member as u32).collect());
                }
                continue;
            }
            let twin = groups.iter_mut().find(|group| {
                let first = group[0] as usize;
                !is_set(first) && distinct[first] == distinct[at] && images.determine(&columns[first], column)
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
                .filter(|other| !is_set(finer) && !is_set(first_of(other)))
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

    /// Returns the columns of each group: one with the codes of the first and the lengths of all, or those of a
    /// set, taken from `table`.
    pub(super) fn merge<'a>(&self, table: &'a Table, sets: &[Range<usize>]) -> Vec<Unit<'a>> {
        let merged = self.groups.iter().map(|group| {
            let columns = group.iter().map(|&column| &table.columns()[column as usize]).map(Cow::Borrowed);
            if sets.iter().any(|set| set.contains(&(group[0] as usize))) {
                return columns.collect();
            }
            columns.reduce(|glued, next| Cow::Owned(glued.into_owned().glue(&next))).into_iter().collect()
        });
        merged.collect()
    }

    /// Returns the order of groups that an order of columns amounts to.
    pub(super) fn groups_in(&self, order: &[u32]) -> Vec<u32> {
        let mut found = Vec::with_capacity(self.groups.len());
        for column in order {
            let group = self.groups.iter().position(|group| group.contains(column));
            let group = group.expect("every column is in a group") as u32;
            if !found.contains(&group) {
                found.push(group);
            }
        }
        found
    }

    /// Returns the dependencies that an order of columns makes use of: columns that determine each other, and columns that stand
    /// just before, constants apart, one that determines them.
    pub(super) fn used_by(&self, table: &Table, order: &[u32]) -> Vec<Dependency> {
        let twins = self.groups.iter().filter(|group| group.len() > 1 && !is_set_of(table, group)).flat_map(|group| {
            group[1..].iter().map(|&twin| Dependency { determinant: group[0], determined: twin, is_mutual: true })
        });
        let group_of = |column: u32| self.groups.iter().position(|group| group.contains(&column)).unwrap_or_default();
        let pairs = order.windows(2).filter_map(|pair| {
            let (coarser, finer) = (group_of(pair[0]), group_of(pair[1]));
            let holds = self.determined[finer].contains(&(coarser as u32));
            let is_constant = distinct_count(&table.columns()[pair[0] as usize]) < 2;
            (holds && !is_constant).then(|| Dependency { determinant: pair[1], determined: pair[0], is_mutual: false })
        });
        twins.chain(pairs).collect()
    }

    /// Returns the columns of an order of groups.
    pub(super) fn expand(&self, order: &[u32]) -> Vec<u32> {
        order.iter().flat_map(|&group| &self.groups[group as usize]).copied().collect()
    }
}

fn is_set_of(table: &Table, group: &[u32]) -> bool {
    table.sets().iter().any(|set| set.contains(&(group[0] as usize)))
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
    /// Whether rows with equal cells in `finer` have equal cells in `coarser`: asked of a sample, then of all rows.
    fn determine(&mut self, finer: &Column, coarser: &Column) -> bool {
        let step = finer.codes().len() / SAMPLE_ROWS;
        (step < 2 || self.hold_on_every(step, finer, coarser)) && self.hold_on_every(1, finer, coarser)
    }

    fn hold_on_every(&mut self, step: usize, finer: &Column, coarser: &Column) -> bool {
        self.test += 1;
        if self.images.len() < finer.lengths().len() {
            self.images.resize(finer.lengths().len(), (0, 0));
        }
        finer.codes().iter().zip(coarser.codes()).step_by(step).all(|(&code, &image)| {
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
    fn dependencies_in_use_are_named() {
        let style: &[u32] = &[4, 4, 8, 4, 4];
        let id: &[u32] = &[0, 1, 2, 0, 1];
        let name: &[u32] = &[7, 6, 5, 7, 6];
        let table = table(&[style, id, name]);
        let found = Dependencies::of(&table);
        let shown = |order: &[u32]| {
            let used = found.used_by(&table, order);
            used.iter().map(|used| used.describe(&["style", "id", "name"])).collect::<Vec<_>>()
        };
        assert_eq!(shown(&[0, 1, 2]), ["FD id <-> name", "FD id -> style"]);
        assert_eq!(shown(&[1, 2, 0]), ["FD id <-> name"]);
    }

    #[test]
    fn what_holds_on_a_sample_is_tested_on_all_rows() {
        let rows = SAMPLE_ROWS as u32 * 4;
        let finer: Vec<u32> = (0..rows).map(|row| row % 8).collect();
        let mut coarser: Vec<u32> = finer.iter().map(|code| code / 4).collect();
        let holds = |coarser: &[u32]| !Dependencies::of(&table(&[&finer, coarser])).determined_by(0).is_empty();
        assert!(holds(&coarser));
        coarser[rows as usize - 1] = 0;
        assert!(!holds(&coarser));
    }

    #[test]
    fn a_key_determines_all_and_a_constant_nothing() {
        let found = Dependencies::of(&table(&[&[0, 1, 2, 3], &[0, 0, 1, 1], &[5, 5, 5, 5]]));
        assert_eq!(found.determined_by(0), [2, 1]);
        assert_eq!(found.determined_by(1), [2]);
        assert_eq!(found.coarser_first(&[0, 1, 2]), [2, 1, 0]);
    }
}
