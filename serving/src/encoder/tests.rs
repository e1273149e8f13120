//! The backend around a device without a model: order, cancellation, failure, and its end.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::executor::block_on;

use super::{EncoderBackend, EncoderBackendConfig};
use crate::backend::{Backend, CompletionStream, ModelKind};
use crate::device::EncoderDevice;
use crate::error::{Error, Result};
use crate::mock::ByteTokenizer;
use crate::request::{Batch, Completion, OutputShape, Request, RequestId, RowFailure, Sampling, TokenId};
use crate::tokenizer::Tokenizer;

/// The longest text of the tests.
const MAX_TOKENS: usize = 10;

/// Gives the vector (length, first token, 0). Its passes wait for a permit each, until the sender of permits is gone.
#[derive(Debug, Default)]
struct Lengths {
    permits: Option<Mutex<Receiver<()>>>,
    /// Told the lengths of the texts of each pass.
    passes: Option<Sender<Vec<usize>>>,
    fails: bool,
    panics: bool,
}

impl EncoderDevice for Lengths {
    fn describe(&self) -> String {
        "lengths".to_string()
    }

    fn embed(&mut self, texts: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>> {
        if let Some(passes) = &self.passes {
            let _ = passes.send(texts.iter().map(Vec::len).collect());
        }
        if let Some(permits) = &self.permits {
            let _ = permits.lock().unwrap().recv();
        }
        if self.fails {
            return Err(Error::Device("told to fail".to_string()));
        }
        assert!(!self.panics, "told to panic");
        Ok(texts.iter().map(|text| vec![text.len() as f32, text[0] as f32, 0.0]).collect())
    }
}

fn start(device: Lengths) -> EncoderBackend {
    let config = EncoderBackendConfig { step_tokens: 8, ..EncoderBackendConfig::new(MAX_TOKENS, 3, "digest") };
    EncoderBackend::start(move || Ok(Box::new(device)), Arc::new(ByteTokenizer), config).unwrap()
}

fn batch(texts: &[&str], dimensions: Option<u32>) -> Batch {
    let shape = Arc::new(OutputShape::Embedding { dimensions });
    let request = |(id, text): (u32, &&str)| {
        let prompt = vec![ByteTokenizer.encode(text).into()];
        Request::new(RequestId(id), prompt, Arc::clone(&shape), Sampling::GREEDY, 1)
    };
    Batch { requests: (0..).zip(texts).map(request).collect(), ..Batch::default() }
}

fn read(stream: CompletionStream) -> Vec<Result<Completion>> {
    block_on(stream.collect())
}

fn vectors(stream: CompletionStream) -> Vec<Vec<f32>> {
    let mut completions: Vec<Completion> = read(stream).into_iter().map(Result::unwrap).collect();
    completions.sort_by_key(|completion| completion.id);
    completions.into_iter().map(|completion| completion.result.unwrap().embedding.unwrap()).collect()
}

#[test]
fn every_text_gets_its_vector_of_unit_length() {
    let backend = start(Lengths::default());
    assert_eq!(vectors(backend.submit(batch(&["aaaa", "a"], Some(1)))), [[1.0], [1.0]]);
    let whole = vectors(backend.submit(batch(&["\u{3}\u{3}\u{3}\u{3}"], None)));
    assert_eq!(whole, [[0.8, 0.6, 0.0]]);
    let stats = backend.stats();
    assert_eq!((stats.completed, stats.prompt_tokens, stats.computed_tokens, stats.pending), (3, 9, 9, 0));
    assert_eq!(backend.capabilities().kind, ModelKind::Embedding { dimensions: Some(3) });
}

#[test]
fn passes_are_filled_in_order_of_priority() {
    let (permit, permits) = channel();
    let (passes, seen) = channel();
    let backend = start(Lengths { permits: Some(Mutex::new(permits)), passes: Some(passes), ..Lengths::default() });
    let first = backend.submit(batch(&["a"], None));
    assert_eq!(seen.recv().unwrap(), [1]);
    let later = backend.submit(batch(&["bb", "bbb", "bbbb"], None));
    let urgent = backend.submit(Batch { priority: 1, ..batch(&["ccccc", "ccccccccc"], None) });
    drop(permit);
    assert_eq!((vectors(first).len(), vectors(later).len(), vectors(urgent).len()), (1, 3, 2));
    // A text that is longer than a pass runs by itself; the next ones fill the pass up to 8 tokens.
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [vec![5], vec![9], vec![2, 3], vec![4]]);
}

