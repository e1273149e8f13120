//! `TensorParallel`: one model split over the GPUs of one machine.
//!
//! Each GPU holds a [share](super::share) of the weights and of every page, and runs every pass with it: all see the same plan, keep
//! the same tokens in the same slots, and sum what their shares give twice in a layer. Results are those of the first. A thread
//! drives each GPU, so that launching takes no longer than on one.
//!
//! GPUs wait for each other within a pass, so a pass is started only where all have prepared it: until then nothing waits that could
//! wait for ever. If one fails after that, the [group](super::nccl) is given up, the pass and all later ones end with its error, and
//! the model is lost; another may be opened.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::device::{CudaDevice, CudaOptions, Prepared};
use super::driver::{Gpu, GpuFacts};
use super::nccl::{Group, Peer};
use super::share::Share;
use super::timing::PassTimes;
use crate::device::check::bind_plan;
use crate::device::{Bind, Device, PoolSpec, StepTicket};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::model::{ModelConfig, TensorSource};
use crate::step::{PageCopy, StepPlan, StepResult};

/// A decoder and its KV pages, split over several GPUs.
pub struct TensorParallel {
    /// By rank. Each is used by the thread of its number, or by whoever has the whole.
    ranks: Vec<Mutex<Rank>>,
    team: Team,
    /// Of pages of all GPUs together.
    spec: PoolSpec,
    facts: Vec<GpuFacts>,
}

/// One GPU.
#[derive(Debug)]
struct Rank {
    device: CudaDevice,
    prepared: Option<Prepared>,
}

/// A thread for each GPU, and what connects the GPUs.
struct Team {
    threads: ThreadPool,
    group: Arc<Group>,
}

impl Team {
    /// Runs `act` on the thread of each GPU, all at once, and returns what it returns by rank, or the first failure. Where
    /// `launches`, the GPUs may then wait for each other, and are released if one fails.
    fn each<T: Send>(&self, launches: bool, act: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        let done = self.threads.broadcast(|context| {
            let panicked = |_| Err(Error::Device("the thread of a GPU panicked".to_owned()));
            let done = catch_unwind(AssertUnwindSafe(|| act(context.index()))).unwrap_or_else(panicked);
            if let (Err(error), true) = (&done, launches) {
                self.group.give_up(error);
            }
            done
        });
        let failed = done.iter().any(Result::is_err);
        match self.group.cause().filter(|_| failed) {
            // The others fail because of it.
            Some(cause) => Err(cause),
            None => done.into_iter().collect(),
        }
    }
}

impl TensorParallel {
    /// Opens GPUs, reads a share of the weights to each and takes all memory that passes need. `kv_bytes` of the options are those of
    /// all GPUs together; their `ordinal` is not read.
    ///
    /// Fails with [`Error::Invalid`] if the model cannot be split over so many GPUs, with [`Error::Device`] and a sentence if one of
    /// them or NCCL cannot be used, if they are of different kinds, or if a tensor is missing or damaged, and with
    /// [`Error::OutOfMemory`] if the weights and a page of the pool do not fit.
    pub fn new(config: &ModelConfig, weights: &dyn TensorSource, ordinals: &[u32], options: &CudaOptions) -> Result<Self> {
        config.check().map_err(Error::Invalid)?;
        let of = ordinals.len();
        if of == 0 {
            return Err(Error::Invalid("there is no GPU to split a model over".to_owned()));
        }
        Share { rank: 0, of }.config(config)?;
        if options.invariant_rows.is_some() && of > 2 {
            return Err(Error::Invalid(format!(
                "a model that is split over {of} GPUs cannot be batch-invariant, since the order of their sums depends on the number \
                 of rows; two GPUs can"
            )));
        }
        let gpus = ordinals.iter().map(|&ordinal| Gpu::open(ordinal)).collect::<Result<Vec<_>>>()?;
        let facts: Vec<GpuFacts> = gpus.iter().map(|gpu| gpu.facts().clone()).collect();
        // Each chooses tokens by itself, and other chips round otherwise.
        if let Some(other) = facts.iter().find(|other| other.name != facts[0].name) {
            return Err(Error::Device(format!("a model is split over GPUs of one kind, not over {} and {other}", facts[0])));
        }
        let threads = ThreadPoolBuilder::new().num_threads(of).thread_name(|rank| format!("refrain-gpu-{rank}")).build();
        let threads = threads.map_err(|error| Error::Device(format!("cannot start {of} threads: {error}")))?;
        let team = Team { threads, group: Group::connect(gpus.clone())? };
        let peers = team.group.peers();
        let open = |(rank, (gpu, peer)): (usize, (Arc<Gpu>, Peer))| {
            CudaDevice::open(config, weights, options, gpu, Share { rank, of }, Some(peer))
        };
        // All at once, on threads outside the team's pool: tensors are converted on all cores.
        let devices: Vec<CudaDevice> = thread::scope(|scope| {
            let places = gpus.into_iter().zip(peers).enumerate();
            let opening: Vec<_> = places.map(|place| scope.spawn(move || open(place))).collect();
            let panicked = |_| Err(Error::Device("loading a model failed".to_owned()));
            opening.into_iter().map(|opening| opening.join().unwrap_or_else(panicked)).collect::<Result<_>>()
        })?;
        let ranks = devices.into_iter().map(|device| Mutex::new(Rank { device, prepared: None })).collect();
        let mut split = TensorParallel { ranks, team, spec: PoolSpec { pages: 0, page_bytes: 0 }, facts };
        split.each(true, |rank| rank.device.connect())?;
        split.take_pool(options.kv_bytes)?;
        Ok(split)
    }

