//! What each way of ordering rows and fields saves on real tables, and how long it plans.
//!
//! `cargo run --release --example plan_bench -- FOLDER [TABLE …]`, where the folder holds `TABLE.parquet`; `generated` for the folder takes
//! the tables that `refrain-datasets` generates in their shape. With `million` as table, one of a million rows and eight columns.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use refrain::serving::load::{BundledModel, bundled};
use refrain::serving::{Segment, Tokenizer};
use refrain_datasets::catalogue::datasets;
use refrain_datasets::generate::generate;
use refrain_optimizer::reorder::{
    Column, FieldOrder, Options, Schedule, Strategy, Table, adjacent_tokens, prefix_hit_count, saved_in_trie,
    saved_of_prompts, saved_tokens, schedule,
};
use refrain_udf::{CallOptions, Function, JsonRenderer, LlmCall, Place, Prompt, PromptLayout, Shape, Task};

type Outcome<T> = Result<T, Box<dyn Error>>;

const TABLES: [&str; 8] =
    ["movies", "movies_15k", "products", "bird", "beer_full", "pdmx_standin_music", "squad_rag", "fever_rag"];
/// Rows that are ordered together where memory is short.
const WINDOW: usize = 10_000;
/// Tables whose later columns are retrieved passages.
const PASSAGES: [(&str, Range<usize>); 2] = [("squad_rag", 1..5), ("fever_rag", 1..5)];

#[tokio::main]
async fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (folder, named) = args.split_first().ok_or("usage: plan_bench FOLDER [TABLE …]")?;
    let tables: Vec<&str> = if named.is_empty() { TABLES.to_vec() } else { named.iter().map(String::as_str).collect() };
    let tokenizer = bundled(BundledModel::Mini)?.tokenizer;
    println!(
        "| table | rows, distinct × columns | strategy | cells | trie | prompts | PHC of ggr | dependencies | seconds |"
    );
    println!("|---|---|---|---:|---:|---:|---:|---|---:|");
    for name in tables {
        if name == "million" {
            million()?;
            continue;
        }
        let cells = match folder.as_str() {
            "generated" => {
                let dataset =
                    datasets().iter().find(|dataset| dataset.file == name).ok_or("no such table in the catalogue")?;
                Cells::of(&[generate(dataset, usize::MAX, 1)?])?
            }
            _ => Cells::read(&Path::new(folder).join(format!("{name}.parquet"))).await?,
        };
        Arm::labelled(name, &cells, tokenizer.as_ref(), None)?.report()?;
        if name == "beer_full" {
            Arm::characters(name, &cells)?.report()?;
        }
        if let Some((_, set)) = PASSAGES.iter().find(|(table, _)| *table == name) {
            Arm::labelled(name, &cells, tokenizer.as_ref(), Some(set.clone()))?.report()?;
        }
    }
    Ok(())
}

/// The distinct rows of a table, as JSON texts.
struct Cells {
    labels: Vec<String>,
    /// By column: the distinct texts.
    texts: Vec<Vec<String>>,
    /// By column: the text of each distinct row.
    codes: Vec<Vec<u32>>,
    rows: usize,
}

impl Cells {
    async fn read(path: &Path) -> Outcome<Self> {
        let ctx = SessionContext::new();
        let table = ctx.read_parquet(path.display().to_string(), ParquetReadOptions::default()).await?;
        Self::of(&table.collect().await?)
    }

    fn of(batches: &[RecordBatch]) -> Outcome<Self> {
        let schema = batches.first().ok_or("the table is empty")?.schema();
        let labels: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let mut known: Vec<HashMap<String, u32>> = vec![HashMap::new(); labels.len()];
        let mut tuples: HashMap<Vec<u32>, ()> = HashMap::new();
        let mut cells = Cells { texts: vec![vec![]; labels.len()], codes: vec![vec![]; labels.len()], labels, rows: 0 };
        for batch in batches {
            cells.rows += batch.num_rows();
            let renderers: Vec<_> =
                batch.columns().iter().map(|column| JsonRenderer::new(column.as_ref())).collect::<Result<_, _>>()?;
            for row in 0..batch.num_rows() {
                let mut tuple = vec![];
                for ((renderer, known), texts) in renderers.iter().zip(&mut known).zip(&mut cells.texts) {
                    let text = renderer.text(row);
                    tuple.push(*known.entry(text.clone()).or_insert_with(|| {
                        texts.push(text);
                        texts.len() as u32 - 1
                    }));
                }
                if tuples.insert(tuple.clone(), ()).is_none() {
                    cells.codes.iter_mut().zip(tuple).for_each(|(codes, code)| codes.push(code));
                }
            }
        }
        Ok(cells)
    }

