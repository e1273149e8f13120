//! Random models in SQL: made by name, answering what needs no end.

use refrain::{ModelSource, Refrain};

use crate::support::rows;

#[tokio::test]
async fn a_random_model_answers_at_full_length() {
    let db = Refrain::builder().build().await.unwrap();
    rows(&db, "create model noise from 'random:mini' with (max_context = 256)").await.unwrap();
    let described = "select kind, type, location, state, max_context, digest like 'random-mini-0-%' from ai_models() where name = 'noise'";
    assert_eq!(rows(&db, described).await.unwrap(), ["random|completion|random:mini|not loaded|256|true"]);
    let facts = "select device, dtype, capabilities from ai_models() where name = 'noise'";
    assert_eq!(rows(&db, facts).await.unwrap(), ["NULL|NULL|[complete, json, regex, logprobs]"]);
    let query = "select ai_complete('Go on', value, model => 'noise', max_tokens => 7), ai_filter('Is it?', value, model => 'noise') \
        from (select 'row ' || value as value from generate_series(1, 3))";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    run.fetch_all().await.unwrap();
    let usage = run.usage();
    assert_eq!((usage.calls, usage.failed_rows), (6, 0), "{usage:?}");
    // Yes or no is one token or two.
    assert!((3 * 7 + 3..=3 * 7 + 6).contains(&usage.output_tokens), "{usage:?}");
    assert!(db.models().iter().any(|model| model.name == "noise" && model.state == "loaded"));
    let known = "select dtype is not null, held_bytes > 0 from ai_models() where name = 'noise'";
    assert_eq!(rows(&db, known).await.unwrap(), ["true|true"]);
    // One of a few texts in JSON is known by its beginning.
    let query = r#"select ai_complete('Judge', value, model => 'noise', return_type => '{"type": "string", "enum": ["YES", "NO"]}') in ('YES', 'NO')
        from (select 'row ' || value as value from generate_series(1, 2))"#;
    assert_eq!(rows(&db, query).await.unwrap(), ["true", "true"]);
}

#[tokio::test]
async fn a_revision_is_part_of_the_digest_and_a_limit_of_gpu_memory_is_checked() {
    let db = Refrain::builder().setting("device", "cpu").build().await.unwrap();
    rows(&db, "create model noise from 'random:mini' with (revision = 'r1', gpu_memory = 0.5)").await.unwrap();
    let digest = "select digest like 'random-mini-0-%@r1%' from ai_models() where name = 'noise'";
    assert_eq!(rows(&db, digest).await.unwrap(), ["true"]);
    rows(&db, "load model noise").await.unwrap();
    assert_eq!(rows(&db, digest).await.unwrap(), ["true"]);
    let error = rows(&db, "create model m from 'random:mini' with (gpu_memory = 'half')").await.unwrap_err().to_string();
    assert!(error.contains("gpu_memory must be a size such as 60GB, or a share of the GPU such as 0.5"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_is_told() {
    let db = Refrain::builder().model("noise", ModelSource::parse("random:mini").unwrap()).build().await.unwrap();
    let fault = async |statement: &str| rows(&db, statement).await.unwrap_err().to_string();
    let error = fault("create model m from 'random:llama9'").await;
    assert!(error.contains("no random model \"llama9\"; there are llama3-8b"), "{error}");
    let error = fault("create model m from 'random:mini' with (tokenizer = 'no/such/folder')").await;
    assert!(error.contains("no/such/folder"), "{error}");
    let error = fault("create model m from '.' with (tokenizer = 'a.json')").await;
    assert!(error.contains("option tokenizer is for random models"), "{error}");
    let error = fault("select ai_extract('Anna, 34', 'STRUCT(name VARCHAR, age INT)')").await;
    assert!(error.contains("end token"), "{error}");
}
