//! What every strategy promises, on random tables.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::{Strategy as Generator, ValueTree};
use proptest::test_runner::TestRunner;

use super::objective::saved_by_order;
use super::*;

const ALL: [Strategy; 7] = Strategy::ALL;

/// Tables of few values, so that cells repeat; dictionaries may hold cells that no row uses.
fn tables(rows_max: usize, columns_max: usize) -> impl Generator<Value = Table> {
    (0..=rows_max, 0..=columns_max).prop_flat_map(|(rows, columns)| {
        vec(column(rows), columns).prop_map(move |columns| Table::new(columns, rows).unwrap())
    })
}

fn column(rows: usize) -> impl Generator<Value = Column> {
    (1_usize..=5).prop_flat_map(move |values| {
        let codes = vec(0..values as u32, rows);
        let lengths = vec(0_u32..40, values);
        (codes, lengths).prop_map(|(codes, lengths)| Column::new(codes, lengths).unwrap())
    })
}

/// Tables whose cells are known by their tokens, of which there are few, so that cells begin alike; the last columns may be a set.
fn tables_with_sets(rows_max: usize) -> impl Generator<Value = Table> {
    (2..=rows_max, 0_usize..3, 0_usize..4).prop_flat_map(|(rows, columns, members)| {
        let set = vec(vec(0_u32..5, rows), members);
        (vec(column_of_tokens(rows), columns), cells(5), set).prop_map(move |(mut all, mut cells, set)| {
            cells[0] = Arc::default();
            let start = all.len();
            all.extend(set.into_iter().map(|codes| Column::of_tokens(codes, cells.clone()).unwrap()));
            let end = all.len();
            let table = Table::new(all, rows).unwrap();
            if start < end { table.with_set(start..end).unwrap() } else { table }
        })
    })
}

/// Cells of few tokens, so that some begin alike; the first token is that of a label.
fn cells(count: usize) -> impl Generator<Value = Vec<Arc<[u32]>>> {
    let cell = vec(0_u32..3, 0..6).prop_map(|tokens| [vec![9], tokens].concat().into());
    vec(cell, count)
}

fn column_of_tokens(rows: usize) -> impl Generator<Value = Column> {
    (vec(0_u32..4, rows), cells(4)).prop_map(|(codes, cells)| Column::of_tokens(codes, cells).unwrap())
}

/// The tokens of a table's rows in the order of a schedule.
fn prompts(table: &Table, schedule: &Schedule) -> Vec<Vec<Arc<[u32]>>> {
    let prompt = |(position, &row): (usize, &u32)| {
        let cells = schedule.fields_of(position).iter().map(|&field| {
            let column = &table.columns()[field as usize];
            Arc::from(column.tokens_of(column.codes()[row as usize]).unwrap())
        });
        cells.collect()
    };
    schedule.rows().iter().enumerate().map(prompt).collect()
}

/// What a cache that holds everything saves, rounded down to pages: each prompt against all earlier ones.
fn saved_beside_earlier(prompts: &[Vec<Arc<[u32]>>], page: usize) -> u64 {
    let flat: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| prompt.iter().flat_map(|cell| cell.iter().copied()).collect()).collect();
    let shared = |(at, prompt): (usize, &Vec<u32>)| {
        let common = |other: &Vec<u32>| prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
        flat[..at].iter().map(common).max().unwrap_or(0) / page * page
    };
    flat.iter().enumerate().map(|pair| shared(pair) as u64).sum()
}

/// What prompts save beside all earlier ones, a token of each being computed.
fn saved_of_whole(prompts: &[Vec<Arc<[u32]>>]) -> u64 {
    let flat: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| prompt.iter().flat_map(|cell| cell.iter().copied()).collect()).collect();
    let shared = |(at, prompt): (usize, &Vec<u32>)| {
        let common = |other: &Vec<u32>| prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
        flat[..at].iter().map(common).max().unwrap_or(0).min(prompt.len() - 1) as u64
    };
    flat.iter().enumerate().map(shared).sum()
}

/// Tables in which each column may be a function of an earlier one.
fn tables_with_dependencies() -> impl Generator<Value = Table> {
    let derived = vec((0_usize..8, vec(0_u32..5, 5), vec(0_u32..40, 5)), 1..5);
    ((2_usize..30).prop_flat_map(|rows| vec(column(rows), 1..3)), derived).prop_map(|(mut columns, derived)| {
        let rows = columns[0].codes().len();
        for (parent, image, lengths) in derived {
            let parent: &Column = &columns[parent % columns.len()];
            let codes = parent.codes().iter().map(|&code| image[code as usize]).collect();
            columns.push(Column::new(codes, lengths).unwrap());
        }
        Table::new(columns, rows).unwrap()
    })
}

