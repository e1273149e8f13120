//! The loop of the device thread: take commands, plan a step, run it, send what has finished.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use ahash::AHashMap;
use rayon::ThreadPool;
use rayon::prelude::*;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::backend::Shared;
use crate::backend::BatchId;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::request::{Answer, Batch, Completion, FinishReason, OutputShape, RowFailure, TokenId};
use crate::scheduler::{
    Decision, Ending, Finished, Job, OpenConstraint, Outcome, Scheduler, SchedulerConfig, StopStrings, Work,
};
use crate::step::{StepPlan, StepResult};
use crate::tokenizer::Tokenizer;

/// Compiles a shape once; the result opens a constraint for each row.
pub(super) type CompileShape = Box<dyn FnMut(&OutputShape) -> Result<OpenConstraint> + Send>;

/// What callers ask of the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Start a batch.
    Submit { id: BatchId, batch: Batch, completions: mpsc::Sender<Result<Completion>> },
    /// Look for cancelled batches, in case there is nothing else to do.
    Wake,
}

/// The thread: its queue, and the streams it answers on. It outlives its engine, so that it can report the engine's end.
#[derive(Debug)]
pub(super) struct EngineThread {
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    streams: BTreeMap<BatchId, Stream>,
}

/// The sending end of one batch.
#[derive(Debug)]
struct Stream {
    completions: mpsc::Sender<Result<Completion>>,
    /// Requests that have not been answered.
    remaining: usize,
}

/// The device and what decides over it.
pub(super) struct Engine {
    device: Box<dyn Device>,
    scheduler: Scheduler,
    tokenizer: Arc<dyn Tokenizer>,
    compile: CompileShape,
    /// Makes decisions between steps.
    workers: ThreadPool,
}

impl EngineThread {
    pub(super) fn new(commands: mpsc::Receiver<Command>, shared: Arc<Shared>) -> Self {
        EngineThread { commands, shared, streams: BTreeMap::new() }
    }

    /// Opens the engine and runs it until the last sender of commands is gone, or until it fails.
    pub(super) fn run(mut self, open: impl FnOnce() -> Result<Engine>) {
        // The engine lives inside the closure only, so no one sees the state in which a panic left it.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve(&mut open()?)));
        let failure = match ended {
            Ok(Ok(())) => Error::Cancelled,
            Ok(Err(error)) => error,
            Err(panic) => Error::Device(format!("its thread panicked: {}", panic_message(panic.as_ref()))),
        };
        self.fail(failure);
    }

    fn serve(&mut self, engine: &mut Engine) -> Result<()> {
        let mut result = StepResult::default();
        while self.take_commands(engine) {
            self.drop_cancelled(engine);
            if let Some(plan) = engine.scheduler.plan() {
                engine.execute(&plan, &mut result)?;
            }
            let finished = engine.scheduler.take_finished();
            // Before the completions, so that whoever has read the last one sees counters that include it.
            self.shared.publish(engine.scheduler.stats());
            for finished in finished {
                self.complete(engine, finished);
            }
        }
        Ok(())
    }

    /// Takes the commands that are there, waiting for one if there is nothing to do. Returns whether more may come.
    fn take_commands(&mut self, engine: &mut Engine) -> bool {
        if engine.scheduler.is_idle() {
            let Some(command) = self.commands.blocking_recv() else { return false };
            self.obey(engine, command);
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(engine, command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, engine: &mut Engine, command: Command) {
        let Command::Submit { id, batch, completions } = command else { return };
        let remaining = batch.requests.len();
        match engine.add(id, batch) {
            Ok(()) if remaining == 0 => {}
            Ok(()) => drop(self.streams.insert(id, Stream { completions, remaining })),
            // There is room for one error besides the completions; a closed stream needs none.
            Err(error) => drop(completions.try_send(Err(error))),
        }
    }

    /// Aborts the batches that were cancelled, or whose stream was dropped.
    fn drop_cancelled(&mut self, engine: &mut Engine) {
        let cancelled = self.shared.take_cancelled();
        self.streams.retain(|id, stream| {
            let wanted = !stream.completions.is_closed() && !cancelled.contains(id);
            if !wanted {
                engine.scheduler.abort(*id);
            }
            wanted
        });
    }

    /// Sends the end of one row.
    fn complete(&mut self, engine: &Engine, finished: Finished) {
        let batch = finished.batch;
        let Some(stream) = self.streams.get_mut(&batch) else { return };
        stream.remaining -= 1;
        // There is room for every completion; a closed stream is noticed before the next step.
        let _ = stream.completions.try_send(Ok(engine.completion(finished)));
        if stream.remaining == 0 {
            self.streams.remove(&batch);
        }
    }

    /// Ends every batch, waiting in the queue or running, and refuses later ones.
    fn fail(mut self, error: Error) {
        self.shared.fail(error.clone());
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit { completions, .. } = command {
                let _ = completions.try_send(Err(error.clone()));
            }
        }
        for stream in self.streams.into_values() {
            let _ = stream.completions.try_send(Err(error.clone()));
        }
    }
}

impl Engine {
    /// Makes an engine for a device.
    pub(super) fn new(
        device: Box<dyn Device>,
        config: SchedulerConfig,
        tokenizer: Arc<dyn Tokenizer>,
        compile: CompileShape,
        workers: ThreadPool,
    ) -> Result<Self> {
        let scheduler = Scheduler::new(config, device.pool(), tokenizer.end_tokens().to_vec())?;
        Ok(Engine { device, scheduler, tokenizer, compile, workers })
    }

