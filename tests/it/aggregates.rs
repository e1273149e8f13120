//! Aggregates over groups of any size: each input counts once, in an order that does not depend on how rows were spread.

use std::sync::Arc;

use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::common::DataFusionError;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use proptest::prelude::*;
use refrain::serving::mock::{ByteTokenizer, Gate, MockBackend, MockReply};
use refrain::serving::{Error as ServingError, RowFailure, Tokenizer};
use refrain::{Error, Refrain};
use serde_json::Value;

use crate::support::{Oracle, rows, session_with, text_rows};

/// The rows of a prompt.
fn data(prompt: &str) -> Vec<Value> {
    let Some((_, data)) = prompt.split_once("following data:\n") else { return vec![] };
    let data = data.split("<|assistant|>").next().unwrap_or(data);
    if !data.ends_with('\n') {
        return vec![];
    }
    data.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Counts and sums the numbers of its rows, and adds up such answers: `count:sum`.
fn adder(prompt: &str) -> Option<MockReply> {
    let rows = data(prompt);
    let (mut count, mut sum) = (0, 0);
    for row in &rows {
        match row.get("answer").and_then(Value::as_str).and_then(|answer| answer.split_once(':')) {
            Some((rows, part)) => {
                count += rows.parse::<u64>().unwrap();
                sum += part.parse::<u64>().unwrap();
            }
            None => {
                count += 1;
                sum += row.as_object().unwrap().values().next().unwrap().as_u64().unwrap();
            }
        }
    }
    (!rows.is_empty()).then(|| MockReply::text(format!("{count}:{sum}")))
}

/// Scores a number by itself, prefers the larger of two, and orders rows by their numbers.
fn ranker(prompt: &str) -> Option<MockReply> {
    let rows = data(prompt);
    if !rows.is_empty() {
        let mut ids: Vec<(u64, u64)> =
            rows.iter().map(|row| (row["value"].as_u64().unwrap(), row["id"].as_u64().unwrap())).collect();
        ids.sort_by_key(|(value, id)| (std::cmp::Reverse(*value), *id));
        let ids: Vec<u64> = ids.into_iter().map(|(_, id)| id).collect();
        return Some(MockReply::text(Value::from(ids).to_string()));
    }
    let (_, fields) = prompt.split_once("following data:\n")?;
    let fields: Value = serde_json::from_str(fields.split("<|assistant|>").next()?).ok()?;
    Some(MockReply::text(match (fields["A"].as_u64(), fields["B"].as_u64()) {
        (Some(a), Some(b)) => (if b > a { "B" } else { "A" }).to_string(),
        _ => format!("{}", fields.as_object()?.values().next()?.as_f64()? / 1e6),
    }))
}

async fn adding(context: usize, settings: &[(&str, &str)]) -> (Refrain, Oracle) {
    session_with(settings, MockBackend::new(1).max_context(context).answer(adder)).await
}

const NUMBERS: &str = "(select value as n, value % 7 as g from generate_series(1, 10000))";

#[tokio::test]
async fn a_group_far_longer_than_the_context_counts_each_input_once() {
    let (db, oracle) = adding(1500, &[]).await;
    let answer = rows(&db, &format!("select ai_agg(n, 'Add up') from {NUMBERS}")).await.unwrap();
    assert_eq!(answer, ["10000:50005000"]);
    assert!(oracle.calls() > 100, "{} calls", oracle.calls());
    let tokens = |prompt: &String| ByteTokenizer.encode_control(prompt).len();
    assert!(oracle.prompts().iter().all(|prompt| tokens(prompt) <= 1500 - 256), "a prompt leaves no room for its answer");
}

#[tokio::test]
async fn levels_of_all_groups_are_asked_together() {
    let (db, _) = adding(1500, &[]).await;
    let query = format!("explain analyze select g, ai_agg(n, 'Add up') from {NUMBERS} group by g");
    let plan = rows(&db, &query).await.unwrap().join("\n");
    let metric = |name: &str| -> usize {
        let shown = plan.split_once("LlmAggregateExec").unwrap().1.split_once("metrics=[").unwrap().1;
        let value = shown.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in\n{plan}")).1;
        let value = value.split([',', ']']).next().unwrap();
        value.replace(" K", "").parse::<f64>().map(|n| if value.ends_with('K') { n * 1000.0 } else { n }).unwrap() as usize
    };
    assert_eq!((metric("groups"), metric("inputs")), (7, 10_000));
    assert!((2..=4).contains(&metric("rounds")), "{} rounds", metric("rounds"));
}

#[tokio::test]
async fn answers_do_not_depend_on_partitions_batches_or_settings() {
    let query =
        format!("select g, ai_agg(n, 'Add up'), ai_agg(distinct n % 10, 'Add up') from {NUMBERS} group by g order by g");
    let (db, oracle) = adding(1500, &[]).await;
    let expected = rows(&db, &query).await.unwrap();
    let mut prompts = oracle.prompts();
    prompts.sort();
    assert_eq!(expected.len(), 7);
    for change in [
        "set datafusion.execution.target_partitions = 1",
        "set datafusion.execution.batch_size = 3",
        "set refrain.dedup = 'off'",
        "set refrain.prefix_cache = false",
    ] {
        let (db, oracle) = adding(1500, &[]).await;
        rows(&db, change).await.unwrap();
        assert_eq!(rows(&db, &query).await.unwrap(), expected, "{change}");
        let mut again = oracle.prompts();
        again.sort();
        if !change.contains("dedup") {
            assert_eq!(again, prompts, "{change}");
        }
    }
}

#[tokio::test]
async fn equal_groups_are_asked_once() {
    let (db, oracle) = adding(30_000, &[]).await;
    let query = "select g, ai_agg(n, 'Add up') from (select value % 5 as g, value / 5 as n from generate_series(0, 49)) group by g order by g";
    let answer = rows(&db, query).await.unwrap();
    assert_eq!(answer[0], "0|10:45");
    assert_eq!((answer.len(), oracle.calls()), (5, 1));
}

#[tokio::test]
async fn one_list_serves_several_aggregates() {
    let (db, _) = adding(30_000, &[]).await;
    let query = "explain select ai_agg(value, 'Add up'), ai_agg(value, 'Add them'), ai_top_k(value, 'large', 3) from generate_series(1, 9)";
    let plan = rows(&db, query).await.unwrap().join("\n");
    let logical = plan.split("physical_plan").next().unwrap();
    assert_eq!(logical.matches("array_agg(").count(), 1, "{plan}");
}

#[tokio::test]
async fn an_ordered_group_keeps_its_order_over_chunks() {
    // The answer of a chunk is its first and last number; a combination takes the first of the first and the last of the last.
    let ends = |prompt: &str| {
        let rows = data(prompt);
        let text = |row: &Value| match row.get("answer").and_then(Value::as_str) {
            Some(answer) => answer.to_string(),
            None => format!("{0}-{0}", row["i"]),
        };
        let (first, last) = (text(rows.first()?), text(rows.last()?));
        Some(MockReply::text(format!("{}-{}", first.split('-').next()?, last.split('-').next_back()?)))
    };
    let (db, oracle) = session_with(&[], MockBackend::new(1).max_context(1500).answer(ends)).await;
    let rows_of = "(select value as i from generate_series(1, 3000))";
    let ordered = rows(&db, &format!("select ai_agg(i, 'Ends' order by i desc) from {rows_of}")).await.unwrap();
    assert_eq!(ordered, ["3000-1"]);
    assert!(oracle.calls() > 20);
}

#[tokio::test]
async fn overflow_error_fails_a_group_of_several_chunks() {
    let (db, oracle) = adding(1500, &[]).await;
    let query = "select g, ai_agg(n, 'Add up', overflow => 'error') from \
        (select case when value <= 10 then 1 else 2 end as g, value as n from generate_series(1, 1000)) group by g order by g";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    run.fetch_all().await.unwrap();
    assert_eq!((run.usage().errors.get("overflow"), oracle.calls()), (Some(&1), 1));
    let errors = run.row_errors();
    assert_eq!((errors[0].function.as_str(), errors[0].inputs.as_str()), ("ai_agg", "a group of 990 inputs"));
    assert!(errors[0].message.contains("overflow => 'hierarchical'"), "{}", errors[0].message);
}

#[tokio::test]
async fn an_input_longer_than_the_context_is_left_out_or_cut() {
    let reply = |prompt: &str| Some(MockReply::text(data(prompt).len().to_string()));
    let texts =
        "(select case when value = 3 then repeat('long ', 1000) else 'text ' || value end as s from generate_series(1, 5))";
    for (option, expected, failed) in [("", "4", 1), (", on_overflow => 'truncate'", "2", 0)] {
        let (db, oracle) = session_with(&[], MockBackend::new(1).max_context(1500).answer(reply)).await;
        let mut run =
            db.sql(&format!("select ai_agg(s, 'Count'{option}) from {texts}")).await.unwrap().execute().await.unwrap();
        let batches = run.fetch_all().await.unwrap();
        assert_eq!(run.usage().failed_rows, failed);
        let shown: usize = oracle.prompts().iter().map(|prompt| prompt.matches("text ").count()).sum();
        assert_eq!(shown, 4, "the others are shown once");
        let answer = batches[0].column(0);
        let answer = datafusion::arrow::util::display::array_value_to_string(answer, 0).unwrap();
        assert_eq!(answer, expected, "{option}");
    }
    let (db, _) = session_with(&[], MockBackend::new(1).max_context(1500).answer(reply)).await;
    let error = rows(&db, &format!("select ai_agg(s, 'Count', on_error => 'fail') from {texts}")).await.unwrap_err();
    assert!(error.to_string().contains("ai_agg failed for a group (overflow)"), "{error}");
}

#[tokio::test]
async fn answers_too_long_to_be_combined_fail_the_group() {
    let long = |prompt: &str| (!data(prompt).is_empty()).then(|| MockReply::text("long ".repeat(200)));
    let (db, _) = session_with(&[], MockBackend::new(1).max_context(1500).answer(long)).await;
    let query = "select ai_agg(value, 'Tell', max_tokens => 1000) from generate_series(1, 1000)";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    run.fetch_all().await.unwrap();
    assert_eq!(run.usage().errors.get("overflow"), Some(&1));
    assert!(run.row_errors()[0].message.contains("lower max_tokens"), "{}", run.row_errors()[0].message);
}

#[tokio::test]
async fn one_failed_part_fails_its_group_alone() {
    let reply = |prompt: &str| {
        let fails = data(prompt).iter().any(|row| row.get("n").and_then(Value::as_u64) == Some(5000));
        if fails { Some(MockReply::Fail(RowFailure::Refused("no".to_owned()))) } else { adder(prompt) }
    };
    let (db, _) = session_with(&[], MockBackend::new(1).max_context(1500).answer(reply)).await;
    let query = format!("select g, ai_agg(n, 'Add up') is null from {NUMBERS} group by g order by g");
    let answer = rows(&db, &query).await.unwrap();
    assert_eq!(answer.iter().filter(|row| row.ends_with("true")).collect::<Vec<_>>(), [&format!("{}|true", 5000 % 7)]);
}

#[tokio::test]
async fn every_method_finds_the_best() {
    for method in ["score", "pairwise", "listwise"] {
        let (db, oracle) = session_with(&[], MockBackend::new(1).answer(ranker)).await;
        let query = format!(
            "select g, ai_top_k(n, 'The largest', 3, method => '{method}') from \
             (select value % 2 as g, (value * 617) % 1009 as n from generate_series(1, 200)) group by g order by g"
        );
        let answer = rows(&db, &query).await.unwrap();
        let expected = "select g, array_agg(named_struct('value', n, 'rank', r) order by r) from (select g, n, row_number() over (partition by g order by n desc) r \
             from (select value % 2 as g, (value * 617) % 1009 as n from generate_series(1, 200))) where r <= 3 group by g order by g";
        assert_eq!(answer, rows(&db, expected).await.unwrap(), "{method}");
        let most = match method {
            "score" => 200,
            "pairwise" => 1000,
            _ => 40,
        };
        assert!(oracle.calls() <= most, "{method}: {} calls", oracle.calls());
    }
}

#[tokio::test]
async fn scores_are_shared_with_ai_score() {
    let (db, oracle) = session_with(&[("cache", "session")], MockBackend::new(1).answer(ranker)).await;
    rows(&db, "create table r as select value as n from generate_series(1, 20)").await.unwrap();
    rows(&db, "select max(ai_score('The largest', n)) from r").await.unwrap();
    let best = rows(&db, "select ai_top_k(n, 'The largest', 2) from r").await.unwrap();
    assert_eq!(best, ["[{value: 20, rank: 1}, {value: 19, rank: 2}]"]);
    assert_eq!(oracle.calls(), 20);
}

#[tokio::test]
async fn equal_values_are_ranked_once_and_listed_as_often_as_they_occur() {
    for method in ["score", "pairwise", "listwise"] {
        let (db, _) = session_with(&[], MockBackend::new(1).answer(ranker)).await;
        let values = "(values (7), (7), (9), (1)) as v(n)";
        let all = rows(&db, &format!("select ai_top_k(n, 'large', 3, method => '{method}') from {values}")).await.unwrap();
        assert_eq!(all, ["[{value: 9, rank: 1}, {value: 7, rank: 2}, {value: 7, rank: 3}]"], "{method}");
        let query = format!("select ai_top_k(distinct n, 'large', 3, method => '{method}') from {values}");
        let distinct = rows(&db, &query).await.unwrap();
        assert_eq!(distinct, ["[{value: 9, rank: 1}, {value: 7, rank: 2}, {value: 1, rank: 3}]"], "{method}");
    }
}

#[tokio::test]
async fn explain_estimates_and_asks_nobody() {
    let mock = MockBackend::new(1)
        .max_context(1500)
        .answer(|_| Some(MockReply::Error(ServingError::Device("nobody may ask".to_owned()))));
    let (db, oracle) = session_with(&[], mock).await;
    rows(&db, "create table r as select value % 3 as g, value as n from generate_series(1, 900)").await.unwrap();
    let query = "select g, ai_agg(n, 'Add up', max_tokens => 50), ai_top_k(n, 'large', 3) from r group by g";
    let plan = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
    for expected in [
        "LlmAggregateExec: ai_agg('Add up', fields=[n]) model=mock",
        "groups=3 inputs=900 chunks=",
        "calls≈",
        "chunks=900 calls≈900",
    ] {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
    let query = db.sql(query).await.unwrap();
    assert_eq!(query.estimate().await.unwrap().calls.len(), 2);
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn answers_that_were_seen_make_estimates_better() {
    let words = |_: &str| Some(MockReply::text("four words and more"));
    let (db, oracle) = session_with(&[], MockBackend::new(1).max_context(1500).answer(words)).await;
    rows(&db, "create table r as select value % 3 as g, value as n from generate_series(1, 900)").await.unwrap();
    let query = "select g, ai_agg(n, 'Add up', max_tokens => 200) from r group by g";
    let estimate = async |explain: &str| {
        let plan = rows(&db, &format!("explain ({explain}format json) {query}")).await.unwrap().join("\n");
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        fn aggregate(plan: &serde_json::Value) -> Option<&serde_json::Value> {
            let children = || plan["children"].as_array().into_iter().flatten();
            plan["aggregates"].get(0).or_else(|| children().find_map(aggregate))
        }
        aggregate(&plan).unwrap()["estimate"].clone()
    };
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let guessed = estimate("").await;
    assert_eq!((&guessed["output_basis"], oracle.calls()), (&"at most".into(), 0));
    assert_eq!(number(&guessed["output_tokens"]), number(&guessed["calls"]) * 200);
    // Three of the questions of the first round; an answer has 19 or 20 tokens of the mock's.
    let sampled = estimate("sample 3, ").await;
    assert_eq!((&sampled["output_basis"], oracle.calls()), (&"sampled".into(), 3));
    assert!(number(&sampled["output_tokens"]) < number(&guessed["output_tokens"]) / 5, "{sampled}");
    assert!(
        number(&sampled["calls"]) <= number(&guessed["calls"]),
        "shorter answers are combined by fewer calls: {sampled}"
    );
    assert!(sampled["output_interval"]["low"].as_f64() <= sampled["output_tokens"].as_f64(), "{sampled}");
    let (fresh, fresh_oracle) = session_with(&[], MockBackend::new(1).max_context(1500).answer(words)).await;
    rows(&fresh, "create table r as select value % 3 as g, value as n from generate_series(1, 900)").await.unwrap();
    rows(&fresh, query).await.unwrap();
    let asked = fresh_oracle.calls() as u64;
    let plan = rows(&fresh, &format!("explain {query}")).await.unwrap().join("\n");
    assert!(plan.contains("tok (from an earlier run)"), "{plan}");
    let expected: u64 = plan.split_once("calls≈").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    // The three combinations are one question here, since all answers are equal.
    assert_eq!(expected, asked + 2, "{plan}");
    assert_eq!(fresh_oracle.calls() as u64, asked);
    rows(&db, "set refrain.max_calls = 1").await.unwrap();
    let error = rows(&db, "explain (sample 3) select ai_summarize_agg('x' || n) from r group by g").await.unwrap_err();
    assert!(error.to_string().contains("refrain.max_calls"), "{error}");
}

#[tokio::test]
async fn a_group_that_having_drops_is_not_asked_about() {
    let (db, oracle) = adding(30_000, &[]).await;
    rows(&db, "create table r as select case when value = 1 then 0 else value % 4 end as g, value as n from generate_series(1, 22)").await.unwrap();
    let query = "select g, ai_agg(n, 'Add up') from r group by g having count(*) > 5 order by g";
    assert_eq!(rows(&db, query).await.unwrap(), ["0|6:61", "2|6:72"]);
    assert_eq!(oracle.calls(), 2);
}

#[tokio::test]
async fn a_limit_asks_about_its_groups_alone() {
    let (db, oracle) = adding(30_000, &[]).await;
    rows(&db, "create table r as select value % 10 as g, value as n from generate_series(1, 100)").await.unwrap();
    let answer = rows(&db, "select g, ai_agg(n, 'Add up') from r group by g order by g limit 2").await.unwrap();
    assert_eq!(answer, ["0|10:550", "1|10:460"]);
    assert_eq!(oracle.calls(), 2);
}

#[tokio::test]
async fn the_largest_groups_are_found_before_they_are_asked_about() {
    let (db, oracle) = adding(30_000, &[]).await;
    rows(&db, "create table r as select case when value < 60 then value % 2 else value % 20 end as g, value as n from generate_series(0, 99)").await.unwrap();
    let query = "select g, ai_agg(n, 'Add up') as total, count(*) as c from r group by g order by c desc, g limit 2";
    let answer = rows(&db, query).await.unwrap();
    assert_eq!(answer, ["0|32:1010|32", "1|32:1042|32"]);
    assert_eq!(oracle.calls(), 2);
}

#[tokio::test]
async fn budgets_hold_and_what_was_paid_for_is_kept() {
    let (db, oracle) = adding(1500, &[("max_calls", "20"), ("cache", "session")]).await;
    let query = format!("select ai_agg(n, 'Add up') from {NUMBERS}");
    let error = rows(&db, &query).await.unwrap_err();
    assert!(matches!(&error, Error::Budget { which, .. } if which == "refrain.max_calls"), "{error}");
    assert_eq!(oracle.calls(), 20);
    rows(&db, "set refrain.max_calls = 0").await.unwrap();
    assert_eq!(rows(&db, &query).await.unwrap(), ["10000:50005000"]);
    let calls = oracle.calls();
    assert_eq!(rows(&db, &query).await.unwrap(), ["10000:50005000"]);
    assert_eq!(oracle.calls(), calls, "every answer is known");
}

#[tokio::test]
async fn dropping_the_rows_cancels_the_calls() {
    let gate = Gate::new();
    let held = {
        let gate = gate.clone();
        move |_: &str| Some(MockReply::text("late").after(&gate))
    };
    let (db, oracle) = session_with(&[], MockBackend::new(1).answer(held)).await;
    let query = "select g, ai_agg(n, 'p') from (select value as g, value as n from generate_series(1, 50)) group by g";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    let polled = tokio::select! {
        row = futures::StreamExt::next(&mut run) => row.is_some(),
        () = oracle.0.wait_for_calls(50) => false,
    };
    assert!(!polled, "rows before any answer");
    drop(run);
    oracle.0.wait_until_idle().await;
}

#[tokio::test]
async fn usage_counts_questions() {
    let (db, _) = adding(30_000, &[]).await;
    let mut run = db
        .sql(&format!("select g, ai_agg(n % 10, 'Add up') from {NUMBERS} group by g"))
        .await
        .unwrap()
        .execute()
        .await
        .unwrap();
    run.fetch_all().await.unwrap();
    let usage = run.usage();
    assert_eq!(usage.rows, usage.distinct + usage.dedup_saved);
    assert_eq!(usage.calls, usage.distinct);
    let mut run = db
        .sql("select function, rows from ai_usage() order by started_at desc limit 1")
        .await
        .unwrap()
        .execute()
        .await
        .unwrap();
    let batches = run.fetch_all().await.unwrap();
    let function = datafusion::arrow::util::display::array_value_to_string(batches[0].column(0), 0).unwrap();
    assert_eq!(function, "ai_agg");
}

/// A task of the session with little memory.
fn task(db: &Refrain, bytes: usize) -> Arc<TaskContext> {
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes))).build_arc().unwrap();
    let state = SessionStateBuilder::new_from_existing(db.context().state()).with_runtime_env(runtime).build();
    SessionContext::new_with_state(state).task_ctx()
}

