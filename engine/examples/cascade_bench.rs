//! What a cascade saves and what it misses on a real table: the bundled draft answers first, the bundled model is the judge.
//!
//! `cargo run --release --example cascade_bench -- TABLE.parquet COLUMN QUESTION [ROWS] [TARGET…]`

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::collections::HashSet;
use std::error::Error;
use std::time::Instant;

use datafusion::common::cast::as_int64_array;
use refrain::serving::load::BundledModel;
use refrain::{ModelSource, Refrain};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [table, column, question, rest @ ..] = args.as_slice() else {
        return Err("usage: cascade_bench TABLE.parquet COLUMN QUESTION [ROWS] [TARGET…]".into());
    };
    let rows: usize = rest.first().map_or(Ok(2000), |rows| rows.parse())?;
    let targets = if rest.len() > 1 { &rest[1..] } else { &["0.9".to_owned()] };
    let question = question.replace('\'', "''");
    let query = format!(
        "SELECT i FROM (SELECT row_number() OVER () AS i, \"{column}\" FROM '{table}' LIMIT {rows}) \
         WHERE ai_filter('{question}', \"{column}\")"
    );
    println!("| targets | seconds | calls of the model | of the proxy | rows kept | recall | precision |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let exact = run(&query, &[]).await?;
    println!("| none: the model alone | {:.1} | {} | | {} | | |", exact.seconds, exact.calls[0], exact.kept.len());
    for target in targets {
        let settings = [
            ("optimization_mode", "minimize_cost"),
            ("proxy_model", "mini-draft"),
            ("recall_target", target),
            ("precision_target", target),
        ];
        let run = run(&query, &settings).await?;
        let right = run.kept.intersection(&exact.kept).count() as f64;
        println!(
            "| {target} | {:.1} | {} | {} | {} | {:.3} | {:.3} |",
            run.seconds,
            run.calls[0],
            run.calls[1],
            run.kept.len(),
            right / exact.kept.len() as f64,
            right / run.kept.len() as f64
        );
    }
    Ok(())
}

struct Run {
    seconds: f64,
    /// Of the model and of the proxy.
    calls: [u64; 2],
    kept: HashSet<i64>,
}

async fn run(query: &str, settings: &[(&str, &str)]) -> Result<Run, Box<dyn Error>> {
    let mut builder = Refrain::builder()
        .model("mini", ModelSource::Bundled(BundledModel::Mini))
        .model("mini-draft", ModelSource::Bundled(BundledModel::MiniDraft))
        .setting("model", "mini");
    for (key, value) in settings {
        builder = builder.setting(*key, *value);
    }
    let db = builder.build().await?;
    // Loads both models.
    db.sql("SELECT ai_filter('q', 'x'), ai_filter('q', 'x', model => 'mini-draft')")
        .await?
        .execute()
        .await?
        .fetch_all()
        .await?;
    let started = Instant::now();
    let batches = db.sql(query).await?.execute().await?.fetch_all().await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut kept = HashSet::new();
    for batch in &batches {
        let rows = datafusion::arrow::compute::cast(batch.column(0), &datafusion::arrow::datatypes::DataType::Int64)?;
        kept.extend(as_int64_array(&rows)?.values());
    }
    let usage = "SELECT coalesce(sum(calls) FILTER (WHERE model = 'mini'), 0), coalesce(sum(calls) FILTER (WHERE model = 'mini-draft'), 0) \
                 FROM ai_usage() WHERE query_id = (SELECT max(query_id) FROM ai_usage() WHERE calls > 0)";
    let counts = db.sql(usage).await?.execute().await?.fetch_all().await?;
    let mut calls = [0; 2];
    for (calls, column) in calls.iter_mut().zip(counts[0].columns()) {
        let column = datafusion::arrow::compute::cast(column, &datafusion::arrow::datatypes::DataType::Int64)?;
        *calls = as_int64_array(&column)?.value(0) as u64;
    }
    Ok(Run { seconds, calls, kept })
}
