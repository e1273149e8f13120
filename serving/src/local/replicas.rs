//! One model on several devices: each has all weights and a pool of its own, and answers a part of every batch.
//!
//! Requests of a batch stand depth first by shared prefix, so a part is a run of neighbours: what its requests share is computed
//! on one device, and only a prefix at a border on two. Parts cost about the same, so devices end at about the same time, and
//! nothing passes between them.

use std::sync::{Arc, Mutex};

use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, Stats};
use crate::device::cuda::PassTimes;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::request::{Batch, Request};
use crate::tokenizer::Tokenizer;

/// Backends of the same model that share its batches.
#[derive(Debug)]
pub struct Replicas {
    /// At least one. Each gets a part of every batch, in the same order, so that a batch has the same name in all of them.
    backends: Vec<Arc<dyn Backend>>,
    /// Held while a batch is handed to all.
    submitting: Mutex<()>,
    device: String,
}

impl Replicas {
    /// Puts backends of one model together, which nobody else may submit to. `device` describes all of them.
    ///
    /// Fails if there is none, or if their models are not the same.
    pub fn new(backends: Vec<Arc<dyn Backend>>, device: String) -> Result<Self> {
        let digests: Vec<String> = backends.iter().map(|backend| backend.capabilities().model_digest).collect();
        match digests.as_slice() {
            [] => Err(Error::Invalid("there is no replica".to_string())),
            [first, rest @ ..] if rest.iter().any(|digest| digest != first) => {
                Err(Error::Invalid(format!("replicas are of different models: {digests:?}")))
            }
            _ => Ok(Replicas { backends, submitting: Mutex::new(()), device }),
        }
    }
}

impl Backend for Replicas {
    fn capabilities(&self) -> Capabilities {
        let gpu_bytes = self.backends.iter().map(|backend| backend.capabilities().gpu_bytes).sum();
        Capabilities { device: self.device.clone(), gpu_bytes, ..self.backends[0].capabilities() }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        self.backends[0].tokenizer()
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let Batch { requests, share_prefixes, keep_prefix, priority, deadline } = batch;
        let parts = split(requests, self.backends.len());
        let _guard = lock(&self.submitting);
        let submit = |(requests, backend): (Vec<Request>, &Arc<dyn Backend>)| {
            backend.submit(Batch { requests, share_prefixes, keep_prefix, priority, deadline })
        };
        CompletionStream::joined(parts.into_iter().zip(&self.backends).map(submit).collect())
    }

    fn cancel(&self, batch: BatchId) {
        self.backends.iter().for_each(|backend| backend.cancel(batch));
    }

    fn time_passes(&self) {
        self.backends.iter().for_each(|backend| backend.time_passes());
    }

    fn pass_times(&self) -> Vec<PassTimes> {
        self.backends.iter().flat_map(|backend| backend.pass_times()).collect()
    }

    fn is_lost(&self) -> bool {
        self.backends.iter().any(|backend| backend.is_lost())
    }

    fn stats(&self) -> Stats {
        self.backends.iter().map(|backend| backend.stats()).fold(Stats::default(), |sum, stats| Stats {
            steps: sum.steps + stats.steps,
            computed_tokens: sum.computed_tokens + stats.computed_tokens,
            prompt_tokens: sum.prompt_tokens + stats.prompt_tokens,
            cached_tokens: sum.cached_tokens + stats.cached_tokens,
            output_tokens: sum.output_tokens + stats.output_tokens,
            completed: sum.completed + stats.completed,
            cancelled: sum.cancelled + stats.cancelled,
            pending: sum.pending + stats.pending,
            pages_used: sum.pages_used + stats.pages_used,
            pages_total: sum.pages_total + stats.pages_total,
        })
    }
}

