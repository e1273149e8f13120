//! Properties of the scheduler over random batches, budgets and pools, checked against answers worked out without it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::fake_device::{Digits, END, FakeDevice, VOCAB, choose, extend, logprobs_of, set_bits, state};
use super::row::AnswerState;
use super::scheduler::decide;
use super::test_constraints::{any_text, at_once, labels, late_labels, vector};
use super::*;
use crate::backend::BatchId;
use crate::constraint::Next;
use crate::device::{Device, PoolSpec, StepTicket};
use crate::encoder::unit_vector;
use crate::request::{OutputShape, Request, RequestId, Sampling, TokenId};
use crate::step::{Allowed, PAGE_TOKENS, PageId, RowSlot, StepPlan, StepResult, TokenSource};

const MAX_CONTEXT: usize = 96;

fn job(id: u32, prompt: &[TokenId], shape: u8, max_tokens: u32) -> Job {
    let constraint = match shape {
        0 => any_text(),
        1 => labels(&[&[1], &[2]], false),
        2 => labels(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 5, 6, 7, 7, 1]], false),
        3 => labels(&[&[3, 3, 3, 1], &[4, 4], &[4, 4, 4]], true),
        4 => labels(&[&[5, 6]], false),
        5 => late_labels(&[&[3, 3, 3, 1], &[4, 4], &[4, 4, 4]]),
        6 => late_labels(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 5, 6, 7, 7, 1]]),
        7 => late_labels(&[&[5, 6]]),
        _ => vector(2),
    };
    let middle = prompt.len() / 2;
    let prompt = vec![prompt[..middle].into(), prompt[middle..].into()];
    let sampling = Sampling { seed: u64::from(id % 3), ..Sampling::GREEDY };
    let output = if shape < 8 { OutputShape::Text } else { OutputShape::Embedding { dimensions: Some(2) } };
    let request = Request::new(RequestId(id), prompt, Arc::new(output), sampling, max_tokens);
    let stop = if id % 4 == 1 { StopStrings::new(&["77".to_string(), "4".to_string()], &Digits::shared()) } else { None };
    let request = Request { logprobs: (id % 5 == 2).then_some(id % 2), ..request };
    Job { request, constraint, stop }
}

fn work(jobs: Vec<Job>) -> Work {
    Work { jobs, ..Work::default() }
}

fn config() -> SchedulerConfig {
    SchedulerConfig { step_tokens: 64, max_rows: 8, max_context: MAX_CONTEXT }
}

/// A scheduler and its device, checked after every step.
struct Harness {
    scheduler: Scheduler,
    device: FakeDevice,
    /// Of the steps in flight.
    tickets: VecDeque<StepTicket>,
    /// Steps after which none is left in flight: every one, every second one, and so on.
    wait_every: u64,
    finished: BTreeMap<(BatchId, RequestId), Finished>,
}

impl Harness {
    fn new(config: SchedulerConfig, pages: u32) -> Self {
        let scheduler = Scheduler::new(config, KvPool::new(PoolSpec { pages, page_bytes: 1 }), vec![END]).unwrap();
        let (device, tickets, finished) = (FakeDevice::new(pages), VecDeque::new(), BTreeMap::new());
        Harness { scheduler, device, tickets, wait_every: 1, finished }
    }

    /// With a device that overlaps the host, unless every step is waited for.
    fn ahead(config: SchedulerConfig, pages: u32, wait_every: u64) -> Self {
        let mut harness = Harness { wait_every, ..Harness::new(config, pages) };
        harness.device.overlaps = wait_every > 1;
        harness
    }

    fn run(&mut self) {
        while !self.tickets.is_empty() | self.step().is_some() {}
        assert!(self.scheduler.is_idle(), "no step, and rows are waiting: {:?}", self.scheduler.stats());
    }

    /// Plans a step, and harvests the one before; without a plan, or if it is time to wait, all that are in flight.
    fn step(&mut self) -> Option<StepPlan> {
        let plan = self.launch();
        let ahead = plan.is_some() && !self.device.steps.is_multiple_of(self.wait_every);
        self.harvest(usize::from(ahead));
        plan
    }

