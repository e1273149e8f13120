//! Asks the backend about the questions of one window and collects their outcomes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use futures::StreamExt;
use refrain_serving::{Backend, Batch, Completion, CompletionStream, Request, Sampling};
use refrain_udf::{Dedup, NullInput, OnError, OnOverflow, PromptLayout, ResolvedOptions};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::memo::{Claim, Claims, Failure, Key, Outcome};
use crate::operators::prompts::{PlannedRequests, plan_requests};
use crate::operators::scope::{NodeStats, QueryScope};

/// Requests in one batch to the backend. Two batches are under way at a time, so that the backend always has work.
const BATCH_REQUESTS: usize = 8192;

/// Everything that asking needs to know about one call.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// The call.
    pub call: Arc<PhysicalCall>,
    /// The model's backend.
    pub backend: Arc<dyn Backend>,
    /// How prompts are laid out for this model.
    pub layout: Arc<PromptLayout>,
    /// What the query has in common.
    pub scope: Arc<QueryScope>,
    /// Where this call is counted.
    pub stats: Arc<NodeStats>,
    /// Whether prompts share the keys and values of common prefixes.
    pub share_prefixes: bool,
    /// Whether operators of the query answer each other's questions.
    pub memo: bool,
}

impl Asker {
    /// Returns the outcome of each question, in the order of their numbers.
    ///
    /// Fails if the backend does, or at the first failed row where the call says so. Dropping the future cancels its requests.
    pub(super) async fn ask(&self, questions: Arc<Questions>) -> Result<Vec<Outcome>> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; questions.len()];
        let mut open: Vec<u32> = (0..questions.len() as u32).collect();
        let keys = self.keys(&questions);
        // A question that another operator gave up on is claimed again in a further round.
        while !open.is_empty() {
            let mut claims = self.scope.memo.claims();
            let (mut mine, mut theirs) = (vec![], vec![]);
            for question in open.drain(..) {
                match claims.claim(keys[question as usize]) {
                    Claim::Mine => mine.push(question),
                    Claim::Theirs => theirs.push(question),
                    Claim::Known(outcome) => {
                        self.stats.memo_hits.fetch_add(1, Ordering::Relaxed);
                        outcomes[question as usize] = Some(outcome);
                    }
                }
            }
            self.ask_model(&questions, &keys, mine, claims, &mut outcomes).await?;
            for question in theirs {
                match self.scope.memo.wait(&keys[question as usize]).await {
                    Some(outcome) => {
                        self.stats.memo_hits.fetch_add(1, Ordering::Relaxed);
                        outcomes[question as usize] = Some(outcome);
                    }
                    None => open.push(question),
                }
            }
        }
        outcomes
            .into_iter()
            .map(|outcome| outcome.ok_or_else(|| internal_datafusion_err!("a question was never answered")))
            .collect()
    }

    /// The identity of each question in the memo of the query: inputs as declared, not as rendered.
    fn keys(&self, questions: &Questions) -> Vec<Key> {
        let mut call = blake3::Hasher::new();
        call.update(&self.call.call.digest());
        call.update(format!("{:?}", Answering::of(&self.call)).as_bytes());
        call.update(self.backend.capabilities().model_digest.as_bytes());
        if self.call.options.dedup == Dedup::Off || !self.memo {
            // No other operator knows these keys.
            call.update(&self.stats.id.to_le_bytes());
        }
        let key = |question: u32| {
            let mut hasher = call.clone();
            for input in 0..self.call.inputs.len() {
                let text = questions.text(question, input);
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            let (window, occurrence) = questions.occurrence(question);
            hasher.update(&window.to_le_bytes()).update(&occurrence.to_le_bytes());
            *hasher.finalize().as_bytes()
        };
        (0..questions.len() as u32).map(key).collect()
    }

    async fn ask_model(
        &self,
        questions: &Arc<Questions>,
        keys: &[Key],
        mine: Vec<u32>,
        mut claims: Claims,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<()> {
        if mine.is_empty() {
            return Ok(());
        }
        let PlannedRequests { requests, questions: of_request, head_len, .. } = self.plan(questions, mine).await?;
        let prompt_len = |request: &Request| request.prompt_len() as u64;
        let mut waiting = requests.into_iter();
        let mut submit = || -> Option<CompletionStream> {
            let requests: Vec<Request> = waiting.by_ref().take(BATCH_REQUESTS).collect();
            if requests.is_empty() {
                return None;
            }
            self.stats.calls.fetch_add(requests.len() as u64, Ordering::Relaxed);
            self.stats.tokens_total.fetch_add(requests.iter().map(prompt_len).sum(), Ordering::Relaxed);
            Some(self.backend.submit(Batch {
                requests,
                share_prefixes: self.share_prefixes,
                keep_prefix: head_len,
                ..Batch::default()
            }))
        };
        let (mut current, mut next) = (submit(), submit());
        let mut answered = 0;
        while let Some(mut stream) = current {
            while let Some(completion) = stream.next().await {
                let completion = completion.map_err(backend_error)?;
                answered += 1;
                let question = of_request[completion.id.0 as usize];
                let outcome = self.outcome(completion);
                if let Err(failure) = &outcome
                    && self.call.options.on_error == OnError::Fail
                {
                    return Err(self.call.failed_row(failure));
                }
                claims.publish(keys[question as usize], outcome.clone());
                outcomes[question as usize] = Some(outcome);
            }
            current = next;
            next = submit();
        }
        if answered < of_request.len() {
            return Err(backend_error(refrain_serving::Error::Device(
                "the backend ended without answering every request".into(),
            )));
        }
        Ok(())
    }

    /// Orders and renders on a blocking thread: tokenising and searching take longer than an async task should.
    async fn plan(&self, questions: &Arc<Questions>, mine: Vec<u32>) -> Result<PlannedRequests> {
        let (asker, questions) = (self.clone(), Arc::clone(questions));
        let task = SpawnedTask::spawn_blocking(move || {
            let tokenizer = asker.backend.tokenizer();
            let granularity = asker.backend.capabilities().prefix_granularity;
            plan_requests(&asker.call, &asker.layout, tokenizer.as_ref(), &questions, &mine, granularity)
        });
        task.join().await.map_err(|e| internal_datafusion_err!("ordering the rows failed: {e}"))?
    }

    /// Counts a completion and turns it into a value or a failure.
    fn outcome(&self, completion: Completion) -> Outcome {
        let Completion { id: _, result, usage } = completion;
        self.stats.calls_done.fetch_add(1, Ordering::Relaxed);
        self.stats.prompt_tokens.fetch_add(u64::from(usage.prompt), Ordering::Relaxed);
        self.stats.cached_tokens.fetch_add(u64::from(usage.cached), Ordering::Relaxed);
        self.stats.output_tokens.fetch_add(u64::from(usage.output), Ordering::Relaxed);
        let answer = result.map_err(|failure| Failure { reason: failure.reason(), message: failure.to_string() })?;
        self.call.call.task.read(answer).map_err(|message| Failure { reason: "schema", message })
    }
}

/// Settings that change answers, beside what the call itself says.
#[derive(Debug)]
#[expect(dead_code, reason = "read through Debug, as part of the key")]
struct Answering {
    sampling: Sampling,
    max_tokens: u32,
    on_overflow: OnOverflow,
    null_input: NullInput,
}

impl Answering {
    fn of(call: &PhysicalCall) -> Self {
        // In full, so that a new option is a decision here.
        let ResolvedOptions {
            sampling,
            max_tokens,
            on_overflow,
            null_input,
            model: _,
            on_error: _,
            reorder: _,
            reorder_window: _,
            dedup: _,
        } = call.options;
        Answering { sampling, max_tokens, on_overflow, null_input }
    }
}

/// Wraps an error of the backend so that the API can tell it from an error of the query.
fn backend_error(error: refrain_serving::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
