//! A query that is killed and run again pays only for the rest.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use refrain::serving::mock::{Gate, MockBackend, MockReply};
use refrain_udf::Settings;

use crate::support::{Oracle, rows, session, session_with};

/// Names the checkpoint to the process that is to be killed.
const CHILD: &str = "REFRAIN_TEST_CHECKPOINT";

const QUERY: &str = "select ai_complete('p', value) from generate_series(1, 1000) order by value";

fn checkpoint(path: &Path) -> [(&'static str, &str); 1] {
    [("checkpoint", path.to_str().unwrap())]
}

/// Runs the query until 600 of its 1,000 calls are on disk, says so, and waits to be killed.
async fn run_to_be_killed(path: &Path) {
    let never = Gate::new();
    let mock = MockBackend::new(1).answer(move |prompt| {
        let number: u32 = prompt.rsplit_once("{\"value\": ")?.1.split_once('}')?.0.parse().ok()?;
        (number > 600).then(|| MockReply::text("").after(&never))
    });
    let (db, _oracle) = session_with(&checkpoint(path), mock).await;
    let settings = db.context().state().config().options().extensions.get::<Settings>().unwrap().clone();
    let cache = db.answer_cache();
    let query = tokio::spawn(async move { rows(&db, QUERY).await });
    while !query.is_finished() {
        let stats = cache.stats(&settings).await.unwrap();
        if stats.iter().map(|group| group.entries).sum::<u64>() == 600 {
            println!("\n600 answers on disk");
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
    }
    panic!("the query ended: {:?}", query.await);
}

/// The test runs itself in a process of its own, and kills it.
#[tokio::test]
async fn a_killed_query_pays_only_for_the_rest() {
    if let Some(path) = std::env::var_os(CHILD) {
        return run_to_be_killed(Path::new(&path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.answers");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::a_killed_query_pays_only_for_the_rest", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap() == "600 answers on disk");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told, "the child ended before it had 600 answers");

    let (db, oracle) = session(&checkpoint(&path)).await;
    let expected: Vec<String> = (1..=1000).map(|value| format!("p({value})")).collect();
    assert_eq!(rows(&db, QUERY).await.unwrap(), expected);
    assert_eq!(oracle.calls(), 400);
    assert_eq!(rows(&db, QUERY).await.unwrap(), expected);
    assert_eq!(oracle.calls(), 400, "the whole query is in the checkpoint now");
}

#[tokio::test]
async fn joins_aggregates_and_draws_resume_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.answers");
    let queries = [
        "select count(ai_complete('p', a.value)) from generate_series(1, 9) a join generate_series(1, 3) b on a.value % 3 = b.value % 3 \
         where ai_filter('1', b.value)",
        "select ai_complete('p', ai_complete('q', value)) from generate_series(1, 5) order by value",
        "select ai_complete('p', 1, temperature => 0.7) from generate_series(1, 5)",
        "select ai_complete('p', value, dedup => 'off') from generate_series(1, 5) order by value",
    ];
    for query in queries {
        let (db, oracle) = session(&checkpoint(&path)).await;
        let first = rows(&db, query).await.unwrap();
        assert!(oracle.calls() > 0);
        drop(db);
        let (db, oracle) = session(&checkpoint(&path)).await;
        assert_eq!((rows(&db, query).await.unwrap(), oracle.calls()), (first, 0), "{query}");
    }
}

#[tokio::test]
async fn a_checkpoint_is_left_by_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.answers");
    let (db, oracle): (_, Oracle) = session(&checkpoint(&path)).await;
    rows(&db, "select ai_complete('p', 'x')").await.unwrap();
    rows(&db, "set refrain.checkpoint = 'off'").await.unwrap();
    rows(&db, "select ai_complete('p', 'x')").await.unwrap();
    assert_eq!(oracle.calls(), 2);
    // Closed by now, so another session may have it.
    let (other, oracle) = session(&checkpoint(&path)).await;
    rows(&other, "select ai_complete('p', 'x')").await.unwrap();
    assert_eq!(oracle.calls(), 0);
}
