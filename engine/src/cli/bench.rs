//! `refrain bench`: one query under several settings, measured side by side in one process.
//!
//! The query is the filter over the Movies table of "Optimizing LLM Queries in Relational Data Analytics Workloads" (arXiv 2403.05821,
//! Appendix C, type T1): is the film suitable for kids, judged from all columns of the row. The table is a file that the user has.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::error::{Failure, Outcome};
use crate::{ModelCatalog, QueryUsage, Refrain};

/// Options of `refrain bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// The table: a Parquet, CSV or JSON file with the columns of Movies
    #[arg(long, value_name = "FILE")]
    table: PathBuf,

    /// Read this many rows
    #[arg(long, default_value_t = 1000)]
    rows: usize,

    /// Settings to compare, by name; all if left out
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    arms: Vec<String>,
}

/// One combination of settings.
struct Arm {
    name: &'static str,
    settings: &'static [(&'static str, &'static str)],
}

const ARMS: &[Arm] = &[
    Arm { name: "naive", settings: &[("reorder", "none"), ("dedup", "off"), ("prefix_cache", "false")] },
    Arm { name: "none", settings: &[("reorder", "none"), ("dedup", "off")] },
    Arm { name: "none+dedup", settings: &[("reorder", "none")] },
    Arm { name: "rows", settings: &[("reorder", "rows")] },
    Arm { name: "ggr", settings: &[("reorder", "ggr")] },
    Arm { name: "search", settings: &[("reorder", "search"), ("dedup", "off")] },
    Arm { name: "search+dedup", settings: &[("reorder", "search")] },
];

/// What one arm cost.
struct Measured {
    name: &'static str,
    wall: Duration,
    usage: QueryUsage,
    answers: Vec<Option<bool>>,
}

/// Runs the arms one after the other and prints a Markdown table.
pub(crate) async fn run(args: BenchArgs, print: &mut dyn FnMut(&str)) -> Outcome<()> {
    let unknown = args.arms.iter().find(|name| ARMS.iter().all(|arm| arm.name != name.as_str()));
    if let Some(name) = unknown {
        let names: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
        return Err(Failure::usage(format!("there is no arm {name:?}; the arms are {}", names.join(", "))));
    }
    let models = std::sync::Arc::new(ModelCatalog::with_bundled());
    let mut measured: Vec<Measured> = vec![];
    for arm in ARMS.iter().filter(|arm| args.arms.is_empty() || args.arms.iter().any(|name| name == arm.name)) {
        let arm = measure(arm, &args, &models).await?;
        if measured.is_empty() {
            print("| arm | wall s | calls | prompt tokens | computed tokens | prefix hit | speed-up | same answers |\n");
            print("|---|---:|---:|---:|---:|---:|---:|---:|\n");
        }
        measured.push(arm);
        print(&row(&measured));
    }
    Ok(())
}

async fn measure(arm: &Arm, args: &BenchArgs, models: &std::sync::Arc<ModelCatalog>) -> Outcome<Measured> {
    let mut builder = Refrain::builder().models(std::sync::Arc::clone(models));
    for (key, value) in arm.settings {
        builder = builder.setting(*key, *value);
    }
    let db = builder.build().await?;
    // Loads the model, so that the first arm does not pay for it.
    db.sql("SELECT ai_filter('Is this a movie?', 'warm-up')").await?.execute().await?.fetch_all().await?;
    let table = args.table.display().to_string().replace('\'', "''");
    let query = format!(
        "SELECT ai_filter('Is the movie suitable for kids?', t.*, mode => 'fields') FROM (SELECT * FROM '{table}' LIMIT {}) AS t",
        args.rows
    );
    let started = Instant::now();
    let mut run = db.sql(&query).await?.execute().await?;
    let batches = run.fetch_all().await?;
    let wall = started.elapsed();
    let mut answers = vec![];
    for batch in &batches {
        let column = datafusion::common::cast::as_boolean_array(batch.column(0)).map_err(crate::Error::from)?;
        answers.extend(column.iter());
    }
    Ok(Measured { name: arm.name, wall, usage: run.usage(), answers })
}

/// One line of the table; ratios are to the first arm that ran.
fn row(measured: &[Measured]) -> String {
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else { return String::new() };
    let Measured { name, wall, usage, answers } = last;
    let same = answers.iter().zip(&first.answers).filter(|(a, b)| a == b).count();
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    format!(
        "| {name} | {:.1} | {} | {} | {} | {:.1} % | {:.2} × | {:.1} % |\n",
        wall.as_secs_f64(),
        usage.calls,
        usage.prompt_tokens,
        usage.prompt_tokens - usage.cached_tokens,
        share(usage.cached_tokens as usize, usage.prompt_tokens as usize),
        first.wall.as_secs_f64() / wall.as_secs_f64(),
        share(same, answers.len()),
    )
}