    fn n_distinct(&self) -> usize {
        self.codes.first().map_or(0, Vec::len)
    }
}

/// A table to order, and what is known of it.
struct Arm<'a> {
    name: String,
    labels: &'a [String],
    rows: usize,
    table: Table,
    /// Renders whole prompts, where that is measured.
    prompts: Option<Prompts<'a>>,
}

impl<'a> Arm<'a> {
    /// Cells as they stand in prompts, in tokens; the columns of `set` are passages.
    fn labelled(name: &str, cells: &'a Cells, tokenizer: &'a dyn Tokenizer, set: Option<Range<usize>>) -> Outcome<Self> {
        let task = Task {
            instruction: "Read the fields and answer the question about this row.".to_owned(),
            answer_form: "Answer with ONLY 'Yes' or 'No'.".to_owned(),
            shape: Shape::Boolean,
            shown: String::new(),
        };
        let is_set = |column: usize| set.as_ref().is_some_and(|set| set.contains(&column));
        let prompt = Prompt::Fields { labels: cells.labels.clone(), passages: None };
        let call = LlmCall { function: Function::Filter, task, prompt, options: CallOptions::default(), inputs: vec![] };
        let layout = PromptLayout::new(&call, tokenizer)?;
        let segment = |column: usize, text: &str| match is_set(column) {
            true => layout.item_segment(tokenizer, column, text, Place::Middle, Place::Middle),
            false => layout.field_segment(tokenizer, column, text, Place::Middle),
        };
        let mut columns = vec![];
        match &set {
            None => {
                for (column, texts) in cells.texts.iter().enumerate() {
                    let tokens: Vec<Segment> = texts.iter().map(|text| segment(column, text)).collect();
                    columns.push(Column::of_tokens(cells.codes[column].clone(), tokens)?);
                }
            }
            Some(set) => {
                let mut known: HashMap<&str, u32> = HashMap::new();
                let mut tokens: Vec<Segment> = vec![];
                let mut codes_of = |column: usize| -> Vec<u32> {
                    let texts = &cells.texts[column];
                    let code = |code: &u32| {
                        let text = texts[*code as usize].as_str();
                        *known.entry(text).or_insert_with(|| {
                            tokens.push(segment(column, text));
                            tokens.len() as u32 - 1
                        })
                    };
                    cells.codes[column].iter().map(code).collect()
                };
                let codes: Vec<Vec<u32>> = set.clone().map(&mut codes_of).collect();
                let tokens: Arc<[Segment]> = tokens.into();
                for column in 0..cells.texts.len() {
                    columns.push(match set.contains(&column) {
                        true => Column::of_tokens(codes[column - set.start].clone(), Arc::clone(&tokens))?,
                        false => {
                            let tokens: Vec<Segment> =
                                cells.texts[column].iter().map(|text| segment(column, text)).collect();
                            Column::of_tokens(cells.codes[column].clone(), tokens)?
                        }
                    });
                }
            }
        }
        let mut table = Table::new(columns, cells.n_distinct())?;
        let mut name = name.to_owned();
        let mut prompts = None;
        if let Some(set) = set {
            table = table.with_set(set)?;
            name += ", passages as a set";
        } else {
            prompts = Some(Prompts { cells, layout, tokenizer });
        }
        Ok(Arm { name, labels: &cells.labels, rows: cells.rows, table, prompts })
    }

