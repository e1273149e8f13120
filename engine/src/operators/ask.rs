//! Asks about the questions of one window and collects their outcomes: from the memo, from what is kept, from the backend.

use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use futures::StreamExt;
use futures::stream::SelectAll;
use refrain_serving::{Backend, Batch, Completion, CompletionStream, Request, RowFailure, Sampling};
use refrain_udf::{Dedup, LAYOUT_VERSION, NullInput, OnError, OnOverflow, Prompt, PromptLayout, ResolvedOptions};

use crate::answers::{Kept, Key, Provenance, QueryAnswers};
use crate::operators::budget::{Account, Budget};
use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::memo::{Claim, Claims, Failure, Outcome};
use crate::operators::prompts::{PlannedRequests, plan_requests};
use crate::operators::scope::{NodeStats, QueryScope};
use crate::operators::truncate::prompt_limit;

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
    /// What the query may still spend.
    pub budget: Budget,
    /// The answers of earlier queries.
    pub kept: QueryAnswers,
    /// Whether prompts share the keys and values of common prefixes.
    pub share_prefixes: bool,
    /// Whether operators of the query answer each other's questions.
    pub memo: bool,
}

/// The identities of some questions.
struct Keys {
    /// Across queries, by number of the question; only those that are wanted have one.
    kept: Vec<Key>,
    /// The operator that these questions belong to, if others must not answer them.
    node: Option<u32>,
}

impl Keys {
    /// Returns the identity of a question in the memo of its query.
    fn in_memo(&self, question: u32) -> Key {
        let key = self.kept[question as usize];
        match self.node {
            None => key,
            Some(node) => *blake3::Hasher::new().update(&key).update(&node.to_le_bytes()).finalize().as_bytes(),
        }
    }
}