#[test]
fn long_texts_fail_alone() {
    let backend = start(Lengths::default());
    let answers = read(backend.submit(batch(&["a", "aaaaaaaaaaa", "aaaaaaaaaa"], None)));
    let failures: Vec<_> =
        answers.into_iter().filter_map(|answer| answer.unwrap().result.err().map(|failure| failure.to_string())).collect();
    assert_eq!(failures, [RowFailure::Overflow { tokens: 11, limit: 10 }.to_string()]);
}

#[test]
fn what_the_model_cannot_give_is_refused_with_its_batch() {
    let backend = start(Lengths::default());
    let mut text = batch(&["a"], None);
    text.requests[0].shape = Arc::new(OutputShape::Text);
    let mut unknown = batch(&["a"], None);
    unknown.requests[0].prompt.push([9999].into());
    for (batch, words) in [
        (text, "the model embeds"),
        (unknown, "token 9999"),
        (batch(&[""], None), "empty"),
        (batch(&["a"], Some(4)), "gives 1 to 3"),
        (batch(&["a"], Some(0)), "gives 1 to 3"),
    ] {
        let answers = read(backend.submit(batch));
        assert!(matches!(&answers[..], [Err(Error::Invalid(reason))] if reason.contains(words)), "{answers:?}");
    }
    assert!(read(backend.submit(Batch::default())).is_empty());
    assert_eq!(vectors(backend.submit(batch(&["a"], None))).len(), 1);
}

#[test]
fn dropped_and_cancelled_batches_end_after_the_pass_they_are_in() {
    let (permit, permits) = channel();
    let (passes, seen) = channel();
    let backend = start(Lengths { permits: Some(Mutex::new(permits)), passes: Some(passes), ..Lengths::default() });
    let texts = ["aaaaaaaa"; 20];
    let dropped = backend.submit(batch(&texts, None));
    seen.recv().unwrap();
    let cancelled = backend.submit(batch(&texts, None));
    let kept = backend.submit(batch(&["a"], None));
    backend.cancel(cancelled.id());
    drop(dropped);
    drop(permit);
    assert_eq!(vectors(kept).len(), 1);
    assert!(read(cancelled).is_empty());
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [[1]]);
    let stats = backend.stats();
    assert_eq!((stats.completed, stats.cancelled, stats.pending, stats.steps), (2, 39, 0, 2));
}

#[test]
fn a_failing_device_fails_every_batch() {
    for (fails, panics, words) in [(true, false, "told to fail"), (false, true, "told to panic")] {
        let (permit, permits) = channel();
        let backend = start(Lengths { permits: Some(Mutex::new(permits)), fails, panics, ..Lengths::default() });
        let streams = [backend.submit(batch(&["a"; 30], None)), backend.submit(batch(&["b"], None))];
        drop(permit);
        for stream in streams {
            let answers = read(stream);
            assert!(matches!(&answers[..], [Err(Error::Device(reason))] if reason.contains(words)), "{answers:?}");
        }
        let later = read(backend.submit(batch(&["a"], None)));
        assert!(matches!(&later[..], [Err(Error::Device(reason))] if reason.contains(words)), "{later:?}");
        assert_eq!(backend.stats().pending, 0);
    }
}

#[test]
fn a_device_that_does_not_open_is_an_error() {
    let open = || Err(Error::OutOfMemory("too big".to_string()));
    let config = EncoderBackendConfig::new(10, 3, "digest");
    let error = EncoderBackend::start(open, Arc::new(ByteTokenizer), config).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory(_)));
}

#[test]
fn dropping_the_backend_ends_its_thread() {
    let (permit, permits) = channel();
    let (passes, seen) = channel();
    let backend = start(Lengths { permits: Some(Mutex::new(permits)), passes: Some(passes), ..Lengths::default() });
    let stream = backend.submit(batch(&["aaaaaaaa"; 20], None));
    seen.recv().unwrap();
    drop(permit);
    drop(backend);
    let answers = read(stream);
    assert!(answers.len() == 20 || matches!(answers.last(), Some(Err(Error::Cancelled))), "{answers:?}");
}
