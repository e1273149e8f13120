//! What EXPLAIN expects of a query beside what the engine on the CPU then does, with the bundled model.

use std::path::Path;

use refrain::Refrain;

use crate::support::{real_table, rows};

/// Runs a query in a session of its own, over the table that `create` makes, and compares the tokens that were computed with those
/// that EXPLAIN expected, operator by operator. A session that has asked before may hold the beginning of a prompt already.
async fn check(create: &str, query: &str) {
    let db = &Refrain::builder().build().await.unwrap();
    for statement in create.split(';') {
        rows(db, statement).await.unwrap();
    }
    let plan = rows(db, &format!("explain (analyze, format json) {query}")).await.unwrap().join("\n");
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let mut operators = vec![];
    collect(&plan, &mut operators);
    assert!(!operators.is_empty(), "{plan}");
    for calls in operators {
        let sum = |of: &str, name: &str| calls.iter().map(|call| call[of][name].as_f64().unwrap()).sum::<f64>();
        for name in ["distinct", "prompt_tokens"] {
            assert_eq!(sum("estimate", name), sum("actual", name), "{name} of {calls:#?}");
        }
        // Of calls that run together, any may be the one that computes what their heads have in common.
        let (estimated, actual) = (sum("estimate", "computed_tokens"), sum("actual", "computed_tokens"));
        assert!((estimated - actual).abs() <= 0.05 * actual, "{estimated} tokens expected, {actual} computed: {calls:#?}");
    }
}

/// Collects the calls of each operator.
fn collect<'a>(plan: &'a serde_json::Value, operators: &mut Vec<&'a Vec<serde_json::Value>>) {
    operators.extend(plan["calls"].as_array());
    plan["children"].as_array().into_iter().flatten().for_each(|child| collect(child, operators));
}

#[tokio::test]
async fn computed_tokens_are_those_expected() {
    let create = "create table r as select 'review number ' || value as review, 'film ' || (value % 7) as film, \
                  'the long description of film ' || (value % 7) || ', which all its reviews repeat' as info \
                  from generate_series(1, 60)";
    check(create, "select ai_filter('Is the review positive?', review, film, info) from r").await;
    check(create, "select ai_sentiment(review), ai_classify(info, ['film', 'book']) from r").await;
    check(create, "select ai_filter('{film} is good. {review}', film, review) from r").await;
    for layout in ["data_first", "instruction_first"] {
        let create = format!("{create}; set refrain.layout = '{layout}'");
        check(&create, "select ai_sentiment(info), ai_filter('Is it a film?', info), ai_classify(info, ['a', 'b']) from r")
            .await;
    }
}

/// The solver's count of computed tokens is that of the engine, to the token, where neighbours share most: in an order as stored the
/// tokens that a row shares with one long before it may be gone.
#[tokio::test]
async fn the_solver_counts_what_the_engine_computes() {
    let create = "create table r as select 'review number ' || value as review, 'film ' || (value % 7) as film, \
                  date '2024-01-01' + cast(value % 11 as int) as day, value % 3 as stars, \
                  ['the same passage ' || (value % 5), 'passage ' || (value % 4), 'passage ' || (value % 9)] as found \
                  from generate_series(1, 80)";
    for strategy in ["rows", "search", "tree", "ggr", "auto"] {
        for inputs in ["review, film, day, stars", "film, day", "stars, passages => found"] {
            let db = &Refrain::builder().setting("reorder", strategy).build().await.unwrap();
            rows(db, create).await.unwrap();
            let query = format!("select ai_filter('Is the film good?', {inputs}) from r");
            let plan = rows(db, &format!("explain (analyze, format json) {query}")).await.unwrap().join("\n");
            let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
            let mut operators = vec![];
            collect(&plan, &mut operators);
            let [[call]] = operators.iter().map(|calls| calls.as_slice()).collect::<Vec<_>>()[..] else { panic!("{plan}") };
            assert_eq!(
                call["estimate"]["computed_tokens"], call["actual"]["computed_tokens"],
                "{strategy}, {inputs}: {call:#}"
            );
        }
    }
}

#[tokio::test]
async fn computed_tokens_of_real_tables_are_those_expected() {
    let tables = [
        ("movies", "ai_filter('Is it suitable for kids?', reviewcontent, movietitle, movieinfo, genres)"),
        ("beer", "ai_filter('Is the beer European?', \"beer/name\", \"beer/style\")"),
    ];
    for (name, call) in tables {
        let Some(path) = real_table(name) else {
            println!("skipped: there is no table {name} in REFRAIN_DATA or shared/data");
            continue;
        };
        let query = format!("select {call} from (select * from '{}' limit 60)", shown(&path));
        check("select 1", &query).await;
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string().replace('\'', "''")
}