    /// Takes the pool: as many pages on each GPU as the one with the least memory has room for, or as `kv_bytes` of all are enough
    /// for.
    fn take_pool(&mut self, kv_bytes: Option<usize>) -> Result<()> {
        let most = self.each(false, |rank| rank.device.pages_max())?.into_iter().min().expect("there is a GPU");
        let page_bytes = self.each(false, |rank| Ok(rank.device.pool().page_bytes))?.into_iter().sum();
        let pages = kv_bytes.map_or(most, |bytes| bytes / page_bytes).min(most);
        self.each(false, |rank| rank.device.take_pool(pages))?;
        self.spec = PoolSpec { pages: pages as u32, page_bytes };
        Ok(())
    }

    /// Returns the bytes of the weights on each GPU.
    pub fn weight_bytes(&self) -> Vec<usize> {
        self.ranks.iter().map(|rank| lock(rank).device.weight_bytes()).collect()
    }

    /// As [`CudaDevice::stop_timing`].
    pub fn stop_timing(&mut self) {
        self.first().stop_timing();
    }

    fn first(&mut self) -> &mut CudaDevice {
        let rank = self.ranks[0].get_mut();
        &mut rank.unwrap_or_else(std::sync::PoisonError::into_inner).device
    }

    fn each<T: Send>(&self, launches: bool, act: impl Fn(&mut Rank) -> Result<T> + Sync) -> Result<Vec<T>> {
        self.team.each(launches, |rank| act(&mut lock(&self.ranks[rank])))
    }

    /// Takes the result of a pass that has ended on all GPUs.
    fn finish(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<()> {
        let mut result = Some(result);
        self.ranks.iter().try_for_each(|rank| lock(rank).device.finish(ticket, result.take()))
    }
}

impl Device for TensorParallel {
    fn pool(&self) -> PoolSpec {
        self.spec
    }

    fn describe(&self) -> String {
        let gpus: Vec<String> = self.facts.iter().map(GpuFacts::to_string).collect();
        format!("split over {} GPUs; {}", gpus.len(), gpus.join("; "))
    }

    fn rounding(&self) -> Option<&'static str> {
        lock(&self.ranks[0]).device.rounding()
    }

    fn held_bytes(&self) -> Option<u64> {
        self.weight_bytes().into_iter().max().map(|bytes| bytes as u64)
    }

    /// Of all GPUs together.
    fn gpu_bytes(&self) -> Option<u64> {
        self.ranks.iter().map(|rank| lock(rank).device.gpu_bytes()).sum()
    }

