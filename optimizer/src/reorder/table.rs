//! The solver's view of a table: dictionary codes and token lengths, no text.

use std::ops::Range;
use std::sync::Arc;

use super::error::ReorderError;

/// One field of every prompt: which distinct cell each row holds, and how long each cell is.
///
/// Two cells are equal exactly when their codes are; NULL is a value with a code of its own. A
/// dictionary may hold cells that no row uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    codes: Vec<u32>,
    lengths: Vec<u32>,
    /// The tokens of each cell; empty where they are not known.
    tokens: Arc<[Arc<[u32]>]>,
    /// How many tokens all cells begin with: at least those of the label, where tokens are known.
    common: u32,
}

impl Column {
    /// Makes a column of one code per row and one length per code, in tokens of the cell as it
    /// stands in the prompt, label included.
    ///
    /// Fails if a code has no length.
    pub fn new(codes: Vec<u32>, lengths: Vec<u32>) -> Result<Self, ReorderError> {
        let distinct = lengths.len();
        match codes.iter().find(|&&code| code as usize >= distinct) {
            Some(&code) => Err(ReorderError::Code { code, distinct }),
            None => Ok(Self { codes, lengths, tokens: Arc::default(), common: 0 }),
        }
    }

    /// Makes a column of one code per row and the tokens of each code's cell, so that what different
    /// cells begin with counts as shared.
    ///
    /// Fails if a code has no tokens.
    pub fn of_tokens(codes: Vec<u32>, tokens: impl Into<Arc<[Arc<[u32]>]>>) -> Result<Self, ReorderError> {
        let tokens = tokens.into();
        let lengths = tokens.iter().map(|cell| cell.len() as u32).collect();
        let column = Self::new(codes, lengths)?;
        Ok(Self { common: common_start(&tokens), tokens, ..column })
    }

    /// Returns the code of each row's cell.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Returns the tokens of each distinct cell, by code.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Returns the tokens of a cell, if the column knows them.
    pub fn tokens_of(&self, code: u32) -> Option<&[u32]> {
        self.tokens.get(code as usize).map(Arc::as_ref)
    }

    /// Returns how many tokens all cells begin with; 0 where tokens are not known.
    pub fn common_len(&self) -> u32 {
        self.common
    }

    /// Returns the tokens of the cell in `row`.
    pub fn length_at(&self, row: u32) -> u32 {
        self.lengths[self.codes[row as usize] as usize]
    }

    /// Returns how many rows hold each code.
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.lengths.len()];
        for &code in &self.codes {
            counts[code as usize] += 1;
        }
        counts
    }

    /// Returns the tokens of all its cells.
    pub fn tokens(&self) -> u64 {
        self.codes.iter().map(|&code| u64::from(self.lengths[code as usize])).sum()
    }

    /// Returns the cells of `rows` alone, with a dictionary of what they use.
    pub(super) fn select(&self, rows: &[u32]) -> Self {
        let mut new_codes = vec![u32::MAX; self.lengths.len()];
        let mut lengths = Vec::new();
        let codes = rows.iter().map(|&row| {
            let code = self.codes[row as usize] as usize;
            if new_codes[code] == u32::MAX {
                new_codes[code] = lengths.len() as u32;
                lengths.push(self.lengths[code]);
            }
            new_codes[code]
        });
        Self { codes: codes.collect(), lengths, tokens: Arc::default(), common: self.common }
    }

    /// Returns this column with `other` glued to it, where the two are one-to-one: the same codes,
    /// with the length of both cells.
    pub(super) fn glue(mut self, other: &Self) -> Self {
        let mut added = vec![0; self.lengths.len()];
        for (&code, &other_code) in self.codes.iter().zip(&other.codes) {
            added[code as usize] = other.lengths[other_code as usize];
        }
        for (length, added) in self.lengths.iter_mut().zip(added) {
            *length = length.saturating_add(added);
        }
        self.tokens = Arc::default();
        self
    }

    /// Returns this column with other codes, of the same dictionary.
    pub(super) fn with_codes(&self, codes: Vec<u32>) -> Self {
        debug_assert!(codes.iter().all(|&code| (code as usize) < self.lengths.len()), "codes of another dictionary");
        Self { codes, lengths: self.lengths.clone(), tokens: Arc::clone(&self.tokens), common: self.common }
    }
}

/// Returns how many tokens all cells begin with.
fn common_start(cells: &[Arc<[u32]>]) -> u32 {
    let Some((first, rest)) = cells.split_first() else { return 0 };
    let common = rest
        .iter()
        .fold(first.len(), |common, cell| first[..common].iter().zip(cell.iter()).take_while(|(a, b)| a == b).count());
    common as u32
}

