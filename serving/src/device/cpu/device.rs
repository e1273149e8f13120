//! `CpuDevice`: runs step plans on a thread pool of its own. A pass has ended when `launch` returns.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use pulp::Arch;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::forward::{Buffers, Decoder};
use super::head::{HeadBuffers, sample};
use super::kv::KvPool;
use super::weights::Packer;
use crate::device::check::{Limits, bind_plan, check_copies, check_plan, check_slot, check_token};
use crate::device::{Bind, Device, PoolSpec, StepTicket};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSource};
use crate::request::TokenId;
use crate::step::{PageCopy, PageId, RowSlot, StepPlan, StepResult, TokenSource};

/// Passes whose results may wait to be polled.
const UNPOLLED_MAX: usize = 64;

/// What a CPU device may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute; `None` takes as many as the process may run at once.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the KV pool. Memory is committed as pages are first used.
    pub kv_bytes: usize,
    /// What the inputs of matrix products are rounded to.
    pub activations: Activations,
}

/// What the inputs of matrix products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Bytes with a scale for each block of 32, where weights are stored so too and the processor multiplies bytes (AVX2, AVX-512
    /// VNNI): up to several times as fast, with the same bits on each. An input is off by at most 1/254 of the largest of its block.
    /// Elsewhere as `F32`.
    #[default]
    Int8,
    /// Nothing: products are those of the stored weights, rounded to single precision.
    F32,
}

/// A decoder and its KV pages in main memory.
///
/// Logits of a token are the same bits whatever else is in the step, however its prompt was cut into steps, and on any number
/// of threads of the same machine.
#[derive(Debug)]
pub struct CpuDevice {
    decoder: Decoder,
    kv: KvPool,
    pool: Arc<ThreadPool>,
    buffers: Buffers,
    head: HeadBuffers,
    tokens: Vec<TokenId>,
    /// The token last sampled into each slot.
    slots: Vec<Option<TokenId>>,
    launched: u64,
    finished: VecDeque<(StepTicket, StepResult)>,
}

impl CpuDevice {
    /// Reads the weights and reserves the KV pool.
    ///
    /// Fails if a tensor is missing or damaged, if `config` contradicts itself, or with `Error::OutOfMemory` if `kv_bytes` is
    /// less than one page or more than the system gives.
    pub fn new(config: &ModelConfig, weights: &dyn TensorSource, options: CpuOptions) -> Result<Self> {
        let CpuOptions { threads, kv_bytes, activations } = options;
        let threads = threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("refrain-cpu-{i}")).build();
        let pool = pool.map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?;
        CpuDevice::with(config, weights, activations, Arc::new(pool), KvPool::new(config, kv_bytes)?)
    }

    /// As [`new`](Self::new), on threads that are there already, and with a KV pool of up to `kv_bytes` whose slabs are taken
    /// and given back, so that other devices may have what this one does not need.
    pub fn shared(
        config: &ModelConfig,
        weights: &dyn TensorSource,
        threads: Arc<ThreadPool>,
        kv_bytes: usize,
    ) -> Result<Self> {
        CpuDevice::with(config, weights, Activations::default(), threads, KvPool::in_slabs(config, kv_bytes)?)
    }

    fn with(
        config: &ModelConfig,
        weights: &dyn TensorSource,
        activations: Activations,
        pool: Arc<ThreadPool>,
        kv: KvPool,
    ) -> Result<Self> {
        Ok(CpuDevice {
            decoder: Decoder::new(Packer { arch: Arch::new(), activations }, config, weights)?,
            kv,
            pool,
            buffers: Buffers::default(),
            head: HeadBuffers::default(),
            tokens: Vec::new(),
            slots: Vec::new(),
            launched: 0,
            finished: VecDeque::new(),
        })
    }

    fn limits(&self) -> Limits {
        Limits { pages: self.kv.spec().pages, vocabulary: self.decoder.config.vocab_size }
    }

    /// Fails if a page is named whose slab is not taken.
    fn check_taken(&self, pages: impl IntoIterator<Item = PageId>) -> Result<()> {
        match pages.into_iter().find(|page| !self.kv.has(*page)) {
            Some(page) => Err(Error::Device(format!("malformed plan: the memory of page {} was not taken", page.0))),
            None => Ok(()),
        }
    }

    /// Looks up input tokens that are still only in their slots.
    fn resolve(&mut self, sources: &[TokenSource]) -> Result<()> {
        let limits = self.limits();
        self.tokens.clear();
        for source in sources {
            let token = match *source {
                TokenSource::Host(token) => token,
                TokenSource::Device(slot) => self.sampled(slot)?,
            };
            check_token(token, limits)?;
            self.tokens.push(token);
        }
        Ok(())
    }

    fn sampled(&self, slot: RowSlot) -> Result<TokenId> {
        let token = self.slots.get(slot.0 as usize).copied().flatten();
        token.ok_or_else(|| Error::Device(format!("malformed plan: nothing was sampled into slot {}", slot.0)))
    }

    fn run(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepResult> {
        let limits = self.limits();
        let CpuDevice { decoder, kv, pool, buffers, head, tokens, .. } = self;
        pool.install(|| {
            kv.copy(&plan.copies);
            if !tokens.is_empty() {
                decoder.forward(kv, plan, tokens, buffers);
            }
        });
        if tokens.is_empty() {
            return Ok(StepResult::default());
        }
        bind_plan(plan, bind, limits)?;
        Ok(pool.install(|| sample(decoder, plan, buffers, head)))
    }

    fn keep(&mut self, slot: RowSlot, token: TokenId) -> Result<()> {
        check_slot(slot)?;
        let slot = slot.0 as usize;
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, None);
        }
        self.slots[slot] = Some(token);
        Ok(())
    }
}