    /// Cells without labels, in characters.
    fn characters(name: &str, cells: &'a Cells) -> Outcome<Self> {
        let columns = cells.texts.iter().zip(&cells.codes).map(|(texts, codes)| {
            let raw = |json: &String| serde_json::from_str::<String>(json).unwrap_or_else(|_| json.clone());
            let tokens: Vec<Segment> = texts.iter().map(|text| raw(text).chars().map(u32::from).collect()).collect();
            Column::of_tokens(codes.clone(), tokens)
        });
        let table = Table::new(columns.collect::<Result<_, _>>()?, cells.n_distinct())?;
        let name = format!("{name}, raw cells in characters");
        Ok(Arm { name, labels: &cells.labels, rows: cells.rows, table, prompts: None })
    }

    fn report(&self) -> Outcome<()> {
        let without_dependencies = Options { dependencies: false, ..Options::default() };
        let arms = [
            (Strategy::None, Options::default(), ""),
            (Strategy::Rows, Options::default(), ""),
            (Strategy::Ggr, Options::default(), ""),
            (Strategy::Search, without_dependencies, ", no dependencies"),
            (Strategy::Search, Options::default(), ""),
            (Strategy::Tree, Options::default(), ""),
            (Strategy::Auto, Options::default(), ""),
        ];
        let percent = |part: u64, all: u64| format!("{:.2} %", 100.0 * part as f64 / all as f64);
        let mut phc_of_ggr = None;
        for (strategy, options, note) in arms {
            let started = Instant::now();
            let ordered = schedule(&self.table, strategy, &options)?;
            let seconds = started.elapsed().as_secs_f64();
            let all = self.table.tokens();
            // As stored, a row finds what the row before it left; else the cache holds what the order put together.
            let cells = match strategy {
                Strategy::None => adjacent_tokens(&self.table, &ordered, 1),
                _ => saved_tokens(&self.table, &ordered, 1),
            };
            let phc = prefix_hit_count(&self.table, &ordered);
            if strategy == Strategy::Ggr {
                phc_of_ggr = Some(phc);
            }
            let prompts = self.prompts.as_ref().map(|prompts| {
                let prompts = prompts.of(&ordered);
                let slices: Vec<&[Segment]> = prompts.iter().map(Vec::as_slice).collect();
                let all: u64 = prompts.iter().flatten().map(|segment| segment.len() as u64).sum();
                percent(saved_of_prompts(&slices, 1), all)
            });
            let orders = match ordered.fields() {
                FieldOrder::Same(_) => String::new(),
                FieldOrder::PerRow(_) => " (by row)".to_owned(),
            };
            println!(
                "| {} | {}, {} × {} | {strategy}{note}{orders} | {} | {} | {} | {} | {} | {seconds:.3} |",
                self.name,
                self.rows,
                self.table.rows(),
                self.table.columns().len(),
                percent(cells, all),
                percent(saved_in_trie(&self.table, &ordered, 1), all),
                prompts.unwrap_or_else(|| "–".to_owned()),
                phc_of_ggr.map_or("–".to_owned(), |ggr| format!("{:.2} ×", phc as f64 / ggr as f64)),
                ordered.dependencies().iter().map(|found| found.describe(self.labels)).collect::<Vec<_>>().join(", "),
            );
        }
        if self.table.rows() > WINDOW && self.prompts.is_some() {
            self.report_windows()?;
        }
        Ok(())
    }

    /// Compares windows with one schedule for all rows: tokens of a prompt that the prompt before it had, which a small cache holds.
    fn report_windows(&self) -> Outcome<()> {
        let all: u64 = self.table.tokens();
        let whole = schedule(&self.table, Strategy::Auto, &Options::default())?;
        let at_once = shared_with_the_one_before(&self.segments(&whole, 0));
        let (mut prompts, mut after): (Vec<Vec<Segment>>, Option<Vec<u32>>) = (vec![], None);
        for start in (0..self.table.rows()).step_by(WINDOW) {
            let rows = start..self.table.rows().min(start + WINDOW);
            let column = |column: &Column| {
                let tokens =
                    (0..column.lengths().len() as u32).map(|code| column.tokens_of(code).unwrap_or_default().into());
                Column::of_tokens(column.codes()[rows.clone()].to_vec(), tokens.collect::<Vec<Segment>>())
            };
            let columns = self.table.columns().iter().map(column).collect::<Result<_, _>>()?;
            let window = Table::new(columns, rows.len())?;
            let ordered = schedule(&window, Strategy::Auto, &Options { after: after.take(), ..Options::default() })?;
            after = Some(ordered.fields_of(0).to_vec());
            let mut next = self.segments(&ordered, start as u32);
            if let Some(last) = prompts.last() {
                next.sort_by_key(|prompt| Reverse(last.iter().zip(prompt).take_while(|(a, b)| a == b).count()));
            }
            prompts.extend(next);
        }
        let in_windows = shared_with_the_one_before(&prompts);
        println!(
            "| {} | | auto, windows of {WINDOW} | | {:.2} %, at once {:.2} % | | | | |",
            self.name,
            100.0 * in_windows as f64 / all as f64,
            100.0 * at_once as f64 / all as f64,
        );
        Ok(())
    }

