//! `refrain bench fetch`: tables of the paper from their public addresses.

use std::path::PathBuf;

use refrain_datasets::catalogue::{Dataset, Download, dataset, datasets};
use refrain_datasets::fetch::{FetchError, FetchOptions, Progress, fetch};

use super::super::error::{Failure, Outcome, complain};
use super::super::numbers::bytes;
use super::super::session::Session;

/// Bytes between two lines of progress.
const STEP_BYTES: u64 = 4 << 20;

/// Options of `refrain bench fetch`.
#[derive(Debug, clap::Args)]
pub(super) struct FetchArgs {
    /// Tables, by name; all that can be fetched if left out
    names: Vec<String>,

    /// The folder to put them in, for `--data` or REFRAIN_DATA
    #[arg(long, value_name = "DIR", default_value = "data")]
    out: PathBuf,
}

/// Fetches the tables that are wanted, one after the other. What is there and whole is left as it is.
pub(super) async fn run(session: &mut Session, args: &FetchArgs) -> Outcome<()> {
    for (table, download) in wanted(&args.names)? {
        session.notice(&format!("{}: {}", table.name, download.url));
        let quiet = session.view.quiet;
        let mut told = 0;
        let mut tell = |progress: Progress| {
            if !quiet && progress.received >= told + STEP_BYTES {
                told = progress.received;
                complain(&format!("{}: {}", table.name, arrived(progress)));
            }
        };
        let file = session.interrupts.race(fetch(&download, &args.out, &FetchOptions::default(), &mut tell)).await?;
        session.print(&file.map_err(failed)?.display().to_string())?;
    }
    Ok(())
}

/// Returns the tables of these names with where each is published. Fails for a name that the catalogue does not have, and for a table that
/// is no file at any address.
fn wanted(names: &[String]) -> Outcome<Vec<(&'static Dataset, Download)>> {
    let all = || datasets().iter().filter_map(|table| Some((table, table.download?)));
    if names.is_empty() {
        return Ok(all().collect());
    }
    let known = || all().map(|(table, _)| table.name).collect::<Vec<_>>().join(", ");
    let find = |name: &String| match dataset(name) {
        None => Err(Failure::usage(format!("the catalogue has no table {name}; those that can be fetched are {}", known()))),
        Some(table) => table.download.map(|download| (table, download)).ok_or_else(|| {
            let sources = table.sources.join(", ");
            Failure::usage(format!("{name} is published as no one file ({sources}); tables to fetch are {}", known()))
        }),
    };
    names.iter().map(find).collect()
}

/// Says how much of a file is there.
fn arrived(progress: Progress) -> String {
    let Progress { received, total } = progress;
    total.map_or_else(|| bytes(received), |total| format!("{} of {}", bytes(received), bytes(total)))
}

fn failed(error: FetchError) -> Failure {
    Failure::usage(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_all_that_have_an_address_or_those_named() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            wanted(&names).map(|tables| tables.into_iter().map(|(table, _)| table.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["movies", "products", "bird", "pdmx", "beer"]);
        assert_eq!(names(&["beer", "movies"]).unwrap(), ["beer", "movies"]);
        assert!(names(&["wine"]).unwrap_err().to_string().contains("can be fetched are movies, "));
        assert!(names(&["fever_rag"]).unwrap_err().to_string().contains("published as no one file"));
    }

    #[test]
    fn progress_names_the_whole_where_it_is_known() {
        let known = arrived(Progress { received: 5 << 20, total: Some(10 << 20) });
        assert_eq!(known, format!("{} of {}", bytes(5 << 20), bytes(10 << 20)));
        assert_eq!(arrived(Progress { received: 7, total: None }), bytes(7));
    }
}