/// A permutation of `0..length` drawn from `seeds`.
fn permutation(length: usize, seeds: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..length as u32).collect();
    order.sort_by_key(|&item| seeds[item as usize % seeds.len()].rotate_left(item * 7));
    order
}

/// GGR as in the paper's listing: no chunks, no presort, every promise taken.
fn literal_ggr() -> GgrOptions {
    GgrOptions {
        early_stop: 0.0,
        distinct_threshold: 1.0,
        chunk_rows: usize::MAX,
        presort: false,
        strict_dependencies: true,
        ..GgrOptions::default()
    }
}

/// The greatest hit count of all lists: every order of the rows with every order of their fields.
fn brute_force(table: &Table, weight: HitWeight) -> u64 {
    let fields = permutations(table.columns().len() as u32);
    let mut best = 0;
    extend(table, weight, &fields, &mut Vec::new(), &mut |score| best = best.max(score), 0);
    best
}

fn extend(
    table: &Table,
    weight: HitWeight,
    fields: &[Vec<u32>],
    list: &mut Vec<(u32, usize)>,
    report: &mut impl FnMut(u64),
    score: u64,
) {
    report(score);
    for row in 0..table.rows() as u32 {
        if list.iter().any(|&(other, _)| other == row) {
            continue;
        }
        for order in 0..fields.len() {
            let hit = list.last().map_or(0, |&(before, before_order)| {
                let pairs = fields[before_order].iter().zip(&fields[order]);
                let shared = pairs.take_while(|(a, b)| {
                    let codes = table.columns()[**b as usize].codes();
                    a == b && codes[before as usize] == codes[row as usize]
                });
                let lengths = shared.map(|(_, &field)| u64::from(table.columns()[field as usize].length_at(row)));
                match weight {
                    HitWeight::Squared => lengths.map(|length| length * length).sum::<u64>(),
                    HitWeight::Linear => lengths.sum(),
                }
            });
            list.push((row, order));
            extend(table, weight, fields, list, report, score + hit);
            list.pop();
        }
    }
}

fn permutations(length: u32) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    for item in 0..length {
        let longer = all.iter().flat_map(|shorter: &Vec<u32>| {
            (0..=shorter.len()).map(move |at| {
                let mut order = shorter.clone();
                order.insert(at, item);
                order
            })
        });
        all = longer.collect();
    }
    all
}

fn saved(table: &Table, strategy: Strategy, options: &Options) -> u64 {
    saved_tokens(table, &schedule(table, strategy, options).unwrap(), options.page)
}

/// Makes the schedule anew from its parts, which are looked at by that.
fn checked(table: &Table, found: &Schedule) -> Result<Schedule, ReorderError> {
    let made = Schedule::new(table, found.rows().to_vec(), found.fields().clone())?;
    Ok(made.with_dependencies(found.dependencies().to_vec()))
}

#[test]
fn degenerate_tables_have_schedules() {
    let column = |codes: &[u32]| Column::new(codes.to_vec(), vec![3; 8]).unwrap();
    let tables = [
        Table::new(vec![], 0).unwrap(),
        Table::new(vec![], 5).unwrap(),
        Table::new(vec![column(&[]), column(&[])], 0).unwrap(),
        Table::new(vec![column(&[2]), column(&[7])], 1).unwrap(),
        Table::new(vec![column(&[2, 1, 2])], 3).unwrap(),
        Table::new(vec![column(&[4; 6]), column(&[1; 6])], 6).unwrap(),
    ];
    let expected = [0, 0, 0, 0, 3, 30];
    for (table, expected) in tables.iter().zip(expected) {
        for strategy in ALL {
            let found = schedule(table, strategy, &Options::default()).unwrap();
            assert_eq!(checked(table, &found).as_ref(), Ok(&found), "{strategy}");
            assert_eq!(saved_tokens(table, &found, 1), expected, "{strategy}");
        }
    }
}

/// Single moves miss the best order on a table in thousands, so the sum over many is compared.
#[test]
fn the_search_finds_the_best_field_orders() {
    let mut runner = TestRunner::deterministic();
    let (mut searched, mut best) = (0, 0);
    for _ in 0..200 {
        let table = tables(40, 5).new_tree(&mut runner).unwrap().current();
        let orders = permutations(table.columns().len() as u32);
        let saved_by_each = orders.iter().map(|order| saved_by_order(&table, order, 1));
        best += saved_by_each.max().unwrap_or(0);
        searched += saved(&table, Strategy::Search, &Options::default());
    }
    assert!(searched <= best && searched * 1000 >= best * 999, "{searched} of {best} tokens");
}

