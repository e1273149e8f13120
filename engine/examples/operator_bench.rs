//! What the operator costs around the model: rows a second over a backend that answers at once and looks at nothing.
//!
//! `cargo run --release --example operator_bench -- [ROWS]`. Each arm is run twice and the faster run counts.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let rows: u64 = std::env::args().nth(1).as_deref().unwrap_or("500000").parse()?;
    let db = Refrain::builder().model("at_once", ModelSource::Backend(Arc::new(AtOnce::default()))).build().await?;
    println!("| rows | distinct | fields | seconds | distinct rows/s | rows/s |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for (distinct, fields) in [(rows, 1), (rows, 3), (rows / 10, 1), (rows / 10, 3)] {
        let more = ["", ", value % 100, 'group ' || (value % 1000)"][usize::from(fields > 1)];
        let input = format!("(select value % {distinct} as value from generate_series(1, {rows}))");
        let query = format!("select count(*) filter (where a) from (select ai_filter('p', value{more}) as a from {input})");
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            let started = Instant::now();
            db.sql(&query).await?.execute().await?.fetch_all().await?;
            best = best.min(started.elapsed().as_secs_f64());
        }
        println!(
            "| {rows} | {distinct} | {fields} | {best:.3} | {:.0} | {:.0} |",
            distinct as f64 / best,
            rows as f64 / best
        );
    }
    Ok(())
}
