//! Models behind an endpoint, from CREATE SECRET to the answer.

use std::sync::Mutex;

use refrain::{Error, Refrain};
use serde_json::json;

use crate::chat_server::{ChatServer, answer, finished, obedient, question};
use crate::support::rows;

const KEY: &str = "sk-test-0123456789abcdef";

/// A session whose model `remote` is the server.
async fn session(server: &ChatServer, options: &str) -> Refrain {
    let db = Refrain::builder().build().await.unwrap();
    let secret = format!("create secret server_key (TYPE openai, API_KEY '{KEY}')");
    rows(&db, &secret).await.unwrap();
    let location = server.location();
    let create = format!(
        "create external model remote with (location = '{location}', model = 'tiny', credential = server_key{options})"
    );
    rows(&db, &create).await.unwrap();
    db
}

const TEXTS: &str = "(values (1, 'good film'), (2, 'bad book'), (3, 'good book')) t(id, body)";

#[tokio::test]
async fn functions_are_answered_in_their_types() {
    let server = ChatServer::start(obedient).await;
    let db = session(&server, "").await;
    let kinds =
        rows(&db, &format!("select id, ai_classify(body, ['film', 'book']) from {TEXTS} order by id")).await.unwrap();
    assert_eq!(kinds, ["1|film", "2|book", "3|book"]);
    assert_eq!(server.calls(), 3);
    let good =
        rows(&db, &format!("select id from {TEXTS} where ai_filter('Is it liked?', body) order by id")).await.unwrap();
    assert_eq!(good, ["1", "3"]);
    let typed = "ai_extract(body, 'STRUCT(title VARCHAR, year INT)')";
    let fields = format!("select x['title'], x['year'] + 1 from (select {typed} x from {TEXTS}) limit 1");
    assert_eq!(rows(&db, &fields).await.unwrap(), ["text|2"]);
    for request in server.seen() {
        assert_eq!(request.authorization, format!("Bearer {KEY}"));
        assert_eq!(request.body["model"], "tiny");
    }
    let usage =
        rows(&db, "select calls, prompt_tokens, cached_tokens, output_tokens from ai_usage() order by query_id, node_id");
    assert_eq!(usage.await.unwrap()[0], "3|30|12|6");
}

#[tokio::test]
async fn a_regular_expression_is_asked_of_services_that_take_one() {
    let server = ChatServer::start(|_| answer("2024")).await;
    let query = "select ai_complete('When?', 'x', regex => '[0-9]{4}')";
    let db = session(&server, "").await;
    let error = rows(&db, query).await.unwrap_err().to_string();
    assert!(error.contains("option regex cannot be asked of the service of model \"remote\""), "{error}");
    assert_eq!(server.calls(), 0);
    let abilities = "select capabilities from ai_models() where name = 'remote'";
    assert_eq!(rows(&db, abilities).await.unwrap(), ["[complete, json, logprobs]"]);
    let db = session(&server, ", structured_output = 'guided'").await;
    assert_eq!(rows(&db, query).await.unwrap(), ["2024"]);
    assert_eq!(server.seen()[0].body["guided_regex"], "[0-9]{4}");
    assert_eq!(rows(&db, abilities).await.unwrap(), ["[complete, json, regex, logprobs]"]);
}

#[tokio::test]
async fn another_revision_is_another_model() {
    let server = ChatServer::start(|_| answer("2024")).await;
    let db = session(&server, "").await;
    rows(&db, "set refrain.cache = 'session'").await.unwrap();
    let location = server.location();
    for (revision, calls) in [("may", 1), ("june", 2), ("may", 2)] {
        let create = format!(
            "create or replace external model remote with (location = '{location}', model = 'tiny', revision = '{revision}')"
        );
        rows(&db, &create).await.unwrap();
        assert_eq!(rows(&db, "select ai_complete('When?', 'x')").await.unwrap(), ["2024"]);
        assert_eq!(server.calls(), calls, "{revision}");
    }
    let digest = "select digest like '%@may' from ai_models() where name = 'remote'";
    assert_eq!(rows(&db, digest).await.unwrap(), ["true"]);
}

#[tokio::test]
async fn planning_calls_nothing() {
    let server = ChatServer::start(obedient).await;
    let db = session(&server, "").await;
    let query = format!("select ai_complete('p', body), ai_filter('q', body) from {TEXTS}");
    db.sql(&query).await.unwrap();
    db.sql(&query).await.unwrap().estimate().await.unwrap();
    // A byte of a prompt counts as a quarter of a token.
    let plan = rows(&db, &format!("explain {query}")).await.unwrap().concat();
    assert!(plan.contains("prompt≈"), "{plan}");
    rows(&db, &format!("prepare q as {query}")).await.unwrap();
    rows(&db, "explain select * from ai_usage(), ai_queries(), ai_errors(), ai_models()").await.unwrap();
    rows(&db, "describe model remote").await.unwrap();
    assert_eq!(server.calls(), 0);
}