/// Cuts requests into `parts` runs of about the same cost: of each request, the tokens that the one before does not begin with,
/// and the longest answer.
fn split(requests: Vec<Request>, parts: usize) -> Vec<Vec<Request>> {
    let mut ends = Vec::with_capacity(requests.len());
    let mut total = 0;
    for (index, request) in requests.iter().enumerate() {
        let shared = index.checked_sub(1).map_or(0, |before| common_prefix(&requests[before], request));
        // A request costs something even where another has its whole prompt.
        total += (request.prompt_len() - shared).max(1) as u64 + u64::from(request.max_tokens.min(64));
        ends.push(total);
    }
    let mut rest = requests;
    let mut cut: Vec<Vec<Request>> = (1..parts)
        .rev()
        .map(|part| rest.split_off(ends.partition_point(|&end| end <= total * part as u64 / parts as u64).min(rest.len())))
        .collect();
    cut.push(rest);
    cut.reverse();
    cut
}

/// Returns how many leading tokens two prompts share, counted in whole segments that are the same memory first.
fn common_prefix(a: &Request, b: &Request) -> usize {
    let mut shared = 0;
    for (a, b) in a.prompt.iter().zip(&b.prompt) {
        if Arc::ptr_eq(a, b) {
            shared += a.len();
            continue;
        }
        let same = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
        shared += same;
        // Segments that are cut differently are compared no further: the estimate is a little high.
        if same < a.len() || same < b.len() {
            break;
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::mock::MockBackend;
    use crate::request::{OutputShape, RequestId, Sampling, Segment};

    fn request(id: u32, prompt: Vec<u32>) -> Request {
        let segment: Segment = prompt.into();
        Request::new(RequestId(id), vec![segment], Arc::new(OutputShape::Text), Sampling::GREEDY, 4)
    }

    fn replicas(count: usize) -> (Replicas, Vec<Arc<MockBackend>>) {
        let mocks: Vec<Arc<MockBackend>> = (0..count).map(|_| Arc::new(MockBackend::new(1))).collect();
        let backends = mocks.iter().map(|mock| Arc::clone(mock) as Arc<dyn Backend>).collect();
        (Replicas::new(backends, "several".to_string()).unwrap(), mocks)
    }

    proptest! {
        #[test]
        fn parts_are_neighbours_of_like_cost(lens in prop::collection::vec(1usize..30, 0..60), parts in 1usize..6) {
            let requests: Vec<_> = (0..).zip(&lens).map(|(id, len)| request(id, vec![id; *len])).collect();
            let cut = split(requests, parts);
            prop_assert_eq!(cut.len(), parts);
            let ids: Vec<u32> = cut.iter().flatten().map(|request| request.id.0).collect();
            prop_assert_eq!(ids, (0..lens.len() as u32).collect::<Vec<_>>());
            let cost = |part: &Vec<Request>| part.iter().map(|request| request.prompt_len() + 4).sum::<usize>();
            let total: usize = cut.iter().map(cost).sum();
            prop_assert!(cut.iter().all(|part| cost(part) <= total / parts + 35));
        }
    }

    #[test]
    fn what_is_shared_costs_nothing() {
        let mut requests: Vec<_> = (0..10).map(|id| request(id, [vec![7; 1000], vec![id]].concat())).collect();
        requests.extend((10..20).map(|id| request(id, [vec![8; 1000], vec![id]].concat())));
        let cut = split(requests, 2);
        assert_eq!(cut[0].len(), 10);
    }

    #[test]
    fn every_request_is_answered_once_and_counted() {
        let (replicas, mocks) = replicas(3);
        for round in 1..4 {
            let requests = (0..50).map(|id| request(id, vec![id + 1; 5])).collect();
            let stream = replicas.submit(Batch { requests, ..Batch::default() });
            let completions: Vec<_> = block_on(stream.collect());
            let mut ids: Vec<u32> = completions.into_iter().map(|completion| completion.unwrap().id.0).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..50).collect::<Vec<_>>());
            assert_eq!(replicas.stats().completed, 50 * round);
        }
        assert!(mocks.iter().all(|mock| mock.stats().completed > 30));
    }

    #[test]
    fn replicas_must_be_of_one_model() {
        assert!(Replicas::new(Vec::new(), String::new()).is_err());
        let (replicas, _) = replicas(2);
        assert_eq!(replicas.capabilities().device, "several");
    }
}