    /// Hands a batch to the scheduler, compiling each of its shapes once.
    fn add(&mut self, id: BatchId, batch: Batch) -> Result<()> {
        let Batch { requests, share_prefixes, keep_prefix, priority, deadline } = batch;
        // By address: callers share one shape among all requests of a call.
        let mut compiled: AHashMap<*const OutputShape, OpenConstraint> = AHashMap::new();
        let mut jobs = Vec::with_capacity(requests.len());
        for request in requests {
            let address = Arc::as_ptr(&request.shape);
            let constraint = match compiled.get(&address) {
                Some(constraint) => Arc::clone(constraint),
                None => {
                    let constraint = (self.compile)(&request.shape)?;
                    compiled.insert(address, Arc::clone(&constraint));
                    constraint
                }
            };
            let stop = StopStrings::new(&request.stop, &self.tokenizer);
            jobs.push(Job { request, constraint, stop });
        }
        self.scheduler.add(id, Work { jobs, share_prefixes, keep_prefix, priority, deadline })
    }

    /// Runs one step to its end.
    fn execute(&mut self, plan: &StepPlan, result: &mut StepResult) -> Result<()> {
        let ticket = self.device.launch(plan)?;
        while !self.device.poll(ticket, result)? {
            thread::yield_now();
        }
        self.scheduler.harvest(result, |decisions| decide(&self.workers, decisions))
    }

    fn completion(&self, finished: Finished) -> Completion {
        let Finished { batch: _, id, outcome, usage } = finished;
        let result = match outcome {
            Outcome::Vector(vector) => {
                let answer = Answer::text(String::new(), Vec::new(), FinishReason::Stop);
                Ok(Answer { embedding: Some(vector), ..answer })
            }
            Outcome::Overflow { tokens, limit } => Err(RowFailure::Overflow { tokens, limit }),
            Outcome::Answer { tokens, rest, logprobs, ending } => {
                let text = self.text(&tokens, &rest);
                match ending {
                    Ending::Stop => Ok(Answer { logprobs, ..Answer::text(text, tokens, FinishReason::Stop) }),
                    Ending::Length => Ok(Answer { logprobs, ..Answer::text(text, tokens, FinishReason::Length) }),
                    Ending::Incomplete => Err(RowFailure::Schema(text)),
                }
            }
        };
        Completion { id, result, usage }
    }

    /// Decodes tokens and the bytes that follow them.
    fn text(&self, tokens: &[TokenId], rest: &[u8]) -> String {
        if rest.is_empty() {
            return self.tokenizer.decode(tokens);
        }
        // A character may begin in a token and end in the rest.
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|token| self.tokenizer.token_bytes(*token)).chain(rest).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Makes decisions on all threads of the pool, those of a lane on one thread.
fn decide(workers: &ThreadPool, decisions: &mut [Decision<'_>]) {
    decisions.sort_by_key(Decision::lane);
    let mut lanes: Vec<&mut [Decision<'_>]> = decisions.chunk_by_mut(|a, b| a.lane() == b.lane()).collect();
    match &mut lanes[..] {
        [] => {}
        [only] => only.iter_mut().for_each(Decision::make),
        lanes => workers.install(|| lanes.par_iter_mut().for_each(|lane| lane.iter_mut().for_each(Decision::make))),
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("device", &self.device).field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

/// Returns what a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
