//! The trie of prompts, token by token: what is shared by prompts of which some cells are equal only in part.
//!
//! Sorted by their tokens, prompts are the depth-first walk of their trie, and what a prompt shares with the one before it is all
//! that it shares with any earlier one. So no trie is built: prompts are sorted and neighbours compared. Equal cells are the same
//! slice and are not looked into.

use std::cmp::Ordering;
use std::sync::Arc;

use super::schedule::Schedule;
use super::table::Table;

/// Returns the tokens that need not be computed of `prompts`, given as segments, when a cache holds everything; each prompt's
/// share is rounded down to `page` tokens. At least one token of each is computed, as a model needs one to say what comes next.
pub fn saved_of_prompts(prompts: &[&[Arc<[u32]>]], page: u32) -> u64 {
    let segments = |prompt: &u32| prompts[*prompt as usize].iter().map(Arc::as_ref);
    let mut order: Vec<u32> = (0..prompts.len() as u32).collect();
    order.sort_by(|a, b| compare(segments(a), segments(b)).1);
    let shared = order.windows(2).map(|pair| {
        let length: usize = segments(&pair[1]).map(<[u32]>::len).sum();
        let common = compare(segments(&pair[0]), segments(&pair[1])).0;
        floor_to_page(common.min(length.saturating_sub(1)), page)
    });
    shared.sum()
}

/// Returns the tokens of cells that need not be computed when a cache holds everything and cells that begin alike share their
/// beginning. Where the table does not know its tokens, cells match whole or not at all.
pub fn saved_in_trie(table: &Table, schedule: &Schedule, page: u32) -> u64 {
    let prompts = Prompts::new(table, schedule);
    let order = prompts.depth_first();
    let shared = order.windows(2).map(|pair| floor_to_page(prompts.compare(pair[0], pair[1]).0, page));
    shared.sum()
}

/// Returns the positions of `schedule` in the order of a walk through the trie.
pub(super) fn depth_first(table: &Table, schedule: &Schedule) -> Vec<u32> {
    Prompts::new(table, schedule).depth_first()
}

/// The cells of scheduled rows.
struct Prompts<'a> {
    table: &'a Table,
    has_tokens: bool,
    slots: Vec<u32>,
    schedule: &'a Schedule,
}

impl<'a> Prompts<'a> {
    fn new(table: &'a Table, schedule: &'a Schedule) -> Self {
        Self { table, has_tokens: table.has_tokens(), slots: table.slots(), schedule }
    }

    fn depth_first(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.schedule.rows().len() as u32).collect();
        // Stable, so that equal rows keep their order; and fast where little is out of place.
        order.sort_by(|&a, &b| self.compare(a, b).1);
        order
    }

    /// Returns how many tokens two rows have in front in common, and which of them comes first.
    fn compare(&self, a: u32, b: u32) -> (usize, Ordering) {
        let (fields_a, fields_b) = (self.schedule.fields_of(a as usize), self.schedule.fields_of(b as usize));
        let (row_a, row_b) = (self.schedule.rows()[a as usize], self.schedule.rows()[b as usize]);
        let mut common = 0;
        for (at, (&field_a, &field_b)) in fields_a.iter().zip(fields_b).enumerate() {
            let (slot_a, slot_b) = (self.slots[field_a as usize], self.slots[field_b as usize]);
            let (column_a, column_b) = (&self.table.columns()[field_a as usize], &self.table.columns()[field_b as usize]);
            let (code_a, code_b) = (column_a.codes()[row_a as usize], column_b.codes()[row_b as usize]);
            if (slot_a, code_a) == (slot_b, code_b) {
                common += column_a.lengths()[code_a as usize] as usize;
                continue;
            }
            if !self.has_tokens {
                return (common, (slot_a, code_a).cmp(&(slot_b, code_b)));
            }
            let (rest, order) = compare(self.cells(&fields_a[at..], row_a), self.cells(&fields_b[at..], row_b));
            return (common + rest, order);
        }
        (common, Ordering::Equal)
    }

    fn cells(&self, fields: &[u32], row: u32) -> impl Iterator<Item = &[u32]> {
        fields.iter().map(move |&field| {
            let column = &self.table.columns()[field as usize];
            column.tokens_of(column.codes()[row as usize]).unwrap_or_default()
        })
    }
}

