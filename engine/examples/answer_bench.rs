//! What keeping answers costs, and what finding them saves: rows a second with each tier, over a model that answers at once.
//!
//! `cargo run --release --example answer_bench -- [ROWS] [FOLDER]`. The folder should lie on the disk that is to be measured.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use refrain::serving::mock::{MockBackend, MockReply};
use refrain::{ModelSource, Refrain};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let rows: u64 = args.next().as_deref().unwrap_or("100000").parse()?;
    let folder =
        args.next().map_or_else(std::env::temp_dir, PathBuf::from).join(format!("answer_bench-{}", std::process::id()));
    let dir = folder.display().to_string();
    let checkpoint = folder.join("run.answers").display().to_string();
    println!("{rows} rows, files in {dir}");
    println!("| setting | first run, s | µs a call more than 'query' | second run, s | hits/s | file, bytes an answer |");
    println!("|---|---:|---:|---:|---:|---:|");
    let arms: [&[(&str, &str)]; 4] = [
        &[("cache", "query")],
        &[("cache", "session")],
        &[("cache", "persistent"), ("cache_dir", &dir)],
        &[("checkpoint", &checkpoint)],
    ];
    let mut baseline_s = None;
    for settings in arms {
        let model = MockBackend::new(1).without_history().answer(|_| Some(MockReply::text("Yes")));
        let mut builder = Refrain::builder().model("mock", ModelSource::Backend(Arc::new(model)));
        for (key, value) in settings {
            builder = builder.setting(*key, *value);
        }
        let db = builder.build().await?;
        let query = format!("select count(ai_filter('p', value)) from generate_series(1, {rows})");
        let (first_s, calls, _) = run(&db, &query).await?;
        let (second_s, _, hits) = run(&db, &query).await?;
        let more_us = (first_s - *baseline_s.get_or_insert(first_s)) * 1e6 / calls as f64;
        drop(db);
        let bytes = settings.iter().find_map(|(key, value)| match *key {
            "cache_dir" => Some(folder.join("answers.redb")),
            "checkpoint" => Some(PathBuf::from(value)),
            _ => None,
        });
        let bytes = bytes.map_or(Ok(0), |file| std::fs::metadata(file).map(|metadata| metadata.len()))?;
        println!(
            "| {} | {first_s:.2} | {more_us:.1} | {second_s:.2} | {:.0} | {} |",
            settings.first().map_or("", |(key, value)| if *key == "cache" { value } else { key }),
            hits as f64 / second_s,
            bytes / rows,
        );
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Returns the seconds that a query took, its calls and its cached answers.
async fn run(db: &Refrain, query: &str) -> refrain::Result<(f64, u64, u64)> {
    let started = Instant::now();
    let mut run = db.sql(query).await?.execute().await?;
    run.fetch_all().await?;
    let usage = run.usage();
    Ok((started.elapsed().as_secs_f64(), usage.calls, usage.cache_hits))
}