    /// Plans a step and leaves it in flight.
    fn launch(&mut self) -> Option<StepPlan> {
        let Harness { scheduler, device, tickets, .. } = self;
        let mut plan = scheduler.plan(&mut Fixed);
        if let Some(plan) = &mut plan {
            tickets.push_back(device.launch_open(plan, &mut |plan| scheduler.bind(plan, decide)).unwrap());
        }
        self.collect();
        plan
    }

    /// Harvests all steps but so many.
    fn harvest(&mut self, ahead: usize) {
        while self.tickets.len() > ahead {
            let mut result = StepResult::default();
            self.device.wait(self.tickets.pop_front().unwrap(), &mut result).unwrap();
            self.scheduler.harvest(&result, decide).unwrap();
            self.collect();
        }
    }

    fn collect(&mut self) {
        self.scheduler.check();
        for finished in self.scheduler.take_finished() {
            let before = self.finished.insert((finished.batch, finished.id), finished);
            assert!(before.is_none(), "a row finishes once");
        }
    }

    fn answers(&self) -> Vec<(BatchId, RequestId, String)> {
        let finished = self.finished.values();
        finished.map(|finished| (finished.batch, finished.id, format!("{:?}", finished.outcome))).collect()
    }

    fn computed_prompt(&self) -> usize {
        self.finished.values().map(|finished| (finished.usage.prompt - finished.usage.cached) as usize).sum()
    }
}

/// Answers a job without pages, steps or other rows, and with nothing left for later.
fn reference(job: &Job, pages: u32) -> String {
    let job = &Job { constraint: at_once(&job.constraint), ..job.clone() };
    let tokens = job.request.prompt.concat();
    let prompt = tokens.len();
    if prompt + 1 > MAX_CONTEXT {
        return format!("{:?}", Outcome::Overflow { tokens: prompt + 1, limit: MAX_CONTEXT });
    }
    let is_vector = matches!(*job.request.shape, OutputShape::Embedding { .. });
    let limit = if is_vector { 1 } else { (job.request.max_tokens as usize).min(MAX_CONTEXT - prompt) };
    let room = pages as usize * PAGE_TOKENS;
    if prompt - 1 + limit > room {
        return format!("{:?}", Outcome::Overflow { tokens: prompt - 1 + limit, limit: room });
    }
    let mut answer = AnswerState::new(job, tokens, limit);
    let mut ending = answer.advance();
    while ending.is_none() {
        let hash = answer.tokens.iter().fold(0, |hash, token| extend(hash, *token));
        let allowed = match answer.allowed.as_ref().expect("all is said at once") {
            Next::Hidden { dimensions } => {
                return format!("{:?}", Outcome::Vector(unit_vector(state(hash), *dimensions)));
            }
            Next::OneOf(tokens) => tokens.clone(),
            Next::Mask(words) => set_bits(words),
            _ => (0..VOCAB).collect(),
        };
        let token = choose(hash, answer.sampling.seed, answer.draws, &allowed);
        let logprobs = answer.top_logprobs.map(|top| logprobs_of(token, top));
        ending = answer.take(token, logprobs, &[END]);
    }
    format!("{:?}", answer.outcome(ending.unwrap()))
}

fn expected(batches: &[Work], pages: u32) -> Vec<(BatchId, RequestId, String)> {
    let jobs = (0..).zip(batches).flat_map(|(batch, work)| work.jobs.iter().map(move |job| (BatchId(batch), job)));
    let mut answers: Vec<_> = jobs.map(|(batch, job)| (batch, job.request.id, reference(job, pages))).collect();
    answers.sort();
    answers
}

/// Counts the distinct non-empty prefixes.
fn trie_tokens<'a>(prompts: impl Iterator<Item = &'a [TokenId]>) -> usize {
    let prefixes: HashSet<&[TokenId]> = prompts.flat_map(|prompt| (1..=prompt.len()).map(|end| &prompt[..end])).collect();
    prefixes.len()
}

impl Scheduler {
    /// Panics if a page is lost, in two states, or held by others than the tree and the rows say.
    pub(crate) fn check(&self) {
        let (pool, held) = self.holders();
        pool.check();
        for page in (0..pool.limit() as u32).map(PageId) {
            let references = match pool.state(page) {
                PageState::Free => 0,
                PageState::Device { references, .. } => references,
            };
            assert_eq!(references, held.get(&page).copied().unwrap_or(0), "{page:?}");
        }
    }

