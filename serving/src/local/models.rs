//! The models of an engine: who takes the next step, and what becomes of one that fails.
//!
//! Steps go to the most urgent model, by the priority and then the deadline of its batches; equals take turns by the tokens
//! they have computed. A model that fails, by an error of its device or a panic, is removed, and the others go on.
//!
//! Where a model's device overlaps the host, its step is left in flight while the next one is planned, of whichever model's turn
//! it is; once that is launched, the first is harvested. A model whose turn it is and that has to see its step's end first is
//! waited for, and not overtaken. While a model [claims](super::memory) memory, every step is harvested at once, since no memory
//! is given back while a step is in flight.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::ThreadPool;

use super::memory::{Budget, Share};
use super::model::{Model, ModelId};
use crate::backend::BatchId;
use crate::bridge::Completions;
use crate::error::{Error, Result};
use crate::request::Batch;
use crate::scheduler::Memory;

/// All models of one device.
#[derive(Debug)]
pub(super) struct Models {
    models: Vec<Model>,
    budget: Budget,
    /// The models of the steps in flight, in the order of their launch. One at most between rounds.
    in_flight: VecDeque<ModelId>,
    /// Rounds in which no model could do anything.
    stalled: usize,
}

impl Models {
    /// Starts without models, whose KV pages may take so many bytes together.
    pub(super) fn new(kv_bytes: usize) -> Self {
        Models { models: Vec::new(), budget: Budget::new(kv_bytes), in_flight: VecDeque::new(), stalled: 0 }
    }

    /// Takes a model in.
    pub(super) fn add(&mut self, model: Model) {
        self.models.push(model);
    }

    /// Hands a batch to its model, or fails it where the model is gone.
    pub(super) fn submit(&mut self, model: ModelId, id: BatchId, batch: Batch, completions: Completions) {
        // One that was idle does not catch up on what it did not ask for.
        let least = self.models.iter().filter(|model| !model.scheduler.is_idle()).map(|model| model.served).min();
        let Some(model) = self.models.iter_mut().find(|other| other.id == model) else {
            let _ = completions.try_send(Err(Error::Cancelled));
            return;
        };
        if model.scheduler.is_idle() {
            model.served = model.served.max(least.unwrap_or(0));
        }
        model.submit(id, batch, completions);
    }

    /// Returns whether no model has work, and no step is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.models.iter().all(|model| model.scheduler.is_idle())
    }

    /// Drops batches that were cancelled, and models whose backend was.
    pub(super) fn drop_unwanted(&mut self) {
        for index in (0..self.models.len()).rev() {
            match self.models[index].shared.take_closing() {
                Some(closed) => {
                    self.remove(index, &Error::Cancelled);
                    // Nobody may wait any more.
                    let _ = closed.send(());
                }
                None => self.models[index].drop_cancelled(),
            }
        }
    }

    /// Lets the first model that can do something do a step of it, or harvests a step.
    pub(super) fn step(&mut self, workers: &ThreadPool) {
        let models = &self.models;
        self.budget.keep_claims(|id| models.iter().any(|model| model.id == id && !model.scheduler.is_idle()));
        let waiting = models.iter().enumerate();
        let mut order: Vec<_> =
            waiting.filter_map(|(index, model)| Some((model.scheduler.rank()?, model.served, index))).collect();
        order.sort_unstable();
        for &(.., index) in &order {
            let id = self.models[index].id;
            match self.guard(index, |models| models.turn(index, order.len(), workers)) {
                Some(false) if self.in_flight.contains(&id) => break,
                Some(false) => continue,
                Some(true) => {
                    self.stalled = 0;
                    let ahead = self.models[index].device.overlaps() && !self.budget.is_claimed();
                    while self.in_flight.len() > usize::from(ahead) {
                        self.harvest(workers);
                    }
                    return;
                }
                None => return,
            }
        }
        if !self.in_flight.is_empty() {
            self.stalled = 0;
            return self.harvest(workers);
        }
        // A claim takes effect in the round after it was entered, and the last row of another model may end in between.
        self.stalled += 1;
        if let Some((.., index)) = order.first().filter(|_| self.stalled > 2 * order.len() + 2) {
            self.remove(*index, &Error::Device("no row can go on, and none will free memory".to_string()));
        }
    }

    /// Does something with a model, which is removed if that fails or panics: no one sees the state in which that left it.
    fn guard<T>(&mut self, index: usize, act: impl FnOnce(&mut Self) -> Result<T>) -> Option<T> {
        let failure = match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error,
            Err(panic) => panicked(panic.as_ref()),
        };
        self.remove(index, &failure);
        None
    }

    /// Harvests the oldest step in flight.
    fn harvest(&mut self, workers: &ThreadPool) {
        let Some(id) = self.in_flight.pop_front() else { return };
        let index = self.models.iter().position(|model| model.id == id).expect("a model's steps go with it");
        self.guard(index, |models| models.models[index].harvest(workers));
    }

    /// Gives one model its turn. Returns whether it did anything.
    fn turn(&mut self, index: usize, active: usize, workers: &ThreadPool) -> Result<bool> {
        let Models { models, budget, .. } = self;
        let (before, rest) = models.split_at_mut(index);
        let (model, after) = rest.split_first_mut().expect("the order names models that are there");
        let Model { id, device, scheduler, .. } = model;
        let others = before.iter_mut().chain(after).collect();
        let mut share = Share { budget, id: *id, device: device.as_mut(), others, failure: None };
        let admits = share.may_admit();
        let plan = scheduler.plan(&mut share);
        if let Some(error) = share.failure {
            return Err(error);
        }
        if admits {
            self.budget.note(&self.models[index], active);
        }
        let model = &mut self.models[index];
        let launches = plan.is_some();
        if let Some(plan) = plan {
            model.launch(plan, workers)?;
            self.in_flight.push_back(model.id);
        }
        Ok(model.answer() || launches)
    }

    /// Ends every model.
    pub(super) fn fail(&mut self, error: &Error) {
        for index in (0..self.models.len()).rev() {
            self.remove(index, error);
        }
    }

    /// Ends a model, its batches with an error, and frees what it holds.
    fn remove(&mut self, index: usize, error: &Error) {
        let model = self.models.remove(index);
        self.in_flight.retain(|id| *id != model.id);
        self.budget.forget(&model);
        model.fail(error);
    }
}

