//! How long each strategy plans, on generated tables: `cargo bench -p refrain-optimizer`.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use refrain_optimizer::reorder::{Column, Dependencies, Options, Strategy, Table, saved_tokens, schedule};

fn main() {
    divan::main();
}

/// Columns of few and of many values, Zipf distributed, of 3 to 40 tokens; the last determines the first.
fn table(rows: usize) -> Table {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut columns: Vec<Column> = vec![];
    for n_values in [10_usize, 100, 1_000, 1_000, 5_000, 10_000] {
        let below: Vec<f64> = (1..=n_values)
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / rank as f64;
                Some(*sum)
            })
            .collect();
        let sum = below.last().copied().unwrap_or(1.0);
        let mut draw = || (random() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        let codes = (0..rows).map(|_| draw()).map(|at| below.partition_point(|end| *end < at).min(n_values - 1) as u32);
        let codes = codes.collect();
        let lengths = (0..n_values).map(|_| 3 + random() as u32 % 38).collect();
        columns.push(Column::new(codes, lengths).expect("codes lie within the dictionary"));
    }
    let finer: Vec<u32> = columns[5].codes().iter().map(|code| code % 10).collect();
    columns[0] = Column::new(finer, columns[0].lengths().to_vec()).expect("ten values");
    Table::new(columns, rows).expect("columns of equal height")
}

const ROWS: [usize; 2] = [1_000, 30_000];

/// Each strategy that has no bound on rows.
fn cases() -> impl Iterator<Item = (Strategy, usize)> {
    let strategies = [Strategy::Rows, Strategy::Search, Strategy::Auto, Strategy::Ggr];
    strategies.into_iter().flat_map(|strategy| ROWS.map(|rows| (strategy, rows)))
}

#[divan::bench(args = cases(), sample_count = 10)]
fn plan(bencher: Bencher<'_, '_>, (strategy, rows): (Strategy, usize)) {
    let table = table(rows);
    let options = Options::default();
    bencher.counter(ItemsCount::new(rows)).bench_local(|| schedule(black_box(&table), strategy, &options));
}

#[divan::bench(args = ROWS, sample_count = 10)]
fn dependencies(bencher: Bencher<'_, '_>, rows: usize) {
    let table = table(rows);
    bencher.counter(ItemsCount::new(rows)).bench_local(|| Dependencies::of(black_box(&table)));
}

/// Scores a schedule that is known.
#[divan::bench(args = ROWS, sample_count = 10)]
fn score(bencher: Bencher<'_, '_>, rows: usize) {
    let table = table(rows);
    let found = schedule(&table, Strategy::Search, &Options::default()).expect("the search takes any table");
    bencher.counter(ItemsCount::new(rows)).bench_local(|| saved_tokens(black_box(&table), &found, 1));
}