    fn holders(&self) -> (&KvPool, HashMap<PageId, u32>) {
        let (pool, tree, tails) = self.parts();
        let mut held = tree.check();
        for page in tails {
            *held.entry(page).or_default() += 1;
        }
        (pool, held)
    }
}

#[derive(Clone, Debug)]
struct Case {
    batches: Vec<Work>,
    config: SchedulerConfig,
    pages: u32,
}

/// Prompts that share prefixes: each takes some of another one and goes on by itself. Some are equal, some extend another.
fn prompts(count: usize) -> impl Strategy<Value = Vec<Vec<TokenId>>> {
    let own = prop_oneof![3 => 1..12_usize, 2 => 12..50_usize, 1 => Just(0)];
    let step = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), own, 1..4_u32);
    prop::collection::vec(step, 1..=count).prop_map(|steps| {
        let mut prompts: Vec<Vec<TokenId>> = vec![vec![1; 21]];
        for (from, cut, own, token) in steps {
            let from = &prompts[from.index(prompts.len())];
            let mut prompt = from[..=cut.index(from.len())].to_vec();
            prompt.extend(std::iter::repeat_n(token, own));
            prompts.push(prompt);
        }
        prompts
    })
}

fn batch(sorted: bool, shapes: std::ops::Range<u8>, tokens: std::ops::Range<u32>) -> impl Strategy<Value = Work> {
    let row = (shapes, tokens);
    (prompts(24), prop::collection::vec(row, 25), any::<bool>(), 0..40_u32, 0..2_i32).prop_map(
        move |(mut prompts, rows, share_prefixes, keep_prefix, priority)| {
            if sorted {
                prompts.sort();
            }
            let jobs = (0..).zip(prompts.iter().zip(rows));
            let jobs = jobs.map(|(id, (prompt, (shape, max_tokens)))| job(id, prompt, shape, max_tokens)).collect();
            Work { jobs, share_prefixes, keep_prefix, priority, deadline: None }
        },
    )
}