/// Returns the input of the operator that reduces lists.
fn lists_of(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let below = |plan: &Arc<dyn ExecutionPlan>| plan.children().into_iter().next().map(Arc::clone);
    match plan.name() {
        "LlmAggregateExec" => below(plan),
        _ => plan.children().into_iter().find_map(lists_of),
    }
}

/// Gathers the lists of a query with all the memory there is, and runs the rest of it with so many bytes.
async fn with_memory(db: &Refrain, query: &str, bytes: usize) -> Result<Vec<String>, DataFusionError> {
    let plan = refrain::sql(db.context(), query).await.unwrap().create_physical_plan().await.unwrap();
    let below = lists_of(&plan).unwrap();
    let lists = collect(Arc::clone(&below), db.context().task_ctx()).await.unwrap();
    let lists: Arc<dyn ExecutionPlan> = MemorySourceConfig::try_new_exec(&[lists], below.schema(), None).unwrap();
    let over_lists = plan.transform_up(|node| {
        if node.name() != "LlmAggregateExec" {
            return Ok(Transformed::no(node));
        }
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Ok(Transformed::yes(node.replace_children(vec![Arc::clone(&lists)], options)?))
    });
    let plan = over_lists.unwrap().data;
    Ok(collect(plan, task(db, bytes)).await?.iter().flat_map(text_rows).collect())
}

