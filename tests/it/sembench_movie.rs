//! How many calls the ten queries of SemBench's Movie scenario (arXiv 2511.01716) make with rewrites and without.
//!
//! The table is the public Movies table in the shape that the scenario has: 2,000 reviews with the id of their film. The model is the
//! mock, which finds a review positive by a hash of its text, so that calls can be counted without a device. Prints a table:
//! `cargo test --workspace -- sembench --nocapture`.

use refrain::Refrain;
use refrain::serving::mock::{MockBackend, MockReply};
use refrain_datasets::queries::{Query, Suite, queries};

use crate::support::{Oracle, real_table, rows, run_setup, session_with};

/// Everything off that saves calls.
const PLAIN: &[(&str, &str)] = &[("disabled_rewrites", "all"), ("dedup", "off"), ("cache", "off")];

async fn session(settings: &[(&str, &str)], table: &str) -> (Refrain, Oracle) {
    let mock = MockBackend::new(1).without_history().answer(|prompt| {
        // By the texts alone: fields may stand in any order.
        let data = prompt.rsplit_once("following data:\n")?.1.split_once("<|")?.0;
        let hash = data.bytes().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(byte).wrapping_mul(2_654_435_761)));
        let yes = (hash >> 8).is_multiple_of(2);
        prompt
            .contains("'Yes' or 'No'")
            .then(|| MockReply::text(if yes { "Yes" } else { "No" }))
            .or_else(|| prompt.contains("How positive").then(|| MockReply::text(((hash >> 8) % 5 + 1).to_string())))
    });
    let (db, oracle) = session_with(settings, mock).await;
    rows(&db, &format!("create view movies_15k as select * from '{table}'")).await.unwrap();
    (db, oracle)
}

/// Runs a query and returns its rows and the calls it made.
async fn run(settings: &[(&str, &str)], table: &str, query: &Query) -> (Vec<String>, usize) {
    let (db, oracle) = session(settings, table).await;
    let sql = run_setup(&db, query).await;
    let answers = rows(&db, &sql).await.unwrap();
    (answers, oracle.calls())
}

#[tokio::test]
async fn sembench_movie_calls() {
    let Some(table) = real_table("movies_15k") else {
        println!("skipped: there is no table movies_15k in REFRAIN_DATA or shared/data");
        return;
    };
    let table = table.display().to_string().replace('\'', "''");
    println!("| query | calls without rewrites | calls | share |\n|---|---:|---:|---:|");
    for query in queries().iter().filter(|query| query.suite == Suite::SemBenchMovie) {
        let name = query.name.trim_start_matches("sembench-movie-").to_uppercase();
        let (expected, plain) = run(PLAIN, &table, query).await;
        let (answers, calls) = run(&[], &table, query).await;
        // Which rows a LIMIT without an order takes is left open.
        match query.sql.contains("LIMIT") {
            true => assert_eq!(answers.len(), expected.len(), "{name}"),
            false => assert_eq!(answers, expected, "{name}"),
        }
        assert!(calls <= plain, "{name}: {calls} calls, {plain} without rewrites");
        println!("| {name} | {plain} | {calls} | {:.1} % |", calls as f64 / plain as f64 * 100.0);
    }
}