fn any_config() -> impl Strategy<Value = SchedulerConfig> {
    (1..80_u32, 1..12_u32).prop_map(|(step_tokens, max_rows)| SchedulerConfig {
        step_tokens,
        max_rows,
        max_context: MAX_CONTEXT,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let batches = prop::collection::vec(any::<bool>().prop_flat_map(|sorted| batch(sorted, 0..9, 0..20)), 1..4);
    (batches, any_config(), 4..60_u32).prop_map(|(batches, config, pages)| Case { batches, config, pages })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the budgets, the pool, the order and the company, whether steps are planned ahead, and whether it is said before
    /// a step or within it which tokens are allowed, each row has the answer that it has alone, for the same price.
    #[test]
    fn answers_do_not_depend_on_scheduling(Case { batches, config, pages } in case(), wait_every in 1..5_u64) {
        let mut harness = Harness::ahead(config, pages, wait_every);
        for (id, work) in (0..).zip(&batches) {
            harness.scheduler.add(BatchId(id), work.clone()).unwrap();
        }
        harness.run();
        prop_assert_eq!(harness.answers(), expected(&batches, pages));
        let stats = harness.scheduler.stats();
        let output: u64 = harness.finished.values().map(|finished| u64::from(finished.usage.output)).sum();
        prop_assert_eq!((stats.output_tokens, stats.pending), (output, 0));
        let (pool, tree, _) = harness.scheduler.parts();
        prop_assert_eq!(tree.evictable_pages(pool), pool.used());
    }

    /// With room for everything and rows in depth-first order, each distinct prefix token is computed once, and the last token
    /// of each prompt once for each row. Afterwards the kept prefixes are left, and nothing else.
    #[test]
    fn each_prefix_token_is_computed_once(
        // At least as many tokens as are forced before a first choice, so that each row needs the device.
        work in batch(true, 0..4, 3..20).prop_map(|work| Work { share_prefixes: true, ..work }),
        config in any_config().prop_map(|config| SchedulerConfig { max_context: 1000, ..config }),
        wait_every in 1..5_u64,
    ) {
        let mut harness = Harness::ahead(config, 1000, wait_every);
        harness.scheduler.add(BatchId(0), work.clone()).unwrap();
        harness.run();
        let prompts: Vec<Vec<TokenId>> = work.jobs.iter().map(|job| job.request.prompt.concat()).collect();
                let shared = prompts.iter().map(|prompt| &prompt[..prompt.len() - 1]);
        prop_assert_eq!(harness.computed_prompt(), trie_tokens(shared.clone()) + prompts.len());
        let keep = work.keep_prefix as usize;
        let kept = trie_tokens(shared.map(|prompt| &prompt[..keep.min(prompt.len())]));
        prop_assert_eq!(harness.scheduler.parts().1.token_count(), kept);
    }

    /// Batches that come and are aborted at any time, a step in flight or not, leave nothing behind and disturb nobody.
    #[test]
    fn aborted_batches_leave_nothing_behind(
        Case { batches, config, pages } in case(),
        events in prop::collection::vec((any::<bool>(), 0..4_u64, 0..3_usize), 0..12),
        wait_every in 1..5_u64,
    ) {
        let mut harness = Harness::ahead(config, pages, wait_every);
        let mut waiting = (0..).map(BatchId).zip(batches.clone());
        let mut aborted = HashSet::new();
        for (in_flight, target, steps) in events {
            if let Some((id, work)) = waiting.next() {
                harness.scheduler.add(id, work).unwrap();
            }
            (0..steps).for_each(|_| drop(harness.step()));
            if in_flight {
                harness.launch();
            }
            harness.scheduler.abort(BatchId(target));
            aborted.insert(BatchId(target));
            harness.collect();
            harness.harvest(usize::from(wait_every > 1));
        }
        for (id, work) in waiting {
            aborted.remove(&id);
            harness.scheduler.add(id, work).unwrap();
        }
        harness.run();
        let expected = expected(&batches, pages);
        for answer in harness.answers() {
            prop_assert!(expected.contains(&answer));
        }
        let finished: HashSet<_> = harness.answers().into_iter().collect();
        for answer in expected.iter().filter(|(batch, ..)| !aborted.contains(batch)) {
            prop_assert!(finished.contains(answer), "{:?} is missing", answer);
        }
        let (pool, tree, _) = harness.scheduler.parts();
        prop_assert_eq!(tree.evictable_pages(pool), pool.used());
    }
}

fn prompt(shared: usize, own: TokenId, len: usize) -> Vec<TokenId> {
    let mut prompt = vec![1; shared];
    prompt.resize(len, own);
    prompt
}

#[test]
fn rows_of_one_step_share_what_the_step_computes() {
    let mut harness = Harness::new(config(), 100);
    let jobs = (0..4).map(|id| job(id, &prompt(20, 2 + id, 24), 1, 5)).collect();
    harness.scheduler.add(BatchId(0), work(jobs)).unwrap();
    let plan = harness.step().unwrap();
    assert_eq!((plan.tokens.len(), plan.rows.len(), plan.sample.len()), (24 + 3 * 4, 4, 4));
    assert!(plan.copies.is_empty(), "nothing was computed before this step");
    harness.run();
    assert_eq!(harness.scheduler.stats().cached_tokens, 3 * 20);
    assert_eq!(harness.scheduler.stats().pages_used, 0);
}

#[test]
fn a_split_page_is_copied_from_earlier_steps() {
    let mut harness = Harness::new(SchedulerConfig { max_rows: 2, ..config() }, 100);
    let long = job(0, &prompt(20, 2, 24), 0, 60);
    harness.scheduler.add(BatchId(0), work(vec![long])).unwrap();
    harness.step();
    harness.scheduler.add(BatchId(1), work(vec![job(0, &prompt(20, 3, 24), 1, 5)])).unwrap();
    let plan = harness.step().unwrap();
    assert_eq!(plan.copies.iter().map(|copy| copy.tokens).collect::<Vec<_>>(), [4]);
    assert_eq!(plan.tokens.len(), 1 + 4);
    harness.run();
}

#[test]
fn a_full_hit_computes_one_token() {
    let mut harness = Harness::new(config(), 100);
    let keeping = Work { keep_prefix: 50, ..work(vec![job(0, &prompt(32, 1, 32), 1, 5)]) };
    for id in 0..2 {
        harness.scheduler.add(BatchId(id), keeping.clone()).unwrap();
        harness.run();
    }
    let usage = harness.finished[&(BatchId(1), RequestId(0))].usage;
    assert_eq!((usage.prompt, usage.cached, usage.output), (32, 31, 1));
}

#[test]
fn an_answer_without_a_choice_needs_no_device() {
    let mut harness = Harness::new(config(), 4);
    harness.scheduler.add(BatchId(0), work(vec![job(0, &[1, 2, 3], 4, 5), job(1, &[1, 2], 0, 0)])).unwrap();
    harness.run();
    assert_eq!(harness.scheduler.stats().steps, 0);
    let outcome = &harness.finished[&(BatchId(0), RequestId(0))].outcome;
    assert!(matches!(outcome, Outcome::Answer { tokens, ending: Ending::Stop, .. } if *tokens == [5, 6]));
}

#[test]
fn rows_that_can_never_fit_fail_alone() {
    let mut harness = Harness::new(config(), 2);
    let jobs = vec![job(0, &[1; 30], 1, 50), job(1, &[1; MAX_CONTEXT], 1, 1), job(2, &[1; 30], 1, 3)];
    harness.scheduler.add(BatchId(0), work(jobs)).unwrap();
    harness.run();
    let outcome = |id| &harness.finished[&(BatchId(0), RequestId(id))].outcome;
    assert!(matches!(outcome(0), Outcome::Overflow { tokens: 79, limit: 32 }));
    assert!(matches!(outcome(1), Outcome::Overflow { tokens: 97, limit: MAX_CONTEXT }));
    assert!(matches!(outcome(2), Outcome::Answer { .. }));
    assert_eq!(harness.scheduler.stats().completed, 3);
}

#[test]
fn equal_batches_take_turns_and_higher_priorities_go_first() {
    let mut harness = Harness::new(SchedulerConfig { max_rows: 4, ..config() }, 100);
    let jobs = |count| (0..count).map(|id| job(id, &prompt(4, 2 + id, 8), 0, 40)).collect::<Vec<_>>();
    harness.scheduler.add(BatchId(0), work(jobs(6))).unwrap();
    harness.scheduler.add(BatchId(1), work(jobs(6))).unwrap();
    harness.scheduler.add(BatchId(2), Work { priority: 1, ..work(jobs(1)) }).unwrap();
    harness.scheduler.plan(&mut Fixed);
    let mut running = harness.scheduler.running();
    running.sort();
    assert_eq!(running, [BatchId(0), BatchId(0), BatchId(1), BatchId(2)]);
}

#[test]
fn an_empty_prompt_is_refused() {
    let mut harness = Harness::new(config(), 4);
    assert!(harness.scheduler.add(BatchId(0), work(vec![job(0, &[], 0, 5)])).is_err());
    assert!(harness.scheduler.add(BatchId(1), work(Vec::new())).is_ok());
    assert!(harness.scheduler.is_idle());
}

#[test]
fn without_sharing_each_prompt_is_computed_in_full() {
    let mut harness = Harness::new(config(), 100);
    let jobs = (0..4).map(|id| job(id, &prompt(20, 2, 24), 1, 5)).collect();
    harness.scheduler.add(BatchId(0), Work { share_prefixes: false, keep_prefix: 10, ..work(jobs) }).unwrap();
    harness.run();
    assert_eq!(harness.computed_prompt(), 4 * 24);
    assert_eq!(harness.scheduler.stats().pages_used, 0);
}

#[test]
fn text_goes_on_from_its_sample_in_flight() {
    let mut harness = Harness::ahead(config(), 100, 9);
    let mut jobs = (0..).map(|id| job(4 * id, &[1 + id % 7; 20], 0, 3));
    let goes_on = jobs.find(|job| reference(job, 100).contains("Length")).unwrap();
    harness.scheduler.add(BatchId(0), work(vec![goes_on])).unwrap();
    let first = harness.launch().unwrap();
    assert_eq!((first.tokens.len(), first.sample[0].draw), (20, 0));
    for draw in 1..3 {
        let plan = harness.launch().unwrap();
        assert_eq!((&plan.tokens[..], plan.sample[0].draw), (&[TokenSource::Device(RowSlot(0))][..], draw));
        harness.harvest(1);
    }
    assert!(harness.launch().is_none(), "the answer has all of its tokens");
    harness.run();
    assert_eq!((harness.scheduler.stats().steps, harness.scheduler.stats().output_tokens), (3, 3));
}

#[test]
fn a_token_computed_past_the_end_is_no_output() {
    // Some of these answers end before their limit.
    let jobs = || (0..40).map(|id| job(4 * id, &prompt(4, 1 + id % 7, 6 + id as usize), 0, 9)).collect::<Vec<_>>();
    let run = |wait_every| {
        let mut harness = Harness::ahead(SchedulerConfig { max_rows: 40, ..config() }, 100, wait_every);
        harness.scheduler.add(BatchId(0), Work { share_prefixes: false, ..work(jobs()) }).unwrap();
        harness.run();
        (harness.scheduler.stats(), harness.answers())
    };
    let ((waited, answers), (ahead, same_answers)) = (run(1), run(1000));
    assert_eq!(answers, same_answers);
    assert_eq!((waited.output_tokens, waited.completed), (ahead.output_tokens, ahead.completed));
    let ended = answers.iter().filter(|(.., answer)| answer.contains("Stop")).count() as u64;
    assert!(0 < ended && waited.computed_tokens < ahead.computed_tokens);
    assert!(ahead.computed_tokens <= waited.computed_tokens + ended, "one token for each row that ended early");
}

#[test]
fn rows_that_must_see_their_sample_are_left_out_of_full_steps_only() {
    let choices = |count: u32| (0..count).map(|id| job(id, &prompt(4, 2 + id, 20), 3, 9)).collect();
    let mut harness = Harness::ahead(SchedulerConfig { step_tokens: 40, ..config() }, 100, 9);
    harness.scheduler.add(BatchId(0), work(choices(2))).unwrap();
    let first = harness.launch().unwrap();
    assert_eq!((first.tokens.len(), first.sample.len()), (36, 2));
    assert!(harness.launch().is_none(), "there is nothing else to do");
    harness.harvest(0);
    harness.scheduler.add(BatchId(1), work(choices(5))).unwrap();
    let second = harness.launch().unwrap();
    assert!(second.tokens.len() == 40 && !second.sample.is_empty());
    let third = harness.launch().unwrap();
    assert!(third.tokens.iter().all(|token| matches!(token, TokenSource::Host(_))));
    assert!(third.sample.iter().all(|sample| second.sample.iter().all(|before| before.slot != sample.slot)));
    harness.harvest(1);
    harness.run();
}

#[test]
fn a_choice_is_left_open_until_the_step_runs() {
    let mut harness = Harness::new(config(), 100);
    harness.scheduler.add(BatchId(0), work(vec![job(0, &[1; 20], 5, 9), job(1, &[1; 20], 7, 9)])).unwrap();
    let mut plan = harness.scheduler.plan(&mut Fixed).unwrap();
    assert!(plan.is_open() && plan.masks.is_empty());
    harness.scheduler.bind(&mut plan, decide);
    assert_eq!(
        plan.sample.iter().map(|sample| &sample.allowed).collect::<Vec<_>>(),
        [
            &Allowed::Mask(0..1),
            // There was none, and the answer is known without what is chosen here.
            &Allowed::Candidates(0..1),
        ]
    );
    assert_eq!(plan.masks, [1 << 3 | 1 << 4]);
}

#[test]
fn no_memory_is_given_back_while_a_step_is_in_flight() {
    let mut harness = Harness::ahead(config(), 100, 9);
    harness.scheduler.add(BatchId(0), work(vec![job(0, &[1; 20], 1, 3)])).unwrap();
    harness.launch();
    harness.scheduler.abort(BatchId(0));
    assert_eq!(harness.scheduler.stats().pages_used, 0);
    assert!(harness.scheduler.give_back(1).is_empty() && harness.scheduler.give_back_empty(1).is_empty());
    harness.harvest(0);
    assert_eq!(harness.scheduler.give_back_empty(1), [0]);
}