#[tokio::test]
async fn failed_rows_are_counted_by_reason() {
    let server = ChatServer::start(|request| match question(request) {
        text if text.contains("refuse") => finished("", "content_filter"),
        text if text.contains("break") => (500, json!({"error": {"message": "broken"}})),
        text if text.contains("limit") => (429, json!({"error": {"message": "slow down"}})),
        _ => obedient(request),
    });
    let server = server.await;
    let db = session(&server, ", max_retries = 0").await;
    let texts = "(values ('fine'), ('refuse'), ('break'), ('limit')) t(body)";
    let mut run =
        db.sql(&format!("select ai_classify(body, ['a', 'b']) from {texts}")).await.unwrap().execute().await.unwrap();
    let id = run.query_id();
    run.fetch_all().await.unwrap();
    let errors = run.usage().errors;
    let expected = [("rate_limit", 1), ("refused", 1), ("transport", 1)].map(|(reason, rows)| (reason.to_owned(), rows));
    assert_eq!(errors.into_iter().collect::<Vec<_>>(), expected);
    let listed = rows(&db, &format!("select reason, row_count from ai_errors({id}) order by reason")).await.unwrap();
    assert_eq!(listed, ["rate_limit|1", "refused|1", "transport|1"]);
}

#[tokio::test]
async fn a_wrong_key_fails_the_query_unseen() {
    let server = ChatServer::start(|request| {
        (401, json!({"error": {"message": format!("Incorrect API key provided: {}", request.authorization)}}))
    });
    let server = server.await;
    let db = session(&server, "").await;
    let error = rows(&db, "select ai_complete('p', 'x')").await.unwrap_err();
    assert!(matches!(error, Error::Backend { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains(KEY), "{error}");
    assert_eq!(server.calls(), 1, "a wrong key is not tried again");
}

#[tokio::test]
async fn a_new_value_of_the_secret_is_used_by_the_next_call() {
    let server = ChatServer::start(obedient).await;
    let db = session(&server, "").await;
    rows(&db, "select ai_complete('p', 'x')").await.unwrap();
    rows(&db, "create or replace secret server_key (TYPE openai, API_KEY 'sk-new')").await.unwrap();
    rows(&db, "select ai_complete('p', 'y')").await.unwrap();
    assert_eq!(server.seen()[1].authorization, "Bearer sk-new");
    rows(&db, "drop secret server_key").await.unwrap();
    let error = rows(&db, "select ai_complete('p', 'z')").await.unwrap_err().to_string();
    assert!(error.contains("secret \"server_key\" is unknown"), "{error}");
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn secrets_appear_in_no_output() {
    let server = ChatServer::start(|request| match question(request) {
        text if text.contains("echo") => answer(&request.authorization),
        _ => (400, json!({"error": {"message": format!("bad request with {}", request.authorization)}})),
    });
    let server = server.await;
    let folder = tempfile::tempdir().unwrap();
    let db = Refrain::builder().secrets_folder(folder.path().join("secrets")).build().await.unwrap();
    let location = server.location();
    let outputs = Mutex::new(String::new());
    let run = async |sql: String| {
        let planned = db.sql(&sql).await;
        outputs.lock().unwrap().push_str(&format!("{planned:?}\n"));
        let shown = rows(&db, &sql).await;
        outputs
            .lock()
            .unwrap()
            .push_str(&format!("{shown:?}\n{}\n", shown.as_ref().map_or_else(ToString::to_string, |_| String::new())));
    };
    for sql in [
        format!("create persistent secret stored (TYPE openai, API_KEY '{KEY}')"),
        format!("create secret k (TYPE openai, API_KEY '{KEY}')"),
        format!("create secret k (TYPE openai, API_KEY '{KEY}')"),
        format!("create secret k ('{KEY}')"),
        format!("create secret '{KEY}'"),
        format!("create secret x (TYPE openai, API_KEY '{KEY}' '{KEY}')"),
        format!("create secret x (TYPE openai, API_KEY '{KEY}') '{KEY}'"),
        format!("create secret x (TYPE openai, API_KEY '{KEY}"),
        format!("create secret x (TYPE '{KEY}', API_KEY '{KEY}')"),
        format!("create persistant secret x (TYPE openai, API_KEY '{KEY}')"),
        format!("create external model remote with (location = '{location}', model = 'm', credential = k)"),
        "select ai_complete('p', 'x', model => 'remote')".to_owned(),
        "show secrets".to_owned(),
        "show models".to_owned(),
        "describe model remote".to_owned(),
        "explain verbose select ai_complete('p', 'x', model => 'remote')".to_owned(),
        "select * from ai_queries()".to_owned(),
        "select * from ai_errors()".to_owned(),
        "select * from ai_usage()".to_owned(),
        "select * from ai_models()".to_owned(),
        "select * from information_schema.df_settings".to_owned(),
        "show all".to_owned(),
    ] {
        run(sql).await;
    }
    let outputs = outputs.into_inner().unwrap() + &format!("{db:?} {:?}", db.model_catalog());
    assert!(outputs.contains("bad request with") && outputs.contains("create secret k ***"), "{outputs}");
    let shown = outputs.lines().filter(|line| line.contains(KEY)).collect::<Vec<_>>();
    assert!(shown.is_empty(), "{shown:#?}");
    assert!(std::fs::read_to_string(folder.path().join("secrets/secrets.json")).unwrap().contains(KEY));
}
