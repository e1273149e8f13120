//! How many calls the ten queries of SemBench's Movie scenario (arXiv 2511.01716) make with rewrites and without.
//!
//! The table is the public Movies table in the shape that the scenario has: 2,000 reviews with the id of their film. The model is the
//! mock, which finds a review positive by a hash of its text, so that calls can be counted without a device. Prints a table:
//! `cargo test --workspace -- sembench --nocapture`.

use refrain::Refrain;
use refrain::serving::mock::{MockBackend, MockReply};

use crate::support::{Oracle, real_table, rows, session_with};

/// Rows of the scenario at its usual scale.
const REVIEWS: usize = 2000;

/// Everything off that saves calls.
const PLAIN: &[(&str, &str)] = &[("disabled_rewrites", "all"), ("dedup", "off"), ("cache", "off")];

/// Name, query, and whether which rows it gives is left open, as under a LIMIT without an order. `FILM` is one film.
const QUERIES: [(&str, &str, bool); 10] = [
    ("Q1", "select text from reviews where ai_filter('clearly positive', text) limit 5", true),
    ("Q2", "select text from reviews where id = FILM and ai_filter('clearly positive', text) limit 5", true),
    ("Q3", "select count(*) from reviews where id = FILM and ai_filter('clearly positive', text)", false),
    (
        "Q4",
        "select sum(case when ai_filter('clearly positive', text) then 1 else 0 end) * 1.0 / count(*) from reviews where id = FILM",
        false,
    ),
    (
        "Q5",
        "select a.text, b.text from reviews a join reviews b on a.id = b.id and a.n < b.n and ai_filter('same sentiment', a.text, b.text) \
         limit 10",
        true,
    ),
    (
        "Q6",
        "select a.text, b.text from reviews a join reviews b on a.id = b.id and a.n < b.n \
         and ai_filter('opposite sentiment', a.text, b.text) limit 10",
        true,
    ),
    (
        "Q7",
        "select count(*) from reviews a join reviews b on a.id = b.id and a.n < b.n and a.id = FILM \
         and ai_filter('opposite sentiment', a.text, b.text)",
        false,
    ),
    (
        "Q8",
        "select case when ai_filter('clearly positive', text) then 'positive' else 'negative' end as kind, count(*) from reviews \
         where id = FILM group by kind order by kind",
        false,
    ),
    ("Q9", "select n, ai_score('How positive?', text, min => 1, max => 5) from reviews where id = FILM order by n", false),
    (
        "Q10",
        "select id, avg(ai_score('How positive?', text, min => 1, max => 5)) as score from reviews group by id order by score desc, id",
        false,
    ),
];

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
    let create = format!(
        "create table reviews as select row_number() over () as n, movieid as id, reviewcontent as text \
         from (select * from '{table}' limit {REVIEWS})"
    );
    rows(&db, &create).await.unwrap();
    (db, oracle)
}

/// Runs a query and returns its rows and the calls it made.
async fn run(settings: &[(&str, &str)], table: &str, query: &str) -> (Vec<String>, usize) {
    let (db, oracle) = session(settings, table).await;
    let film = rows(&db, "select id from reviews group by id order by count(*) desc, id limit 1").await.unwrap();
    let answers = rows(&db, &query.replace("FILM", &film[0])).await.unwrap();
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
    for (name, query, is_open) in QUERIES {
        let (expected, plain) = run(PLAIN, &table, query).await;
        let (answers, calls) = run(&[], &table, query).await;
        match is_open {
            true => assert_eq!(answers.len(), expected.len(), "{name}"),
            false => assert_eq!(answers, expected, "{name}"),
        }
        assert!(calls <= plain, "{name}: {calls} calls, {plain} without rewrites");
        println!("| {name} | {plain} | {calls} | {:.1} % |", calls as f64 / plain as f64 * 100.0);
    }
}
