//! The embedded engine around a device without a model: cancellation, failure, and its end.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::executor::block_on;

use super::model::CompileShape;
use super::{EngineConfig, LocalBackend, LocalConfig, LocalEngine};
use crate::backend::{Backend, CompletionStream};
use crate::device::{Bind, Device, PoolSpec, StepTicket};
use crate::error::{Error, Result};
use crate::request::{Batch, Completion, FinishReason, OutputShape, Request, RequestId, RowFailure, Sampling};
use crate::scheduler::fake_device::{Digits, FakeDevice, VOCAB};
use crate::scheduler::test_constraints::{any_text, labels};
use crate::step::{PageCopy, StepPlan, StepResult};
use crate::tokenizer::Tokenizer;

/// A device whose passes wait for a permit each, until the sender of permits is gone.
#[derive(Debug)]
struct GatedDevice {
    device: FakeDevice,
    permits: Option<Mutex<Receiver<()>>>,
    launched: Option<Sender<()>>,
    alive: Arc<()>,
}

impl GatedDevice {
    fn new(pages: u32) -> Self {
        GatedDevice { device: FakeDevice::new(pages), permits: None, launched: None, alive: Arc::default() }
    }
}

impl Device for GatedDevice {
    fn pool(&self) -> PoolSpec {
        self.device.pool()
    }

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn overlaps(&self) -> bool {
        self.device.overlaps()
    }

