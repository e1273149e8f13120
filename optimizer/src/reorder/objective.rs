//! What a schedule is worth: the tokens that need not be computed, and the paper's hit count.
//!
//! All measures here match whole cells, by field and value; [`super::trie`] counts parts of cells as well.
//! [`prefix_hit_count`] is the published objective and is kept for comparison only.

use ahash::AHashMap;

use super::partition::{Partition, Refiner};
use super::schedule::{FieldOrder, Schedule};
use super::table::Table;

/// Returns the prompt tokens that no row computes because an earlier row has, when a cache holds
/// everything: the edges of the prompt trie that are walked again. Each row's shared prefix is
/// rounded down to `page` tokens; 1 is exact. The prompt's head is not counted.
pub fn saved_tokens(table: &Table, schedule: &Schedule, page: u32) -> u64 {
    match schedule.fields() {
        // Rows that walk one field order branch at the same depths whatever their order.
        FieldOrder::Same(order) if !table.has_tokens() => saved_by_order(table, order, page),
        _ => saved_by_cells(table, schedule, page),
    }
}

/// Returns what all rows save when their fields stand in `order`; what all cells of a column begin with counts as shared.
pub(super) fn saved_by_order(table: &Table, order: &[u32], page: u32) -> u64 {
    let columns = order.iter().map(|&column| &table.columns()[column as usize]);
    Refiner::new(page).total(Partition::whole(table.rows()), columns)
}

fn saved_by_cells(table: &Table, schedule: &Schedule, page: u32) -> u64 {
    let mut children: AHashMap<(usize, u32, u32), usize> = AHashMap::new();
    let slots = table.slots();
    let mut saved = 0;
    for (position, &row) in schedule.rows().iter().enumerate() {
        let mut node = 0;
        let mut prefix = 0;
        for &field in schedule.fields_of(position) {
            let column = &table.columns()[field as usize];
            let fresh = children.len() + 1;
            let child = children.entry((node, slots[field as usize], column.codes()[row as usize])).or_insert(fresh);
            if *child != fresh {
                prefix += u64::from(column.length_at(row));
            }
            node = *child;
        }
        saved += floor_to_page(prefix, page);
    }
    saved
}

/// Returns the tokens that each row shares with the row just before it, rounded down to `page`:
/// what a cache of one prompt saves. Equals [`saved_tokens`] when rows are sorted by one field order.
pub fn adjacent_tokens(table: &Table, schedule: &Schedule, page: u32) -> u64 {
    let shared = (1..schedule.rows().len()).map(|position| {
        let prefix = hit_lengths(table, schedule, position).map(u64::from).sum();
        floor_to_page(prefix, page)
    });
    shared.sum()
}

/// Returns the prefix hit count (PHC) of the paper, section 3: over all rows, the squared lengths of
/// the leading cells that equal those of the row before. A row equal to the one before hits with all
/// its cells.
pub fn prefix_hit_count(table: &Table, schedule: &Schedule) -> u64 {
    let hits = (1..schedule.rows().len())
        .flat_map(|position| hit_lengths(table, schedule, position))
        .map(|length| u64::from(length).pow(2));
    hits.fold(0, u64::saturating_add)
}

/// Lengths of the leading cells that the row at `position` has in common with the one before.
fn hit_lengths<'a>(table: &'a Table, schedule: &'a Schedule, position: usize) -> impl Iterator<Item = u32> + 'a {
    let (previous, row) = (schedule.rows()[position - 1], schedule.rows()[position]);
    let fields = schedule.fields_of(position - 1).iter().zip(schedule.fields_of(position));
    let code = |field: u32, row: u32| table.columns()[field as usize].codes()[row as usize];
    let shared = fields.take_while(move |&(&before, &field)| {
        table.slot(before) == table.slot(field) && code(before, previous) == code(field, row)
    });
    shared.map(move |(_, field)| table.columns()[*field as usize].length_at(row))
}

fn floor_to_page(tokens: u64, page: u32) -> u64 {
    let page = u64::from(page.max(1));
    tokens / page * page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reorder::Column;

    /// Each word is a row and each letter a cell; its length is its place in the alphabet.
    fn table(words: &str) -> Table {
        let rows: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        let columns = (0..rows[0].len()).map(|column| {
            let codes = rows.iter().map(|row| u32::from(row[column] - b'a')).collect();
            Column::new(codes, (1..=26).collect()).unwrap()
        });
        Table::new(columns.collect(), rows.len()).unwrap()
    }

    #[track_caller]
    fn check(words: &str, saved: u64, adjacent: u64, hit_count: u64) {
        let table = table(words);
        let rows: Vec<u32> = (0..table.rows() as u32).collect();
        let order = table.stored_order();
        let same = Schedule::new(&table, rows.clone(), FieldOrder::Same(order.clone())).unwrap();
        let orders = FieldOrder::PerRow(vec![order; rows.len()]);
        let per_row = Schedule::new(&table, rows, orders).unwrap();
        for schedule in [same, per_row] {
            assert_eq!(saved_tokens(&table, &schedule, 1), saved);
            assert_eq!(adjacent_tokens(&table, &schedule, 1), adjacent);
            assert_eq!(prefix_hit_count(&table, &schedule), hit_count);
        }
    }

    #[test]
    fn counts_leading_cells_only() {
        check("cb cd ce", 6, 6, 18);
        check("bc dc ec", 0, 0, 0);
    }

    #[test]
    fn repeated_rows_hit_in_full() {
        check("cb cb cb", 10, 10, 26);
    }

    #[test]
    fn the_trie_remembers_earlier_rows() {
        check("cb da cb", 5, 0, 0);
    }

    #[test]
    fn fields_must_match_as_well_as_values() {
        let table = table("cc cc");
        let fields = FieldOrder::PerRow(vec![vec![0, 1], vec![1, 0]]);
        let schedule = Schedule::new(&table, vec![0, 1], fields).unwrap();
        assert_eq!(saved_tokens(&table, &schedule, 1), 0);
        assert_eq!(prefix_hit_count(&table, &schedule), 0);
    }

    #[test]
    fn pages_round_each_prefix_down() {
        let table = table("jja jjb jka");
        let schedule = Schedule::new(&table, vec![0, 1, 2], FieldOrder::Same(vec![0, 1, 2])).unwrap();
        assert_eq!(saved_tokens(&table, &schedule, 1), 30);
        assert_eq!(saved_tokens(&table, &schedule, 16), 16);
        assert_eq!(adjacent_tokens(&table, &schedule, 16), 16);
    }
}
