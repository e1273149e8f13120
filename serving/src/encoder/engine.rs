//! The loop of an encoder's thread: take commands, fill a pass, run it, send its vectors.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::vector::unit_vector;
use crate::backend::{BatchId, Stats};
use crate::bridge::{Bridge, Completions};
use crate::device::EncoderDevice;
use crate::error::{Error, Result};
use crate::request::{Answer, Batch, Completion, FinishReason, OutputShape, Request, RowFailure, TokenId, Usage};

/// What callers ask of the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Start a batch.
    Submit { id: BatchId, batch: Batch, completions: Completions },
    /// Look for cancelled batches, in case there is nothing else to do.
    Wake,
}

/// The thread: its queue, and the batches that it has not finished.
#[derive(Debug)]
pub(super) struct EngineThread {
    commands: mpsc::Receiver<Command>,
    bridge: Arc<Bridge>,
    waiting: Vec<WaitingBatch>,
    /// The batches of the pass that is running, in case it is the last.
    running: Vec<(BatchId, Completions)>,
    /// What has ended and was not sent yet.
    finished: Vec<(Completions, Completion)>,
    stats: Stats,
    max_tokens: usize,
    step_tokens: usize,
}

/// A batch and what of it has not been run.
#[derive(Debug)]
struct WaitingBatch {
    id: BatchId,
    requests: VecDeque<Request>,
    completions: Completions,
    /// The smallest goes first: the highest priority, then the earliest deadline, then the first to come.
    rank: (Reverse<i32>, bool, Option<Instant>, BatchId),
}

/// One text of a pass.
struct Text {
    request: Request,
    completions: Completions,
}

impl EngineThread {
    pub(super) fn new(
        commands: mpsc::Receiver<Command>,
        bridge: Arc<Bridge>,
        max_tokens: usize,
        step_tokens: usize,
    ) -> Self {
        EngineThread {
            commands,
            bridge,
            waiting: Vec::new(),
            running: Vec::new(),
            finished: Vec::new(),
            stats: Stats::default(),
            max_tokens,
            step_tokens,
        }
    }

    /// Opens the device and runs it until the last sender of commands is gone, or until it fails.
    pub(super) fn run(mut self, open: impl FnOnce() -> Result<Box<dyn EncoderDevice>>) {
        // The device lives inside the closure only, so no one sees the state in which a panic left it.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve(open()?.as_mut())));
        let failure = match ended {
            Ok(Ok(())) => Error::Cancelled,
            Ok(Err(error)) => error,
            Err(panic) => Error::Device(format!("its thread panicked: {}", panic_message(panic.as_ref()))),
        };
        self.fail(failure);
    }

    fn serve(&mut self, device: &mut dyn EncoderDevice) -> Result<()> {
        while self.take_commands() {
            self.drop_cancelled();
            let texts = self.next_pass();
            if !texts.is_empty() {
                self.embed(device, texts)?;
            }
            // Before the completions, so that whoever has read the last one sees counters that include it.
            self.publish();
            for (completions, completion) in self.finished.drain(..) {
                // There is room for every completion; a closed stream is noticed before the next pass.
                let _ = completions.try_send(Ok(completion));
            }
        }
        Ok(())
    }

