//! What the operator costs around the model, in rows a second over a backend that answers at once and looks at nothing:
//! `cargo bench -p refrain`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use divan::Bencher;
use divan::counter::ItemsCount;
use refrain::serving::mock::ByteTokenizer;
use refrain::serving::{
    Answer, Backend, Batch, BatchId, Capabilities, Completion, CompletionStream, FinishReason, ModelKind, Stats, Tokenizer,
    Usage,
};
use refrain::{ModelSource, Refrain};

/// Answers every request with Yes.
#[derive(Debug, Default)]
struct AtOnce {
    batches: AtomicU64,
}

impl Backend for AtOnce {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            device: "none".to_owned(),
            max_context: 32_768,
            prefix_granularity: 1,
            model_digest: "at once".to_owned(),
            kind: ModelKind::Completion,
            token_scale: 1.0,
            held_bytes: None,
            gpu_bytes: None,
            dtype: None,
        }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(ByteTokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let (sender, receiver) = tokio::sync::mpsc::channel(batch.requests.len().max(1));
        for request in batch.requests {
            let answer = Answer::text("Yes".to_owned(), vec![1], FinishReason::Stop);
            let completion = Completion { id: request.id, result: Ok(answer), usage: Usage::default() };
            // The channel has room for all; a caller that has gone away wants none.
            let _ = sender.try_send(Ok(completion));
        }
        CompletionStream::new(BatchId(self.batches.fetch_add(1, Ordering::Relaxed)), receiver)
    }

    fn cancel(&self, _: BatchId) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

fn main() {
    divan::main();
}

const ROWS: u64 = 200_000;

/// Every row is a question of its own.
#[divan::bench(args = [1, 3], sample_count = 5, sample_size = 1)]
fn distinct(bencher: Bencher<'_, '_>, fields: usize) {
    ask(bencher, ROWS, fields, "");
}

/// Ten rows ask the same question: they are found to be equal, and share its answer.
#[divan::bench(args = [1, 3], sample_count = 5, sample_size = 1)]
fn dedup(bencher: Bencher<'_, '_>, fields: usize) {
    ask(bencher, ROWS / 10, fields, "");
}

/// All questions were answered before: answers are looked up and put beside their rows.
#[divan::bench(args = [1, 3], sample_count = 5, sample_size = 1)]
fn scatter(bencher: Bencher<'_, '_>, fields: usize) {
    ask(bencher, ROWS, fields, "set refrain.cache = 'session'");
}

/// The same query over a plain expression: what the host engine takes.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn without_a_call(bencher: Bencher<'_, '_>) {
    run(bencher, &format!("select count(*) filter (where value % 2 = 0) from generate_series(1, {ROWS})"), "");
}

fn ask(bencher: Bencher<'_, '_>, distinct: u64, fields: usize, setting: &str) {
    let more = ["", ", value % 100, 'group ' || (value % 1000)"][usize::from(fields > 1)];
    let input = format!("(select value % {distinct} as value from generate_series(1, {ROWS}))");
    let query = format!("select count(*) filter (where a) from (select ai_filter('p', value{more}) as a from {input})");
    run(bencher, &query, setting);
}

fn run(bencher: Bencher<'_, '_>, query: &str, setting: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let db = runtime.block_on(async {
        let db = Refrain::builder().model("at_once", ModelSource::Backend(Arc::new(AtOnce::default()))).build().await;
        let db = db.expect("a session starts");
        for statement in [setting, query].into_iter().filter(|statement| !statement.is_empty()) {
            fetch(&db, statement).await;
        }
        db
    });
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| runtime.block_on(fetch(&db, query)));
}

async fn fetch(db: &Refrain, statement: &str) {
    let run = async { db.sql(statement).await?.execute().await?.fetch_all().await };
    run.await.expect("the statement runs");
}