/// The distinct inputs of one LLM call: rows of equally many cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    columns: Vec<Column>,
    rows: usize,
    /// Columns whose cells a row may exchange: passages of one text, in any order.
    sets: Vec<Range<usize>>,
}

impl Table {
    /// Makes a table of `rows` rows. The number is stated because a table may have no columns.
    ///
    /// Fails if a column has another number of rows, or if rows or columns do not fit 32 bits.
    pub fn new(columns: Vec<Column>, rows: usize) -> Result<Self, ReorderError> {
        let count = rows.max(columns.len());
        if count >= u32::MAX as usize {
            return Err(ReorderError::TooMany { count });
        }
        match columns.iter().position(|column| column.codes.len() != rows) {
            Some(column) => {
                let found = columns[column].codes.len();
                Err(ReorderError::RowCount { column, found, expected: rows })
            }
            None => Ok(Self { columns, rows, sets: Vec::new() }),
        }
    }

    /// Declares neighbouring columns as a set: one field whose cells stand in any order, chosen for each
    /// row. A row with fewer cells than columns fills up with a cell of no tokens.
    ///
    /// Fails if the columns have different dictionaries, do not exist, or are in a set already.
    pub fn with_set(mut self, columns: Range<usize>) -> Result<Self, ReorderError> {
        let members = self.columns.get(columns.clone()).unwrap_or_default();
        let is_taken = self.sets.iter().any(|set| set.start < columns.end && columns.start < set.end);
        let one_dictionary = members.windows(2).all(|pair| {
            pair[0].lengths == pair[1].lengths
                && (Arc::ptr_eq(&pair[0].tokens, &pair[1].tokens) || pair[0].tokens == pair[1].tokens)
        });
        if members.is_empty() || is_taken || !one_dictionary {
            return Err(ReorderError::NotASet { columns });
        }
        self.sets.push(columns);
        Ok(self)
    }

    /// Returns the sets of columns whose cells a row may exchange.
    pub fn sets(&self) -> &[Range<usize>] {
        &self.sets
    }

    /// Returns a table of other columns, none of which are sets.
    pub(super) fn with_columns(&self, columns: Vec<Column>) -> Self {
        Self { columns, rows: self.rows, sets: Vec::new() }
    }

    /// Returns what tells the place of a cell: its column, or the first column of its set.
    pub(super) fn slot(&self, column: u32) -> u32 {
        let set = self.sets.iter().find(|set| set.contains(&(column as usize)));
        set.map_or(column, |set| set.start as u32)
    }

    /// Returns the slots of all columns.
    pub(super) fn slots(&self) -> Vec<u32> {
        (0..self.columns.len() as u32).map(|column| self.slot(column)).collect()
    }

    /// Whether the tokens of all cells are known, not only how many they are.
    pub(super) fn has_tokens(&self) -> bool {
        self.columns.iter().all(|column| !column.tokens.is_empty())
    }

    /// Returns the columns in stored order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the tokens of all cells: what is computed when nothing is shared.
    pub fn tokens(&self) -> u64 {
        self.columns.iter().map(Column::tokens).sum()
    }

    /// Returns the positions of the columns in stored order.
    pub(super) fn stored_order(&self) -> Vec<u32> {
        (0..self.columns.len() as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_codes_without_a_length() {
        let refused = Column::new(vec![0, 2], vec![5, 5]);
        assert_eq!(refused, Err(ReorderError::Code { code: 2, distinct: 2 }));
    }

    #[test]
    fn refuses_columns_of_another_height() {
        let column = Column::new(vec![0, 0], vec![5]).unwrap();
        let refused = Table::new(vec![column.clone()], 3);
        assert_eq!(refused, Err(ReorderError::RowCount { column: 0, found: 2, expected: 3 }));
        assert_eq!(Table::new(vec![column], 2).unwrap().tokens(), 10);
    }

    #[test]
    fn selects_rows_with_their_own_dictionary() {
        let column = Column::new(vec![3, 1, 3, 0], vec![7, 8, 9, 10]).unwrap();
        let selected = column.select(&[2, 0, 3]);
        assert_eq!(selected, Column::new(vec![0, 0, 1], vec![10, 7]).unwrap());
    }

    #[test]
    fn glues_one_to_one_columns() {
        let name = Column::new(vec![0, 1, 0], vec![2, 3]).unwrap();
        let id = Column::new(vec![1, 0, 1], vec![10, 20]).unwrap();
        assert_eq!(name.glue(&id).lengths(), [22, 13]);
    }
}
