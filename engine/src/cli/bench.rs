//! `refrain bench`: one query under several settings, measured side by side in one process.
//!
//! The query is the filter over the Movies table of "Optimizing LLM Queries in Relational Data Analytics Workloads" (arXiv 2403.05821,
//! Appendix C, type T1): is the film suitable for kids, judged from all columns of the row. The table is a file that the user has.

use std::path::PathBuf;

use datafusion::common::cast::as_boolean_array;

use super::error::{Failure, Outcome};
use super::execute::Collected;
use super::session::Session;
use crate::Error;

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

/// What an arm leaves at its default.
const DEFAULTS: &[(&str, &str)] = &[("reorder", "auto"), ("dedup", "auto"), ("prefix_cache", "true")];

/// A query that loads the model, so that the first arm does not pay for it.
const WARM_UP: &str = "SELECT ai_filter('Is this a movie?', 'warm-up')";

const HEADER: &str = "\
| arm | wall s | calls | prompt tokens | computed tokens | prefix hit | speed-up | same answers |
|---|---:|---:|---:|---:|---:|---:|---:|
";

/// What one arm cost and answered.
struct Measured {
    name: &'static str,
    cost: Collected,
    answers: Vec<Option<bool>>,
}

/// Runs the arms one after the other and prints a Markdown table, a line as soon as its arm has run.
pub(crate) async fn run(session: &mut Session, args: &BenchArgs) -> Outcome<()> {
    let unknown = args.arms.iter().find(|name| ARMS.iter().all(|arm| arm.name != name.as_str()));
    if let Some(name) = unknown {
        let names: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
        return Err(Failure::usage(format!("there is no arm {name:?}; the arms are {}", names.join(", "))));
    }
    let table = args.table.display().to_string().replace('\'', "''");
    let query = format!(
        "SELECT ai_filter('Is the movie suitable for kids?', t.*, mode => 'fields') FROM (SELECT * FROM '{table}' LIMIT {}) AS t",
        args.rows
    );
    session.collect(WARM_UP).await?;
    session.print(HEADER)?;
    let mut measured = Vec::new();
    for arm in ARMS.iter().filter(|arm| args.arms.is_empty() || args.arms.iter().any(|name| name == arm.name)) {
        measured.push(measure(session, arm, &query).await?);
        session.print(&row(&measured))?;
    }
    Ok(())
}

async fn measure(session: &mut Session, arm: &Arm, query: &str) -> Outcome<Measured> {
    for (name, value) in DEFAULTS.iter().chain(arm.settings) {
        session.set(name, value).await?;
    }
    let cost = session.collect(query).await?;
    let answers = as_boolean_array(cost.rows.column(0)).map_err(Error::from)?.iter().collect();
    Ok(Measured { name: arm.name, cost, answers })
}

/// One line of the table; ratios are to the first arm that ran.
fn row(measured: &[Measured]) -> String {
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else { return String::new() };
    let Measured { name, cost: Collected { usage, elapsed_s, .. }, answers } = last;
    let same = answers.iter().zip(&first.answers).filter(|(a, b)| a == b).count();
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    format!(
        "| {name} | {elapsed_s:.1} | {} | {} | {} | {:.1} % | {:.2} × | {:.1} % |\n",
        usage.calls,
        usage.prompt_tokens,
        usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        share(usage.cached_tokens, usage.prompt_tokens),
        first.cost.elapsed_s / elapsed_s.max(f64::EPSILON),
        share(same as u64, answers.len() as u64),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::datatypes::Schema;
    use datafusion::arrow::record_batch::RecordBatch;

    use super::*;
    use crate::QueryUsage;

    #[test]
    fn lines_compare_with_the_first_arm() {
        let measured = |name, elapsed_s, cached_tokens, answers| {
            let usage = QueryUsage { calls: 2, prompt_tokens: 100, cached_tokens, ..QueryUsage::default() };
            let rows = RecordBatch::new_empty(Arc::new(Schema::empty()));
            Measured { name, cost: Collected { rows, usage, elapsed_s }, answers }
        };
        let runs =
            [measured("naive", 4.0, 0, vec![Some(true), None]), measured("rows", 1.0, 75, vec![Some(true), Some(false)])];
        assert_eq!(row(&runs), "| rows | 1.0 | 2 | 100 | 25 | 75.0 % | 4.00 × | 50.0 % |\n");
    }

    #[test]
    fn arms_set_only_what_every_arm_resets() {
        let reset: Vec<&str> = DEFAULTS.iter().map(|(name, _)| *name).collect();
        assert!(ARMS.iter().flat_map(|arm| arm.settings).all(|(name, _)| reset.contains(name)));
    }
}
