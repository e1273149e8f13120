//! One model of an engine: its device, its scheduler, and the streams it answers on.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;
use rayon::ThreadPool;
use rayon::prelude::*;

use super::backend::Shared;
use crate::backend::BatchId;
use crate::bridge::Completions;
use crate::device::{Device, StepTicket};
use crate::error::{Error, Result};
use crate::request::{Answer, Batch, Completion, FinishReason, OutputShape, RowFailure, TokenId};
use crate::scheduler::{
    Decision, Ending, Finished, Job, KvPool, OpenConstraint, Outcome, Scheduler, SchedulerConfig, StopStrings, Work,
};
use crate::step::{StepPlan, StepResult};
use crate::tokenizer::Tokenizer;

/// Compiles a shape once; the result opens a constraint for each row.
pub(super) type CompileShape = Box<dyn FnMut(&OutputShape) -> Result<OpenConstraint> + Send>;

/// The name of a model within its engine; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModelId(pub(super) u64);

/// A model, in the order of its parts' use.
pub(super) struct Model {
    pub(super) id: ModelId,
    pub(super) device: Box<dyn Device>,
    pub(super) scheduler: Scheduler,
    pub(super) shared: Arc<Shared>,
    /// Tokens computed, and what it was lifted to when it had nothing to do: the model with the fewest takes the next step.
    pub(super) served: u64,
    tokenizer: Arc<dyn Tokenizer>,
    compile: CompileShape,
    streams: BTreeMap<BatchId, Stream>,
    /// Passes that were launched and not harvested, in the order of their launch.
    launched: VecDeque<StepTicket>,
    result: StepResult,
}

#[derive(Debug)]
struct Stream {
    completions: Completions,
    /// Requests that have not been answered.
    remaining: usize,
}

impl Model {
    /// Makes a model that holds no pages yet.
    pub(super) fn new(
        id: ModelId,
        device: Box<dyn Device>,
        config: SchedulerConfig,
        tokenizer: Arc<dyn Tokenizer>,
        compile: CompileShape,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let pool = KvPool::in_slabs(device.pool(), device.slab_pages());
        let scheduler = Scheduler::new(config, pool, tokenizer.end_tokens().to_vec())?;
        shared.bridge.publish(scheduler.stats());
        let (streams, launched, result) = (BTreeMap::new(), VecDeque::new(), StepResult::default());
        Ok(Model { id, device, scheduler, shared, served: 0, tokenizer, compile, streams, launched, result })
    }

    /// Takes a batch in; one that cannot run fails alone.
    pub(super) fn submit(&mut self, id: BatchId, batch: Batch, completions: Completions) {
        let remaining = batch.requests.len();
        match self.add(id, batch) {
            Ok(()) if remaining == 0 => {}
            Ok(()) => drop(self.streams.insert(id, Stream { completions, remaining })),
            // There is room for one error besides the completions; a closed stream needs none.
            Err(error) => drop(completions.try_send(Err(error))),
        }
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

    /// Aborts the batches that were cancelled, or whose stream was dropped.
    pub(super) fn drop_cancelled(&mut self) {
        let Model { scheduler, streams, shared, .. } = self;
        let cancelled = shared.bridge.take_cancelled();
        let before = streams.len();
        streams.retain(|id, stream| {
            let wanted = !stream.completions.is_closed() && !cancelled.contains(id);
            if !wanted {
                scheduler.abort(*id);
            }
            wanted
        });
        if streams.len() < before {
            shared.bridge.publish(scheduler.stats());
        }
    }

    /// Starts a step. What its plan leaves open is worked out on `workers` while the device computes.
    pub(super) fn launch(&mut self, mut plan: StepPlan, workers: &ThreadPool) -> Result<()> {
        self.served += plan.tokens.len() as u64;
        self.shared.time(self.device.as_mut());
        let Model { device, scheduler, .. } = self;
        let mut bind = |plan: &mut StepPlan| scheduler.bind(plan, |decisions| decide(workers, decisions));
        let ticket = device.launch_open(&mut plan, &mut bind)?;
        self.launched.push_back(ticket);
        Ok(())
    }

    /// Waits for the end of the oldest step in flight, and answers the rows that end with it.
    pub(super) fn harvest(&mut self, workers: &ThreadPool) -> Result<()> {
        let Some(ticket) = self.launched.pop_front() else { return Ok(()) };
        self.device.wait(ticket, &mut self.result)?;
        self.shared.note_times(self.device.as_ref());
        self.scheduler.harvest(&self.result, |decisions| decide(workers, decisions))?;
        self.answer();
        Ok(())
    }

    /// Answers the rows that have finished, and returns whether there are any.
    pub(super) fn answer(&mut self) -> bool {
        let finished = self.scheduler.take_finished();
        let any = !finished.is_empty();
        // Before the completions, so that whoever has read the last one sees counters that include it.
        self.shared.bridge.publish(self.scheduler.stats());
        for finished in finished {
            self.complete(finished);
        }
        any
    }

    /// Returns the bytes of a number of pages.
    pub(super) fn page_bytes(&self, pages: usize) -> usize {
        pages * self.device.pool().page_bytes
    }

    /// Sends the end of one row.
    fn complete(&mut self, finished: Finished) {
        let batch = finished.batch;
        let completion = self.completion(finished);
        let Some(stream) = self.streams.get_mut(&batch) else { return };
        stream.remaining -= 1;
        // There is room for every completion; a closed stream is noticed before the next step.
        let _ = stream.completions.try_send(Ok(completion));
        if stream.remaining == 0 {
            self.streams.remove(&batch);
        }
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

    /// Ends every batch with an error; later ones are refused.
    pub(super) fn fail(self, error: &Error) {
        self.shared.fail(error.clone());
        for stream in self.streams.into_values() {
            let _ = stream.completions.try_send(Err(error.clone()));
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("id", &self.id).field("device", &self.device).finish_non_exhaustive()
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
