//! A query that is killed and run again pays only for the rest.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use refrain::serving::mock::{Gate, MockBackend, MockReply};
use refrain::{AnswerCache, Refrain};
use refrain_udf::Settings;

use crate::support::{Oracle, rows, session, session_with};

/// Names the checkpoint to the process that is to be killed.
const CHILD: &str = "REFRAIN_TEST_CHECKPOINT";

const ROWS: u64 = 1000;

const QUERY: &str = "select ai_complete('p', value) from generate_series(1, 1000) order by value";

fn checkpoint(path: &Path) -> [(&'static str, &str); 1] {
    [("checkpoint", path.to_str().unwrap())]
}

/// Starts a process that runs one of these tests with the checkpoint to write.
fn start(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("checkpoint::{test}"), "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns what the process prints, line by line.
fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap)
}

/// Returns the number of the row that a prompt is about.
fn row(prompt: &str) -> Option<u64> {
    prompt.rsplit_once("{\"value\": ")?.1.split_once('}')?.0.parse().ok()
}

fn settings(db: &Refrain) -> Settings {
    db.context().state().config().options().extensions.get::<Settings>().unwrap().clone()
}

/// Returns how many answers are on disk, after those that wait have been written.
async fn on_disk(cache: &AnswerCache, settings: &Settings) -> u64 {
    cache.stats(settings).await.unwrap().iter().map(|group| group.entries).sum()
}

/// Runs the query again and returns how many calls it made.
async fn rerun(path: &Path) -> u64 {
    let (db, oracle) = session(&checkpoint(path)).await;
    let expected: Vec<String> = (1..=ROWS).map(|value| format!("p({value})")).collect();
    assert_eq!(rows(&db, QUERY).await.unwrap(), expected);
    let calls = oracle.0.calls();
    assert_eq!(rows(&db, QUERY).await.unwrap(), expected);
    assert_eq!(oracle.0.calls(), calls, "the whole query is in the checkpoint now");
    calls
}

/// Runs the query until 600 of its 1,000 calls are on disk, says so, and waits to be killed.
async fn run_to_be_killed(path: &Path) {
    let never = Gate::new();
    let mock = MockBackend::new(1).answer(move |prompt| {
        let held = row(prompt)? > 600;
        held.then(|| MockReply::text("").after(&never))
    });
    let (db, _oracle) = session_with(&checkpoint(path), mock).await;
    let (cache, settings) = (db.answer_cache(), settings(&db));
    let query = tokio::spawn(async move { rows(&db, QUERY).await });
    while !query.is_finished() {
        if on_disk(&cache, &settings).await == 600 {
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
    let mut child = start("a_killed_query_pays_only_for_the_rest", &path);
    let told = lines(&mut child).any(|line| line == "600 answers on disk");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told, "the child ended before it had 600 answers");
    assert_eq!(rerun(&path).await, 400);
}

/// Calls that the model finishes together in the test that follows.
const STEP: u64 = 16;

/// Runs the query over a model that answers in steps, each of which begins when the answers of the one before are on disk, as they are
/// where the disk is faster than the model. Says before each how many calls will have been answered, and never waits to be killed.
async fn run_in_steps(path: &Path) {
    let steps: Vec<Gate> = (0..ROWS.div_ceil(STEP)).map(|_| Gate::new()).collect();
    let ends = steps.clone();
    let mock = MockBackend::new(1).answer(move |prompt| {
        let row = row(prompt)?;
        Some(MockReply::text(format!("p({row})")).after(&ends[((row - 1) / STEP) as usize]))
    });
    let (db, _oracle) = session_with(&checkpoint(path), mock).await;
    let (cache, settings) = (db.answer_cache(), settings(&db));
    let query = tokio::spawn(async move { rows(&db, QUERY).await });
    let mut answered = 0;
    for step in steps {
        answered = ROWS.min(answered + STEP);
        println!("\nanswered {answered}");
        step.open();
        while on_disk(&cache, &settings).await < answered {
            assert!(answered == ROWS || !query.is_finished(), "the query ended too early");
            tokio::task::yield_now().await;
        }
    }
    query.await.unwrap().unwrap();
}

/// The process is killed while answers come in, at a moment that nothing chooses: within a step, within a commit or between them.
#[tokio::test]
async fn at_most_the_calls_of_one_step_are_paid_twice() {
    if let Some(path) = std::env::var_os(CHILD) {
        return run_in_steps(Path::new(&path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    // Not in the first step, in which the file is made.
    for kill_at in [20, 500] {
        let path = folder.path().join(format!("killed-at-{kill_at}"));
        let mut child = start("at_most_the_calls_of_one_step_are_paid_twice", &path);
        // What it said before it died, the last time perhaps as it died, is read to the end.
        let mut answered: u64 = 0;
        for line in lines(&mut child) {
            let Some(count) = line.strip_prefix("answered ") else { continue };
            let killed = answered >= kill_at;
            answered = count.parse().unwrap();
            if answered >= kill_at && !killed {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(answered >= kill_at, "the child ended after {answered} answers");
        let paid = answered + rerun(&path).await;
        assert!((ROWS..=ROWS + STEP).contains(&paid), "killed at {answered} answers: {paid} calls for {ROWS} rows");
    }
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
