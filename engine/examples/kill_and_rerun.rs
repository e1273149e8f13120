//! How much a query pays twice when its process is killed: the filter over Movies (docs/benchmarks.md) with the bundled model and
//! a checkpoint, killed after some calls and run again: at the moment when a step of the model ends, which loses most, and at some
//! moment between two steps.
//!
//! `cargo run --release --example kill_and_rerun -- MOVIES.parquet ROWS KILL_AFTER…`

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use refrain::Refrain;

/// How long after the end of a step the process lives on: not at all, and a time that falls between two ends.
const DELAYS_MS: [u64; 2] = [0, 30];

/// Has this program run the query, and print how many calls are done, instead of measuring.
const CHILD: &str = "--to-be-killed";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [CHILD, table, rows, checkpoint] => run_to_be_killed(table, rows, checkpoint).await,
        [table, rows, ref kills @ ..] if !kills.is_empty() => {
            println!("| rows | killed ms after a step | calls done when killed | calls of the rerun | paid twice |");
            println!("|---:|---:|---:|---:|---:|");
            for kill_after in kills {
                for delay_ms in DELAYS_MS {
                    kill_and_rerun(table, rows, kill_after.parse()?, delay_ms).await?;
                }
            }
            Ok(())
        }
        _ => Err("usage: kill_and_rerun MOVIES.parquet ROWS KILL_AFTER…".into()),
    }
}

async fn kill_and_rerun(table: &str, rows: &str, kill_after: u64, delay_ms: u64) -> Result<(), Box<dyn Error>> {
    let checkpoint = std::env::temp_dir().join(format!("kill_and_rerun-{}-{kill_after}-{delay_ms}", std::process::id()));
    let mut child =
        Command::new(std::env::current_exe()?).args([CHILD, table, rows]).arg(&checkpoint).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("the child has no output")?).lines();
    let mut done = 0;
    for line in lines {
        done = line?.parse()?;
        if done >= kill_after {
            thread::sleep(Duration::from_millis(delay_ms));
            child.kill()?;
        }
    }
    child.wait()?;
    let db = session(&checkpoint).await?;
    let mut run = db.sql(&query(table, rows)).await?.execute().await?;
    run.fetch_all().await?;
    let (calls, rows) = (run.usage().calls, run.usage().distinct);
    println!("| {rows} | {delay_ms} | {done} | {calls} | {} |", (done + calls) as i64 - rows as i64);
    drop((run, db));
    std::fs::remove_file(checkpoint)?;
    Ok(())
}

async fn run_to_be_killed(table: &str, rows: &str, checkpoint: &str) -> Result<(), Box<dyn Error>> {
    let db = session(Path::new(checkpoint)).await?;
    let model = db.model_catalog().backend("mini").await?;
    let mut run = db.sql(&query(table, rows)).await?.execute().await?;
    let count = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        let mut before = 0;
        loop {
            ticks.tick().await;
            let done = model.stats().completed;
            if done > before {
                println!("{done}");
                before = done;
            }
        }
    };
    tokio::select! { rows = run.fetch_all() => drop(rows?), () = count => {} }
    Ok(())
}

async fn session(checkpoint: &Path) -> refrain::Result<Refrain> {
    Refrain::builder().setting("checkpoint", checkpoint.display().to_string()).build().await
}

fn query(table: &str, rows: &str) -> String {
    format!(
        "SELECT ai_filter('Is the movie suitable for kids?', t.*, mode => 'fields') FROM (SELECT * FROM '{table}' LIMIT {rows}) AS t"
    )
}
