//! `refrain demo`: one query over a generated table, with Refrain's optimisations and without.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::arrow::record_batch::RecordBatch;

use super::error::Outcome;
use super::execute::Collected;
use super::numbers::{counted, grouped, percent, seconds};
use super::output::{self, Format, Layout};
use super::session::Session;
use crate::{Error, QueryUsage};

/// The question of the demonstration. The default model knows the opinion of a text well; the maker's description is what makes
/// the question expensive, and what reordering makes cheap.
const QUERY: &str = "\
SELECT product, stars, ai_sentiment(review) AS sentiment, review
FROM reviews
WHERE ai_filter('Is the review negative?', product, category, description, review)";

/// Settings under which every row is asked on its own, in the order of the table.
const BASELINE: [(&str, &str); 3] =
    [("refrain.reorder", "none"), ("refrain.dedup", "off"), ("refrain.prefix_cache", "false")];

/// A query that loads the model and asks nothing of the demonstration's own.
const WARM_UP: &str = "SELECT ai_sentiment(review) FROM reviews LIMIT 1";

/// Answers shown.
const SAMPLE_ROWS: usize = 8;

/// Width of the sample where the output is no terminal.
const WIDTH: u16 = 110;

/// Runs the demonstration on a fresh session.
pub(crate) async fn run(session: &mut Session, seed: u64) -> Outcome<()> {
    let reviews = refrain_datasets::demo::reviews(seed)?;
    let rows = reviews.num_rows() as u64;
    session.db.context().register_batch("reviews", reviews).map_err(Error::from)?;
    let estimate = session.db.sql(QUERY).await?.estimate().await?.to_string();
    session.print(&introduction(&session.db.banner(), rows, &estimate))?;

    // The first call of a session loads the model; neither run should pay for that.
    session.collect(WARM_UP).await?;
    let optimised = session.collect(QUERY).await?;
    let width = session.sink.width().unwrap_or(WIDTH);
    session.print(&sample(&optimised.rows, width)?)?;
    session.print(&agreement(&optimised.rows))?;

    session.notice("once more, without reordering, deduplication and prefix cache …");
    for (name, value) in BASELINE {
        session.set(name, value).await?;
    }
    let baseline = session.collect(QUERY).await?;
    session.print(&comparison(&optimised, &baseline))
}

fn introduction(banner: &str, rows: u64, estimate: &str) -> String {
    let table = format!("{} of 24 products are in a table called reviews.", counted(rows, "review"));
    format!("{banner}\n\n{table}\n\n{}\n\nThe plan expects:\n\n{}\n\n", indented(QUERY), indented(estimate))
}

/// Lays out the first answers as a table.
fn sample(answers: &RecordBatch, width: u16) -> Outcome<String> {
    let layout = Layout { max_rows: Some(SAMPLE_ROWS), width: Some(width), null: None };
    let mut writer = output::writer(Format::Table, answers.schema(), layout);
    let mut text = Vec::new();
    writer.batch(&mut text, answers)?;
    let hidden = writer.finish(&mut text)?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if hidden > 0 {
        text += &format!("… and {} more\n", counted(hidden as u64, "row"));
    }
    Ok(text)
}

/// Compares the answers with the stars, which the model was not shown.
fn agreement(answers: &RecordBatch) -> String {
    let stars = answers.column_by_name("stars").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let few = stars.map_or(0, |stars| stars.iter().flatten().filter(|stars| *stars <= 2).count());
    let all = answers.num_rows() as u64;
    let share = percent(few as u64, all).unwrap_or(0);
    let (few, all) = (grouped(few as u64), counted(all, "row"));
    format!("{few} of the {all} found have one or two stars ({share} %); the model was not shown the stars.\n\n")
}

/// Sets both runs side by side.
fn comparison(optimised: &Collected, baseline: &Collected) -> String {
    let computed = |usage: &QueryUsage| usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    let row = |name: &str, with: String, without: String| format!("  {name:24}{with:>12}{without:>16}\n");
    let count = |name: &str, value: &dyn Fn(&QueryUsage) -> u64| {
        row(name, grouped(value(&optimised.usage)), grouped(value(&baseline.usage)))
    };
    let mut text = row("", "Refrain".to_owned(), "all of it off".to_owned());
    text += &count("model calls", &|usage| usage.calls);
    text += &count("saved by dedup", &|usage| usage.dedup_saved);
    text += &count("prompt tokens", &|usage| usage.prompt_tokens);
    text += &count("  reused as prefixes", &|usage| usage.cached_tokens);
    text += &count("  computed", &computed);
    text += &row("time", seconds(optimised.elapsed_s), seconds(baseline.elapsed_s));
    let ratio = baseline.elapsed_s / optimised.elapsed_s.max(f64::EPSILON);
    text + &format!("\n  {ratio:.1} times as fast, the same model, the same question.\n")
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(calls: u64, dedup_saved: u64, cached_tokens: u64, elapsed_s: f64) -> Collected {
        let usage = QueryUsage { calls, dedup_saved, prompt_tokens: calls * 250, cached_tokens, ..QueryUsage::default() };
        Collected { rows: refrain_datasets::demo::reviews(1).unwrap(), usage, elapsed_s }
    }

    #[test]
    fn both_runs_stand_side_by_side() {
        let expected = "                               Refrain   all of it off
  model calls                      200             240
  saved by dedup                    40               0
  prompt tokens                 50 000          60 000
    reused as prefixes          40 000               0
    computed                    10 000          60 000
  time                          2.50 s          12.0 s

  4.8 times as fast, the same model, the same question.
";
        let found = comparison(&measured(200, 40, 40_000, 2.5), &measured(240, 0, 0, 12.0));
        assert_eq!(found, expected, "{found}");
    }

    #[test]
    fn answers_are_sampled_and_compared_with_the_stars() {
        let answers = measured(1, 0, 0, 1.0).rows;
        let sample = sample(&answers, 100).unwrap();
        assert!(sample.ends_with("… and 232 rows more\n"), "{sample}");
        assert!(sample.lines().all(|line| line.chars().count() <= 100));
        assert!(agreement(&answers).contains(" of the 240 rows found"));
    }
}