    /// Returns the cells of scheduled rows, which begin at `first` in the table.
    fn segments(&self, ordered: &Schedule, first: u32) -> Vec<Vec<Segment>> {
        let cell = |row: u32, field: u32| {
            let column = &self.table.columns()[field as usize];
            column.tokens_of(column.codes()[(first + row) as usize]).unwrap_or_default().into()
        };
        let row =
            |(position, row): (usize, &u32)| ordered.fields_of(position).iter().map(|field| cell(*row, *field)).collect();
        ordered.rows().iter().enumerate().map(row).collect()
    }
}

fn shared_with_the_one_before(prompts: &[Vec<Segment>]) -> u64 {
    let common = |pair: &[Vec<Segment>]| {
        let tokens = |prompt: &'_ [Segment]| prompt.iter().flat_map(|segment| segment.to_vec()).collect::<Vec<u32>>();
        tokens(&pair[0]).iter().zip(&tokens(&pair[1])).take_while(|(a, b)| a == b).count() as u64
    };
    prompts.windows(2).map(common).sum()
}

/// Whole prompts of the rows of a table.
struct Prompts<'a> {
    cells: &'a Cells,
    layout: PromptLayout,
    tokenizer: &'a dyn Tokenizer,
}

impl Prompts<'_> {
    /// Returns the prompts in the order of a schedule.
    fn of(&self, schedule: &Schedule) -> Vec<Vec<Segment>> {
        let mut known: HashMap<(u32, u32, Place), Segment> = HashMap::new();
        let mut prompts = vec![];
        for (position, row) in schedule.rows().iter().enumerate() {
            let fields = schedule.fields_of(position);
            let mut prompt = vec![Arc::clone(self.layout.head())];
            for (at, field) in fields.iter().enumerate() {
                let code = self.cells.codes[*field as usize][*row as usize];
                let place = Place::of(at, fields.len());
                let text = &self.cells.texts[*field as usize][code as usize];
                let segment = known
                    .entry((*field, code, place))
                    .or_insert_with(|| self.layout.field_segment(self.tokenizer, *field as usize, text, place));
                prompt.push(Arc::clone(segment));
            }
            prompt.push(Arc::clone(self.layout.tail()));
            prompts.push(prompt);
        }
        prompts
    }
}

/// A million rows of eight columns of 10 to 100,000 values, Zipf distributed, of 3 to 40 tokens.
fn million() -> Outcome<()> {
    const ROWS: usize = 1_000_000;
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut columns = vec![];
    for n_values in [10_usize, 100, 1_000, 1_000, 10_000, 10_000, 50_000, 100_000] {
        let mut below = vec![];
        let mut sum = 0.0;
        for rank in 1..=n_values {
            sum += 1.0 / rank as f64;
            below.push(sum);
        }
        let mut draw = || (random() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        let codes = (0..ROWS).map(|_| draw()).map(|at| below.partition_point(|end| *end < at).min(n_values - 1) as u32);
        let codes: Vec<u32> = codes.collect();
        let tokens: Vec<Segment> = (0..n_values as u32)
            .map(|value| {
                (0..3 + random() as u32 % 38).map(|at| if at < 2 { at } else { value.wrapping_mul(31) + at }).collect()
            })
            .collect();
        columns.push(Column::of_tokens(codes, tokens)?);
    }
    let table = Table::new(columns, ROWS)?;
    let arm = Arm { name: "generated".to_owned(), labels: &[], rows: ROWS, table, prompts: None };
    arm.report()
}