impl Device for CpuDevice {
    fn pool(&self) -> PoolSpec {
        self.kv.spec()
    }

    fn describe(&self) -> String {
        let threads = self.pool.current_num_threads();
        format!("cpu, {threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn rounding(&self) -> Option<&'static str> {
        self.decoder.weights.multiply_bytes().then_some("int8")
    }

    fn held_bytes(&self) -> Option<u64> {
        Some(self.decoder.weights.size_bytes() as u64)
    }

    fn dtype(&self) -> Option<&'static str> {
        self.decoder.weights.layers.first().map(|layer| layer.qkv.dtype())
    }

    fn launch_open(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepTicket> {
        if self.finished.len() >= UNPOLLED_MAX {
            return Err(Error::Device(format!("{UNPOLLED_MAX} passes wait to be polled")));
        }
        check_plan(plan, self.limits())?;
        let written = plan.writes.iter().map(|write| write.page);
        self.check_taken(written.chain(plan.block_tables.iter().copied()).chain(pages_of(&plan.copies)))?;
        self.resolve(&plan.tokens)?;
        let result = self.run(plan, bind)?;
        for (sample, &token) in plan.sample.iter().zip(&result.sampled) {
            self.keep(sample.slot, token)?;
        }
        let ticket = StepTicket(self.launched);
        self.launched += 1;
        self.finished.push_back((ticket, result));
        Ok(ticket)
    }

    fn poll(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<bool> {
        let found = self.finished.iter().position(|(finished, _)| *finished == ticket).and_then(|i| self.finished.remove(i));
        let Some((_, finished)) = found else {
            return Err(Error::Device(format!("pass {} was not launched, or was polled before", ticket.0)));
        };
        *result = finished;
        Ok(true)
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<()> {
        check_copies(copies, self.limits())?;
        self.check_taken(pages_of(copies))?;
        let CpuDevice { kv, pool, .. } = self;
        pool.install(|| kv.copy(copies));
        Ok(())
    }

    fn slab_pages(&self) -> u32 {
        self.kv.pages_per_slab()
    }

    fn take_slab(&mut self, slab: u32) -> Result<()> {
        // A pool in one piece has its memory.
        if self.kv.has(PageId(slab * self.slab_pages())) { Ok(()) } else { self.kv.take(slab) }
    }

    fn give_slab(&mut self, slab: u32) {
        if self.slab_pages() < self.kv.spec().pages {
            self.kv.give(slab);
        }
    }
}

/// Returns the pages that copies name.
fn pages_of(copies: &[PageCopy]) -> impl Iterator<Item = PageId> {
    copies.iter().flat_map(|copy| [copy.from, copy.to])
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::super::reference::{
        MemoryTensors, Random, add_row, close, featured_config, naive_logits, run_open, tiny_config,
    };
    use super::*;
    use crate::request::{Sampling, TokenLogprobs};
    use crate::step::{Allowed, PAGE_TOKENS};

    fn device(config: &ModelConfig, threads: usize) -> CpuDevice {
        let tensors = MemoryTensors::random(config, 7);
        CpuDevice::new(
            config,
            &tensors,
            CpuOptions { threads: NonZeroUsize::new(threads), kv_bytes: 4 << 20, activations: Activations::Int8 },
        )
        .unwrap()
    }

    fn run(device: &mut CpuDevice, plan: &StepPlan) -> StepResult {
        let ticket = device.launch(plan).unwrap();
        let mut result = StepResult::default();
        assert!(device.poll(ticket, &mut result).unwrap());
        result
    }

    fn tokens(len: usize, seed: u64) -> Vec<TokenId> {
        let mut random = Random::new(seed);
        (0..len).map(|_| random.below(tiny_config().vocab_size as u64) as TokenId).collect()
    }

    fn pages(range: Range<u32>) -> Vec<PageId> {
        range.map(PageId).collect()
    }

    #[test]
    #[cfg(feature = "bundled-model")]
    fn what_rounds_its_inputs_says_so() {
        let config = tiny_config();
        assert_eq!(device(&config, 1).rounding(), None, "its weights are floats");
        let open = |activations| {
            let model = crate::load::bundled(crate::load::BundledModel::MiniDraft).unwrap();
            let options = CpuOptions { threads: NonZeroUsize::new(1), kv_bytes: 4 << 20, activations };
            CpuDevice::new(&model.config, model.weights.as_ref(), options).unwrap()
        };
        let bytes = open(Activations::Int8);
        assert_eq!(bytes.rounding(), bytes.decoder.weights.head.multiplies_bytes().then_some("int8"));
        assert_eq!(open(Activations::F32).rounding(), None);
    }

    /// Logits by token, as bits.
    fn bits(top: &[(TokenId, f32)]) -> Vec<u32> {
        let mut by_token = top.to_vec();
        by_token.sort_unstable_by_key(|&(token, _)| token);
        by_token.iter().map(|(_, logit)| logit.to_bits()).collect()
    }

    /// The logits after the whole of `row`, computed alone in one step.
    fn alone(config: &ModelConfig, row: &[TokenId]) -> Vec<u32> {
        let mut plan = StepPlan::default();
        add_row(&mut plan, row, 0, &pages(0..8), config.vocab_size as u32);
        bits(&run(&mut device(config, 1), &plan).top_logits[0])
    }

    #[test]
    fn matches_a_naive_forward_pass() {
        let plain = tiny_config();
        let mut other = tiny_config();
        (other.qkv_bias, other.tie_word_embeddings) = (true, false);
        (other.heads, other.kv_heads, other.head_dim, other.rotary_dim) = (3, 1, 10, 10);
        // The frequencies of rescaled models are checked against transformers, in tests/architectures.rs.
        let featured = ModelConfig { rope_scaling: None, ..featured_config() };
        for config in [plain, other, featured] {
            let row = tokens(37, 1);
            let naive = naive_logits(&config, &MemoryTensors::random(&config, 7), &row);
            let mut plan = StepPlan::default();
            add_row(&mut plan, &row, 0, &pages(2..5), config.vocab_size as u32);
            let last = plan.sample[0].clone();
            plan.sample.extend([0, 20].map(|token| crate::step::SampleRow { token, ..last.clone() }));
            let result = run(&mut device(&config, 2), &plan);
            for (sample, top) in plan.sample.iter().zip(&result.top_logits) {
                top.iter().for_each(|&(token, logit)| close(logit, naive[sample.token as usize][token as usize], 1e-4));
            }
            let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as TokenId;
            assert_eq!(result.sampled, [best(&naive[36]), best(&naive[0]), best(&naive[20])]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Three rows advance by random chunks, in steps that hold random subsets of them in random order.
        #[test]
        fn logits_do_not_depend_on_batch_chunks_or_threads(
            lengths in prop::array::uniform3(1usize..70),
            schedule in prop::collection::vec((0usize..3, 1usize..40, prop::bool::ANY), 1..40),
            threads in 1usize..4,
            featured in prop::bool::ANY,
        ) {
            let config = if featured { featured_config() } else { tiny_config() };
            let rows: Vec<_> = (0..).zip(lengths).map(|(i, len)| tokens(len, i)).collect();
            let mut device = device(&config, threads);
            let mut done = [0; 3];
            let mut seen: [Vec<u32>; 3] = Default::default();
            let mut pending: Vec<(usize, usize)> = Vec::new();
            // Twice, since a row may still wait for a small chunk of the schedule.
            let finish = [0, 1, 2, 0, 1, 2].map(|row| (row, 70, true));
            for (row, chunk, flush) in schedule.into_iter().chain(finish) {
                if !pending.iter().any(|&(other, _)| other == row) {
                    pending.push((row, chunk));
                }
                if !flush {
                    continue;
                }
                let mut plan = StepPlan::default();
                pending.retain(|&(row, _)| done[row] < lengths[row]);
                for &(row, chunk) in &pending {
                    let end = lengths[row].min(done[row] + chunk);
                    add_row(&mut plan, &rows[row][..end], done[row], &pages(8 * row as u32..8 * row as u32 + 8), 64);
                    plan.sample.last_mut().unwrap().top_logits = config.vocab_size as u32;
                    done[row] = end;
                }
                let result = run(&mut device, &plan);
                for (&(row, _), top) in pending.iter().zip(&result.top_logits) {
                    seen[row] = bits(top);
                }
                pending.clear();
            }
            for (row, seen) in rows.iter().zip(seen) {
                prop_assert!(seen == alone(&config, row));
            }
        }
    }

    #[test]
    fn candidates_and_masks_restrict_the_whole_head() {
        let config = tiny_config();
        let (row, vocabulary) = (tokens(20, 3), config.vocab_size as u32);
        let mut plan = StepPlan::default();
        add_row(&mut plan, &row, 0, &pages(0..2), vocabulary);
        let all = run(&mut device(&config, 2), &plan).top_logits.remove(0);
        let best_of = |allowed: &[TokenId]| all.iter().find(|(token, _)| allowed.contains(token)).unwrap().0;
        for allowed in [vec![5, 9, 70], vec![70, 5], vec![0], vec![1, 2, 3, 4, 95]] {
            plan.candidates = allowed.clone();
            plan.masks = vec![0; config.vocab_size.div_ceil(32)];
            allowed.iter().for_each(|&token| plan.masks[token as usize / 32] |= 1 << (token % 32));
            let words = plan.masks.len() as u32;
            for (choice, top) in [
                (Allowed::Candidates(0..allowed.len() as u32), 0),
                (Allowed::Candidates(0..allowed.len() as u32), 3),
                (Allowed::Mask(0..words), 2),
            ] {
                let sampled = |temperature: f32, plan: &mut StepPlan| {
                    plan.sample[0].sampling = Sampling { temperature, seed: 11, ..Sampling::GREEDY };
                    (plan.sample[0].allowed, plan.sample[0].top_logits) = (choice.clone(), top);
                    let result = run(&mut device(&config, 1), plan);
                    assert_eq!(run_open(&mut device(&config, 1), &[&*plan, &*plan]), [result.clone(), result.clone()]);
                    result
                };
                let result = sampled(0.0, &mut plan);
                assert_eq!(result.sampled, [best_of(&allowed)]);
                assert_eq!(result.top_logits[0], all[..top as usize]);
                assert!(allowed.contains(&sampled(1.5, &mut plan).sampled[0]));
            }
        }
    }

    #[test]
    fn many_rows_with_candidates_of_their_own_keep_their_order() {
        let config = tiny_config();
        let mut plan = StepPlan::default();
        for row in 0..12u32 {
            add_row(&mut plan, &tokens(5, u64::from(row)), 0, &pages(row..row + 1), 0);
            let list = row % 3 * 2;
            plan.sample.last_mut().unwrap().allowed = Allowed::Candidates(list..list + 2);
        }
        plan.candidates = vec![10, 11, 20, 21, 30, 31];
        let result = run(&mut device(&config, 2), &plan);
        for (row, &token) in result.sampled.iter().enumerate() {
            assert_eq!(token as usize / 10, row % 3 + 1);
        }
    }

    #[test]
    fn draws_do_not_depend_on_the_batch() {
        let config = tiny_config();
        let rows: Vec<_> = (0..8u32).map(|row| tokens(4 + row as usize, u64::from(row))).collect();
        let sampling = |row: u32| Sampling {
            temperature: 0.5 + row as f32 / 4.0,
            top_p: if row.is_multiple_of(2) { 1.0 } else { 0.8 },
            top_k: row % 3 * 7,
            seed: u64::from(row / 2),
        };
        let add = |plan: &mut StepPlan, row: u32| {
            add_row(plan, &rows[row as usize], 0, &pages(row..row + 1), 0);
            let sample = plan.sample.last_mut().unwrap();
            (sample.sampling, sample.draw, sample.logprobs) = (sampling(row), 3, Some(2));
        };
        let mut together = StepPlan::default();
        (0..8).rev().for_each(|row| add(&mut together, row));
        let mut together = run(&mut device(&config, 2), &together);
        together.sampled.reverse();
        together.logprobs.reverse();
        for row in 0..8 {
            let mut alone = StepPlan::default();
            add(&mut alone, row);
            let alone = run(&mut device(&config, 1), &alone);
            assert_eq!(alone.sampled[0], together.sampled[row as usize]);
            assert_eq!(alone.logprobs[0], together.logprobs[row as usize]);
        }
    }

    #[test]
    fn probabilities_are_of_the_vocabulary_or_of_the_candidates() {
        let config = tiny_config();
        let mut plan = StepPlan::default();
        add_row(&mut plan, &tokens(20, 3), 0, &pages(0..2), config.vocab_size as u32);
        let logits = run(&mut device(&config, 2), &plan).top_logits.remove(0);
        let softmax = |token: TokenId, among: &[TokenId]| {
            let of = |token: TokenId| f64::from(logits.iter().find(|(other, _)| *other == token).unwrap().1).exp();
            (of(token) / among.iter().map(|token| of(*token)).sum::<f64>()).ln()
        };
        let all: Vec<TokenId> = (0..config.vocab_size as TokenId).collect();
        plan.candidates = vec![5, 9, 70];
        plan.masks = vec![0; config.vocab_size.div_ceil(32)];
        plan.candidates.iter().for_each(|&token| plan.masks[token as usize / 32] |= 1 << (token % 32));
        let (mask, list) = (Allowed::Mask(0..plan.masks.len() as u32), Allowed::Candidates(0..3));
        let mut check = |allowed: Allowed, top: u32, among: &[TokenId]| {
            (plan.sample[0].allowed, plan.sample[0].top_logits, plan.sample[0].logprobs) = (allowed, 0, Some(top));
            let result = run(&mut device(&config, 1), &plan);
            let TokenLogprobs { logprob, top: listed } = result.logprobs[0].clone().unwrap();
            assert!((f64::from(logprob) - softmax(result.sampled[0], among)).abs() < 1e-5);
            assert_eq!(listed.len(), top as usize);
            for ((token, logprob), (expected, _)) in listed.iter().zip(&logits) {
                assert!(token == expected && (f64::from(*logprob) - softmax(*token, among)).abs() < 1e-5);
            }
        };
        check(Allowed::All, 0, &all);
        check(Allowed::All, 4, &all);
        check(mask.clone(), 0, &all);
        check(mask, 2, &all);
        check(list.clone(), 0, &[5, 9, 70]);
        check(list, 3, &all);
    }

    #[test]
    fn a_prefix_may_be_shared_copied_and_written_twice() {
        check_shared_prefix(&tiny_config());
        check_shared_prefix(&featured_config());
    }

    fn check_shared_prefix(config: &ModelConfig) {
        let vocabulary = config.vocab_size as u32;
        let (prefix, one, two) = (tokens(21, 1), tokens(9, 2), tokens(14, 3));
        let (first, second) = ([&prefix[..], &one].concat(), [&prefix[..], &two].concat());
        let expected = [alone(config, &first), alone(config, &second)];

        // In one step: the prefix in pages 0 and 1, its tail also in page 5; the second row reads what the first writes.
        let mut device = device(config, 2);
        let mut plan = StepPlan::default();
        add_row(&mut plan, &first, 0, &pages(0..2), vocabulary);
        let doubled: Vec<_> = plan.writes.iter().filter(|write| (16..21).contains(&write.token)).copied().collect();
        plan.writes.extend(doubled.into_iter().map(|write| crate::step::KvWrite { page: PageId(5), ..write }));
        add_row(&mut plan, &second, prefix.len(), &[PageId(0), PageId(5), PageId(6)], vocabulary);
        let result = run(&mut device, &plan);
        assert_eq!([bits(&result.top_logits[0]), bits(&result.top_logits[1])], expected);

        // Later: the tail copied within the pass, and apart from it.
        for page in [8, 10] {
            let copy = PageCopy { from: PageId(1), to: PageId(page), tokens: 5 };
            let mut plan = StepPlan::default();
            add_row(&mut plan, &second, prefix.len(), &[PageId(0), PageId(page), PageId(page + 1)], vocabulary);
            if page == 8 {
                plan.copies.push(copy)
            } else {
                device.copy(&[copy]).unwrap()
            }
            assert_eq!(bits(&run(&mut device, &plan).top_logits[0]), expected[1]);
        }
    }

    #[test]
    fn decoding_from_slots_equals_decoding_from_the_host() {
        let config = tiny_config();
        let generate = |from_slot: bool| {
            let (mut device, mut row, mut answer) = (device(&config, 1), tokens(12, 5), Vec::new());
            let mut done = 0;
            for _ in 0..10 {
                let mut plan = StepPlan::default();
                add_row(&mut plan, &row, done, &pages(0..4), 0);
                plan.sample[0].slot = RowSlot(3);
                if from_slot && done > 0 {
                    plan.tokens = vec![TokenSource::Device(RowSlot(3))];
                }
                done = row.len();
                let token = run(&mut device, &plan).sampled[0];
                answer.push(token);
                row.push(if from_slot { 0 } else { token });
            }
            answer
        };
        assert_eq!(generate(true), generate(false));
    }

    #[test]
    fn unusable_plans_and_tickets_are_errors() {
        let mut device = device(&tiny_config(), 1);
        let mut plan = StepPlan::default();
        add_row(&mut plan, &[1, 2], 0, &pages(0..1), 0);
        let fault = |device: &mut CpuDevice, plan: &StepPlan| device.launch(plan).unwrap_err().to_string();
        plan.tokens[0] = TokenSource::Host(10_000);
        assert!(fault(&mut device, &plan).contains("token 10000"));
        plan.tokens[0] = TokenSource::Device(RowSlot(2));
        assert!(fault(&mut device, &plan).contains("slot 2"));
        plan.block_tables[0] = PageId(u32::MAX);
        assert!(fault(&mut device, &plan).contains("page"));
        assert!(device.poll(StepTicket(0), &mut StepResult::default()).is_err());
        assert!(device.copy(&[PageCopy { from: PageId(u32::MAX), to: PageId(0), tokens: 1 }]).is_err());
        for _ in 0..UNPOLLED_MAX {
            device.launch(&StepPlan::default()).unwrap();
        }
        assert!(device.launch(&StepPlan::default()).is_err());
    }

    #[test]
    fn a_pool_in_slabs_gives_the_same_logits_and_names_what_was_not_taken() {
        let config = tiny_config();
        let tensors = MemoryTensors::random(&config, 7);
        let threads = Arc::new(ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let mut device = CpuDevice::shared(&config, &tensors, threads, 16 << 20).unwrap();
        let slab = device.slab_pages();
        let row = tokens(40, 9);
        let mut plan = StepPlan::default();
        add_row(&mut plan, &row, 0, &[PageId(0), PageId(2 * slab), PageId(1)], config.vocab_size as u32);
        device.take_slab(0).unwrap();
        assert!(device.launch(&plan).unwrap_err().to_string().contains("was not taken"));
        device.take_slab(2).unwrap();
        assert_eq!(bits(&run(&mut device, &plan).top_logits[0]), alone(&config, &row));
        device.give_slab(2);
        assert!(device.copy(&[PageCopy { from: PageId(0), to: PageId(2 * slab), tokens: 3 }]).is_err());
    }

    #[test]
    fn describes_itself_and_its_pool() {
        let (config, device) = (tiny_config(), device(&tiny_config(), 2));
        assert_eq!(device.describe(), "cpu, 2 threads");
        let PoolSpec { pages, page_bytes } = device.pool();
        assert_eq!(page_bytes, config.layers * config.kv_heads * PAGE_TOKENS * (config.head_dim + 16) * 4);
        assert_eq!(pages as usize, (4 << 20) / page_bytes);
    }
}