/// Returns the error of a panic.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::Device(format!("its thread panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::sync::Arc;

    use proptest::prelude::*;
    use rayon::ThreadPoolBuilder;
    use tokio::sync::mpsc;

    use super::super::backend::Shared;
    use super::super::tests::{batch, choice, compile};
    use super::*;
    use crate::request::{Completion, OutputShape};
    use crate::scheduler::SchedulerConfig;
    use crate::scheduler::fake_device::{Digits, FakeDevice};

    type Receiver = mpsc::Receiver<Result<Completion>>;

    /// Models without a thread, checked after every step.
    struct Harness {
        models: Models,
        workers: ThreadPool,
        streams: BTreeMap<(u64, u64), Receiver>,
    }

    impl Harness {
        fn new(kv_bytes: usize) -> Self {
            let workers = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            Harness { models: Models::new(kv_bytes), workers, streams: BTreeMap::new() }
        }

        fn add(&mut self, id: u64, kv_bytes: usize, page_bytes: usize, slab_pages: u32, config: SchedulerConfig) {
            let pages = (kv_bytes / page_bytes) as u32;
            let slabs = Some((slab_pages, HashSet::new()));
            self.add_device(id, FakeDevice { page_bytes, slabs, ..FakeDevice::new(pages) }, config);
        }

        fn add_device(&mut self, id: u64, device: FakeDevice, config: SchedulerConfig) {
            let shared = Arc::new(Shared::default());
            let model = Model::new(ModelId(id), Box::new(device), config, Digits::shared(), compile(), shared);
            self.models.add(model.unwrap());
        }

        fn submit(&mut self, model: u64, id: u64, batch: Batch) {
            let (sender, receiver) = mpsc::channel(batch.requests.len() + 1);
            self.models.submit(ModelId(model), BatchId(id), batch, sender);
            self.streams.insert((model, id), receiver);
        }

        fn step(&mut self) {
            self.models.drop_unwanted();
            self.models.step(&self.workers);
            let Models { models, budget, .. } = &self.models;
            let held: usize = models.iter().map(|model| model.page_bytes(model.scheduler.pool().total())).sum();
            assert_eq!(held, budget.used());
            assert!(self.models.in_flight.len() <= 1);
            models.iter().for_each(|model| model.scheduler.check());
        }

        fn run(&mut self) {
            for _ in 0..20_000 {
                if self.models.is_idle() {
                    return;
                }
                self.step();
            }
            panic!("no end in sight: {:?}", self.models);
        }

        /// What came on each stream, by request; a stream's own error comes last.
        fn answers(&mut self) -> BTreeMap<(u64, u64), Vec<String>> {
            let read = |receiver: &mut Receiver| {
                let mut answers = Vec::new();
                while let Ok(completion) = receiver.try_recv() {
                    let completion = completion.unwrap();
                    answers.push(format!("{:?} {:?}", completion.id, completion.result));
                }
                answers.sort();
                answers
            };
            self.streams.iter_mut().map(|(id, receiver)| (*id, read(receiver))).collect()
        }
    }

    fn work(count: u32, text: bool, max_tokens: u32, keep_prefix: u32, priority: i32, share_prefixes: bool) -> Batch {
        let shape = if text { OutputShape::Text } else { choice() };
        Batch { keep_prefix, priority, share_prefixes, ..batch(count, shape, max_tokens) }
    }

    fn any_batch() -> impl Strategy<Value = (u64, Batch, usize)> {
        let batch = (1..12_u32, any::<bool>(), 1..40_u32, 0..30_u32, 0..2_i32, any::<bool>());
        let batch =
            batch.prop_map(|(count, text, max, keep, priority, share)| work(count, text, max, keep, priority, share));
        (0..2_u64, batch, 0..6_usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        /// Two models with pages of different sizes, whatever they are asked and when: the budget holds, nothing leaks, and every
        /// request has the answer that it has alone.
        #[test]
        fn models_share_memory_and_nothing_else(
            batches in prop::collection::vec(any_batch(), 1..8),
            kv_bytes in 45..240_usize,
            slab_pages in prop::array::uniform2(1..5_u32),
            max_rows in 1..12_u32,
            step_tokens in 3..80_u32,
            overlaps in prop::array::uniform2(any::<bool>()),
        ) {
            let config = SchedulerConfig { step_tokens, max_rows, max_context: 200 };
            let mut harness = Harness::new(kv_bytes);
            for (id, page_bytes) in [(0, 3), (1, 5)] {
                let slabs = Some((slab_pages[id], HashSet::new()));
                let device = FakeDevice::new((kv_bytes / page_bytes) as u32);
                let device = FakeDevice { page_bytes, slabs, overlaps: overlaps[id], ..device };
                harness.add_device(id as u64, device, config);
            }
            for (id, (model, batch, steps)) in (0..).zip(&batches) {
                harness.submit(*model, id, batch.clone());
                for _ in 0..*steps {
                    harness.step();
                    prop_assert!(harness.models.budget.used() <= kv_bytes);
                }
            }
            harness.run();
            let mut alone = Harness::new(usize::MAX);
            for (id, (model, batch, _)) in (0..).zip(&batches) {
                alone.add(10 * id + model, 500, 1, 500, config);
                alone.submit(10 * id + model, id, batch.clone());
            }
            alone.run();
            let expected: Vec<_> = alone.answers().into_values().collect();
            let mut answers: Vec<_> = harness.answers().into_iter().collect();
            answers.sort_by_key(|((_, id), _)| *id);
            prop_assert_eq!(answers.into_iter().map(|(_, answers)| answers).collect::<Vec<_>>(), expected);
            // What is left is cached prefixes; without them every slab can be given back.
            for model in &mut harness.models.models {
                model.scheduler.give_back(usize::MAX);
                prop_assert_eq!(model.scheduler.pool().total(), 0);
            }
        }
    }

    #[test]
    fn a_model_without_work_lends_its_memory() {
        let config = SchedulerConfig { step_tokens: 64, max_rows: 64, max_context: 200 };
        let mut harness = Harness::new(48);
        (0..2).for_each(|id| harness.add(id, 48, 1, 4, config));
        harness.submit(0, 0, work(60, true, 40, 24, 0, true));
        harness.run();
        assert!(harness.models.models[0].scheduler.pool().total() > 40);
        harness.submit(1, 1, work(60, true, 40, 24, 0, true));
        let mut most = 0;
        while !harness.models.is_idle() {
            harness.step();
            most = most.max(harness.models.models[1].scheduler.pool().total());
        }
        assert_eq!(most, 48, "all of it, cached prefixes of the other evicted");
    }

    #[test]
    fn equal_models_take_turns_by_tokens_and_urgent_ones_go_first() {
        let config = SchedulerConfig { step_tokens: 16, max_rows: 4, max_context: 200 };
        let mut harness = Harness::new(usize::MAX);
        (0..3).for_each(|id| harness.add(id, 1000, 1, 8, config));
        (0..2).for_each(|id| harness.submit(id, id, work(40, true, 40, 0, 0, false)));
        harness.submit(2, 2, work(2, false, 5, 0, 1, false));
        while !harness.models.models[2].scheduler.is_idle() {
            harness.step();
        }
        assert_eq!([0, 1].map(|model: usize| harness.models.models[model].served), [0, 0]);
        for _ in 0..20 {
            harness.step();
            let [one, other] = [0, 1].map(|model: usize| harness.models.models[model].served);
            assert!(one.abs_diff(other) <= 16, "{one} {other}");
        }
        // One that comes late does not catch up.
        harness.submit(2, 3, work(40, true, 40, 0, 0, false));
        let least = harness.models.models[..2].iter().map(|model| model.served).min();
        assert!(Some(harness.models.models[2].served) >= least);
        harness.run();
    }
}
