//! One batch on its way: requests go out in its order, as places become free, and completions come in.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::config::ApiFormat;
use super::lead::leaders;
use super::service::Service;
use super::shape::Shape;
use super::slots::{Rank, Slot};
use crate::backend::BatchId;
use crate::error::{Error, Result};
use crate::request::{Batch, Completion, OutputShape, Request};

/// A batch that is not finished. Dropping it counts the rest as cancelled.
pub(super) struct Run {
    service: Arc<Service>,
    id: BatchId,
    completions: mpsc::Sender<Result<Completion>>,
    /// Requests without completion.
    left: u64,
}

/// Requests that are sent together: one, or several texts for vectors.
type Unit = Vec<usize>;

/// The end of a unit: its requests, and what came of them.
type Done = (Unit, Result<Vec<Completion>>);

impl Run {
    /// Counts the batch as waiting.
    pub(super) fn new(
        service: Arc<Service>,
        id: BatchId,
        left: usize,
        completions: mpsc::Sender<Result<Completion>>,
    ) -> Self {
        service.stats().pending += left as u64;
        Run { service, id, completions, left: left as u64 }
    }

    /// Answers the batch, until all is answered, nobody listens, or an error ends it.
    pub(super) async fn run(mut self, batch: Batch) {
        if let Err(error) = self.drive(&batch).await {
            // There is room for every completion and one error; a closed stream wants none.
            let _ = self.completions.try_send(Err(error));
        }
    }

    async fn drive(&mut self, batch: &Batch) -> Result<()> {
        let service = Arc::clone(&self.service);
        let mut plan = Plan::new(&service, batch)?;
        let rank = Rank::new(batch, self.id);
        let mut running: FuturesUnordered<BoxFuture<'_, Done>> = FuturesUnordered::new();
        while let Some(next) = plan.next(!running.is_empty()) {
            let completions = self.completions.clone();
            tokio::select! {
                biased;
                () = completions.closed() => return Ok(()),
                Some((unit, result)) = running.next() => {
                    self.deliver(result?);
                    plan.finish(&unit);
                }
                slot = service.slots.acquire(rank), if next.is_some() => {
                    let unit = plan.start(next.expect("a place was asked for because a unit may go"));
                    running.push(self.send(&service, batch, plan.shapes(), unit, slot));
                }
            }
        }
        Ok(())
    }

    /// Makes the future that answers a unit and holds its place meanwhile.
    fn send<'a>(
        &self,
        service: &'a Service,
        batch: &'a Batch,
        shapes: Arc<Vec<Shape>>,
        unit: Unit,
        slot: Slot,
    ) -> BoxFuture<'a, Done> {
        let requests: Vec<&Request> = unit.iter().map(|index| &batch.requests[*index]).collect();
        let key = (self.id.0 << 32) ^ unit[0] as u64;
        async move {
            let _slot = slot;
            let result = match *requests[0].shape {
                OutputShape::Embedding { dimensions } => service.embed(key, &requests, dimensions).await,
                _ => {
                    let shape = shapes.iter().find(|shape| same(&shape.shape, &requests[0].shape));
                    let shape = shape.expect("the plan has every shape of the batch");
                    service.answer(key, requests[0], shape).await.map(|completion| vec![completion])
                }
            };
            (unit, result)
        }
        .boxed()
    }

    fn deliver(&mut self, completions: Vec<Completion>) {
        for completion in completions {
            self.service.record(&completion);
            self.left -= 1;
            // There is room for every completion; a closed stream wants none.
            let _ = self.completions.try_send(Ok(completion));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut stats = self.service.stats();
        stats.pending -= self.left;
        stats.cancelled += self.left;
    }
}

/// What is left to send, and in which order.
struct Plan {
    waiting: VecDeque<Unit>,
    /// For each request the one that must be answered before.
    leaders: Vec<Option<usize>>,
    done: Vec<bool>,
    shapes: Arc<Vec<Shape>>,
}

impl Plan {
    /// Fails if a shape cannot be had from the model.
    fn new(service: &Service, batch: &Batch) -> Result<Self> {
        let (config, requests) = (&service.config, &batch.requests);
        let embeds = config.api_format == ApiFormat::Embeddings;
        let mut shapes: Vec<Shape> = Vec::new();
        let mut waiting: VecDeque<Unit> = VecDeque::new();
        for (index, request) in requests.iter().enumerate() {
            match (&*request.shape, embeds) {
                (OutputShape::Embedding { .. }, true) => match waiting.back_mut() {
                    Some(unit) if unit.len() < config.embeddings_per_request && requests[unit[0]].shape == request.shape => {
                        unit.push(index);
                    }
                    _ => waiting.push_back(vec![index]),
                },
                (_, true) => return Err(Error::Invalid("text was asked of a remote model that makes vectors".to_string())),
                (_, false) => {
                    if !shapes.iter().any(|shape| same(&shape.shape, &request.shape)) {
                        shapes.push(Shape::new(&request.shape)?);
                    }
                    waiting.push_back(vec![index]);
                }
            }
        }
        let leaders = match config.lead_bytes {
            Some(least) if !embeds && batch.share_prefixes => leaders(requests, least),
            _ => vec![None; requests.len()],
        };
        Ok(Plan { waiting, leaders, done: vec![false; requests.len()], shapes: Arc::new(shapes) })
    }

    /// Returns the place of the next unit that may go, `Some(None)` if all wait for units that run, `None` if nothing is left.
    fn next(&self, runs: bool) -> Option<Option<usize>> {
        let next = self.waiting.iter().position(|unit| self.leaders[unit[0]].is_none_or(|leader| self.done[leader]));
        (next.is_some() || runs).then_some(next)
    }

    fn start(&mut self, place: usize) -> Unit {
        self.waiting.remove(place).expect("the place was found in this queue")
    }

    fn finish(&mut self, unit: &Unit) {
        unit.iter().for_each(|index| self.done[*index] = true);
    }

    fn shapes(&self) -> Arc<Vec<Shape>> {
        Arc::clone(&self.shapes)
    }
}

/// Compares shapes, which most requests of a batch share.
fn same(left: &Arc<OutputShape>, right: &Arc<OutputShape>) -> bool {
    Arc::ptr_eq(left, right) || left == right
}
