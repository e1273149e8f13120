//! Joins that ask each row which of a few values match: the same rows where the model agrees with itself, fewer calls, and only where
//! weaker answers are allowed.

use refrain::Refrain;
use refrain::serving::mock::{MockBackend, MockReply};
use serde_json::Value;

use crate::support::{Oracle, rows, session_with};

const ALLOWED: &[(&str, &str)] = &[("optimization_mode", "minimize_cost")];
const TOPICS: [&str; 4] = ["price", "taste", "smell", "\"look\" of it"];

/// A topic belongs to a review that holds its word, whichever way that is asked. Reviews that hold `FAIL` fail.
fn reply(prompt: &str) -> Option<MockReply> {
    let (question, data) = prompt.rsplit_once("Given the following data:\n")?;
    let data: Value = serde_json::Deserializer::from_str(data).into_iter().next()?.ok()?;
    let review = data["review"].as_str().unwrap_or("");
    if review.contains("FAIL") {
        return Some(MockReply::text("nonsense"));
    }
    if let Some((_, values)) = question.split_once("Values of `topic`:\n") {
        let values: Vec<String> = serde_json::Deserializer::from_str(values).into_iter().next()?.ok()?;
        let named: Vec<String> = values.into_iter().filter(|topic| review.contains(topic.as_str())).collect();
        return Some(MockReply::text(Value::from(named).to_string()));
    }
    let topic = data["topic"].as_str()?;
    Some(MockReply::text(if review.contains(topic) { "Yes" } else { "No" }))
}

/// Eighty reviews of 36 texts, some of them NULL, and nine rows of four topics, in three shops.
async fn tables(settings: &[(&str, &str)]) -> (Refrain, Oracle) {
    let (db, oracle) = session_with(settings, MockBackend::new(1).answer(reply)).await;
    let text = |n: usize| match n % 40 {
        n if n % 10 == 9 => "null".to_owned(),
        n => format!("'the {} and the {}, number {n}'", TOPICS[n % 4], TOPICS[(n * n + 1) % 4]),
    };
    let reviews: Vec<String> = (0..80).map(|n| format!("({n}, {}, {})", n % 3, text(n))).collect();
    let topics: Vec<String> = (0..9).map(|n| format!("({}, {}, '{}')", 100 + n, n % 3, TOPICS[n % 4])).collect();
    rows(&db, &format!("create table r as select * from (values {}) as v(i, shop, review)", reviews.join(", ")))
        .await
        .unwrap();
    rows(&db, &format!("create table t as select * from (values {}) as v(j, shop, topic)", topics.join(", ")))
        .await
        .unwrap();
    (db, oracle)
}

