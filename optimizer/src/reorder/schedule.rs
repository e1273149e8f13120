//! The strategies, their options, and the schedule that each of them returns.

use std::fmt;
use std::str::FromStr;

use super::error::ReorderError;
use super::ggr::{self, GgrOptions};
use super::ophr::{self, HitWeight};
use super::table::Table;
use super::{rows, search};

/// How rows and fields are ordered. The names are those of the SQL setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The planner's choice: at present [`Strategy::Search`].
    #[default]
    Auto,
    /// Rows and fields as stored: the baseline.
    None,
    /// Fields as stored, rows sorted.
    Rows,
    /// One field order for all rows, searched for on the data, and rows sorted by it.
    Search,
    /// The paper's greedy group recursion: a field order for each row.
    Ggr,
    /// The paper's exact algorithm; small tables only.
    Ophr,
}

impl Strategy {
    const ALL: [Self; 6] = [Self::Auto, Self::None, Self::Rows, Self::Search, Self::Ggr, Self::Ophr];

    /// Returns the name used in the SQL setting.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Rows => "rows",
            Self::Search => "search",
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
    /// Tables with more rows are first searched on a sample of about this size; the order found there
    /// is then improved on larger samples while the budget lasts, and scored on the whole table.
    pub sample_rows: usize,
    /// The knobs of [`Strategy::Ggr`].
    pub ggr: GgrOptions,
    /// What [`Strategy::Ophr`] maximises.
    pub ophr: HitWeight,
}

impl Default for Options {
    fn default() -> Self {
        Self { page: 1, search_cells: 50_000_000, sample_rows: 2_048, ggr: GgrOptions::default(), ophr: HitWeight::Squared }
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
}

impl Schedule {
    /// Makes a schedule of `table` from given orders.
    ///
    /// Fails unless `rows` names each row once and each field order names each column once.
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
        Ok(Self { rows, fields })
    }

    /// Wraps what a solver built; its property tests hold it to [`Schedule::new`].
    pub(super) fn from_solver(rows: Vec<u32>, fields: FieldOrder) -> Self {
        Self { rows, fields }
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

fn is_permutation(order: &[u32], length: usize) -> bool {
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
        Strategy::Auto | Strategy::Search => rows::sorted_by(table, search::field_order(table, options)),
        Strategy::Ggr => ggr::ggr(table, &options.ggr),
        Strategy::Ophr => ophr::ophr(table, options.ophr)?,
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
