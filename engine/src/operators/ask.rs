//! Asks about the questions of one window and collects their outcomes: from the memo, from what is kept, from the backend.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_datafusion_err};
use futures::StreamExt;
use refrain_serving::{Backend, Completion, Request, RequestId, RowFailure};
use refrain_udf::{OnError, Prompt, PromptLayout};

use crate::answers::{Kept, Key, Provenance, QueryAnswers};
use crate::operators::budget::Budget;
use crate::operators::call::PhysicalCall;
use crate::operators::cascade::Proxy;
use crate::operators::chunked::ask_in_chunks;
use crate::operators::distinct::Questions;
use crate::operators::enough::Enough;
use crate::operators::keys::Keys;
use crate::operators::llm_exec::Shared;
use crate::operators::memo::{Claim, Claims, Failure, Outcome};
use crate::operators::overflow::Overflow;
use crate::operators::prompts::{Edge, PlannedRequests, Planner, with_other_tail};
use crate::operators::requests::Requests;
use crate::operators::scope::{NodeStats, QueryScope, lock};

/// Everything that asking needs to know about one call.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// The call.
    pub call: Arc<PhysicalCall>,
    /// The model's backend.
    pub backend: Arc<dyn Backend>,
    /// Tokens of the model for one of its tokenizer, as in [`Capabilities::token_scale`](refrain_serving::Capabilities::token_scale).
    pub token_scale: f64,
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
    /// Whether the rows of its prompts are to stay in the cache, since other calls will ask about them.
    pub keeps_rows: bool,
    /// How urgent the calls are, as in [`Batch::priority`](refrain_serving::Batch::priority).
    pub priority: i32,
    /// Whether operators of the query answer each other's questions.
    pub memo: bool,
    /// Answers first, if the user allows it.
    pub proxy: Option<Arc<Proxy>>,
    /// Where the last window that was planned ends.
    pub edge: Arc<Mutex<Option<Edge>>>,
}

/// Asks in a task of its own, so that another operator that waits for one of these answers does not depend on who polls us. It ends
/// when the time or the query does.
pub(super) fn spawn_asking(
    askers: Vec<Asker>,
    questions: Arc<Questions>,
    wanted: Vec<u32>,
) -> SpawnedTask<Result<Vec<Vec<Outcome>>>> {
    SpawnedTask::spawn(async move {
        let Some(first) = askers.first() else { return Ok(vec![]) };
        within_the_query(first, ask(&askers, &questions, &wanted)).await
    })
}

/// As [`spawn_asking`] for one call, but for the questions that need no answer once enough rows pass: they are cancelled if they run, and
/// left to whoever else wants them. The outcomes are in the order of `wanted`.
pub(super) fn spawn_asking_until(
    asker: Asker,
    questions: Arc<Questions>,
    wanted: Vec<u32>,
    enough: Enough,
) -> SpawnedTask<Result<Vec<Option<Outcome>>>> {
    SpawnedTask::spawn(async move {
        let mut members = vec![Member::new(&asker, &questions, &wanted)];
        within_the_query(&asker, ask_members(&mut members, &questions, Some(enough))).await?;
        let mut outcomes = members.swap_remove(0).into_outcomes();
        Ok(wanted.iter().map(|question| outcomes[*question as usize].take()).collect())
    })
}

/// Waits for answers as long as the query may take and nobody cancels it.
async fn within_the_query<T>(asker: &Asker, asking: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        answered = asking => answered,
        error = asker.budget.time_is_up() => Err(error),
        () = asker.scope.cancelled() => Err(DataFusionError::External(Box::new(crate::Error::Cancelled))),
    }
}

/// Lets the proxy of a call that asks alone answer first, if it has one.
async fn ask(askers: &[Asker], questions: &Arc<Questions>, wanted: &[u32]) -> Result<Vec<Vec<Outcome>>> {
    match askers {
        [Asker { proxy: Some(proxy), .. }] => Ok(vec![proxy.ask(&askers[0], questions, wanted).await?]),
        _ => ask_together(askers, questions, wanted).await,
    }
}

/// Asks several calls about the same rows and returns the outcome of each of the questions `wanted`, call by call. The requests of
/// one row stand side by side, so that prompts that begin with the row compute it once.
///
/// Fails if the backend does, if the budget is used up, or at the first failed row where a call says so. Dropping the future cancels
/// the requests.
pub(super) async fn ask_together(askers: &[Asker], questions: &Arc<Questions>, wanted: &[u32]) -> Result<Vec<Vec<Outcome>>> {
    let mut members: Vec<Member> = askers.iter().map(|asker| Member::new(asker, questions, wanted)).collect();
    ask_members(&mut members, questions, None).await?;
    members.into_iter().map(|member| member.finish(wanted)).collect()
}

