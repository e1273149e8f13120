//! The prompts of a query as files of tokens, so that another engine can be given the same work.
//!
//! `NAME.tokens` holds all prompts end to end, little-endian u32; `NAME.offsets` where each begins and the last ends, little-endian
//! u64. `original` has a prompt for each row, as stored; `refrain` the distinct prompts in the order in which they are submitted.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use refrain_serving::request::Segment;
use refrain_serving::{
    Answer, Backend, Batch, BatchId, Capabilities, Completion, CompletionStream, FinishReason, ModelKind, OutputShape,
    RowFailure, Stats, Tokenizer, Usage,
};
use tokio::sync::mpsc;

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use crate::ModelSource;

/// The files, and the settings of each beside the defaults.
const FILES: [(&str, &[(&str, &str)]); 2] = [("original", &[("reorder", "none"), ("dedup", "off")]), ("refrain", &[])];

/// The model that takes prompts down, for as long as they are written.
const RECORDER: &str = "prompts";

/// Writes the prompts that a query has for `model` to a folder, which is made if need be. No model is asked or loaded.
pub(super) async fn write_prompts(session: &mut Session, model: &str, query: &str, folder: &Path) -> Outcome<()> {
    let catalog = Arc::clone(session.db.model_catalog());
    let Some(config) = catalog.config(model).map_err(crate::Error::from)? else {
        return Err(Failure::usage(format!("--write-prompts needs a model of this machine, and {model} is none")));
    };
    let tokenizer = catalog.tokenizer_of(model).map_err(crate::Error::from)?;
    std::fs::create_dir_all(folder).map_err(|error| Failure::file("make", folder, error))?;
    for (name, settings) in FILES {
        let recorder = Arc::new(Recorder::new(config.max_context, Arc::clone(&tokenizer)));
        let source = ModelSource::Backend(Arc::clone(&recorder) as Arc<dyn Backend>);
        catalog.add(RECORDER, source, true).map_err(crate::Error::from)?;
        session.set("model", RECORDER).await?;
        session.set_defaults_and(settings).await?;
        session.collect(query).await?;
        let path = folder.join(name);
        write(&path, &recorder.take()).map_err(|error| Failure::file("write", &path, error))?;
    }
    session.set("model", model).await?;
    catalog.remove(RECORDER);
    Ok(())
}

/// Writes `PATH.tokens` and `PATH.offsets`.
fn write(path: &Path, prompts: &[Vec<Segment>]) -> io::Result<()> {
    let create = |end: &str| File::create(path.with_extension(end)).map(BufWriter::new);
    let (mut tokens, mut offsets) = (create("tokens")?, create("offsets")?);
    let mut offset = 0_u64;
    offsets.write_all(&offset.to_le_bytes())?;
    for prompt in prompts {
        for token in prompt.iter().flat_map(|segment| segment.iter()) {
            tokens.write_all(&token.to_le_bytes())?;
            offset += 1;
        }
        offsets.write_all(&offset.to_le_bytes())?;
    }
    tokens.flush()?;
    offsets.flush()
}

/// A backend that takes prompts down in the order in which they come, and answers at once.
#[derive(Debug)]
struct Recorder {
    max_context: usize,
    tokenizer: Arc<dyn Tokenizer>,
    prompts: Mutex<Vec<Vec<Segment>>>,
    batches: AtomicU64,
}

impl Recorder {
    fn new(max_context: usize, tokenizer: Arc<dyn Tokenizer>) -> Self {
        Recorder { max_context, tokenizer, prompts: Mutex::default(), batches: AtomicU64::new(0) }
    }

    fn take(&self) -> Vec<Vec<Segment>> {
        std::mem::take(&mut *self.prompts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backend for Recorder {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            device: "none: prompts are taken down".to_owned(),
            max_context: self.max_context,
            prefix_granularity: 1,
            model_digest: RECORDER.to_owned(),
            kind: ModelKind::Completion,
            token_scale: 1.0,
            held_bytes: None,
        }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let (sender, receiver) = mpsc::channel(batch.requests.len().max(1));
        let mut prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        for request in batch.requests {
            prompts.push(request.prompt);
            let text = match request.shape.as_ref() {
                OutputShape::Text => Ok(String::new()),
                OutputShape::Choice(labels) => Ok(labels.first().cloned().unwrap_or_default()),
                shape => Err(RowFailure::Refused(format!("no answer of the shape {shape:?} is made up"))),
            };
            let result = text.map(|text| Answer::text(text, vec![], FinishReason::Stop));
            // The channel has room for all; a caller that has gone away wants none.
            let _ = sender.try_send(Ok(Completion { id: request.id, result, usage: Usage::default() }));
        }
        CompletionStream::new(BatchId(self.batches.fetch_add(1, Ordering::Relaxed)), receiver)
    }

    fn cancel(&self, _: BatchId) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }
}
