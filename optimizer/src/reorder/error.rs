//! What can go wrong before a schedule exists.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// Why a table, a schedule or a strategy was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReorderError {
    /// A cell's code lies outside its column's dictionary.
    Code {
        /// The code found.
        code: u32,
        /// How many codes the dictionary has.
        distinct: usize,
    },
    /// A column has another number of rows than the table.
    RowCount {
        /// The position of the column.
        column: usize,
        /// How many rows it has.
        found: usize,
        /// How many rows the table has.
        expected: usize,
    },
    /// Rows and columns are numbered with 32 bits.
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// The exact algorithm takes exponential time and refuses tables this large.
    TooLargeForOphr {
        /// How many rows the table has.
        rows: usize,
        /// How many columns the table has.
        columns: usize,
    },
    /// A schedule is not a permutation of the rows or of a row's fields.
    NotAPermutation {
        /// What should have been permuted: "rows" or "fields".
        what: &'static str,
    },
    /// The columns of a set do not follow each other.
    SetApart,
    /// Columns cannot be exchanged within a row.
    NotASet {
        /// The positions of the columns.
        columns: Range<usize>,
    },
    /// No strategy has this name.
    UnknownStrategy(String),
}

impl fmt::Display for ReorderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { code, distinct } => {
                write!(f, "code {code} lies outside a dictionary of {distinct} values")
            }
            Self::RowCount { column, found, expected } => {
                write!(f, "column {column} has {found} rows, the table has {expected}")
            }
            Self::TooMany { count } => {
                write!(f, "cannot reorder {count} rows or columns: the limit is {}", u32::MAX)
            }
            Self::TooLargeForOphr { rows, columns } => write!(
                f,
                "cannot reorder {rows} rows of {columns} columns with ophr: it is exponential and \
                 takes at most {} rows of {} columns",
                super::ophr::MAX_ROWS,
                super::ophr::MAX_COLUMNS,
            ),
            Self::NotAPermutation { what } => {
                write!(f, "a schedule must name each of the {what} exactly once")
            }
            Self::SetApart => write!(f, "a schedule must keep the columns of a set together"),
            Self::NotASet { columns } => write!(
                f,
                "columns {} to {} are no set: they must exist, share one dictionary and be in no other set",
                columns.start, columns.end
            ),
            Self::UnknownStrategy(name) => {
                write!(f, "unknown reorder strategy \"{name}\": use auto, none, rows, search, tree, ggr or ophr")
            }
        }
    }
}

impl Error for ReorderError {}