    /// Takes the commands that are there, waiting for one if there is nothing to do. Returns whether more may come.
    fn take_commands(&mut self) -> bool {
        if self.waiting.is_empty() {
            let Some(command) = self.commands.blocking_recv() else { return false };
            self.obey(command);
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let Command::Submit { id, batch, completions } = command else { return };
        // Sharing of prefixes means nothing here: an encoder's states depend on the whole text.
        let Batch { requests, priority, deadline, share_prefixes: _, keep_prefix: _ } = batch;
        if requests.is_empty() {
            return;
        }
        let rank = (Reverse(priority), deadline.is_none(), deadline, id);
        let at = self.waiting.partition_point(|other| other.rank < rank);
        self.waiting.insert(at, WaitingBatch { id, requests: requests.into(), completions, rank });
    }

    /// Forgets the batches that were cancelled, or whose stream was dropped.
    fn drop_cancelled(&mut self) {
        let cancelled = self.bridge.take_cancelled();
        let before = self.pending();
        self.waiting.retain(|batch| !batch.completions.is_closed() && !cancelled.contains(&batch.id));
        self.stats.cancelled += before - self.pending();
        self.publish();
    }

    /// Takes the requests of the next pass: in order, until the next one does not fit any more. Requests that can never run are
    /// answered at once.
    fn next_pass(&mut self) -> Vec<Text> {
        let (mut texts, mut tokens) = (Vec::new(), 0);
        while let Some(batch) = self.waiting.first_mut() {
            let Some(len) = batch.requests.front().map(Request::prompt_len) else {
                self.waiting.remove(0);
                continue;
            };
            let overflows = len > self.max_tokens;
            if !overflows && !texts.is_empty() && tokens + len > self.step_tokens {
                break;
            }
            let request = batch.requests.pop_front().expect("a request was seen at the front");
            let (id, completions) = (batch.id, batch.completions.clone());
            if overflows {
                let failure = RowFailure::Overflow { tokens: len, limit: self.max_tokens };
                self.finish(completions, &request, Err(failure));
                continue;
            }
            if self.running.last().is_none_or(|(last, _)| *last != id) {
                self.running.push((id, completions.clone()));
            }
            tokens += len;
            texts.push(Text { request, completions });
        }
        texts
    }

    fn embed(&mut self, device: &mut dyn EncoderDevice, texts: Vec<Text>) -> Result<()> {
        let tokens: Vec<Vec<TokenId>> = texts.iter().map(|text| text.request.prompt.concat()).collect();
        let vectors = device.embed(&tokens)?;
        if vectors.len() != texts.len() {
            return Err(Error::Device(format!("it gave {} vectors of {}", vectors.len(), texts.len())));
        }
        self.stats.steps += 1;
        self.stats.computed_tokens += tokens.iter().map(|tokens| tokens.len() as u64).sum::<u64>();
        self.running.clear();
        for (Text { request, completions }, vector) in texts.into_iter().zip(vectors) {
            let dimensions = match *request.shape {
                OutputShape::Embedding { dimensions } => dimensions,
                _ => None,
            };
            let embedding = Some(unit_vector(vector, dimensions));
            let answer = Answer { embedding, ..Answer::text(String::new(), Vec::new(), FinishReason::Stop) };
            self.finish(completions, &request, Ok(answer));
        }
        Ok(())
    }

    /// Notes the end of one request.
    fn finish(&mut self, completions: Completions, request: &Request, result: Result<Answer, RowFailure>) {
        let usage = Usage { prompt: request.prompt_len() as u32, ..Usage::default() };
        self.stats.completed += 1;
        self.stats.prompt_tokens += u64::from(usage.prompt);
        self.finished.push((completions, Completion { id: request.id, result, usage }));
    }

    fn pending(&self) -> u64 {
        self.waiting.iter().map(|batch| batch.requests.len() as u64).sum()
    }

    fn publish(&self) {
        self.bridge.publish(Stats { pending: self.pending(), ..self.stats });
    }

    /// Ends every batch, waiting in the queue or running, and refuses later ones.
    fn fail(mut self, error: Error) {
        self.bridge.fail(error.clone());
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit { completions, .. } = command {
                let _ = completions.try_send(Err(error.clone()));
            }
        }
        for (_, completions) in &self.running {
            let _ = completions.try_send(Err(error.clone()));
        }
        for batch in self.waiting.iter().filter(|batch| self.running.iter().all(|(id, _)| *id != batch.id)) {
            let _ = batch.completions.try_send(Err(error.clone()));
        }
    }
}

/// Returns what a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
