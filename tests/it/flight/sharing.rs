//! What the sessions of clients have in common in the model, and what each brings to its queue.

use std::sync::{Arc, Mutex};

use refrain::serving::mock::MockBackend;
use refrain::serving::{Backend, Batch, BatchId, Capabilities, CompletionStream, Stats, Tokenizer};
use refrain::{ModelSource, Refrain};

use super::harness::{connect, rows, serve};

/// Real tokens in the bundled model's cache: the instruction of one session is found there by the next.
#[tokio::test]
async fn what_prompts_of_two_sessions_begin_with_is_computed_once() {
    let address = serve(Refrain::builder().build().await.unwrap()).await;
    let (mut one, mut other) = (connect(address).await, connect(address).await);
    let rules = "Judge what is said of the plot, of the actors, of the music and of the ending, each by itself. ".repeat(5);
    let ask = |review: &str| format!("select ai_filter('{rules}Is the review positive?', '{review}') is null");
    rows(&mut one, &ask("A wonderful film.")).await.unwrap();
    rows(&mut other, &ask("Dull and overlong.")).await.unwrap();
    let found = "select cached_tokens > 0, cached_tokens * 2 > prompt_tokens from ai_usage() order by query_id";
    assert_eq!(rows(&mut other, found).await.unwrap(), ["false|false", "true|true"]);
}

/// Notes how urgent the batches are that it is given.
#[derive(Debug)]
struct Watched {
    model: MockBackend,
    priorities: Mutex<Vec<i32>>,
}

impl Backend for Watched {
    fn capabilities(&self) -> Capabilities {
        self.model.capabilities()
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        self.model.tokenizer()
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        self.priorities.lock().unwrap().push(batch.priority);
        self.model.submit(batch)
    }

    fn cancel(&self, batch: BatchId) {
        self.model.cancel(batch);
    }

    fn stats(&self) -> Stats {
        self.model.stats()
    }
}

#[tokio::test]
async fn the_priority_of_a_session_is_that_of_its_calls() {
    let watched = Arc::new(Watched { model: MockBackend::new(1), priorities: Mutex::default() });
    let model = Arc::clone(&watched) as Arc<dyn Backend>;
    let address = serve(Refrain::builder().model("m", ModelSource::Backend(model)).build().await.unwrap()).await;
    let (mut patient, mut urgent) = (connect(address).await, connect(address).await);
    patient.execute_update("set refrain.priority = 'batch'".to_owned(), None).await.unwrap();
    rows(&mut patient, "select ai_complete('p', 'a')").await.unwrap();
    rows(&mut urgent, "select ai_complete('p', 'b')").await.unwrap();
    rows(&mut patient, "select ai_complete('p', 'c')").await.unwrap();
    assert_eq!(*watched.priorities.lock().unwrap(), [-1, 0, -1]);
}
