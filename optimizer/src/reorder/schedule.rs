//! The strategies, their options, and the schedule that each of them returns.

use std::fmt;
use std::str::FromStr;

use super::dependencies::Dependency;
use super::error::ReorderError;
use super::ggr::{self, GgrOptions};
use super::ophr::{self, HitWeight};
use super::table::Table;
use super::{auto, rows};

/// How rows and fields are ordered. The names are those of the SQL setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The planner's choice: [`Strategy::Search`], or [`Strategy::Tree`] where that saves clearly more.
    #[default]
    Auto,
    /// Rows and fields as stored: the baseline.
    None,
    /// Fields as stored, rows sorted.
    Rows,
    /// One field order for all rows, searched for on the data, and rows sorted by it.
    Search,
    /// A field order for each group of rows, where that saves more than the searched one.
    Tree,
    /// The paper's greedy group recursion: a field order for each row.
    Ggr,
    /// The paper's exact algorithm; small tables only.
    Ophr,
}

impl Strategy {
    /// Every strategy, the baseline and the simpler ones first.
    pub const ALL: [Self; 7] = [Self::Auto, Self::None, Self::Rows, Self::Search, Self::Tree, Self::Ggr, Self::Ophr];

    /// Returns the name used in the SQL setting.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Rows => "rows",
            Self::Search => "search",
            Self::Tree => "tree",
            Self::Ggr => "ggr",
            Self::Ophr => "ophr",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = ReorderError;

    /// Reads a name of the SQL setting, in any case.
    fn from_str(name: &str) -> Result<Self, ReorderError> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| ReorderError::UnknownStrategy(name.to_owned()))
    }
}

/// What the strategies may be told. Equal options on equal tables give equal schedules.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Prefix tokens are shared in units of this many; 1 where a split page is copied on write.
    pub page: u32,
    /// How many cells the search may look at: its time budget, counted rather than timed, so that
    /// plans are reproducible. A core looks at about a hundred million a second.
    pub search_cells: u64,
    /// How many cells [`Strategy::Tree`] may look at beyond the search.
    pub tree_cells: u64,
    /// Tables with more rows are first searched on a sample of about this size; the order found there
    /// is then improved on larger samples while the budget lasts, and scored on the whole table.
    pub sample_rows: usize,
    /// Whether the search makes use of functional dependencies; off shows what they bring.
    pub dependencies: bool,
    /// The field order of rows that were computed before these and are in the cache. Where it saves nearly as much as the best, it
    /// is kept.
    pub after: Option<Vec<u32>>,
    /// The knobs of [`Strategy::Ggr`].
    pub ggr: GgrOptions,
    /// What [`Strategy::Ophr`] maximises.
    pub ophr: HitWeight,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            page: 1,
            search_cells: 50_000_000,
            tree_cells: 50_000_000,
            sample_rows: 2_048,
            dependencies: true,
            after: None,
            ggr: GgrOptions::default(),
            ophr: HitWeight::Squared,
        }
    }
}

/// The fields of each row in prompt order, as column positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldOrder {
    /// One order for all rows.
    Same(Vec<u32>),
    /// An order for each scheduled row, indexed like [`Schedule::rows`].
    PerRow(Vec<Vec<u32>>),
}

/// The order in which prompts are computed: a permutation of the rows, and of each row's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    rows: Vec<u32>,
    fields: FieldOrder,
    dependencies: Vec<Dependency>,
}

impl Schedule {
    /// Makes a schedule of `table` from given orders.
    ///
    /// Fails unless `rows` names each row once and each field order names each column once, those of a set one after the other.
    pub fn new(table: &Table, rows: Vec<u32>, fields: FieldOrder) -> Result<Self, ReorderError> {
        let columns = table.columns().len();
        let fields_are_permuted = match &fields {
            FieldOrder::Same(order) => is_permutation(order, columns),
            FieldOrder::PerRow(orders) => {
                orders.len() == rows.len() && orders.iter().all(|order| is_permutation(order, columns))
            }
        };
        if !is_permutation(&rows, table.rows()) {
            return Err(ReorderError::NotAPermutation { what: "rows" });
        }
        if !fields_are_permuted {
            return Err(ReorderError::NotAPermutation { what: "fields" });
        }
        let are_together = match &fields {
            FieldOrder::Same(order) => sets_are_together(table, order),
            FieldOrder::PerRow(orders) => orders.iter().all(|order| sets_are_together(table, order)),
        };
        if !are_together {
            return Err(ReorderError::SetApart);
        }
        Ok(Self { rows, fields, dependencies: Vec::new() })
    }

    /// Wraps what a solver built; its property tests hold it to [`Schedule::new`].
    pub(super) fn from_solver(rows: Vec<u32>, fields: FieldOrder) -> Self {
        Self { rows, fields, dependencies: Vec::new() }
    }