/// What the best lists save is known for small tables only.
#[test]
fn auto_comes_near_the_best() {
    let mut runner = TestRunner::deterministic();
    let (mut chosen, mut best) = (0, 0);
    for _ in 0..300 {
        let table = tables(8, 4).new_tree(&mut runner).unwrap().current();
        best += saved(&table, Strategy::Ophr, &Options { ophr: HitWeight::Linear, ..Options::default() });
        chosen += saved(&table, Strategy::Auto, &Options::default());
    }
    assert!(chosen <= best && chosen * 100 >= best * 98, "{chosen} of {best} tokens");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn schedules_are_permutations_and_reproducible(table in tables(12, 6)) {
        for ggr in [GgrOptions::default(), literal_ggr()] {
            let options = Options { ggr, ..Options::default() };
            for strategy in ALL {
                let found = schedule(&table, strategy, &options).unwrap();
                let checked = checked(&table, &found);
                prop_assert_eq!(checked.as_ref(), Ok(&found), "{}", strategy);
                let again = schedule(&table, strategy, &options);
                prop_assert_eq!(again.as_ref(), Ok(&found));
            }
        }
    }

    #[test]
    fn ophr_is_as_good_as_brute_force(table in tables(4, 3)) {
        let mut options = Options::default();
        let squared = schedule(&table, Strategy::Ophr, &options).unwrap();
        prop_assert_eq!(prefix_hit_count(&table, &squared), brute_force(&table, HitWeight::Squared));
        options.ophr = HitWeight::Linear;
        let linear = schedule(&table, Strategy::Ophr, &options).unwrap();
        prop_assert_eq!(adjacent_tokens(&table, &linear, 1), brute_force(&table, HitWeight::Linear));
    }

    #[test]
    fn no_strategy_beats_ophr(table in tables(8, 4)) {
        let linear = Options { ophr: HitWeight::Linear, ..Options::default() };
        let hits_max = schedule(&table, Strategy::Ophr, &Options::default()).unwrap();
        let hits_max = prefix_hit_count(&table, &hits_max);
        let saved_max = saved(&table, Strategy::Ophr, &linear);
        for ggr in [GgrOptions::default(), literal_ggr()] {
            let options = Options { ggr, ..Options::default() };
            for strategy in ALL {
                let found = schedule(&table, strategy, &options).unwrap();
                prop_assert!(prefix_hit_count(&table, &found) <= hits_max, "{}", strategy);
                prop_assert!(saved_tokens(&table, &found, 1) <= saved_max, "{}", strategy);
            }
        }
    }

    #[test]
    fn the_search_never_loses_to_the_stored_order(table in tables(60, 7), page in 1_u32..20) {
        for sample_rows in [16, 1000] {
            let options = Options { page, sample_rows, ..Options::default() };
            let searched = saved(&table, Strategy::Search, &options);
            prop_assert!(searched >= saved(&table, Strategy::Rows, &options));
            prop_assert!(searched >= saved(&table, Strategy::None, &options));
        }
    }

    #[test]
    fn a_tree_never_loses_to_one_order(table in tables(60, 7), page in 1_u32..20) {
        let options = Options { page, ..Options::default() };
        let searched = saved(&table, Strategy::Search, &options);
        prop_assert!(saved(&table, Strategy::Tree, &options) >= searched);
        prop_assert!(saved(&table, Strategy::Auto, &options) >= searched);
    }

    /// A window keeps the order of the window before, or gains more than a hundredth of its tokens by another; an order of other
    /// columns does not matter.
    #[test]
    fn a_window_keeps_the_order_before_it(table in tables(40, 5), seeds in vec(0_u64.., 5), page in 1_u32..5) {
        let columns = table.columns().len();
        let before = permutation(columns, &seeds[..columns]);
        let options = Options { page, ..Options::default() };
        let going_on = Options { after: Some(before.clone()), ..options.clone() };
        for strategy in [Strategy::Search, Strategy::Auto] {
            let found = schedule(&table, strategy, &going_on).unwrap();
            let checked = checked(&table, &found);
            prop_assert_eq!(checked.as_ref(), Ok(&found));
            // A tree that starts from another order may be another one.
            let (best, kept) = (saved(&table, Strategy::Search, &options), saved(&table, strategy, &going_on));
            prop_assert!(kept + table.tokens() / 100 >= best, "{} of {}", kept, best);
            if found.fields() != &FieldOrder::Same(before.clone()) {
                prop_assert!(kept > saved_by_order(&table, &before, page) + table.tokens() / 100 || strategy == Strategy::Auto);
            }
            let unknown = Options { after: Some(vec![7; columns + 1]), ..options.clone() };
            prop_assert_eq!(schedule(&table, strategy, &unknown), schedule(&table, strategy, &options));
        }
    }

    #[test]
    fn sets_are_permuted_and_never_lose(table in tables_with_sets(20), page in 1_u32..5) {
        let options = Options { page, ..Options::default() };
        let none = saved_in_trie(&table, &schedule(&table, Strategy::None, &options).unwrap(), page);
        for strategy in ALL.into_iter().filter(|strategy| *strategy != Strategy::Ophr || table.rows() <= 12) {
            let found = schedule(&table, strategy, &options).unwrap();
            let checked = checked(&table, &found);
            prop_assert_eq!(checked.as_ref(), Ok(&found), "{}", strategy);
            let again = schedule(&table, strategy, &options);
            prop_assert_eq!(again.as_ref(), Ok(&found));
            if [Strategy::Search, Strategy::Tree, Strategy::Auto].contains(&strategy) {
                prop_assert!(saved_in_trie(&table, &found, page) >= none, "{}", strategy);
            }
        }
    }

    #[test]
    fn the_trie_counts_what_a_cache_that_holds_everything_saves(table in tables_with_sets(12), page in 1_usize..5) {
        for strategy in ALL {
            let found = schedule(&table, strategy, &Options::default()).unwrap();
            let prompts = prompts(&table, &found);
            let saved = saved_beside_earlier(&prompts, page);
            if table.columns().iter().all(|column| column.tokens_of(0).is_some()) {
                prop_assert_eq!(saved_in_trie(&table, &found, page as u32), saved, "{}", strategy);
            }
            // Unlike cells, whole prompts leave a token to be computed.
            let with_tail: Vec<Vec<Arc<[u32]>>> = prompts.into_iter().map(|prompt| [prompt, vec![Arc::from([7])]].concat()).collect();
            let slices: Vec<&[Arc<[u32]>]> = with_tail.iter().map(Vec::as_slice).collect();
            if page == 1 {
                prop_assert_eq!(saved_of_prompts(&slices, 1), saved_of_whole(&with_tail));
            }
        }
    }

    #[test]
    fn coarser_first_never_saves_less(
        table in tables_with_dependencies(),
        seeds in vec(0_u64.., 7),
        page in 1_u32..20,
    ) {
        let dependencies = Dependencies::of(&table);
        let order = permutation(dependencies.groups().len(), &seeds);
        let ordered = dependencies.coarser_first(&order);
        prop_assert_eq!(ordered.len(), order.len());
        let columns = |order: &[u32]| dependencies.expand(order);
        let before = saved_by_order(&table, &columns(&order), page);
        prop_assert!(saved_by_order(&table, &columns(&ordered), page) >= before);
    }

    #[test]
    fn merged_columns_save_what_their_members_save(table in tables_with_dependencies()) {
        let dependencies = Dependencies::of(&table);
        let merged = dependencies.merge(&table, &[]).into_iter().flatten().map(|column| column.into_owned());
        let merged = Table::new(merged.collect(), table.rows()).unwrap();
        let order = merged.stored_order();
        let apart = saved_by_order(&table, &dependencies.expand(&order), 1);
        prop_assert_eq!(saved_by_order(&merged, &order, 1), apart);
    }

    #[test]
    fn sorted_rows_share_with_the_row_before_all_they_share(
        table in tables(30, 4),
        page in 1_u32..20,
    ) {
        for strategy in [Strategy::Rows, Strategy::Search] {
            let found = schedule(&table, strategy, &Options { page, ..Options::default() }).unwrap();
            let saved = saved_tokens(&table, &found, page);
            prop_assert_eq!(saved, adjacent_tokens(&table, &found, page));
            let orders = FieldOrder::PerRow(vec![found.fields_of(0).to_vec(); table.rows()]);
            let in_trie = Schedule::new(&table, found.rows().to_vec(), orders).unwrap();
            prop_assert_eq!(saved, saved_tokens(&table, &in_trie, page));
        }
    }
}
