//! `CpuDevice`: runs step plans on a thread pool of its own. A pass has ended when `launch` returns.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use pulp::Arch;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::check::{Limits, check_copies, check_plan, check_slot, check_token};
use super::forward::{Buffers, Decoder};
use super::head::{HeadBuffers, sample};
use super::kv::KvPool;
use crate::device::{Device, PoolSpec, StepTicket};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSource};
use crate::request::TokenId;
use crate::step::{PageCopy, RowSlot, StepPlan, StepResult, TokenSource};

/// Passes whose results may wait to be polled.
const UNPOLLED_MAX: usize = 64;

/// What a CPU device may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute; `None` takes as many as the process may run at once.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the KV pool. Memory is committed as pages are first used.
    pub kv_bytes: usize,
}

/// A decoder and its KV pages in main memory.
///
/// Logits of a token are the same bits whatever else is in the step, however its prompt was cut into steps, and on any number
/// of threads of the same machine.
#[derive(Debug)]
pub struct CpuDevice {
    decoder: Decoder,
    kv: KvPool,
    pool: ThreadPool,
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
        let CpuOptions { threads, kv_bytes } = options;
        let threads = threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("refrain-cpu-{i}")).build();
        Ok(CpuDevice {
            decoder: Decoder::new(Arch::new(), config, weights)?,
            kv: KvPool::new(config, kv_bytes)?,
            pool: pool.map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?,
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

    fn run(&mut self, plan: &StepPlan) -> StepResult {
        let CpuDevice { decoder, kv, pool, buffers, head, tokens, .. } = self;
        pool.install(|| {
            kv.copy(&plan.copies);
            if tokens.is_empty() {
                return StepResult::default();
            }
            decoder.forward(kv, plan, tokens, buffers);
            sample(decoder, plan, buffers, head)
        })
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

    fn launch(&mut self, plan: &StepPlan) -> Result<StepTicket> {
        if self.finished.len() >= UNPOLLED_MAX {
            return Err(Error::Device(format!("{UNPOLLED_MAX} passes wait to be polled")));
        }
        check_plan(plan, self.limits())?;
        self.resolve(&plan.tokens)?;
        let result = self.run(plan);
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
        let CpuDevice { kv, pool, .. } = self;
        pool.install(|| kv.copy(copies));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::super::reference::{MemoryTensors, Random, add_row, close, featured_config, naive_logits, tiny_config};
    use super::*;
    use crate::request::Sampling;
    use crate::step::{Allowed, PAGE_TOKENS, PageId};

    fn device(config: &ModelConfig, threads: usize) -> CpuDevice {
        let tensors = MemoryTensors::random(config, 7);
        CpuDevice::new(config, &tensors, CpuOptions { threads: NonZeroUsize::new(threads), kv_bytes: 4 << 20 }).unwrap()
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
                    run(&mut device(&config, 1), plan)
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
    fn describes_itself_and_its_pool() {
        let (config, device) = (tiny_config(), device(&tiny_config(), 2));
        assert_eq!(device.describe(), "cpu, 2 threads");
        let PoolSpec { pages, page_bytes } = device.pool();
        assert_eq!(page_bytes, config.layers * config.kv_heads * PAGE_TOKENS * (config.head_dim + 16) * 4);
        assert_eq!(pages as usize, (4 << 20) / page_bytes);
    }
}