    /// States which dependencies the field order makes use of.
    pub(super) fn with_dependencies(self, dependencies: Vec<Dependency>) -> Self {
        Self { dependencies, ..self }
    }

    /// Returns the same rows, each with its fields, in another order: that of `positions` in this one.
    pub fn reordered(&self, positions: &[u32]) -> Self {
        let rows = positions.iter().map(|&position| self.rows[position as usize]).collect();
        let fields = match &self.fields {
            FieldOrder::Same(order) => FieldOrder::Same(order.clone()),
            FieldOrder::PerRow(orders) => {
                FieldOrder::PerRow(positions.iter().map(|&position| orders[position as usize].clone()).collect())
            }
        };
        Self { rows, fields, dependencies: self.dependencies.clone() }
    }

    /// Returns the functional dependencies that the field order makes use of; those of the order for all rows where groups
    /// have orders of their own.
    pub fn dependencies(&self) -> &[Dependency] {
        &self.dependencies
    }

    /// Returns the row numbers in the order of computation.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Returns the field order or orders.
    pub fn fields(&self) -> &FieldOrder {
        &self.fields
    }

    /// Returns the fields, as column positions, of the row scheduled at `position`.
    pub fn fields_of(&self, position: usize) -> &[u32] {
        match &self.fields {
            FieldOrder::Same(order) => order,
            FieldOrder::PerRow(orders) => &orders[position],
        }
    }
}

pub(super) fn sets_are_together(table: &Table, order: &[u32]) -> bool {
    table.sets().iter().all(|set| {
        let first = order.iter().position(|&column| set.contains(&(column as usize)));
        first.is_some_and(|first| order[first..].iter().take(set.len()).all(|&column| set.contains(&(column as usize))))
    })
}

/// Moves the columns of each set to the first of them, for strategies that do not know sets.
fn put_sets_together(table: &Table, schedule: Schedule) -> Schedule {
    if table.sets().is_empty() {
        return schedule;
    }
    let together = |order: &[u32]| {
        let slots: Vec<u32> = order.iter().map(|&column| table.slot(column)).collect();
        let mut positions: Vec<usize> = (0..order.len()).collect();
        positions.sort_by_key(|&at| slots.iter().position(|&slot| slot == slots[at]));
        positions.into_iter().map(|at| order[at]).collect()
    };
    let orders = (0..schedule.rows.len()).map(|position| together(schedule.fields_of(position))).collect();
    Schedule { fields: FieldOrder::PerRow(orders), ..schedule }
}

pub(super) fn is_permutation(order: &[u32], length: usize) -> bool {
    let mut seen = vec![false; length];
    order.len() == length
        && order.iter().all(|&item| seen.get_mut(item as usize).is_some_and(|seen| !std::mem::replace(seen, true)))
}

/// Orders the rows and fields of `table` so that prompts share prefixes.
///
/// Fails only for [`Strategy::Ophr`] on a table beyond its limit.
pub fn schedule(table: &Table, strategy: Strategy, options: &Options) -> Result<Schedule, ReorderError> {
    Ok(match strategy {
        Strategy::None => {
            let rows = (0..table.rows() as u32).collect();
            Schedule::from_solver(rows, FieldOrder::Same(table.stored_order()))
        }
        Strategy::Rows => rows::sorted_by(table, table.stored_order()),
        Strategy::Auto => auto::auto(table, options),
        Strategy::Search => auto::search(table, options),
        Strategy::Tree => auto::tree(table, options),
        Strategy::Ggr => put_sets_together(table, ggr::ggr(table, &options.ggr)),
        Strategy::Ophr => put_sets_together(table, ophr::ophr(table, options.ophr)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::Column;

    #[test]
    fn strategies_are_read_as_they_are_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert_eq!("GGR".parse(), Ok(Strategy::Ggr));
        assert_eq!("best".parse::<Strategy>(), Err(ReorderError::UnknownStrategy("best".to_owned())));
    }

    #[test]
    fn refuses_what_is_no_permutation() {
        let column = Column::new(vec![0, 0], vec![1]).unwrap();
        let table = Table::new(vec![column], 2).unwrap();
        let check = |rows: &[u32], fields| Schedule::new(&table, rows.to_vec(), fields).is_ok();
        assert!(check(&[1, 0], FieldOrder::Same(vec![0])));
        assert!(check(&[1, 0], FieldOrder::PerRow(vec![vec![0], vec![0]])));
        assert!(!check(&[1, 1], FieldOrder::Same(vec![0])));
        assert!(!check(&[0, 2], FieldOrder::Same(vec![0])));
        assert!(!check(&[0, 1], FieldOrder::Same(vec![])));
        assert!(!check(&[0, 1], FieldOrder::PerRow(vec![vec![0]])));
    }
}