    fn dtype(&self) -> Option<&'static str> {
        lock(&self.ranks[0]).device.dtype()
    }

    fn overlaps(&self) -> bool {
        true
    }

    /// Of the first GPU.
    fn time_passes(&mut self) {
        self.first().time_passes();
    }

    /// Of the first GPU.
    fn pass_times(&self) -> Option<PassTimes> {
        lock(&self.ranks[0]).device.pass_times()
    }

    fn launch_open(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepTicket> {
        if let Some(cause) = self.team.group.cause() {
            return Err(cause);
        }
        self.each(false, |rank| {
            rank.prepared = Some(rank.device.prepare(plan)?);
            Ok(())
        })?;
        self.each(true, |rank| {
            let Rank { device, prepared } = rank;
            device.start(plan, prepared.as_mut().expect("all have prepared the pass"))
        })?;
        bind_plan(plan, bind, self.first().limits())?;
        let tickets = self.each(true, |rank| {
            let prepared = rank.prepared.take().expect("all have started the pass");
            rank.device.choose(plan, prepared)
        })?;
        Ok(tickets[0])
    }

    fn poll(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<bool> {
        let ended = self.each(true, |rank| rank.device.has_ended(ticket))?;
        let all = ended.into_iter().all(|ended| ended);
        if all {
            self.finish(ticket, result)?;
        }
        Ok(all)
    }

    fn wait(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<()> {
        self.each(true, |rank| rank.device.await_end(ticket))?;
        // A group that was given up ends its sums with what they have.
        if let Some(cause) = self.team.group.cause() {
            return Err(cause);
        }
        self.finish(ticket, result)
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<()> {
        self.each(true, |rank| rank.device.copy(copies))?;
        Ok(())
    }
}

impl fmt::Debug for TensorParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorParallel").field("facts", &self.facts).field("spec", &self.spec).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Precision;
    use super::*;
    use crate::device::cpu::reference::{
        MemoryTensors, Random, add_row, close, featured_config, naive_logits, run_open, tiny_config,
    };
    use crate::model::{HostTensor, Normal};
    use crate::request::TokenId;
    use crate::step::PageId;

    fn options(precision: Precision) -> CudaOptions {
        CudaOptions { kv_bytes: Some(8 << 20), precision, tune: false, ..CudaOptions::new(512) }
    }

    /// Splits a model over two GPUs, or says why that cannot be tested.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn open(config: &ModelConfig, weights: &dyn TensorSource, options: &CudaOptions) -> Option<TensorParallel> {
        if let Err(reason) = super::super::find(1).and_then(|_| super::super::find_split()) {
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(TensorParallel::new(config, weights, &[0, 1], options).unwrap())
    }

    fn run(device: &mut dyn Device, plan: &StepPlan) -> StepResult {
        let ticket = device.launch(plan).unwrap();
        let mut result = StepResult::default();
        device.wait(ticket, &mut result).unwrap();
        result
    }

    fn tokens(len: usize, seed: u64) -> Vec<TokenId> {
        let mut random = Random::new(seed);
        (0..len).map(|_| random.below(96) as TokenId).collect()
    }

    fn configs() -> Vec<ModelConfig> {
        let tiny = ModelConfig { intermediate_size: 64, ..tiny_config() };
        let biased = ModelConfig { qkv_bias: true, tie_word_embeddings: false, ..tiny.clone() };
        let featured = ModelConfig { intermediate_size: 64, rope_scaling: None, ..featured_config() };
        let aligned = |heads, kv_heads, head_dim| ModelConfig {
            vocab_size: 96,
            hidden_size: 64,
            intermediate_size: 128,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: head_dim,
            ..tiny.clone()
        };
        vec![tiny.clone(), biased, featured, aligned(4, 2, 64), aligned(8, 2, 128), aligned(4, 4, 96)]
    }

    #[test]
    fn matches_a_naive_forward_pass_by_chunks() {
        for config in configs() {
            for (precision, tolerance) in [(Precision::F32, 2e-4), (Precision::Bf16, 0.08)] {
                let weights = MemoryTensors::random(&config, 7);
                let Some(mut device) = open(&config, &weights, &options(precision)) else { return };
                let row = tokens(67, 1);
                let naive = naive_logits(&config, &weights, &row);
                let pages: Vec<PageId> = (2..7).map(PageId).collect();
                for (from, to) in [(0, 30), (30, 66), (66, 67)] {
                    let mut plan = StepPlan::default();
                    add_row(&mut plan, &row[..to], from, &pages, config.vocab_size as u32);
                    let result = run(&mut device, &plan);
                    let expected = &naive[to - 1];
                    let top = &result.top_logits[0];
                    assert_eq!(top.len(), config.vocab_size);
                    top.iter().for_each(|&(token, logit)| close(logit, expected[token as usize], tolerance));
                }
                let copies = [PageCopy { from: PageId(2), to: PageId(9), tokens: 16 }];
                device.copy(&copies).unwrap();
                let mut plan = StepPlan::default();
                let copied: Vec<PageId> = [9, 3, 4, 5, 6].into_iter().map(PageId).collect();
                add_row(&mut plan, &row, 66, &copied, config.vocab_size as u32);
                let top = &run(&mut device, &plan).top_logits[0];
                top.iter().for_each(|&(token, logit)| close(logit, naive[66][token as usize], tolerance));
            }
        }
    }

    /// Weights that are drawn, by name.
    #[derive(Debug)]
    struct Drawn(MemoryTensors);

    impl TensorSource for Drawn {
        fn contains(&self, name: &str) -> bool {
            self.0.contains(name)
        }

        fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
            self.0.read(name, shape)
        }

        fn normal(&self, name: &str) -> Option<Normal> {
            let seed = name.bytes().fold(17, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
            (name.ends_with("weight") && !name.ends_with("norm.weight")).then_some(Normal { seed, std: 0.1 })
        }
    }

    #[test]
    fn shares_of_a_random_model_are_drawn_as_the_whole_is() {
        let config = ModelConfig { intermediate_size: 64, tie_word_embeddings: false, ..tiny_config() };
        let weights = &Drawn(MemoryTensors::random(&config, 7));
        let Some(mut split) = open(&config, weights, &options(Precision::F32)) else { return };
        let mut whole = CudaDevice::new(&config, weights, &options(Precision::F32)).unwrap();
        assert!(split.weight_bytes().iter().all(|bytes| *bytes < whole.weight_bytes()));
        let mut plan = StepPlan::default();
        for row in 0..8 {
            add_row(&mut plan, &tokens(40, u64::from(row)), 0, &[3 * row, 3 * row + 1, 3 * row + 2].map(PageId), 50);
        }
        let open = run_open(&mut split, &[&plan, &plan]);
        let (split, whole) = (run(&mut split, &plan), run(&mut whole, &plan));
        assert_eq!(open, [split.clone(), split.clone()]);
        assert_eq!(split.sampled, whole.sampled);
        for (split, whole) in split.top_logits.iter().flatten().zip(whole.top_logits.iter().flatten()) {
            assert_eq!(split.0, whole.0);
            close(split.1, f64::from(whole.1), 1e-3);
        }
    }

    /// A pass is launched on both GPUs while the one before runs, and takes its tokens from where that leaves them.
    #[test]
    fn passes_overlap() {
        let config = ModelConfig { intermediate_size: 64, ..tiny_config() };
        let weights = MemoryTensors::random(&config, 7);
        let Some(mut split) = open(&config, &weights, &options(Precision::F32)) else { return };
        let mut whole = CudaDevice::new(&config, &weights, &options(Precision::F32)).unwrap();
        let decode = |device: &mut dyn Device| {
            let pages: Vec<PageId> = (0..4).map(PageId).collect();
            let mut known = tokens(12, 5);
            let (mut tickets, mut answer) = (std::collections::VecDeque::new(), Vec::new());
            for step in 0..12 {
                let mut plan = StepPlan::default();
                add_row(&mut plan, &known, if step == 0 { 0 } else { known.len() - 1 }, &pages, 0);
                if step > 0 {
                    plan.tokens = vec![crate::step::TokenSource::Device(plan.sample[0].slot)];
                }
                tickets.push_back(device.launch(&plan).unwrap());
                known.push(0);
                if tickets.len() == 2 || step == 11 {
                    for ticket in tickets.drain(..if step == 11 { tickets.len() } else { 1 }) {
                        let mut result = StepResult::default();
                        device.wait(ticket, &mut result).unwrap();
                        answer.extend(result.sampled);
                    }
                }
            }
            answer
        };
        assert_eq!(decode(&mut split), decode(&mut whole));
    }

    /// What is under way when a group is given up ends with the cause, and so does what comes later.
    #[test]
    fn a_group_that_is_given_up_ends_passes_and_another_can_be_opened() {
        let config = ModelConfig { intermediate_size: 64, ..tiny_config() };
        let weights = MemoryTensors::random(&config, 7);
        let Some(mut lost) = open(&config, &weights, &options(Precision::F32)) else { return };
        let row = tokens(40, 1);
        let mut plan = StepPlan::default();
        add_row(&mut plan, &row, 0, &[0, 1, 2].map(PageId), config.vocab_size as u32);
        let ticket = lost.launch(&plan).unwrap();
        lost.team.group.give_up(&Error::Device("a GPU has fallen off the bus".to_owned()));
        let mut result = StepResult::default();
        for failed in [lost.wait(ticket, &mut result), lost.launch(&plan).map(drop)] {
            let error = failed.unwrap_err().to_string();
            assert!(error.contains("fallen off the bus"), "{error}");
        }
        drop(lost);
        let mut again = open(&config, &weights, &options(Precision::F32)).unwrap();
        let naive = naive_logits(&config, &weights, &row);
        let top = &run(&mut again, &plan).top_logits[0];
        top.iter().for_each(|&(token, logit)| close(logit, naive[39][token as usize], 2e-4));
    }

    #[cfg(feature = "bundled-model")]
    #[test]
    fn a_lost_group_fails_who_waits_and_another_can_be_opened() {
        use futures::StreamExt;
        use futures::executor::block_on;

        use crate::load::{BundledModel, LoadedModel, bundled};
        use crate::local::{LocalBackend, LocalConfig};
        use crate::{Backend, Batch, OutputShape, Request, RequestId, Sampling, Tokenizer};

        let LoadedModel { config, weights, tokenizer, digest } = bundled(BundledModel::Mini).unwrap();
        let options = CudaOptions { kv_bytes: Some(256 << 20), ..options(Precision::Bf16) };
        let batch = |max_tokens| {
            let shape = Arc::new(OutputShape::Text);
            let prompt = |id| vec![tokenizer.encode(&format!("Once upon a time there were {id}")).into()];
            let request = |id| Request::new(RequestId(id), prompt(id), Arc::clone(&shape), Sampling::GREEDY, max_tokens);
            Batch { requests: (0..64).map(request).collect(), ..Batch::default() }
        };
        let open = || open(&config, weights.as_ref(), &options);
        let start = |device: TensorParallel| {
            let local = LocalConfig::new(config.max_context, digest.clone());
            let local = LocalConfig {
                scheduler: crate::scheduler::SchedulerConfig { step_tokens: 512, ..local.scheduler },
                ..local
            };
            LocalBackend::start(move || Ok(Box::new(device)), Arc::clone(&tokenizer) as Arc<dyn Tokenizer>, local).unwrap()
        };
        let Some(device) = open() else { return };
        let group = Arc::clone(&device.team.group);
        let backend = start(device);
        let stream = backend.submit(batch(1500));
        group.give_up(&Error::Device("a GPU has fallen off the bus".to_owned()));
        let last = block_on(stream.collect::<Vec<_>>()).pop().unwrap().unwrap_err().to_string();
        assert!(last.contains("fallen off the bus"), "{last}");
        assert!(backend.is_lost());
        assert!(block_on(backend.submit(batch(1)).collect::<Vec<_>>())[0].is_err());
        drop(backend);
        let again = start(open().unwrap());
        let answers = block_on(again.submit(batch(5)).collect::<Vec<_>>());
        assert!(answers.len() == 64 && answers.iter().all(Result::is_ok) && !again.is_lost());
    }

    #[test]
    fn what_cannot_be_split_is_refused_before_a_gpu_is_asked_for() {
        let refused = |config: &ModelConfig, ordinals: &[u32]| {
            let weights = MemoryTensors::random(config, 7);
            TensorParallel::new(config, &weights, ordinals, &options(Precision::F32)).unwrap_err().to_string()
        };
        assert!(refused(&tiny_config(), &[0, 1, 2, 3]).contains("2 key-value heads cannot be split over 4 GPUs"));
        assert!(refused(&tiny_config(), &[]).contains("no GPU"));
        let config = ModelConfig { kv_heads: 4, intermediate_size: 64, ..tiny_config() };
        let invariant = CudaOptions { invariant_rows: Some(64), ..options(Precision::F32) };
        let weights = MemoryTensors::random(&config, 7);
        let error = TensorParallel::new(&config, &weights, &[0, 1, 2, 3], &invariant).unwrap_err().to_string();
        assert!(error.contains("over 4 GPUs cannot be batch-invariant"), "{error}");
    }
}