/// Returns how many tokens two prompts have in front in common, and which of them comes first.
fn compare<'a>(a: impl Iterator<Item = &'a [u32]>, b: impl Iterator<Item = &'a [u32]>) -> (usize, Ordering) {
    let (mut a, mut b) = (a.filter(|segment| !segment.is_empty()), b.filter(|segment| !segment.is_empty()));
    let (mut rest_a, mut rest_b): (&[u32], &[u32]) = (&[], &[]);
    let mut common = 0;
    loop {
        if rest_a.is_empty() {
            rest_a = a.next().unwrap_or_default();
        }
        if rest_b.is_empty() {
            rest_b = b.next().unwrap_or_default();
        }
        let length = rest_a.len().min(rest_b.len());
        if length == 0 {
            return (common, rest_a.len().cmp(&rest_b.len()));
        }
        let (front_a, front_b) = (&rest_a[..length], &rest_b[..length]);
        if !std::ptr::eq(front_a, front_b)
            && let Some(at) = (0..length).find(|&at| front_a[at] != front_b[at])
        {
            return (common + at, front_a[at].cmp(&front_b[at]));
        }
        common += length;
        (rest_a, rest_b) = (&rest_a[length..], &rest_b[length..]);
    }
}

fn floor_to_page(tokens: usize, page: u32) -> u64 {
    let page = u64::from(page.max(1));
    tokens as u64 / page * page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::{Column, FieldOrder};

    fn segments(words: &[&str]) -> Vec<Arc<[u32]>> {
        words.iter().map(|word| word.bytes().map(u32::from).collect()).collect()
    }

    #[track_caller]
    fn check(prompts: &[&[&str]], saved: u64) {
        let prompts: Vec<Vec<Arc<[u32]>>> = prompts.iter().map(|words| segments(words)).collect();
        let prompts: Vec<&[Arc<[u32]>]> = prompts.iter().map(Vec::as_slice).collect();
        assert_eq!(saved_of_prompts(&prompts, 1), saved);
    }

    #[test]
    fn seams_between_segments_do_not_matter() {
        check(&[&["ab", "cd"], &["abc", "e"]], 3);
        check(&[&["abc", "e"], &["x"], &["a", "", "bcd"]], 3);
        check(&[], 0);
    }

    #[test]
    fn one_token_of_a_repeated_prompt_is_computed() {
        check(&[&["ab", "c"], &["abc"], &["abc"]], 4);
    }

    #[test]
    fn cells_that_begin_alike_share_their_beginning() {
        let dates = Column::of_tokens(vec![0, 1, 2], segments(&["2024-01", "2023-02", "2024-03"])).unwrap();
        assert_eq!(dates.common_len(), 3);
        let table = Table::new(vec![dates], 3).unwrap();
        let schedule = Schedule::new(&table, vec![0, 1, 2], FieldOrder::Same(vec![0])).unwrap();
        assert_eq!(saved_in_trie(&table, &schedule, 1), 6 + 3);
        assert_eq!(saved_in_trie(&table, &schedule, 4), 4);
        assert_eq!(depth_first(&table, &schedule), [1, 0, 2]);
    }

    #[test]
    fn members_of_a_set_match_in_any_column() {
        let cells = segments(&["aaaa", "bb", "c"]);
        let column = |codes: &[u32]| Column::of_tokens(codes.to_vec(), cells.clone()).unwrap();
        let table = Table::new(vec![column(&[0, 1]), column(&[2, 0])], 2).unwrap();
        let orders = || FieldOrder::PerRow(vec![vec![0, 1], vec![1, 0]]);
        let as_columns = Schedule::new(&table, vec![0, 1], orders()).unwrap();
        let table = table.with_set(0..2).unwrap();
        let as_set = Schedule::new(&table, vec![0, 1], orders()).unwrap();
        assert_eq!(as_columns, as_set);
        assert_eq!(saved_in_trie(&table, &as_set, 1), 4);
    }
}