impl Asker {
    /// Returns the outcome of each of the questions `wanted`, in their order.
    ///
    /// Fails if the backend does, if the budget is used up, or at the first failed row where the call says so. Dropping the future
    /// cancels its requests.
    pub(super) async fn ask(&self, questions: Arc<Questions>, wanted: Vec<u32>) -> Result<Vec<Outcome>> {
        let started = Instant::now();
        self.stats.started();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; questions.len()];
        let mut open = wanted.clone();
        let keys = self.keys(&questions, &wanted);
        // A question that another operator gave up on is claimed again in a further round.
        while !open.is_empty() {
            let mut claims = self.scope.memo.claims();
            let (mut mine, mut theirs) = (vec![], vec![]);
            for question in open.drain(..) {
                match claims.claim(keys.in_memo(question)) {
                    Claim::Mine => mine.push(question),
                    Claim::Theirs => theirs.push(question),
                    Claim::Known(outcome) => {
                        self.stats.memo_hits.fetch_add(1, Ordering::Relaxed);
                        outcomes[question as usize] = Some(outcome);
                    }
                }
            }
            let mine = self.recall(&keys, mine, &mut claims, &mut outcomes).await?;
            self.ask_model(&questions, &keys, mine, claims, &mut outcomes).await?;
            for question in theirs {
                match self.scope.memo.wait(&keys.in_memo(question)).await {
                    Some(outcome) => {
                        self.stats.memo_hits.fetch_add(1, Ordering::Relaxed);
                        outcomes[question as usize] = Some(outcome);
                    }
                    None => open.push(question),
                }
            }
        }
        self.stats.finished(started.elapsed());
        let answered = wanted.iter().map(|question| outcomes[*question as usize].take());
        answered.map(|outcome| outcome.ok_or_else(|| internal_datafusion_err!("a question was never answered"))).collect()
    }

    /// The identity of each question that is wanted: inputs as declared, not as rendered.
    fn keys(&self, questions: &Questions, wanted: &[u32]) -> Keys {
        let mut call = blake3::Hasher::new();
        call.update(&self.call.call.digest());
        call.update(format!("{:?}", Answering::of(&self.call)).as_bytes());
        call.update(self.backend.capabilities().model_digest.as_bytes());
        let order = self.call.call.key_order();
        let key = |question: u32| {
            let mut hasher = call.clone();
            for input in &order {
                let text = questions.text(question, *input);
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            let (window, occurrence) = questions.occurrence(question);
            hasher.update(&window.to_le_bytes()).update(&occurrence.to_le_bytes());
            *hasher.finalize().as_bytes()
        };
        let is_apart = self.call.options.dedup == Dedup::Off || !self.memo;
        let mut kept = vec![Key::default(); questions.len()];
        wanted.iter().for_each(|question| kept[*question as usize] = key(*question));
        Keys { kept, node: is_apart.then_some(self.stats.id) }
    }

    /// Whether answers are drawn rather than the most probable ones.
    fn is_drawn(&self) -> bool {
        self.call.options.sampling.temperature != 0.0
    }

    /// Answers what earlier queries have left an answer to, and returns the rest.
    async fn recall(
        &self,
        keys: &Keys,
        mine: Vec<u32>,
        claims: &mut Claims,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<Vec<u32>> {
        if mine.is_empty() || !self.kept.keeps_anything(self.is_drawn()) {
            return Ok(mine);
        }
        let wanted: Vec<Key> = mine.iter().map(|question| keys.kept[*question as usize]).collect();
        let found = self.kept.read(&wanted, self.is_drawn()).await?;
        let mut rest = vec![];
        for (question, kept) in mine.into_iter().zip(found) {
            // What no longer has the form of an answer is asked again.
            match kept.map(|kept| self.call.call.task.read(kept.to_answer())) {
                Some(Ok(value)) => {
                    self.stats.cache_hits.fetch_add(1, Ordering::Relaxed);
                    claims.publish(keys.in_memo(question), Ok(value.clone()));
                    outcomes[question as usize] = Some(Ok(value));
                }
                _ => rest.push(question),
            }
        }
        Ok(rest)
    }

    async fn ask_model(
        &self,
        questions: &Arc<Questions>,
        keys: &Keys,
        mine: Vec<u32>,
        mut claims: Claims,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<()> {
        if mine.is_empty() {
            return Ok(());
        }
        let mut planned = self.plan(questions, mine).await?;
        let group = Arc::new(self.provenance(&planned));
        self.stats.truncated.fetch_add(planned.truncated, Ordering::Relaxed);
        let mut requests = Requests {
            waiting: std::mem::take(&mut planned.requests).into_iter().peekable(),
            running: SelectAll::new(),
            n_running: 0,
            submit_at: BATCH_REQUESTS,
            account: Account::new(&self.budget, self.call.options.max_tokens),
            first: Instant::now(),
        };
        loop {
            while requests.n_running <= requests.submit_at && self.submit(&mut requests, planned.head_len) {}
            let Some(completion) = requests.running.next().await else {
                if requests.n_running > 0 {
                    return Err(backend_error(refrain_serving::Error::Device(
                        "the backend ended without answering every request".into(),
                    )));
                }
                let Some(next) = requests.waiting.peek() else { return Ok(()) };
                requests.account.room(self.tokens(next)).await?;
                continue;
            };
            let completion = completion.map_err(backend_error)?;
            requests.n_running -= 1;
            requests.account.settle(completion.usage.output.into());
            self.stats.answered(requests.first.elapsed());
            let position = completion.id.0 as usize;
            let question = planned.questions[position];
            let (outcome, kept) = self.outcome(completion, || self.prompt_text(questions, &planned, position));
            if let Err(failure) = &outcome
                && self.call.options.on_error == OnError::Fail
            {
                return Err(self.call.failed_row(failure));
            }
            claims.publish(keys.in_memo(question), outcome.clone());
            outcomes[question as usize] = Some(outcome);
            if let Some(kept) = kept {
                self.kept.write(keys.kept[question as usize], &group, kept, self.is_drawn()).await?;
            }
        }
    }

    /// Submits a batch of the requests that wait, as far as the budget admits them. Returns whether there was anything to submit.
    fn submit(&self, requests: &mut Requests, head_len: u32) -> bool {
        let mut batch = Vec::new();
        requests.submit_at = BATCH_REQUESTS;
        while batch.len() < BATCH_REQUESTS
            && let Some(request) = requests.waiting.peek()
        {
            if !requests.account.admit(self.tokens(request)) {
                // What running requests give back is waited for, rather than used for a batch of one at each completion.
                requests.submit_at = (requests.n_running + batch.len()) / 2;
                break;
            }
            batch.extend(requests.waiting.next());
        }
        if batch.is_empty() {
            return false;
        }
        self.stats.calls.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let prompt_tokens = batch.iter().map(|request| request.prompt_len() as u64).sum();
        self.stats.tokens_total.fetch_add(prompt_tokens, Ordering::Relaxed);
        requests.n_running += batch.len();
        requests.running.push(self.backend.submit(Batch {
            requests: batch,
            share_prefixes: self.share_prefixes,
            keep_prefix: head_len,
            ..Batch::default()
        }));
        true
    }

    /// Returns the tokens of a prompt as the model counts them.
    fn tokens(&self, request: &Request) -> u64 {
        (request.prompt_len() as f64 * self.backend.capabilities().token_scale).ceil() as u64
    }

    /// Orders and renders on a blocking thread: tokenising and searching take longer than an async task should.
    async fn plan(&self, questions: &Arc<Questions>, mine: Vec<u32>) -> Result<PlannedRequests> {
        let (asker, questions) = (self.clone(), Arc::clone(questions));
        let task = SpawnedTask::spawn_blocking(move || {
            let tokenizer = asker.backend.tokenizer();
            let capabilities = asker.backend.capabilities();
            let (granularity, limit) = (capabilities.prefix_granularity, prompt_limit(&asker.call, &capabilities));
            plan_requests(&asker.call, &asker.layout, tokenizer.as_ref(), &questions, &mine, granularity, limit)
        });
        task.join().await.map_err(|e| internal_datafusion_err!("ordering the rows failed: {e}"))?
    }

    /// Returns where the answers to these requests come from.
    fn provenance(&self, planned: &PlannedRequests) -> Provenance {
        let labels = match (&self.call.call.prompt, &planned.field_order) {
            (Prompt::Fields { labels }, Some(order)) => order.iter().map(|field| labels[*field as usize].clone()).collect(),
            _ => vec![],
        };
        Provenance {
            function: self.call.function_name().to_owned(),
            model_digest: self.backend.capabilities().model_digest,
            prompt_hash: blake3::Hash::from_bytes(self.call.call.digest()).to_hex().to_string(),
            layout_version: LAYOUT_VERSION,
            column_order: labels,
        }
    }

    /// Returns the text of a prompt, for the first failures of a query.
    fn prompt_text(&self, questions: &Questions, planned: &PlannedRequests, position: usize) -> Option<Arc<str>> {
        if !self.scope.keeps_prompt() {
            return None;
        }
        let question = planned.questions[position];
        let order: Vec<usize> = planned.schedule.fields_of(position).iter().map(|field| *field as usize).collect();
        let values: Vec<&str> = (0..self.call.inputs.len()).map(|input| questions.text(question, input).as_ref()).collect();
        Some(self.layout.prompt_text(&order, &values).into())
    }

    /// Counts a completion and turns it into a value or a failure, and what is to be kept of it.
    fn outcome(&self, completion: Completion, prompt: impl FnOnce() -> Option<Arc<str>>) -> (Outcome, Option<Kept>) {
        let Completion { id: _, result, usage } = completion;
        let add = |counter: &std::sync::atomic::AtomicU64, n: u32| counter.fetch_add(n.into(), Ordering::Relaxed);
        add(&self.stats.calls_done, 1);
        add(&self.stats.prompt_tokens, usage.prompt);
        add(&self.stats.cached_tokens, usage.cached);
        add(&self.stats.output_tokens, usage.output);
        add(&self.stats.retries, usage.retries);
        let failure = |reason, message, output: Option<&str>| Failure {
            reason,
            message,
            prompt: prompt(),
            output: output.map(Arc::from),
            attempts: usage.retries + 1,
        };
        match result {
            Ok(answer) => {
                let kept = Kept::of(&answer);
                let text = answer.text.clone();
                match self.call.call.task.read(answer) {
                    Ok(value) => (Ok(value), kept),
                    Err(message) => (Err(failure("schema", message, Some(&text))), None),
                }
            }
            Err(failed) => {
                let output = match &failed {
                    RowFailure::Schema(text) => Some(text.as_str()),
                    _ => None,
                };
                (Err(failure(failed.reason(), failed.to_string(), output)), None)
            }
        }
    }
}

/// The requests of one window that are not answered yet.
struct Requests {
    waiting: Peekable<std::vec::IntoIter<Request>>,
    running: SelectAll<CompletionStream>,
    n_running: usize,
    /// A batch is submitted when no more than so many requests run.
    submit_at: usize,
    account: Account,
    /// When the first of them was submitted.
    first: Instant,
}

/// Settings that change answers, beside what the call itself says.
#[derive(Debug)]
#[expect(dead_code, reason = "read through Debug, as part of the key")]
struct Answering {
    sampling: Sampling,
    max_tokens: u32,
    stop: Arc<[String]>,
    on_overflow: OnOverflow,
    null_input: NullInput,
}

impl Answering {
    fn of(call: &PhysicalCall) -> Self {
        // In full, so that a new option is a decision here.
        let ResolvedOptions {
            sampling,
            max_tokens,
            stop,
            on_overflow,
            null_input,
            model: _,
            on_error: _,
            reorder: _,
            reorder_window: _,
            dedup: _,
        } = call.options.clone();
        Answering { sampling, max_tokens, stop, on_overflow, null_input }
    }
}

/// Wraps an error of the backend so that the API can tell it from an error of the query.
fn backend_error(error: refrain_serving::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