/// Answers of a query, sorted, and what it asked.
async fn run(settings: &[(&str, &str)], query: &str) -> (Vec<String>, usize) {
    let (db, oracle) = tables(settings).await;
    let mut answer = rows(&db, query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    answer.sort();
    (answer, oracle.calls())
}

const ASKS: &str = "ai_filter('Is the review about the topic?', r.review, t.topic)";

#[tokio::test]
async fn rows_are_asked_once_and_agree_with_pairs() {
    for (query, pairs) in [
        (format!("select i, j from r join t on {ASKS}"), 140),
        (format!("select i, j from t join r on {ASKS}"), 140),
        (format!("select i, j from r, t where {ASKS}"), 140),
        (format!("select i, j from r left join t on {ASKS}"), 140),
        (format!("select i, j from t right join r on {ASKS}"), 140),
        (format!("select i from r where exists (select 1 from t where {ASKS})"), 37),
        (format!("select i from r left semi join t on {ASKS}"), 37),
        (format!("select i, j from r join t on r.i < t.j and {ASKS}"), 140),
    ] {
        let (expected, calls) = run(&[], &query).await;
        assert!(calls >= pairs, "{calls} calls of {query}");
        let (answer, calls) = run(ALLOWED, &query).await;
        assert_eq!(answer, expected, "{query}");
        assert_eq!(calls, 36, "{query}");
        let off = [ALLOWED, &[("disabled_rewrites", "classify_join")]].concat();
        let (answer, calls) = run(&off, &query).await;
        assert!(answer == expected && calls >= pairs, "{calls} calls of {query}");
    }
}

#[tokio::test]
async fn a_template_asks_with_the_names_of_its_values() {
    let template = "select i, j from r join t on ai_filter(prompt('Is {0} about {1}?', r.review, t.topic))";
    let (db, oracle) = tables(ALLOWED).await;
    let mut answer = rows(&db, template).await.unwrap();
    answer.sort();
    assert_eq!(answer, run(ALLOWED, &format!("select i, j from r join t on {ASKS}")).await.0);
    assert!(oracle.prompts()[0].contains("Is `review` about `topic`?\nThe question is asked"), "{}", oracle.prompts()[0]);
}

#[tokio::test]
async fn only_candidates_match() {
    let query = format!("select i, j from r join t on r.shop = t.shop and r.i + 70 > t.j and {ASKS}");
    let (expected, _) = run(&[], &query).await;
    let (answer, calls) = run(&[ALLOWED, &[("max_join_pairs", "3")]].concat(), &query).await;
    assert_eq!((answer, calls), (expected, 36), "no pair is asked about");
}

#[tokio::test]
async fn a_limit_stops_it() {
    let (answer, calls) = run(ALLOWED, &format!("select i, j from r join t on {ASKS} limit 2")).await;
    assert_eq!(answer.len(), 2);
    assert!(calls <= 4, "{calls} calls");
}

#[tokio::test]
async fn a_row_that_fails_matches_nothing_and_is_counted() {
    let (db, _oracle) = tables(ALLOWED).await;
    rows(&db, "insert into r values (150, 0, 'the price, FAIL')").await.unwrap();
    let answer = rows(&db, &format!("select i, j from r left join t on {ASKS} where i >= 148")).await.unwrap();
    assert_eq!(answer, ["150|NULL"]);
    let usage = rows(&db, "select function, errors from ai_usage() where errors > 0").await.unwrap();
    assert_eq!(usage, ["ai_filter|1"]);
}

async fn explained(settings: &[(&str, &str)], query: &str) -> String {
    let (db, oracle) = tables(settings).await;
    let plan = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
    assert_eq!(oracle.calls(), 0);
    plan
}

#[tokio::test]
async fn explain_names_it() {
    let query = format!("select i, j from r join t on {ASKS}");
    let asks = "ai_classify('Is the review about the topic?', topic of [\"price\",\"taste\",\"smell\",\"\\\"look\\\" of it\"], \
                fields=[review]) for each row of the left input";
    let plan = explained(ALLOWED, &query).await;
    for expected in
        [", may classify", &format!("asks {asks}"), "rows=72 distinct=36 calls≤36", "rewrites: dedup, classify_join"]
    {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
    let (db, oracle) = tables(ALLOWED).await;
    let plan = rows(&db, &format!("explain analyze {query}")).await.unwrap().join("\n");
    assert!(
        plan.contains(&format!("asks {asks}")) && plan.contains("candidates=720,") && plan.contains("pairs=0,"),
        "{plan}"
    );
    assert!(plan.contains("actual: rows=72 distinct=36 calls=36"), "{plan}");
    assert_eq!(oracle.calls(), 36);
    // A sample asks what the query would ask.
    rows(&db, &format!("explain (sample 4) {}", query.replace("the review", "it"))).await.unwrap();
    assert_eq!(oracle.calls(), 40);
    assert!(oracle.prompts().last().unwrap().contains("Values of `topic`"));
}

#[tokio::test]
async fn explain_says_why_not() {
    let join = |table: &str, input: &str| {
        let topics = table.replace("t:", "(select topic || value as topic from t, generate_series(1, 20) g(value)) as t");
        format!("select i from r join {topics} on ai_filter('Is the review about the topic?', r.review, {input})")
    };
    let long = "(select 'a topic ' || repeat('of many words ', 20) || j as topic from t) as t";
    for (settings, query, reason) in [
        (
            &[][..],
            join("t", "t.topic"),
            "fields=[review]) for each row of the left input; needs refrain.optimization_mode = 'minimize_cost'",
        ),
        (ALLOWED, join("t:", "t.topic"), "topic has more than 32 values"),
        (ALLOWED, join("t", "t.topic, t.j"), "a side gives several inputs, topic, j"),
        (ALLOWED, join(long, "t.topic"), "tokens, and an answer has at most max_tokens = 256"),
        (ALLOWED, join("t", "t.topic) and ai_filter('new', r.review, t.j"), "the condition is more than one AI predicate"),
        (ALLOWED, join("t", "t.topic, temperature => 1"), "answers are drawn"),
        (ALLOWED, join("t", "t.topic) and (r.i = t.j - 100"), "a row has fewer than two pairs"),
        (
            ALLOWED,
            format!("select i from r where not exists (select 1 from t where {ASKS})"),
            "the join looks for rows without a match",
        ),
    ] {
        let plan = explained(settings, &query).await;
        let refused = plan.split_once("refused: classify_join (").map(|(_, rest)| rest.lines().next().unwrap());
        assert!(refused.is_some_and(|refused| refused.contains(reason)), "no {reason:?} in {refused:?}\n{plan}");
    }
    // Nobody misses what could not be done anyway.
    assert!(!explained(&[], &join("t", "t.topic, t.j")).await.contains("classify_join"));
}
