//! `refrain bench`: queries under several settings, measured side by side in one process.
//!
//! | part | what it is |
//! |---|---|
//! | [`suite`] | the queries of a benchmark, each in several arms |
//! | [`measure`] | one query over a table of the user's |
//! | [`arms`] | the settings that are compared |
//! | [`tables`] | the tables of a benchmark's queries |
//! | [`limit`] | the time that arithmetic and memory alone would take |
//! | [`api_cost`] | what prompts would cost at a provider |
//! | [`quality`] | how good answers are, where the data knows |
//! | [`results`], [`report`], [`plots`] | what was measured, as lines of JSON and as pages |
//! | [`into`] | tables of results inside of other pages |
//! | [`prompts`], [`export`] | the prompts of a query as files, for other engines |
//! | `fetch` | tables from public addresses; feature `fetch` |

mod api_cost;
mod arms;
mod export;
#[cfg(feature = "fetch")]
mod fetch;
mod into;
mod limit;
mod measure;
mod plots;
mod prompts;
mod quality;
mod report;
mod results;
mod suite;
mod tables;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use self::export::ExportArgs;
#[cfg(feature = "fetch")]
use self::fetch::FetchArgs;
use self::measure::MeasureArgs;
use self::suite::SuiteArgs;
use super::error::{Failure, Outcome};
use super::session::Session;

/// Options of `refrain bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BenchArgs {
    /// A benchmark of several queries, or what to do with one.
    #[command(subcommand)]
    what: Option<What>,

    #[command(flatten)]
    one: Option<MeasureArgs>,
}

/// What `refrain bench` does besides measuring one query.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Some queries of each kind on few rows, in minutes
    Quick(SuiteArgs),
    /// The sixteen queries of "Optimizing LLM Queries in Relational Data Analytics Workloads"
    LlmSql(SuiteArgs),
    /// The ten queries of SemBench's Movie scenario
    SembenchMovie(SuiteArgs),
    /// What prompts would cost at providers that discount what their cache holds
    ApiCost(SuiteArgs),
    /// Answers of each arm beside labels; needs the real tables
    Quality(SuiteArgs),
    /// The 22 queries of TPC-H, which ask no model
    Tpch(SuiteArgs),
    /// Write the prompts of a query as tokens, for another engine
    Export(ExportArgs),
    /// Bring tables of the paper from their public addresses
    #[cfg(feature = "fetch")]
    Fetch(FetchArgs),
    /// Make the report of a folder of results again, or the tables of results in another page
    Report {
        /// The folder
        #[arg(required_unless_present = "into")]
        folder: Option<PathBuf>,

        /// Make the tables of results in this page anew: what stands between `<!-- FOLDER: WHAT -->` and `<!-- end -->`
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
    },
}

/// Measures what the command line asks for.
pub(crate) async fn run(session: &mut Session, args: &BenchArgs) -> Outcome<()> {
    match (&args.what, &args.one) {
        (Some(What::Quick(args)), _) => suite::run(session, &suite::QUICK, args).await,
        (Some(What::LlmSql(args)), _) => suite::run(session, &suite::LLM_SQL, args).await,
        (Some(What::SembenchMovie(args)), _) => suite::run(session, &suite::SEMBENCH_MOVIE, args).await,
        (Some(What::ApiCost(args)), _) => suite::run(session, &suite::API_COST, args).await,
        (Some(What::Quality(args)), _) => suite::run(session, &suite::QUALITY, args).await,
        (Some(What::Tpch(args)), _) => suite::run(session, &suite::TPC_H, args).await,
        (Some(What::Export(args)), _) => export::run(session, args).await,
        #[cfg(feature = "fetch")]
        (Some(What::Fetch(args)), _) => fetch::run(session, args).await,
        (Some(What::Report { folder, into }), _) => {
            into.iter().try_for_each(|page| into::run(session, page))?;
            folder.iter().try_for_each(|folder| report::rewrite(session, folder))
        }
        (None, Some(one)) => measure::run(session, one).await,
        (None, None) => Err(Failure::usage("name a benchmark (`refrain bench quick`) or a table (--table FILE)")),
    }
}

/// Reads a number above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}
