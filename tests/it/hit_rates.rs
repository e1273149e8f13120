//! What strategies of reordering save on a table: the share of cell tokens that an ample cache finds, parts of cells included, over distinct rows, as in `docs/benchmarks.md`.

use std::collections::{HashMap, HashSet};

use datafusion::arrow::array::RecordBatch;
use refrain_optimizer::reorder::{Column, Options, Strategy, Table, saved_in_trie, schedule};
use refrain_serving::{Segment, Tokenizer};
use refrain_udf::{CallOptions, Function, JsonRenderer, LlmCall, Place, Prompt, PromptLayout, Shape, Task};

/// Every strategy but the exact one, which takes exponential time.
pub(crate) const STRATEGIES: [Strategy; 6] =
    [Strategy::None, Strategy::Rows, Strategy::Search, Strategy::Tree, Strategy::Ggr, Strategy::Auto];

/// Returns the hit rate under each of [`STRATEGIES`], in percent of the tokens of cells, and those tokens for each row.
pub(crate) fn hit_rates(batches: &[RecordBatch], tokenizer: &dyn Tokenizer) -> ([f64; 6], f64) {
    let table = table(batches, tokenizer);
    let all = table.tokens();
    let rate = |strategy: Strategy| {
        let ordered = schedule(&table, strategy, &Options::default()).unwrap();
        let saved = saved_in_trie(&table, &ordered, 1);
        100.0 * saved as f64 / all as f64
    };
    (STRATEGIES.map(rate), all as f64 / table.rows() as f64)
}

/// Returns the distinct rows with the tokens of their cells, as they stand in prompts.
fn table(batches: &[RecordBatch], tokenizer: &dyn Tokenizer) -> Table {
    let labels: Vec<String> = batches[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    let task = Task {
        instruction: "Read the fields and answer the question about this row.".to_owned(),
        answer_form: "Answer with ONLY 'Yes' or 'No'.".to_owned(),
        shape: Shape::Boolean,
        shown: String::new(),
    };
    let prompt = Prompt::Fields { labels: labels.clone(), passages: None };
    let call = LlmCall { function: Function::Filter, task, prompt, options: CallOptions::default(), inputs: vec![] };
    let layout = PromptLayout::new(&call, tokenizer).unwrap();

    let mut known: Vec<HashMap<String, u32>> = vec![HashMap::new(); labels.len()];
    let mut tokens: Vec<Vec<Segment>> = vec![vec![]; labels.len()];
    let mut rows: HashSet<Vec<u32>> = HashSet::new();
    let mut codes: Vec<Vec<u32>> = vec![vec![]; labels.len()];
    for batch in batches {
        let renderers: Vec<_> = batch.columns().iter().map(|column| JsonRenderer::new(column.as_ref()).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let mut code = |(column, renderer): (usize, &JsonRenderer<'_>)| {
                let text = renderer.text(row);
                let segment = || layout.field_segment(tokenizer, column, &text, Place::Middle);
                *known[column].entry(text.clone()).or_insert_with(|| {
                    tokens[column].push(segment());
                    tokens[column].len() as u32 - 1
                })
            };
            let tuple: Vec<u32> = renderers.iter().enumerate().map(&mut code).collect();
            if rows.insert(tuple.clone()) {
                codes.iter_mut().zip(tuple).for_each(|(codes, code)| codes.push(code));
            }
        }
    }
    let columns = codes.into_iter().zip(tokens).map(|(codes, tokens)| Column::of_tokens(codes, tokens).unwrap());
    Table::new(columns.collect(), rows.len()).unwrap()
}
