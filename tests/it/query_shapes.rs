//! Every place in a query where an LLM call may stand: the answers, and how many calls they took.

use refrain::Refrain;

use crate::support::{Oracle, rows, session};

/// Tables `t` (5 rows; `s` has 3 distinct values and a NULL), `u`, `big` (20,000 rows, 10 distinct `s`) and the file `p`.
async fn tables() -> (Refrain, Oracle, tempfile::TempDir) {
    let (db, oracle) = session(&[("reorder", "search")]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.parquet");
    for sql in [
        "create table t as select * from (values (1,'a'),(2,'b'),(3,'a'),(4,null),(5,'c')) as v(i,s)".to_owned(),
        "create table u as select * from (values (1,'x'),(2,'ab'),(7,'c')) as v(j,w)".to_owned(),
        "create table big as select value as i, 'k' || (value % 10) as s from generate_series(1, 20000)".to_owned(),
        format!("copy (select value as i, 'k' || (value % 10) as s from generate_series(1, 1200)) to '{}'", file.display()),
        format!("create external table p stored as parquet location '{}'", file.display()),
        "create view v as select i, ai_complete('p', s) x from t".to_owned(),
    ] {
        rows(&db, &sql).await.unwrap();
    }
    (db, oracle, folder)
}

/// Runs one query with all rewrites and with none: the rows are the same, and so many calls are made with all. Rows are compared in sorted
/// order unless the query orders them itself.
async fn check(sql: &str, expected: &[&str], calls: usize) {
    for disabled in ["none", "all"] {
        let (mut answer, asked, prompts) = run(sql, disabled).await;
        if !sql.contains("order by") || sql.contains("over (") {
            answer.sort();
        }
        assert_eq!(answer, expected, "{sql} without rewrites: {disabled}");
        if disabled == "none" {
            assert_eq!(asked, calls, "model calls of {sql}: {prompts:#?}");
        }
    }
}

/// As [`check`], for a query of which only the number of rows is fixed.
async fn check_count(sql: &str, n_rows: usize, calls: usize) {
    for disabled in ["none", "all"] {
        let (answer, asked, prompts) = run(sql, disabled).await;
        assert_eq!(answer.len(), n_rows, "rows of {sql} without rewrites: {disabled}");
        if disabled == "none" {
            assert_eq!(asked, calls, "model calls of {sql}: {prompts:#?}");
        }
    }
}

/// Runs one query over new tables, without some rewrites. Returns its rows, the calls, and what was asked.
async fn run(sql: &str, disabled: &str) -> (Vec<String>, usize, Vec<String>) {
    let (db, oracle, _folder) = tables().await;
    rows(&db, &format!("set refrain.disabled_rewrites = '{disabled}'")).await.unwrap();
    let answer = rows(&db, sql).await.unwrap_or_else(|error| panic!("{sql} without rewrites: {disabled}: {error}"));
    (answer, oracle.calls(), oracle.prompts())
}

macro_rules! shapes {
    ($($name:ident: $check:ident($($argument:expr),+ $(,)?);)+) => {
        $(#[tokio::test] async fn $name() { $check($($argument),+).await; })+
    };
}

// One test for each shape, so that a failure names it.
shapes! {
    projection: check("select i, ai_complete('p', s) from t", &["1|p(a)", "2|p(b)", "3|p(a)", "4|NULL", "5|p(c)"], 3);
    same_call_twice: check(
        "select ai_complete('p', s) a, upper(ai_complete('p', s)) b from t where i < 3", &["p(a)|P(A)", "p(b)|P(B)"], 2);
    nested: check(
        "select ai_complete('q', ai_complete('p', s)) from t", &["NULL", "q(p(a))", "q(p(a))", "q(p(b))", "q(p(c))"], 6);
    under_a_function: check("select i, length(ai_complete('p', s)) from t where i > 3", &["4|NULL", "5|4"], 1);
    filter: check("select i from t where ai_filter('a', s) and i > 1", &["3"], 3);
    filter_stages: check(
        "select i from t where ai_filter('a', s) and i > 1 and ai_filter('x', ai_complete('x', s))", &["3"], 5);
    filter_not: check("select i from t where not ai_filter('a', s)", &["2", "5"], 3);
    filter_is_null: check("select i from t where ai_filter('a', s) is null", &["4"], 3);
    filter_or_guards: check("select i from t where ai_filter('b', s) or i = 1", &["1", "2"], 3);
    filter_and_select_agree: check("select ai_filter('a', s) from t where ai_filter('a', s)", &["true", "true"], 3);
    volatile_guard_is_not_copied: check_count("select random() < 2 or ai_filter('a', s) from t", 5, 3);
    case_guards: check(
        "select i, case when i < 3 then ai_complete('lo', s) when ai_filter('a', s) then ai_complete('hi', s) else 'x' end from t",
        &["1|lo(a)", "2|lo(b)", "3|hi(a)", "4|x", "5|x"], 5);
    case_over_a_call: check(
        "select i, case ai_complete('p', s) when 'p(a)' then 'A' when 'p(b)' then ai_complete('q', s) end from t",
        &["1|A", "2|q(b)", "3|A", "4|NULL", "5|NULL"], 4);
    nullif: check(
        "select nullif(s, ai_complete('p', i)) from t", &["NULL", "a", "a", "b", "c"], 4);
    nullif_of_two_calls: check(
        "select nullif(ai_complete('p', s), ai_complete('q', i)) from t", &["NULL", "p(a)", "p(a)", "p(b)", "p(c)"], 7);
    coalesce: check("select coalesce(s, ai_complete('p', i)) from t", &["a", "a", "b", "c", "p(4)"], 1);
    and_in_a_projection: check(
        "select i, i > 3 and ai_filter('c', s) from t", &["1|false", "2|false", "3|false", "4|NULL", "5|true"], 1);
    group_by: check(
        "select ai_complete('p', s), count(*) c from t group by ai_complete('p', s) order by c desc, 1",
        &["p(a)|2", "p(b)|1", "p(c)|1", "NULL|1"], 3);
    aggregate_argument: check("select max(ai_complete('p', s)), min(ai_complete('q', s)) from t", &["p(c)|q(a)"], 6);
    aggregate_filter: check("select count(*) filter (where ai_filter('a', s)) from t", &["2"], 3);
    aggregate_filter_guards_its_argument: check(
        "select max(ai_complete('p', s)) filter (where i < 3) from t", &["p(b)"], 2);
    having: check("select s, count(*) from t group by s having ai_filter('a', s)", &["a|2"], 3);
    having_over_an_aggregate: check(
        "select s, count(*) c from t group by s having count(*) > 1 and ai_filter('a', s)", &["a|2"], 1);
    order_by: check("select i from t order by ai_complete('p', s), i", &["1", "3", "2", "5", "4"], 3);
    order_by_limit_is_deferred: check(
        "select i, ai_complete('p', i) from big order by i desc limit 3", &["20000|p(20000)", "19999|p(19999)", "19998|p(19998)"], 3);
    limit: check_count("select ai_complete('p', i) from big limit 5", 5, 5);
    limit_offset: check_count("select ai_complete('p', i) from big limit 2 offset 3", 2, 2);
    limit_over_a_filter: check_count("select i from big where ai_filter('k1', s) limit 5", 5, 10);
    limit_zero: check_count("select ai_complete('p', i) from big limit 0", 0, 0);
    join_one_side: check("select t.i, u.j from t join u on t.i = u.j and ai_filter('a', u.w)", &["2|2"], 2);
    left_join_one_side: check(
        "select t.i, u.j from t left join u on t.i = u.j and ai_filter('a', u.w)", &["1|NULL", "2|2", "3|NULL", "4|NULL", "5|NULL"], 3);
    inner_join_both_sides: check(
        "select t.i, u.j from t join u on ai_filter('ab', t.s, u.w)", &["1|2", "2|2", "3|2", "4|2", "5|2"], 12);
    inner_join_key_and_both_sides: check(
        "select t.i, u.j from t join u on t.i = u.j and ai_filter('ab', t.s, u.w)", &["2|2"], 2);
    left_join_both_sides: check(
        "select t.i, u.j from t left join u on t.i < 3 and ai_filter('ab', t.s, u.w)",
        &["1|2", "2|2", "3|NULL", "4|NULL", "5|NULL"], 6);
    right_join_both_sides: check(
        "select t.i, u.j from t right join u on t.i = u.j and ai_filter('ab', t.s, u.w)", &["2|2", "NULL|1", "NULL|7"], 2);
    full_join_both_sides: check(
        "select t.i, u.j from t full join u on t.i = u.j and ai_filter('ab', t.s, u.w)",
        &["1|NULL", "2|2", "3|NULL", "4|NULL", "5|NULL", "NULL|1", "NULL|7"], 2);
    semi_join_both_sides: check("select i from t left semi join u on ai_filter('ab', t.s, u.w)", &["1", "2", "3", "4", "5"], 8);
    anti_join_both_sides: check(
        "select i from t left anti join u on t.i = u.j and ai_filter('ab', t.s, u.w)", &["1", "3", "4", "5"], 2);
    right_semi_join_both_sides: check("select j from t right semi join u on ai_filter('ab', t.s, u.w)", &["2"], 9);
    join_both_sides_in_stages: check(
        "select t.i, u.j from t join u on ai_filter('ab', t.s, u.w) and ai_filter('c', u.w, t.s)", &["5|2"], 19);
    join_both_sides_prunes_columns: check("select count(*) from t join u on ai_filter('ab', t.s, u.w)", &["5"], 12);
    join_both_sides_nested: check(
        "select t.i, u.j, v.i from t join u on t.i = u.j and ai_filter('ab', t.s, u.w) join t v on ai_filter('bab', u.w, v.s)",
        &["2|2|2"], 6);
    join_both_sides_and_an_answer_of_one: check(
        "select t.i, u.j from t join u on t.i = u.j and ai_filter('p(a', ai_complete('p', t.s), u.w)", &["1|1"], 4);
    self_join_both_sides: check(
        "select a.i, b.i from t a join t b on a.i < b.i and ai_filter('ab', a.s, b.s)", &["1|2"], 8);
    where_over_both_sides: check("select t.i, u.j from t, u where t.i = u.j and ai_filter('ab', t.s, u.w)", &["2|2"], 2);
    where_above_an_outer_join: check(
        "select t.i, u.j from t left join u on t.i = u.j where ai_filter('ab', t.s, u.w) and t.i > 0", &["2|2"], 4);
    filters_over_both_sides_of_a_join: check(
        "select x.i, u.j from t x join u on x.i = u.j where ai_filter('b', x.s) and ai_filter('ab', u.w) and x.i < u.j + 1", &["2|2"], 3);
    filter_over_a_join_of_names_that_clash: check(
        "select count(*) from (select i k, s from t) a join (select i k, s from t where ai_filter('a', s)) b on a.k = b.k", &["2"], 3);
    topk_over_a_view: check("select x from v order by i limit 2", &["p(a)", "p(b)"], 2);
    topk_over_a_subquery: check(
        "select d.y from (select ai_complete('q', ai_complete('p', s)) y, i + 1 k from t) d order by d.k limit 2 offset 1",
        &["q(p(b))", "q(p(a))"], 4);
    topk_over_a_join: check(
        "select x.i, ai_complete('p', x.s) from t x join u on x.i = u.j order by u.j limit 1", &["1|p(a)"], 1);
    having_with_two_predicates: check(
        "select s, count(*) from t group by s having count(*) > 1 and ai_filter('a', s) and not ai_filter('b', s)", &["a|2"], 2);
    topk_over_a_filter: check("select i from t where ai_filter('a', s) order by i desc limit 1", &["3"], 2);
    topk_over_two_filters: check(
        "select i, x from (select i, s, ai_complete('p', s) x from t) where ai_filter('a', s) and ai_filter('p', x) order by i desc limit 1",
        &["3|p(a)"], 5);
    limit_over_a_filtered_join: check_count(
        "select big.i from big join (select value n from generate_series(1, 20000) t(value)) m on big.i = m.n where ai_filter('k', s) limit 3", 3, 6);
    empty_side: check("select i, w from t left join (select * from u where j > 100) e on ai_filter('a', s, w)",
        &["1|NULL", "2|NULL", "3|NULL", "4|NULL", "5|NULL"], 0);
    join_on_answers: check("select t.i, u.j from t join u on ai_complete('p', t.s) = ai_complete('p', u.w)", &["5|7"], 6);
    column_below_a_join: check(
        "select u.j, q.x from (select i, ai_complete('p', s) x from t) q join u on q.i = u.j", &["1|p(a)", "2|p(b)"], 2);
    column_below_two_joins: check(
        "select q.x, b.y from (select i, ai_complete('p', s) x from t) q join u on q.i = u.j join (select i k, upper(ai_complete('q', s)) y from big where i < 9) b on b.k = q.i and b.k > 1",
        &["p(b)|Q(K2)"], 2);
    column_below_a_self_join: check(
        "select a.x, b.s from (select i, s, ai_complete('p', s) x from t) a join t b on a.i = b.i where b.i > 4", &["p(c)|c"], 1);
    column_below_a_join_on_it: check(
        "select q.i, u.j from (select i, ai_complete('p', s) x from t) q join u on q.i = u.j and q.x <> u.w", &["1|1", "2|2"], 3);
    column_below_an_outer_join: check(
        "select u.j, q.x from u left join (select i, ai_complete('p', s) x from t) q on q.i = u.j", &["1|p(a)", "2|p(b)", "7|NULL"], 3);
    column_below_a_join_without_keys: check(
        "select u.j, q.x from (select i, ai_complete('p', s) x from t where i < 3) q join u on q.i + 1 < u.j", &["7|p(a)", "7|p(b)"], 2);
    filter_over_a_join: check("select t.i, u.j from t join u on t.i = u.j where ai_filter('a', u.w)", &["2|2"], 2);
    subquery: check(
        "select x, count(*) from (select ai_complete('p', s) x from t) where x <> 'p(b)' group by x", &["p(a)|2", "p(c)|1"], 3);
    unused_column: check("select i from (select i, ai_complete('p', s) x from t)", &["1", "2", "3", "4", "5"], 0);
    exists: check(
        "select i from t where exists (select 1 from u where u.j = t.i and ai_filter('x', u.w))", &["1"], 3);
    not_exists: check(
        "select i from t where not exists (select 1 from u where u.j = t.i and ai_filter('x', u.w))", &["2", "3", "4", "5"], 3);
    exists_both_sides: check(
        "select i from t where exists (select 1 from u where ai_filter('ab', t.s, u.w))", &["1", "2", "3", "4", "5"], 8);
    not_exists_both_sides: check(
        "select i from t where not exists (select 1 from u where u.j = t.i and ai_filter('ab', t.s, u.w))", &["1", "3", "4", "5"], 2);
    exists_or: check(
        "select i from t where i = 5 or exists (select 1 from u where u.j = t.i and ai_filter('ab', t.s, u.w))", &["2", "5"], 2);
    in_both_sides: check(
        "select i from t where i in (select j from u where ai_filter('ab', t.s, u.w))", &["2"], 2);
    not_in_both_sides: check(
        "select i from t where i not in (select j from u where ai_filter('ab', t.s, u.w))", &["1", "3", "4", "5"], 2);
    not_in_with_a_correlated_key: check(
        "select i from t where i not in (select j from u where u.j = t.i and ai_filter('ab', t.s, u.w))", &["1", "3", "4", "5"], 2);
    not_in_or: check(
        "select i from t where i = 2 or not (i in (select j from u where ai_filter('ab', t.s, u.w)))", &["1", "2", "3", "4", "5"], 2);
    in_subquery: check(
        "select i from t where ai_complete('p', s) in (select ai_complete('p', s) from t where i = 1)", &["1", "3"], 3);
    scalar_subquery: check(
        "select i, (select max(ai_complete('p', s)) from t) from t where i < 3", &["1|p(c)", "2|p(c)"], 3);
    correlated_scalar_subquery: check(
        "select i, (select max(ai_complete('p', w)) from u where u.j = t.i) from t where i < 4", &["1|p(x)", "2|p(ab)", "3|NULL"], 3);
    union_all: check(
        "select ai_complete('p', s) from t where i < 3 union all select ai_complete('p', w) from u where j < 2",
        &["p(a)", "p(b)", "p(x)"], 3);
    distinct: check("select distinct ai_complete('p', s) from t", &["NULL", "p(a)", "p(b)", "p(c)"], 3);
    window_partition: check(
        "select i, row_number() over (partition by ai_complete('p', s) order by i) from t",
        &["1|1", "2|1", "3|2", "4|1", "5|1"], 3);
    window_argument: check(
        "select i, first_value(ai_complete('p', s)) over (order by i) from t where i < 3", &["1|p(a)", "2|p(a)"], 2);
    without_table: check("select ai_complete('p', 'x')", &["p(x)"], 1);
    without_input: check("select ai_complete('p')", &["p()"], 1);
    constant_filter: check("select i from t where ai_filter('a', 'banana')", &["1", "2", "3", "4", "5"], 1);
    structs: check("select ai_extract(s, 'STRUCT(n INT, b VARCHAR)') from t where i = 1", &["{n: 1, b: a}"], 1);
    struct_field_and_named_arguments: check(
        "select ai_extract(input => s, fields => 'STRUCT(n INT)')['n'] from t where i = 2", &["1"], 1);
    parquet: check_count("select i from p where ai_filter('k1', s) and i < 100", 10, 10);
    parquet_columns_are_pruned: check("select ai_complete('p', s) from p where i < 3", &["p(k1)", "p(k2)"], 2);
    sorted_input_stays_sorted: check(
        "select i, ai_complete('p', s) from (select * from t order by i) order by i",
        &["1|p(a)", "2|p(b)", "3|p(a)", "4|NULL", "5|p(c)"], 3);
    cte_used_twice: check(
        "with c as (select i, ai_complete('p', s) x from t) select a.i, b.x from c a join c b on a.x = b.x and a.i = b.i",
        &["1|p(a)", "2|p(b)", "3|p(a)", "5|p(c)"], 3);
    view: check("select i from v where x like 'p(a%' and i > 1", &["3"], 3);
    view_of_a_view: check("select upper(x) from (select * from v) w where i = 5", &["P(C)"], 1);
    unnested: check("select unnest([ai_complete('p', s), 'z']) from t where i = 1", &["p(a)", "z"], 1);
    values: check("select * from (values (ai_complete('p', 'x'), 1), ('y', 2)) as q(a, b)", &["p(x)|1", "y|2"], 1);
    lateral_list: check("select ai_complete('p', e) from (select unnest(['m', 'n', 'm']) e)", &["p(m)", "p(m)", "p(n)"], 2);
    wildcard: check("select ai_complete('p', u.*) from u where j = 7", &["p(7c)"], 1);
    llm_alias_and_wildcard: check("select LLM('p', u.*) from u where j = 7", &["p(7c)"], 1);
    wildcard_of_a_cte: check("with c as (select w from u where j = 7) select ai_complete('p', *) from c", &["p(c)"], 1);
    inputs_are_evaluated_where_they_are_asked: check(
        "select i, case when i <> 2 then ai_complete('p', 100 / (i - 2)) end from t where i < 4", &["1|p(-100)", "2|NULL", "3|p(100)"], 2);
    guards_are_evaluated_one_after_the_other: check(
        "select i, case when i = 2 then 'n' when 10 / (i - 2) > 2 then ai_complete('p', s) end from t where i < 4",
        &["1|NULL", "2|n", "3|p(a)"], 1);
    scalar_subquery_in_a_filter_under_a_limit: check_count(
        "select s from t where length(ai_complete('p', s)) > (select min(j) from u) limit 2", 2, 3);
    scalar_subquery_as_input: check("select ai_complete('p', (select max(j) from u)) from t where i = 1", &["p(7)"], 1);
    untyped_null: check("select ai_sentiment(null), ai_complete('Say {0}', null)", &["NULL|NULL"], 0);
    guard_over_the_other_side_of_a_join: check(
        "select t.i, u.j from t join u on t.i = u.j and 'p(ab)' = case when t.i > 1 then ai_complete('p', u.w) else 'z' end",
        &["2|2"], 2);
    wildcard_of_a_cte_with_options: check(
        "with c as (select ai_complete('q', s, max_tokens => 5) as x from t where i = 1) select LLM('p', c.*) from c", &["p(q(a))"], 2);
    volatile_filter_stays_below_the_aggregate: check_count(
        "select s, count(*) from t where ai_filter('a', s) or random() < 2 group by s", 4, 3);
    huge_limit: check_count("select i from t where ai_filter('a', s) limit 9223372036854775807 offset 1", 1, 3);
    explain_calls_nothing: check_count("explain select ai_complete('p', s) from t where ai_filter('a', s)", 2, 0);
}

#[tokio::test]
async fn statements_that_write_ask_once() {
    let (db, oracle, _folder) = tables().await;
    rows(&db, "create table kinds as select i, ai_complete('p', s) x from t").await.unwrap();
    assert_eq!(oracle.calls(), 3);
    rows(&db, "insert into kinds select i + 10, ai_complete('p', s) from t where i = 5").await.unwrap();
    assert_eq!(oracle.calls(), 4);
    assert_eq!(rows(&db, "select x from kinds where i = 15").await.unwrap(), ["p(c)"]);
}

#[tokio::test]
async fn prepared_statements_ask_when_executed() {
    let (db, oracle, _folder) = tables().await;
    rows(&db, "prepare q(int) as select ai_complete('p', s) from t where i = $1").await.unwrap();
    assert_eq!(oracle.calls(), 0);
    assert_eq!(rows(&db, "execute q(2)").await.unwrap(), ["p(b)"]);
    assert_eq!(rows(&db, "execute q(5)").await.unwrap(), ["p(c)"]);
    assert_eq!(oracle.calls(), 2);
}

#[tokio::test]
async fn a_selective_join_reaches_the_scan_below_the_call() {
    let (db, oracle, _folder) = tables().await;
    rows(&db, "set datafusion.execution.parquet.pushdown_filters = true").await.unwrap();
    rows(&db, "set refrain.disabled_rewrites = 'ask_columns_above_join'").await.unwrap();
    let answer =
        rows(&db, "select u.j, x from (select i, ai_complete('p', i) x from p) q join u on q.i = u.j").await.unwrap();
    assert_eq!(answer.len(), 3);
    assert_eq!(oracle.calls(), 3, "the join's keys must be pushed through the operator");
}

#[tokio::test]
async fn a_join_does_not_multiply_calls_that_are_not_shared() {
    let (db, oracle) = session(&[]).await;
    rows(&db, "create table r as select value as i, 'x' as s from generate_series(1, 3)").await.unwrap();
    rows(&db, "create table f as select value % 3 + 1 as j from generate_series(1, 60)").await.unwrap();
    for (option, calls) in [("dedup => 'auto'", 1), ("dedup => 'off'", 3), ("temperature => 1", 3)] {
        let before = oracle.calls();
        let query = format!("select count(*) from r join f on r.i = f.j where ai_filter('x', r.s, {option})");
        assert_eq!(rows(&db, &query).await.unwrap(), ["60"]);
        assert_eq!(oracle.calls() - before, calls, "{option}");
        let plan = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
        let refused = "refused: ask_above_join (equal inputs are calls of their own, and the join may multiply rows)";
        assert_eq!(plan.contains(refused), calls == 3, "{plan}");
    }
}

#[tokio::test]
async fn sampled_answers_agree_within_a_query() {
    let (db, _oracle, _folder) = tables().await;
    let query = "select ai_filter('x', s, temperature => 1) f from (select 'same' s from big limit 50) where ai_filter('x', s, temperature => 1)";
    assert!(rows(&db, query).await.unwrap().iter().all(|row| row == "true"));
}

#[tokio::test]
async fn explain_does_not_run_a_subquery_that_asks() {
    let (db, oracle, _folder) = tables().await;
    rows(&db, "explain select ai_complete('p', s) from t where i > (select min(length(ai_complete('q', s))) from t)")
        .await
        .unwrap();
    rows(&db, "explain select ai_complete('p', s, (select max(i) from t)) from t").await.unwrap();
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn a_failure_counts_for_each_call_that_meets_it() {
    let (db, _oracle, _folder) = tables().await;
    let query = "select ai_complete('p', x), ai_complete('p', x, on_error => 'fail') from (select 'FAIL' x)";
    assert!(rows(&db, query).await.unwrap_err().to_string().contains("on_error => 'null'"));
}