    fn launch_open(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepTicket> {
        if let Some(launched) = &self.launched {
            let _ = launched.send(());
        }
        if let Some(permits) = &self.permits {
            let _ = permits.lock().unwrap().recv();
        }
        self.device.launch_open(plan, bind)
    }

    fn poll(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<bool> {
        self.device.poll(ticket, result)
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<()> {
        self.device.copy(copies)
    }
}

pub(super) fn compile() -> CompileShape {
    Box::new(|shape| match shape {
        OutputShape::Text => Ok(any_text()),
        OutputShape::Choice(_) => Ok(labels(&[&[1, 1, 1], &[2, 2, 2]], false)),
        _ => Err(Error::Invalid("only text and choices".to_string())),
    })
}

fn start(device: GatedDevice) -> LocalBackend {
    let engine = LocalEngine::start(EngineConfig::new(usize::MAX)).unwrap();
    add(&engine, device)
}

fn add(engine: &LocalEngine, device: impl Device + 'static) -> LocalBackend {
    let config = LocalConfig::new(2000, "digest");
    engine.add_model_with(|_| Ok(Box::new(device)), Digits::shared(), compile(), config).unwrap()
}

/// A device whose pool is in slabs of four pages.
fn in_slabs(pages: u32) -> FakeDevice {
    FakeDevice { slabs: Some((4, HashSet::new())), ..FakeDevice::new(pages) }
}

pub(super) fn batch(count: u32, shape: OutputShape, max_tokens: u32) -> Batch {
    let shape = Arc::new(shape);
    let request = |id: u32| {
        let prompt = vec![Digits.encode("12345671234567123456").into(), Digits.encode(&format!("{:o}", id + 8)).into()];
        Request::new(RequestId(id), prompt, Arc::clone(&shape), Sampling::GREEDY, max_tokens)
    };
    Batch { requests: (0..count).map(request).collect(), ..Batch::default() }
}

pub(super) fn choice() -> OutputShape {
    OutputShape::Choice(vec!["111".to_string(), "222".to_string()])
}

fn read(stream: CompletionStream) -> Vec<Result<Completion>> {
    block_on(stream.collect())
}

#[test]
fn every_request_is_answered_once() {
    let backend = start(GatedDevice::new(500));
    let mut completions: Vec<Completion> =
        read(backend.submit(batch(40, choice(), 5))).into_iter().map(Result::unwrap).collect();
    completions.sort_by_key(|completion| completion.id);
    assert_eq!(completions.len(), 40);
    for (id, completion) in (0..).zip(&completions) {
        assert_eq!(completion.id, RequestId(id));
        let answer = completion.result.as_ref().unwrap();
        assert!(["111", "222"].contains(&answer.text.as_str()));
        assert_eq!((answer.tokens.len(), answer.finish), (3, FinishReason::Stop));
    }
    let stats = backend.stats();
    assert_eq!((stats.completed, stats.pending, stats.pages_used, stats.pages_total), (40, 0, 0, 500));
    let distinct = 20 + 5 + 40;
    assert_eq!(stats.prompt_tokens - stats.cached_tokens, distinct, "40 prompts begin alike and go on in 5 ways");
}

#[test]
fn answers_that_are_cut_are_text_or_failures() {
    let backend = start(GatedDevice::new(500));
    let cut = |shape| read(backend.submit(batch(1, shape, 1))).remove(0).unwrap().result;
    assert!(matches!(cut(choice()), Err(RowFailure::Schema(text)) if text.len() == 1));
    assert!(cut(OutputShape::Text).is_ok());
    assert!(read(backend.submit(Batch::default())).is_empty());
}

#[test]
fn stop_strings_and_probabilities_reach_the_answer() {
    let backend = start(GatedDevice::new(500));
    let ask = |stop: &[&str]| {
        let mut batch = batch(1, OutputShape::Text, 30);
        batch.requests[0].stop = stop.iter().map(|stop| (*stop).to_string()).collect();
        batch.requests[0].logprobs = Some(1);
        read(backend.submit(batch)).remove(0)
    };
    let whole = ask(&[]).unwrap().result.unwrap();
    assert_eq!(whole.logprobs.len(), whole.tokens.len());
    assert!(whole.logprobs.iter().zip(&whole.tokens).all(|(logprobs, token)| logprobs.top[0].0 == *token));
    let stop = &whole.text[2..4];
    let end = whole.text.find(stop).unwrap();
    let cut = ask(&[stop]).unwrap().result.unwrap();
    assert_eq!((cut.text.as_str(), cut.finish, cut.logprobs.len()), (&whole.text[..end], FinishReason::Stop, end));
    assert!(matches!(ask(&["1", ""]), Err(Error::Invalid(_))));
}

#[test]
fn a_dropped_stream_is_noticed_within_a_step() {
    let (permit, permits) = channel();
    let (launched, launches) = channel();
    let device = GatedDevice { permits: Some(Mutex::new(permits)), launched: Some(launched), ..GatedDevice::new(5000) };
    let backend = start(device);
    let dropped = backend.submit(batch(20, OutputShape::Text, 1000));
    let cancelled = backend.submit(batch(20, OutputShape::Text, 1000));
    launches.recv().unwrap();
    let kept = backend.submit(batch(3, choice(), 5));
    backend.cancel(cancelled.id());
    drop(dropped);
    drop(permit);
    assert_eq!(read(kept).len(), 3);
    let ended: Vec<_> = read(cancelled);
    assert!(ended.iter().all(Result::is_ok) && ended.len() < 20);
    let stats = backend.stats();
    assert_eq!((stats.completed + stats.cancelled, stats.pending, stats.pages_used), (43, 0, 0));
    assert!(stats.steps <= 3, "one step was running, and the third batch needs two at most");
}

#[test]
fn an_invalid_batch_fails_alone() {
    let backend = start(GatedDevice::new(100));
    let check = |batch: Batch| {
        let answers = read(backend.submit(batch));
        assert!(matches!(answers[..], [Err(Error::Invalid(_))]), "{answers:?}");
    };
    check(batch(3, OutputShape::Regex("a".to_string()), 5));
    let mut unknown_token = batch(1, choice(), 5);
    unknown_token.requests[0].prompt.push([VOCAB].into());
    check(unknown_token);
    let mut empty = batch(1, choice(), 5);
    empty.requests[0].prompt.clear();
    check(empty);
    assert_eq!(read(backend.submit(batch(3, choice(), 5))).len(), 3);
}

#[test]
fn a_failing_device_fails_every_batch() {
    let check = |device: FakeDevice, expected: &str| {
        let (permit, permits) = channel();
        let device = GatedDevice { device, permits: Some(Mutex::new(permits)), ..GatedDevice::new(0) };
        let backend = start(device);
        let streams = [backend.submit(batch(3, choice(), 5)), backend.submit(batch(3, OutputShape::Text, 500))];
        drop(permit);
        for stream in streams {
            let answers = read(stream);
            assert!(matches!(answers.last(), Some(Err(Error::Device(reason))) if reason.contains(expected)), "{answers:?}");
        }
        let later = read(backend.submit(batch(3, choice(), 5)));
        assert!(matches!(&later[..], [Err(Error::Device(reason))] if reason.contains(expected)), "{later:?}");
        assert_eq!((backend.stats().pending, backend.capabilities().prefix_granularity), (0, 1));
    };
    for overlaps in [false, true] {
        check(FakeDevice { fail_at: Some(1), overlaps, ..FakeDevice::new(100) }, "told to fail");
        check(FakeDevice { panic_at: Some(1), overlaps, ..FakeDevice::new(100) }, "told to panic");
    }
}

#[test]
fn a_device_that_does_not_open_is_an_error() {
    let check = |open: fn() -> Result<Box<dyn Device>>| {
        LocalBackend::start(open, Digits::shared(), LocalConfig::new(100, "digest")).unwrap_err()
    };
    assert!(matches!(check(|| Err(Error::OutOfMemory("too big".to_string()))), Error::OutOfMemory(_)));
    assert!(matches!(check(|| panic!("no driver")), Error::Device(reason) if reason.contains("no driver")));
}

#[test]
fn dropping_the_backend_ends_its_thread() {
    let (permit, permits) = channel();
    let (launched, launches) = channel();
    let device = GatedDevice { permits: Some(Mutex::new(permits)), launched: Some(launched), ..GatedDevice::new(5000) };
    let alive = Arc::downgrade(&device.alive);
    let backend = start(device);
    let stream = backend.submit(batch(20, OutputShape::Text, 1000));
    launches.recv().unwrap();
    permit.send(()).unwrap();
    drop(permit);
    drop(backend);
    assert!(alive.upgrade().is_none());
    // Rows that finished before are answered; if any did not, the stream says so.
    let answers = read(stream);
    assert!(answers.len() == 20 || matches!(answers.last(), Some(Err(Error::Cancelled))), "{answers:?}");
}

#[test]
fn models_of_one_engine_answer_as_they_do_alone() {
    let texts = |backend: &LocalBackend, shape: OutputShape| {
        let mut completions: Vec<Completion> =
            read(backend.submit(batch(30, shape, 40))).into_iter().map(Result::unwrap).collect();
        completions.sort_by_key(|completion| completion.id);
        completions.into_iter().map(|completion| completion.result.unwrap().text).collect::<Vec<_>>()
    };
    let alone = start(GatedDevice::new(500));
    let expected = [texts(&alone, OutputShape::Text), texts(&alone, choice())];
    let engine = LocalEngine::start(EngineConfig::new(40)).unwrap();
    let (one, other) = (add(&engine, in_slabs(40)), add(&engine, in_slabs(40)));
    drop(engine);
    let stream = one.submit(batch(30, OutputShape::Text, 40));
    assert_eq!(texts(&other, choice()), expected[1]);
    assert_eq!(read(stream).len(), 30);
    assert_eq!([texts(&one, OutputShape::Text), texts(&other, choice())], expected);
    drop(other);
    assert_eq!(texts(&one, choice()), expected[1]);
}

#[test]
fn one_model_fails_alone() {
    let engine = LocalEngine::start(EngineConfig::new(40)).unwrap();
    let faults = [(Some(2), None), (None, Some(2))].map(|fault| [false, true].map(|overlaps| (fault, overlaps)));
    for ((fail_at, panic_at), overlaps) in faults.into_iter().flatten() {
        let broken = FakeDevice { fail_at, panic_at, overlaps, ..in_slabs(40) };
        let (broken, sound) = (add(&engine, broken), add(&engine, FakeDevice { overlaps, ..in_slabs(40) }));
        let streams = [broken.submit(batch(5, OutputShape::Text, 40)), sound.submit(batch(30, OutputShape::Text, 40))];
        let [failed, answered] = streams.map(read);
        assert!(matches!(failed.last(), Some(Err(Error::Device(_)))), "{failed:?}");
        assert!(answered.len() == 30 && answered.iter().all(Result::is_ok));
        assert!(matches!(&read(broken.submit(batch(1, choice(), 5)))[..], [Err(Error::Device(_))]));
    }
}

#[test]
fn a_dropped_model_is_gone_and_others_stay() {
    let engine = LocalEngine::start(EngineConfig::new(usize::MAX)).unwrap();
    for overlaps in [false, true] {
        let mut device = GatedDevice::new(100);
        device.device.overlaps = overlaps;
        let alive = Arc::downgrade(&device.alive);
        let (dropped, kept) = (add(&engine, device), add(&engine, FakeDevice { overlaps, ..in_slabs(40) }));
        let stream = dropped.submit(batch(3, OutputShape::Text, 1000));
        drop(dropped);
        assert!(alive.upgrade().is_none());
        let answers = read(stream);
        assert!(answers.len() == 3 || matches!(answers.last(), Some(Err(Error::Cancelled))), "{answers:?}");
        assert_eq!(read(kept.submit(batch(3, choice(), 5))).len(), 3);
    }
}