/// Asks parts of questions that are being asked. Returns the outcomes in order; their time is counted by whoever asks the whole.
pub(super) async fn ask_parts(asker: &Asker, parts: &Arc<Questions>) -> Result<Vec<Outcome>> {
    let all: Vec<u32> = (0..parts.len() as u32).collect();
    let mut members = vec![Member::new(asker, parts, &all)];
    ask_members(&mut members, parts, None).await?;
    members.swap_remove(0).outcomes(&all)
}

/// Asks until every question is settled, or those of the only member settle a limit.
async fn ask_members(members: &mut [Member<'_>], questions: &Arc<Questions>, mut enough: Option<Enough>) -> Result<()> {
    // A question that another operator gave up on is claimed again in a further round.
    while members.iter().any(|member| !member.open.is_empty()) {
        for member in &mut *members {
            member.claim();
            member.recall().await?;
        }
        if is_enough(&mut enough, members)? || ask_model(members, questions, &mut enough).await? {
            return Ok(());
        }
        for member in &mut *members {
            member.wait().await;
        }
    }
    Ok(())
}

/// Returns whether what is settled by now is all that a limit needs.
fn is_enough(enough: &mut Option<Enough>, members: &[Member<'_>]) -> Result<bool> {
    match (enough, members) {
        (Some(enough), [only]) => enough.is_met(&only.outcomes),
        _ => Ok(false),
    }
}

/// One of the calls that ask together, and how far it is.
pub(super) struct Member<'a> {
    pub(super) asker: &'a Asker,
    started: Instant,
    keys: Keys,
    outcomes: Vec<Option<Outcome>>,
    /// Questions that are not settled.
    open: Vec<u32>,
    claims: Claims,
    /// Questions to ask in this round.
    mine: Vec<u32>,
    /// Questions that other operators are asking.
    theirs: Vec<u32>,
}

impl<'a> Member<'a> {
    fn new(asker: &'a Asker, questions: &Questions, wanted: &[u32]) -> Self {
        asker.stats.started();
        Member {
            asker,
            started: Instant::now(),
            keys: asker.keys(questions, wanted),
            outcomes: vec![None; questions.len()],
            open: wanted.to_vec(),
            claims: asker.scope.memo.claims(&asker.stats),
            mine: vec![],
            theirs: vec![],
        }
    }

    /// Claims the open questions.
    fn claim(&mut self) {
        self.claims = self.asker.scope.memo.claims(&self.asker.stats);
        let open = std::mem::take(&mut self.open);
        let claimed = self.claims.claim(open.iter().map(|question| self.keys.in_memo(*question)));
        for (question, claim) in open.into_iter().zip(claimed) {
            match claim {
                Claim::Mine => self.mine.push(question),
                Claim::Theirs => self.theirs.push(question),
                Claim::Known(outcome) => self.remember(question, outcome),
            }
        }
    }

    /// Takes what earlier queries have left an answer to.
    async fn recall(&mut self) -> Result<()> {
        let mine = std::mem::take(&mut self.mine);
        self.mine = self.asker.recall(&self.keys, mine, &mut self.claims, &mut self.outcomes).await?;
        Ok(())
    }

    /// Waits for the questions that other operators are asking.
    async fn wait(&mut self) {
        for question in std::mem::take(&mut self.theirs) {
            match self.asker.scope.memo.wait(&self.keys.in_memo(question)).await {
                Some(outcome) => self.remember(question, outcome),
                None => self.open.push(question),
            }
        }
    }

    /// Makes what completions have brought known and keeps it.
    async fn settle(&mut self, settled: Settled, provenance: &Arc<Provenance>) -> Result<()> {
        let Settled { outcomes, kept, usage } = settled;
        let (keys, stats) = (&self.keys, &self.asker.stats);
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        add(&stats.calls_done, outcomes.len() as u64);
        add(&stats.prompt_tokens, usage.prompt);
        add(&stats.cached_tokens, usage.cached);
        add(&stats.output_tokens, usage.output);
        add(&stats.retries, usage.retries);
        self.claims.publish(outcomes.iter().map(|(question, outcome)| (keys.in_memo(*question), outcome.clone())));
        for (question, outcome) in outcomes {
            self.outcomes[question as usize] = Some(outcome);
        }
        for (question, kept) in kept {
            self.asker.kept.write(keys.kept[question as usize], provenance, kept, self.asker.is_drawn()).await?;
        }
        Ok(())
    }

    fn remember(&mut self, question: u32, outcome: Outcome) {
        self.asker.stats.memo_hits.fetch_add(1, Ordering::Relaxed);
        self.outcomes[question as usize] = Some(outcome);
    }

    /// Returns the outcomes by question; `None` where there is none.
    fn into_outcomes(self) -> Vec<Option<Outcome>> {
        self.asker.stats.finished(self.started.elapsed());
        self.outcomes
    }

    fn finish(self, wanted: &[u32]) -> Result<Vec<Outcome>> {
        self.asker.stats.finished(self.started.elapsed());
        self.outcomes(wanted)
    }

    fn outcomes(mut self, wanted: &[u32]) -> Result<Vec<Outcome>> {
        let answered = wanted.iter().map(|question| self.outcomes[*question as usize].take());
        answered.map(|outcome| outcome.ok_or_else(|| internal_datafusion_err!("a question was never answered"))).collect()
    }
}

/// What some completions have brought one of the members.
#[derive(Debug, Default)]
struct Settled {
    outcomes: Vec<(u32, Outcome)>,
    kept: Vec<(u32, Kept)>,
    usage: UsageSums,
}

/// The sums of the tokens and retries of some completions.
#[derive(Debug, Default)]
struct UsageSums {
    prompt: u64,
    cached: u64,
    output: u64,
    retries: u64,
}

impl Settled {
    /// Counts a completion and takes its outcome, which it returns.
    fn take(
        &mut self,
        asker: &Asker,
        question: u32,
        completion: Completion,
        prompt: impl FnOnce() -> Option<Arc<str>>,
    ) -> &Outcome {
        let usage = completion.usage;
        self.usage.prompt += u64::from(usage.prompt);
        self.usage.cached += u64::from(usage.cached);
        self.usage.output += u64::from(usage.output);
        self.usage.retries += u64::from(usage.retries);
        let (outcome, kept) = asker.outcome(completion, asker.kept.keeps_anything(asker.is_drawn()), prompt);
        self.kept.extend(kept.map(|kept| (question, kept)));
        self.outcomes.push((question, outcome));
        &self.outcomes[self.outcomes.len() - 1].1
    }
}

/// The requests of a round, in the order in which they should run.
struct Plan {
    requests: Vec<Request>,
    /// The member behind each request, and its place in the schedule.
    origin: Vec<(usize, usize)>,
    /// Apart from its requests.
    planned: PlannedRequests,
}

/// Asks the model what each member has claimed. Returns whether a limit was met before all of it was answered; what runs then is cancelled.
async fn ask_model(members: &mut [Member<'_>], questions: &Arc<Questions>, enough: &mut Option<Enough>) -> Result<bool> {
    let mine: Vec<Vec<u32>> = members.iter_mut().map(|member| std::mem::take(&mut member.mine)).collect();
    if mine.iter().all(Vec::is_empty) {
        return Ok(false);
    }
    let askers: Vec<Asker> = members.iter().map(|member| member.asker.clone()).collect();
    let started = Instant::now();
    let Plan { requests, origin, planned } = plan(askers, Arc::clone(questions), mine).await?;
    members[0].asker.stats.planned(started.elapsed());
    let provenances: Vec<_> = members.iter().map(|member| Arc::new(member.asker.provenance(&planned))).collect();
    members[0].asker.stats.truncated.fetch_add(planned.truncated, Ordering::Relaxed);
    let mut requests = Requests::new(requests, members, &origin, planned.head_len);
    loop {
        requests.submit_all(members);
        let Some(completions) = requests.running.next().await else {
            if requests.n_running > 0 {
                return Err(backend_error(refrain_serving::Error::Device(
                    "the backend ended without answering every request".into(),
                )));
            }
            let Some(next) = requests.waiting.peek() else { break };
            let (member, _) = origin[next.id.0 as usize];
            requests.accounts[member].room(members[member].asker.tokens(next)).await?;
            continue;
        };
        let took = requests.first.elapsed();
        let mut settled: Vec<Settled> = members.iter().map(|_| Settled::default()).collect();
        let mut failed = None;
        for completion in completions {
            let completion = match completion.map_err(backend_error) {
                Ok(completion) => completion,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            let (member, position) = origin[completion.id.0 as usize];
            let (asker, question) = (members[member].asker, planned.questions[position]);
            let outcome =
                settled[member].take(asker, question, completion, || asker.prompt_text(questions, &planned, position));
            if let Err(failure) = outcome
                && asker.call.options.on_error == OnError::Fail
            {
                failed = Some(asker.call.failed_row(failure));
                break;
            }
        }
        // What was answered before a failure is kept as well.
        for (member, settled) in settled.into_iter().enumerate().filter(|(_, settled)| !settled.outcomes.is_empty()) {
            requests.n_running -= settled.outcomes.len();
            requests.accounts[member].settle(settled.outcomes.len() as u64, settled.usage.output);
            members[member].asker.stats.answered(took);
            members[member].settle(settled, &provenances[member]).await?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if is_enough(enough, members)? {
            return Ok(true);
        }
    }
    // Calls that ask in chunks ask by themselves.
    if let [member] = members
        && !planned.chunked.is_empty()
    {
        for (question, outcome) in ask_in_chunks(member.asker, questions, planned.chunked).await? {
            member.claims.publish([(member.keys.in_memo(question), outcome.clone())]);
            member.outcomes[question as usize] = Some(outcome);
        }
        return is_enough(enough, members);
    }
    Ok(false)
}

/// Orders and renders on a blocking thread: tokenising and searching take longer than an async task should.
async fn plan(askers: Vec<Asker>, questions: Arc<Questions>, mine: Vec<Vec<u32>>) -> Result<Plan> {
    let task = SpawnedTask::spawn_blocking(move || match &askers[..] {
        [only] => {
            let mut planned = only.plan(&questions, &mine[0])?;
            let requests = std::mem::take(&mut planned.requests);
            Ok(Plan { origin: (0..planned.questions.len()).map(|position| (0, position)).collect(), requests, planned })
        }
        several => plan_together(several, &questions, &mine),
    });
    task.join().await.map_err(|e| internal_datafusion_err!("ordering the rows failed: {e}"))?
}

/// Orders the rows that any of the calls asks about, and puts the requests of each row side by side.
fn plan_together(askers: &[Asker], questions: &Questions, mine: &[Vec<u32>]) -> Result<Plan> {
    let mut asks = vec![vec![false; questions.len()]; askers.len()];
    for (asks, mine) in asks.iter_mut().zip(mine) {
        mine.iter().for_each(|question| asks[*question as usize] = true);
    }
    let asked: Vec<u32> =
        (0..questions.len() as u32).filter(|question| asks.iter().any(|asks| asks[*question as usize])).collect();
    let mut planned = askers[0].plan(questions, &asked)?;
    let shapes: Vec<_> = askers.iter().map(|asker| Arc::new(asker.call.call.task.output_shape())).collect();
    let (mut requests, mut origin) = (vec![], vec![]);
    for (position, row) in std::mem::take(&mut planned.requests).into_iter().enumerate() {
        let question = planned.questions[position];
        for (member, asker) in askers.iter().enumerate().filter(|(member, _)| asks[*member][question as usize]) {
            let request = with_other_tail(&row, &asker.call, &asker.layout, &shapes[member], questions, question);
            requests.push(Request { id: RequestId(requests.len() as u32), ..request });
            origin.push((member, position));
        }
    }
    Ok(Plan { requests, origin, planned })
}

impl Asker {
    /// Prepares to ask a call of a query; nothing is asked yet.
    pub(super) fn new(
        shared: &Shared,
        call: &Arc<PhysicalCall>,
        backend: Arc<dyn Backend>,
        layout: Arc<PromptLayout>,
        stats: &Arc<NodeStats>,
        kept: &QueryAnswers,
    ) -> Self {
        Asker {
            call: Arc::clone(call),
            token_scale: backend.capabilities().token_scale,
            backend,
            layout,
            scope: Arc::clone(&shared.scope),
            stats: Arc::clone(stats),
            budget: shared.budget.clone(),
            kept: kept.clone(),
            share_prefixes: shared.prefix_cache,
            keeps_rows: false,
            priority: shared.priority,
            memo: shared.memo,
            proxy: None,
            edge: Arc::default(),
        }
    }

    /// Asks some questions alone, and returns their outcomes in the order of `wanted`.
    ///
    /// Fails and is cancelled as [`ask_together`] is.
    pub(super) async fn ask_alone(&self, questions: &Arc<Questions>, wanted: &[u32]) -> Result<Vec<Outcome>> {
        let answered = ask_together(std::slice::from_ref(self), questions, wanted).await?;
        answered.into_iter().next().ok_or_else(|| internal_datafusion_err!("one call has one list of answers"))
    }

    /// Settles questions without asking. Returns their values: another operator of the query may have been told others.
    pub(super) fn assume(&self, questions: &Questions, values: Vec<(u32, ScalarValue)>) -> Vec<(u32, Outcome)> {
        let asked: Vec<u32> = values.iter().map(|(question, _)| *question).collect();
        let keys = self.keys(questions, &asked);
        let mut claims = self.scope.memo.claims(&self.stats);
        let claimed = claims.claim(asked.iter().map(|question| keys.in_memo(*question)));
        let mut mine = vec![];
        let settled = values.into_iter().zip(claimed).map(|((question, value), claim)| match claim {
            Claim::Known(outcome) => (question, outcome),
            Claim::Theirs => (question, Ok(value)),
            Claim::Mine => {
                mine.push((keys.in_memo(question), Ok(value.clone())));
                (question, Ok(value))
            }
        });
        let settled = settled.collect();
        claims.publish(mine);
        settled
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
        let (mut rest, mut recalled) = (vec![], vec![]);
        for (question, kept) in mine.into_iter().zip(found) {
            // What no longer has the form of an answer is asked again.
            match kept.map(|kept| self.call.call.task.read(kept.to_answer())) {
                Some(Ok(value)) => {
                    recalled.push((keys.in_memo(question), Ok(value.clone())));
                    outcomes[question as usize] = Some(Ok(value));
                }
                _ => rest.push(question),
            }
        }
        self.stats.cache_hits.fetch_add(recalled.len() as u64, Ordering::Relaxed);
        claims.publish(recalled);
        Ok(rest)
    }

    /// Returns the tokens of a prompt as the model counts them.
    pub(super) fn tokens(&self, request: &Request) -> u64 {
        (request.prompt_len() as f64 * self.token_scale).ceil() as u64
    }

    /// Orders and renders; blocks its thread.
    fn plan(&self, questions: &Questions, mine: &[u32]) -> Result<PlannedRequests> {
        let tokenizer = self.backend.tokenizer();
        let capabilities = self.backend.capabilities();
        let edge = lock(&self.edge).clone();
        let planner = Planner {
            granularity: capabilities.prefix_granularity,
            overflow: Overflow::of(&self.call, capabilities.max_context, capabilities.token_scale),
            edge: edge.as_ref(),
            ..Planner::new(&self.call, &self.layout, tokenizer.as_ref())
        };
        let planned = planner.plan(questions, mine)?;
        if let Some(edge) = planned.edge() {
            *lock(&self.edge) = Some(edge);
        }
        Ok(planned)
    }

    /// Returns where the answers to these requests come from.
    fn provenance(&self, planned: &PlannedRequests) -> Provenance {
        let labels = match &self.call.call.prompt {
            Prompt::Fields { labels, .. } if planned.n_field_orders == 1 => {
                planned.field_order.iter().map(|field| labels[*field as usize].clone()).collect()
            }
            _ => vec![],
        };
        Provenance {
            function: self.call.function_name().to_owned(),
            model_digest: self.backend.capabilities().model_digest,
            prompt_hash: blake3::Hash::from_bytes(self.call.call.digest()).to_hex().to_string(),
            layout_version: self.layout.layout().version(),
            column_order: labels,
        }
    }

    /// Returns the text of a prompt, for the first failures of a query.
    fn prompt_text(&self, questions: &Questions, planned: &PlannedRequests, position: usize) -> Option<Arc<str>> {
        if !self.scope.keeps_prompt() {
            return None;
        }
        let question = planned.questions[position];
        let order = planned.fields_of(position);
        let values: Vec<&str> = (0..self.call.inputs.len()).map(|input| questions.text(question, input)).collect();
        Some(self.layout.prompt_text(&order, &values).into())
    }

    /// Turns a completion into a value or a failure, and what is to be kept of it if anything `is_kept`.
    fn outcome(
        &self,
        completion: Completion,
        is_kept: bool,
        prompt: impl FnOnce() -> Option<Arc<str>>,
    ) -> (Outcome, Option<Kept>) {
        let Completion { id: _, result, usage } = completion;
        let failure = |reason, message, output: Option<&str>| Failure {
            reason,
            message,
            prompt: prompt(),
            output: output.map(Arc::from),
            attempts: usage.retries + 1,
        };
        match result {
            Ok(answer) => {
                let kept = if is_kept { Kept::of(&answer) } else { None };
                let text = answer.text.clone();
                match self.call.call.task.read(answer) {
                    // A probability is kept as a number; its answer would not be whole without those of its tokens.
                    Ok(value) if is_kept && self.call.call.task.logprobs().is_some() => {
                        let kept = Kept::Text(value.to_string().into());
                        (Ok(value), Some(kept))
                    }
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

/// Wraps an error of the backend so that the API can tell it from an error of the query.
fn backend_error(error: refrain_serving::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
