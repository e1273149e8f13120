//! The prompts of a query as files of tokens, so that another engine can be given the same work.
//!
//! `NAME.tokens` holds all prompts end to end, little-endian u32; `NAME.offsets` where each begins and the last ends, little-endian
//! u64; `NAME.outputs` how many tokens each is answered with, little-endian u32: all that it may have where the answer is free text, as
//! random models write it, and else one, since a label or a number is known after a token or two.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use refrain_serving::mock::MockBackend;
use refrain_serving::{
    Backend, Batch, BatchId, Capabilities, CompletionStream, ModelKind, OutputShape, Request, Stats, Tokenizer,
};

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use crate::ModelSource;

/// The model that takes prompts down, for as long as they are recorded.
const RECORDER: &str = "prompts";

/// The context that the recorder has at least: prompts are taken down whole, also those that are too long for the model.
const CONTEXT_MIN: usize = 1 << 17;

/// Prompts that were taken down.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    pub(super) tokens: Vec<Vec<u32>>,
    /// Tokens of the answer to each.
    pub(super) outputs: Vec<u32>,
}

/// Returns the prompts that a query has for `model` with these settings, in the order in which they are submitted.
/// No model is asked or loaded: answers are made up.
pub(super) async fn record(session: &mut Session, model: &str, query: &str, settings: &[(&str, &str)]) -> Outcome<Prompts> {
    let catalog = Arc::clone(session.db.model_catalog());
    let Some(config) = catalog.config(model).map_err(crate::Error::from)? else {
        return Err(Failure::usage(format!("prompts are written for a model of this machine, and {model} is none")));
    };
    let tokenizer = catalog.tokenizer_of(model).map_err(crate::Error::from)?;
    let recorder = Arc::new(Recorder::new(config.max_context.max(CONTEXT_MIN), tokenizer));
    let source = ModelSource::Backend(Arc::clone(&recorder) as Arc<dyn Backend>);
    catalog.add(RECORDER, source, true).map_err(crate::Error::from)?;
    session.set("model", RECORDER).await?;
    session.set_defaults_and(settings).await?;
    let collected = session.collect(query).await;
    session.set("model", model).await?;
    catalog.remove(RECORDER);
    collected.map(|_| recorder.take())
}

/// Writes `PATH.tokens`, `PATH.offsets` and `PATH.outputs`.
pub(super) fn write(path: &Path, prompts: &Prompts) -> Outcome<()> {
    write_files(path, prompts).map_err(|error| Failure::file("write", path, error))
}

fn write_files(path: &Path, prompts: &Prompts) -> io::Result<()> {
    let create = |end: &str| File::create(path.with_extension(end)).map(BufWriter::new);
    let (mut tokens, mut offsets, mut outputs) = (create("tokens")?, create("offsets")?, create("outputs")?);
    let mut offset = 0_u64;
    offsets.write_all(&offset.to_le_bytes())?;
    for prompt in &prompts.tokens {
        for token in prompt {
            tokens.write_all(&token.to_le_bytes())?;
            offset += 1;
        }
        offsets.write_all(&offset.to_le_bytes())?;
    }
    for count in &prompts.outputs {
        outputs.write_all(&count.to_le_bytes())?;
    }
    tokens.flush()?;
    offsets.flush()?;
    outputs.flush()
}

/// A backend that takes prompts down in the order in which they come, and makes up an answer to each at once.
#[derive(Debug)]
struct Recorder {
    max_context: usize,
    tokenizer: Arc<dyn Tokenizer>,
    prompts: Mutex<Prompts>,
    answers: MockBackend,
}

impl Recorder {
    fn new(max_context: usize, tokenizer: Arc<dyn Tokenizer>) -> Self {
        let answers = MockBackend::new(0).max_context(max_context).without_history();
        Recorder { max_context, tokenizer, prompts: Mutex::default(), answers }
    }

    fn take(&self) -> Prompts {
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
            gpu_bytes: None,
            dtype: None,
        }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let mut prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        prompts.tokens.extend(batch.requests.iter().map(|request| request.prompt.concat()));
        prompts.outputs.extend(batch.requests.iter().map(output_tokens));
        drop(prompts);
        self.answers.submit(batch)
    }

    fn cancel(&self, batch: BatchId) {
        self.answers.cancel(batch);
    }

    fn stats(&self) -> Stats {
        self.answers.stats()
    }
}

/// Returns how many tokens a request is answered with.
fn output_tokens(request: &Request) -> u32 {
    if *request.shape == OutputShape::Text { request.max_tokens } else { 1 }
}