#[tokio::test]
async fn memory_is_charged_and_its_end_is_an_error() {
    let (db, oracle) = adding(30_000, &[]).await;
    let query = "select ai_agg(pad, 'p') from (select repeat('pad', 100) || value as pad from generate_series(1, 5000))";
    let error = with_memory(&db, query, 1_000_000).await.unwrap_err().to_string();
    assert!(error.contains("Resources exhausted") && error.contains("one group of ai_agg must fit into memory"), "{error}");
    assert_eq!(oracle.calls(), 0);
}

/// Of a batch of groups a part fits, and numbers are longer as text than they were before.
#[tokio::test]
async fn groups_are_worked_off_as_memory_allows() {
    let (db, oracle) = adding(30_000, &[]).await;
    let query = "select g, ai_agg(n, 'Add up') from \
        (select value % 1000 as g, value + 1000000000000 as n from generate_series(1, 20000)) group by g";
    for (bytes, fits) in [(100_000, true), (5_000, true), (200, false)] {
        let answer = with_memory(&db, query, bytes).await;
        assert_eq!(answer.is_ok(), fits, "{bytes} bytes: {answer:?}");
        let Ok(answer) = answer else { continue };
        let sums = answer.iter().map(|row| row.split_once("|20:").unwrap().1.parse::<u64>().unwrap());
        assert_eq!((answer.len(), sums.sum::<u64>()), (1000, 20_000 * 1_000_000_000_000 + 20_000 * 20_001 / 2));
    }
    assert_eq!(oracle.calls(), 2000, "a group is asked about once, however many there are at a time");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn every_input_counts_once_whatever_the_context(n in 1_u64..400, context in 1100_usize..6000, batch in 1_usize..50) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let answer = runtime.block_on(async {
            let (db, _) = adding(context, &[]).await;
            rows(&db, &format!("set datafusion.execution.batch_size = {batch}")).await.unwrap();
            rows(&db, &format!("select ai_agg(value, 'Add up') from generate_series(1, {n})")).await.unwrap()
        });
        prop_assert_eq!(answer, [format!("{n}:{}", n * (n + 1) / 2)]);
    }
}
