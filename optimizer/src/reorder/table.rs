//! The solver's view of a table: dictionary codes and token lengths, no text.

use super::error::ReorderError;

/// One field of every prompt: which distinct cell each row holds, and how long each cell is.
///
/// Two cells are equal exactly when their codes are; NULL is a value with a code of its own. A
/// dictionary may hold cells that no row uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    codes: Vec<u32>,
    lengths: Vec<u32>,
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
            None => Ok(Self { codes, lengths }),
        }
    }

    /// Returns the code of each row's cell.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Returns the tokens of each distinct cell, by code.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
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
        Self { codes: codes.collect(), lengths }
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
        self
    }
}

/// The distinct inputs of one LLM call: rows of equally many cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    columns: Vec<Column>,
    rows: usize,
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
            None => Ok(Self { columns, rows }),
        }
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
