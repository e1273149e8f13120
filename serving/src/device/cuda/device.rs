//! `CudaDevice`: runs step plans on a GPU. A pass runs while the host goes on.
//!
//! A launch has three parts. What the layers need is checked and taken by [`prepare`](CudaDevice::prepare), before anything of the
//! pass is launched: GPUs that share a model start a pass once all have prepared it, since none can go on without the others.
//! [`start`](CudaDevice::start) launches the layers. While they run it is worked out which tokens are allowed, and then
//! [`choose`](CudaDevice::choose) launches the choice, for which no GPU waits for another.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::attend::AttentionPlaces;
use super::driver::{Arg, Buffer, Event, Gpu, GpuFacts, Kernel, Size};
use super::forward::{Decoder, PassInputs};
use super::gemm::padded;
use super::head::{Head, HostResult};
use super::kernels::{Kernels, Precision};
use super::memory::{GpuMemory, pool_bytes};
use super::metadata::{Metadata, Uploader};
use super::nccl::Peer;
use super::share::Share;
use super::timing::{Part, PassTimes, Timing};
use super::weights::Weights;
use crate::device::check::{Limits, SLOTS_MAX, bind_plan, check_copies, check_plan, check_token};
use crate::device::{Bind, Device, PoolSpec, StepTicket};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSource};
use crate::step::{PAGE_TOKENS, PageCopy, StepPlan, StepResult, TokenSource};

/// Passes that may be launched and not yet polled.
const IN_FLIGHT_MAX: usize = 4;

/// The sides of a matrix in FP8 are a multiple of this: 16 bytes are what the matrix units read at a time.
const FP8_WIDTH: usize = 16;

/// Uploads of a pass: what its layers read, and then what its samples do.
const UPLOADS: usize = 2;

/// Of the memory that is free after all else, the part that the KV pool takes: drivers and libraries want some later on.
const POOL_SHARE: f64 = 0.92;

/// The tokens of a pass for which batch-invariant products are best: between those of decoding and of prefill.
pub const INVARIANT_ROWS: usize = 512;

/// What a GPU may use.
#[derive(Clone, Debug, PartialEq)]
pub struct CudaOptions {
    /// The number of the GPU.
    pub ordinal: u32,
    /// Bytes of the KV pool; `None` takes what is free after the weights.
    pub kv_bytes: Option<usize>,
    /// The most that the model may take of the GPU, and of each that it is split over; `None` sets no limit.
    pub memory: Option<GpuMemory>,
    /// The most tokens of a pass, for which memory is taken.
    pub step_tokens: u32,
    /// What weights, activations and pages are stored as.
    pub precision: Precision,
    /// Where compiled kernels are kept, and timings of matrix products; `None` makes them anew each time, which takes seconds.
    pub kernel_cache: Option<PathBuf>,
    /// Whether to time algorithms for matrix products when the device is opened: a second or two, for a few percent.
    pub tune: bool,
    /// Batch invariance: where set, the logits of a row are the same bits alone and in any pass, however it is cut into chunks.
    /// Products then take the algorithms that are best for so many tokens, whatever their number, and none is timed; attention
    /// neither cuts keys nor shares prefixes. [`INVARIANT_ROWS`] is a good number.
    pub invariant_rows: Option<usize>,
}

impl CudaOptions {
    /// The first GPU in bfloat16.
    pub fn new(step_tokens: u32) -> Self {
        CudaOptions {
            ordinal: 0,
            kv_bytes: None,
            memory: None,
            step_tokens,
            precision: Precision::Bf16,
            kernel_cache: None,
            tune: true,
            invariant_rows: None,
        }
    }
}

/// A decoder and its KV pages in a GPU's memory.
#[derive(Debug)]
pub struct CudaDevice {
    decoder: Decoder,
    head: Head,
    uploader: Uploader,
    metadata: Metadata,
    copy_pages: Kernel,
    pool: Buffer<u8>,
    /// Of this GPU's share of the keys and values.
    spec: PoolSpec,
    precision: Precision,
    capacity: usize,
    memory_max: Option<GpuMemory>,
    /// Bytes of the GPU that were free before the model came.
    free_before: usize,
    /// Bytes of the GPU that the model has taken.
    taken: usize,
    /// The token last sampled into each slot, and which slots have one.
    slots: Buffer<i32>,
    filled: Vec<bool>,
    launched: u64,
    in_flight: VecDeque<Pass>,
    /// Passes that have been polled, whose memory is used again.
    idle: Vec<Pass>,
    times: Option<PassTimes>,
    gpu: Arc<Gpu>,
    /// Dropped last: kernels are used by all of the above.
    _kernels: Kernels,
}

/// A pass from its launch to its poll.
#[derive(Debug)]
struct Pass {
    ticket: StepTicket,
    ended: Event,
    result: HostResult,
    timing: Timing,
    tokens: usize,
}

/// A pass that can be started: the metadata of its layers is on the GPU, and their memory is there.
#[derive(Debug)]
pub(super) struct Prepared {
    pass: Pass,
    inputs: PassInputs,
    attention: AttentionPlaces,
    /// The sampled tokens, ascending.
    live: Vec<i32>,
    /// Of the copies of pages.
    copies: usize,
}

impl CudaDevice {
    /// Opens a GPU, reads the weights and takes all memory that passes need.
    ///
    /// Fails with [`Error::Device`] and a sentence if there is no GPU that can be used, if a tensor is missing or damaged, or with
    /// [`Error::OutOfMemory`] if the weights and a page of the pool do not fit.
    pub fn new(config: &ModelConfig, weights: &dyn TensorSource, options: &CudaOptions) -> Result<Self> {
        config.check().map_err(Error::Invalid)?;
        let mut device = CudaDevice::open(config, weights, options, Gpu::open(options.ordinal)?, Share::WHOLE, None)?;
        let most = device.pages_max()?;
        let wanted = options.kv_bytes.map_or(most, |bytes| bytes / device.spec.page_bytes);
        device.take_pool(wanted.min(most))?;
        Ok(device)
    }

    /// Opens a GPU with a share of the model, whose configuration is the whole one, and with no pages yet.
    pub(super) fn open(
        config: &ModelConfig,
        weights: &dyn TensorSource,
        options: &CudaOptions,
        gpu: Arc<Gpu>,
        share: Share,
        peer: Option<Peer>,
    ) -> Result<Self> {
        let precision = options.precision;
        if precision == Precision::Fp8 {
            check_fp8(&share.config(config)?, gpu.facts())?;
        }
        let free_before = gpu.free_memory()?;
        let kernels = Kernels::load(&gpu, precision, options.kernel_cache.as_deref())?;
        let capacity = padded(options.step_tokens.max(1) as usize);
        let weights = Weights::load(&gpu, &kernels, precision, config, weights, share)?;
        let config = &share.config(config)?;
        let cache = options.kernel_cache.as_deref();
        let mut decoder = Decoder::new(&gpu, &kernels, precision, config, weights, capacity, cache, peer)?;
        if let Some(rows) = options.invariant_rows {
            decoder = decoder.invariant(rows);
        }
        let head = Head::new(&gpu, &kernels, precision, config, capacity)?;
        let uploader = Uploader::new(&gpu, UPLOADS * IN_FLIGHT_MAX, 64 * capacity + (1 << 16))?;
        let slots = gpu.allocate(SLOTS_MAX as usize)?;
        slots.fill(0)?;
        if options.tune && options.invariant_rows.is_none() {
            decoder.fill_for_tuning(kernels.get("random", "fill_normal", 0)?)?;
            decoder.tune(capacity)?;
            decoder.run_every_size()?;
            head.run_every_size(&mut decoder)?;
        }
        let page_bytes = config.layers * 2 * config.kv_heads * PAGE_TOKENS * config.head_dim * precision.bytes();
        gpu.synchronize()?;
        Ok(CudaDevice {
            decoder,
            head,
            uploader,
            metadata: Metadata::default(),
            copy_pages: kernels.get("pages", "copy_pages", 0)?,
            pool: gpu.allocate(0)?,
            spec: PoolSpec { pages: 0, page_bytes },
            precision,
            capacity,
            memory_max: options.memory,
            free_before,
            taken: 0,
            slots,
            filled: Vec::new(),
            launched: 0,
            in_flight: VecDeque::new(),
            idle: Vec::new(),
            times: None,
            gpu,
            _kernels: kernels,
        })
    }

    /// Returns how many pages there is room for: in the memory that is free, and in what the model may take. Fails if that is none.
    pub(super) fn pages_max(&self) -> Result<usize> {
        self.gpu.bind()?;
        let page_bytes = self.spec.page_bytes;
        let free = self.gpu.free_memory()?;
        let most = self.memory_max.map(|most| most.bytes(self.gpu.facts().memory));
        let room = pool_bytes((free as f64 * POOL_SHARE) as usize, self.free_before.saturating_sub(free), most);
        match (room / page_bytes).min(u32::MAX as usize / PAGE_TOKENS) {
            0 => Err(Error::OutOfMemory(format!(
                "the KV pool needs at least a page of {} KiB, and {} KiB are left on {}{}",
                page_bytes >> 10,
                room >> 10,
                self.gpu.facts(),
                self.memory_max.map(|most| format!(" of gpu_memory = {most}")).unwrap_or_default()
            ))),
            pages => Ok(pages),
        }
    }

    /// Takes the memory of the pool. Fails if there are to be no pages, or if there is too little memory.
    pub(super) fn take_pool(&mut self, pages: usize) -> Result<()> {
        let page_bytes = self.spec.page_bytes;
        if pages == 0 {
            return Err(Error::OutOfMemory(format!("the KV pool needs at least a page of {} KiB", page_bytes >> 10)));
        }
        self.pool = self.gpu.allocate(pages * page_bytes)?;
        // What lies in a page beyond its tokens is multiplied by zero, and must be a number for that.
        self.pool.fill(0)?;
        self.spec.pages = pages as u32;
        self.gpu.synchronize()?;
        self.taken = self.free_before.saturating_sub(self.gpu.free_memory()?);
        Ok(())
    }

    /// Makes this GPU ready for sums with those that share the model; to be called on all of them at once.
    pub(super) fn connect(&self) -> Result<()> {
        self.gpu.bind()?;
        self.decoder.connect()
    }

    /// Returns what the GPU says of itself.
    pub fn facts(&self) -> &GpuFacts {
        self.gpu.facts()
    }

    /// Returns the bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.weights.bytes
    }

    /// Measures no longer.
    pub fn stop_timing(&mut self) {
        self.times = None;
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { pages: self.spec.pages, vocabulary: self.decoder.config.vocab_size }
    }

    /// Checks what the kernels rely on.
    fn check(&self, plan: &StepPlan) -> Result<()> {
        let limits = self.limits();
        check_plan(plan, limits)?;
        if plan.tokens.len() > self.capacity {
            let (tokens, most) = (plan.tokens.len(), self.capacity);
            return Err(Error::Device(format!("malformed plan: {tokens} tokens, and the GPU was opened for {most}")));
        }
        for source in &plan.tokens {
            match *source {
                TokenSource::Host(token) => check_token(token, limits)?,
                TokenSource::Device(slot) if self.filled.get(slot.0 as usize) == Some(&true) => {}
                TokenSource::Device(slot) => {
                    return Err(Error::Device(format!("malformed plan: nothing was sampled into slot {}", slot.0)));
                }
            }
        }
        let context = self.decoder.config.max_context;
        match plan.positions.iter().find(|&&position| position as usize >= context) {
            Some(position) => Err(Error::Device(format!("malformed plan: position {position} in a context of {context}"))),
            None => Ok(()),
        }
    }

    /// Does the first part of a launch: checks the plan, and copies what describes its layers. What fails here leaves the device as
    /// it was.
    pub(super) fn prepare(&mut self, plan: &StepPlan) -> Result<Prepared> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return Err(Error::Device(format!("{IN_FLIGHT_MAX} passes wait to be polled")));
        }
        self.gpu.bind()?;
        self.check(plan)?;
        let mut pass = match self.idle.pop() {
            Some(pass) => pass,
            None => Pass {
                ticket: StepTicket(self.launched),
                ended: self.gpu.event()?,
                result: self.head.host_result()?,
                timing: Timing::default(),
                tokens: 0,
            },
        };
        (pass.ticket, pass.tokens) = (StepTicket(self.launched), plan.tokens.len());
        let CudaDevice { decoder, uploader, metadata, slots, .. } = self;
        metadata.clear();
        let tokens = metadata.extend(plan.tokens.iter().map(|source| match *source {
            TokenSource::Host(token) => token as i32,
            TokenSource::Device(slot) => !(slot.0 as i32),
        }));
        let positions = metadata.extend(plan.positions.iter().map(|&position| position as i32));
        let place =
            |write: &crate::step::KvWrite| [write.token as i32, (write.page.0 * PAGE_TOKENS as u32 + write.offset) as i32];
        let writes = metadata.extend(plan.writes.iter().flat_map(place));
        let attention = decoder.attention.describe(plan, positions, metadata);
        let copies = metadata.extend(plan.copies.iter().flat_map(copy_words));
        let mut live: Vec<i32> = plan.sample.iter().map(|sample| sample.token as i32).collect();
        live.sort_unstable();
        live.dedup();
        let live_tokens = metadata.push(&live);
        uploader.upload(metadata)?;
        let inputs = PassInputs {
            n: plan.tokens.len(),
            writes: plan.writes.len(),
            live: live.len(),
            token_ids: metadata.at(tokens),
            slots: slots.at(0),
            positions: metadata.at(positions),
            write_list: metadata.at(writes),
            live_tokens: metadata.at(live_tokens),
        };
        Ok(Prepared { pass, inputs, attention, live, copies })
    }

    /// Does the second part: launches the layers of a plan that was just prepared.
    pub(super) fn start(&mut self, plan: &StepPlan, prepared: &mut Prepared) -> Result<()> {
        self.gpu.bind()?;
        let CudaDevice { decoder, metadata, pool, gpu, .. } = self;
        let Prepared { pass, inputs, attention, copies, .. } = prepared;
        pass.timing.start(gpu, self.times.is_some())?;
        // SAFETY: the plan was checked: its pages are of the pool, its tokens of the vocabulary, its positions of the context, and
        // its slots of those that there are. The metadata is on the GPU.
        unsafe {
            launch_copies(gpu, self.copy_pages, metadata.at(*copies), plan.copies.len(), pool, &decoder.config)?;
            pass.timing.mark(gpu, Part::Other)?;
            if plan.tokens.is_empty() {
                return Ok(());
            }
            decoder.run(*inputs, attention, metadata, pool.at(0), &mut pass.timing)
        }
    }

    /// Does the last part: launches the choice of tokens of a plan that was just started and leaves nothing open.
    pub(super) fn choose(&mut self, plan: &StepPlan, prepared: Prepared) -> Result<StepTicket> {
        self.gpu.bind()?;
        let CudaDevice { decoder, head, uploader, metadata, slots, gpu, .. } = self;
        let Prepared { mut pass, live, .. } = prepared;
        if plan.sample.is_empty() {
            pass.result.clear();
        } else {
            // In place of what the layers have read by then, since uploads come in the order of launch.
            metadata.clear();
            let samples = head.describe(plan, &live, decoder.config.vocab_size, metadata);
            head.make_room(plan, &samples, &decoder.config, &mut pass.result)?;
            uploader.upload(metadata)?;
            // SAFETY: the plan was checked, what was bound since as well, and its layers are launched. The metadata is on the GPU,
            // there is room, and the result is not touched before the pass has ended.
            unsafe { head.run(decoder, plan, &samples, metadata, slots, &mut pass.result)? };
            pass.timing.mark(gpu, Part::Head)?;
        }
        gpu.record(&pass.ended)?;
        for sample in &plan.sample {
            let slot = sample.slot.0 as usize;
            if self.filled.len() <= slot {
                self.filled.resize(slot + 1, false);
            }
            self.filled[slot] = true;
        }
        let ticket = pass.ticket;
        self.launched += 1;
        self.in_flight.push_back(pass);
        Ok(ticket)
    }

    /// Waits until a pass has ended.
    pub(super) fn await_end(&self, ticket: StepTicket) -> Result<()> {
        self.gpu.bind()?;
        self.in_flight[self.position(ticket)?].ended.wait()
    }

    /// Returns whether a pass has ended.
    pub(super) fn has_ended(&self, ticket: StepTicket) -> Result<bool> {
        self.gpu.bind()?;
        self.in_flight[self.position(ticket)?].ended.is_past()
    }

    /// Ends a pass that has ended on the GPU, and takes its result if it is wanted.
    pub(super) fn finish(&mut self, ticket: StepTicket, result: Option<&mut StepResult>) -> Result<()> {
        let index = self.position(ticket)?;
        let pass = self.in_flight.remove(index).expect("the pass was found");
        if let Some(result) = result {
            pass.result.fill(self.precision, &self.decoder.config, result);
        }
        if let Some(times) = &mut self.times {
            pass.timing.add_to(times)?;
            times.passes += 1;
            times.tokens += pass.tokens as u64;
        }
        self.idle.push(pass);
        Ok(())
    }

    fn position(&self, ticket: StepTicket) -> Result<usize> {
        let found = self.in_flight.iter().position(|pass| pass.ticket == ticket);
        found.ok_or_else(|| Error::Device(format!("pass {} was not launched, or was polled before", ticket.0)))
    }
}

impl Device for CudaDevice {
    fn pool(&self) -> PoolSpec {
        self.spec
    }

    fn describe(&self) -> String {
        self.gpu.facts().to_string()
    }

    fn rounding(&self) -> Option<&'static str> {
        (self.precision != Precision::F32).then_some(self.precision.name())
    }

    fn held_bytes(&self) -> Option<u64> {
        Some(self.weight_bytes() as u64)
    }

    fn gpu_bytes(&self) -> Option<u64> {
        Some(self.taken as u64)
    }

    fn dtype(&self) -> Option<&'static str> {
        Some(self.precision.name())
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn time_passes(&mut self) {
        self.times = Some(PassTimes::default());
    }

    fn pass_times(&self) -> Option<PassTimes> {
        self.times
    }

    fn launch_open(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepTicket> {
        let mut prepared = self.prepare(plan)?;
        self.start(plan, &mut prepared)?;
        bind_plan(plan, bind, self.limits())?;
        self.choose(plan, prepared)
    }

    fn poll(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<bool> {
        let ended = self.has_ended(ticket)?;
        if ended {
            self.finish(ticket, Some(result))?;
        }
        Ok(ended)
    }

    fn wait(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<()> {
        self.await_end(ticket)?;
        self.finish(ticket, Some(result))
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<()> {
        check_copies(copies, self.limits())?;
        self.gpu.bind()?;
        self.metadata.clear();
        let place = self.metadata.extend(copies.iter().flat_map(copy_words));
        self.uploader.upload(&mut self.metadata)?;
        // SAFETY: pages were checked, and the list is on the GPU.
        unsafe {
            launch_copies(
                &self.gpu,
                self.copy_pages,
                self.metadata.at(place),
                copies.len(),
                &self.pool,
                &self.decoder.config,
            )
        }
    }
}

/// Fails if a GPU cannot run a model in FP8, and says why.
fn check_fp8(config: &ModelConfig, gpu: &GpuFacts) -> Result<()> {
    let (major, minor) = gpu.capability;
    if gpu.capability < (8, 9) {
        return Err(Error::Invalid(format!(
            "dtype fp8 needs a GPU of compute capability 8.9 or later, and {} has {major}.{minor}: choose bf16",
            gpu.name
        )));
    }
    let ModelConfig { hidden_size, intermediate_size, heads, kv_heads, head_dim, .. } = *config;
    let widths = [hidden_size, intermediate_size, heads * head_dim, kv_heads * head_dim];
    match widths.into_iter().find(|width| !width.is_multiple_of(FP8_WIDTH)) {
        Some(width) => Err(Error::Invalid(format!(
            "dtype fp8 needs matrices whose sides are multiples of {FP8_WIDTH}, and the model has one of {width}: choose bf16"
        ))),
        None => Ok(()),
    }
}

fn copy_words(copy: &PageCopy) -> [i32; 4] {
    [copy.from.0 as i32, copy.to.0 as i32, copy.tokens as i32, 0]
}

/// Launches copies of pages.
///
/// # Safety
///
/// `list` must be the address of `count` copies between pages of the pool.
unsafe fn launch_copies(
    gpu: &Gpu,
    kernel: Kernel,
    list: u64,
    count: usize,
    pool: &Buffer<u8>,
    config: &ModelConfig,
) -> Result<()> {
    let ModelConfig { layers, kv_heads, head_dim, .. } = *config;
    let args: [Arg; 5] = [list.into(), pool.into(), layers.into(), kv_heads.into(), head_dim.into()];
    // SAFETY: the caller's promise; a block for each copy, layer, kind and head.
    unsafe { gpu.launch(kernel, Size::of(count * layers * 2 * kv_heads, 128), &args) }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::device::cpu::reference::{
        MemoryTensors, Random, add_row, close, featured_config, naive_logits, naive_logits_of_rounded, quantised, run_open,
        tiny_config,
    };
    use crate::device::cpu::{Activations, CpuDevice, CpuOptions};
    use crate::request::{Sampling, TokenId};
    use crate::step::{Allowed, KvWrite, PageId, RowSlot, SampleRow};

    /// Opens a small model, or says why there is no GPU.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn open(config: &ModelConfig, precision: Precision) -> Option<CudaDevice> {
        if let Err(reason) = super::super::find(0) {
            eprintln!("skipped: {reason}");
            return None;
        }
        let options = CudaOptions { kv_bytes: Some(4 << 20), precision, tune: false, ..CudaOptions::new(512) };
        Some(CudaDevice::new(config, &MemoryTensors::random(config, 7), &options).unwrap())
    }

    fn run(device: &mut dyn Device, plan: &StepPlan) -> StepResult {
        let ticket = device.launch(plan).unwrap();
        let mut result = StepResult::default();
        device.wait(ticket, &mut result).unwrap();
        result
    }

    fn tokens(len: usize, seed: u64) -> Vec<TokenId> {
        let mut random = Random::new(seed);
        (0..len).map(|_| random.below(tiny_config().vocab_size as u64) as TokenId).collect()
    }

    fn pages(range: Range<u32>) -> Vec<PageId> {
        range.map(PageId).collect()
    }

    /// The configurations that the CPU device is tested with, and heads as they are in real models.
    fn configs() -> Vec<ModelConfig> {
        let mut biased = tiny_config();
        (biased.qkv_bias, biased.tie_word_embeddings) = (true, false);
        (biased.heads, biased.kv_heads, biased.head_dim, biased.rotary_dim) = (3, 1, 10, 10);
        let featured = ModelConfig { rope_scaling: None, ..featured_config() };
        let aligned = |heads, kv_heads, head_dim| ModelConfig {
            vocab_size: 96,
            hidden_size: 64,
            intermediate_size: 128,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: head_dim,
            ..tiny_config()
        };
        vec![tiny_config(), biased, featured, aligned(4, 1, 64), aligned(4, 2, 128), aligned(2, 2, 96)]
    }

    /// How far logits may be from those in double precision.
    fn tolerance(precision: Precision) -> f64 {
        if precision == Precision::F32 { 2e-4 } else { 0.08 }
    }

    #[test]
    fn matches_a_naive_forward_pass() {
        for config in configs() {
            for precision in [Precision::F32, Precision::Bf16] {
                let Some(mut device) = open(&config, precision) else { return };
                let row: Vec<TokenId> = tokens(67, 1).into_iter().map(|token| token % 96).collect();
                let naive = naive_logits(&config, &MemoryTensors::random(&config, 7), &row);
                let mut plan = StepPlan::default();
                add_row(&mut plan, &row, 0, &pages(2..7), config.vocab_size as u32);
                let last = plan.sample[0].clone();
                plan.sample.extend([0, 20].map(|token| SampleRow { token, ..last.clone() }));
                let result = run(&mut device, &plan);
                for (sample, top) in plan.sample.iter().zip(&result.top_logits) {
                    assert_eq!(top.len(), config.vocab_size);
                    let expected = &naive[sample.token as usize];
                    top.iter().for_each(|&(token, logit)| close(logit, expected[token as usize], tolerance(precision)));
                    let greedy = top[0].0;
                    assert!(result.sampled.contains(&greedy));
                }
            }
        }
    }

    /// Errors are relative to the length of all logits. With the same inputs rounded in the same way, what is left is that numbers
    /// next to the middle between two go one way here and the other there; with nothing rounded, all of what FP8 costs.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn fp8_is_near_a_naive_forward_pass() {
        match super::super::find(0) {
            Ok(facts) if facts.capability >= (8, 9) => {}
            Ok(facts) => return eprintln!("skipped: {facts} does not multiply FP8"),
            Err(reason) => return eprintln!("skipped: {reason}"),
        }
        let wide = ModelConfig { hidden_size: 64, intermediate_size: 128, ..featured_config() };
        let featured = ModelConfig { rope_scaling: None, ..wide };
        for config in configs().into_iter().filter(|config| config.hidden_size == 64).chain([featured]) {
            let mut device = open(&config, Precision::Fp8).unwrap();
            let row: Vec<TokenId> = tokens(67, 1).into_iter().map(|token| token % 96).collect();
            let tensors = MemoryTensors::random(&config, 7);
            let alike = naive_logits_of_rounded(&config, &tensors.quantised(), &row, quantised);
            let exact = naive_logits(&config, &tensors, &row);
            let mut plan = StepPlan::default();
            add_row(&mut plan, &row, 0, &pages(2..7), config.vocab_size as u32);
            let last = plan.sample[0].clone();
            plan.sample.extend((0..66).map(|token| SampleRow { token, ..last.clone() }));
            let result = run(&mut device, &plan);
            let error = |expected: &[Vec<f64>]| {
                let (mut off, mut all) = (0.0, 0.0);
                for (sample, top) in plan.sample.iter().zip(&result.top_logits) {
                    for &(token, logit) in top {
                        let expected = expected[sample.token as usize][token as usize];
                        off += (f64::from(logit) - expected).powi(2);
                        all += expected * expected;
                    }
                }
                (off / all).sqrt()
            };
            let (of_alike, of_exact) = (error(&alike), error(&exact));
            assert!(of_alike <= 0.08 && of_exact <= 0.2, "relative errors {of_alike} and {of_exact} of {config:?}");
        }
    }

    #[test]
    fn fp8_is_refused_where_it_cannot_run() {
        let gpu = |capability| GpuFacts { ordinal: 0, name: "some GPU".into(), memory: 0, capability, multiprocessors: 1 };
        let fault = |config: &ModelConfig, capability| check_fp8(config, &gpu(capability)).unwrap_err().to_string();
        let even = ModelConfig { hidden_size: 64, intermediate_size: 128, ..tiny_config() };
        assert!(fault(&even, (8, 6)).contains("some GPU has 8.6"));
        assert!(check_fp8(&even, &gpu((8, 9))).is_ok());
        assert!(fault(&tiny_config(), (9, 0)).contains("one of 40"));
    }

    /// Rows of different lengths advance by chunks, some with others and some alone.
    #[test]
    fn chunks_and_company_change_logits_by_rounding_alone() {
        for config in configs() {
            for precision in [Precision::F32, Precision::Bf16] {
                let Some(mut device) = open(&config, precision) else { return };
                let rows: Vec<Vec<TokenId>> =
                    [5, 33, 64].into_iter().zip(1..).map(|(len, seed)| tokens(len, seed)).collect();
                let rows: Vec<Vec<TokenId>> =
                    rows.into_iter().map(|row| row.into_iter().map(|token| token % 96).collect()).collect();
                let naive: Vec<_> =
                    rows.iter().map(|row| naive_logits(&config, &MemoryTensors::random(&config, 7), row)).collect();
                let mut random = Random::new(3);
                let mut done = [0; 3];
                while (0..3).any(|row| done[row] < rows[row].len()) {
                    let mut plan = StepPlan::default();
                    let mut ran = Vec::new();
                    for row in 0..3 {
                        if done[row] < rows[row].len() && random.below(2) == 0 {
                            let end = rows[row].len().min(done[row] + 1 + random.below(24) as usize);
                            add_row(&mut plan, &rows[row][..end], done[row], &pages(8 * row as u32..8 * row as u32 + 8), 96);
                            done[row] = end;
                            ran.push((row, end - 1));
                        }
                    }
                    let result = run(&mut device, &plan);
                    for ((row, at), top) in ran.into_iter().zip(&result.top_logits) {
                        top.iter()
                            .for_each(|&(token, logit)| close(logit, naive[row][at][token as usize], tolerance(precision)));
                    }
                }
            }
        }
    }

    /// The bits of every logit after each row's last token, of rows that run alone, together, in chunks, and after a prefix that
    /// another has left.
    #[test]
    fn logits_are_the_same_bits_alone_and_in_any_batch() {
        let windowed = ModelConfig { rope_scaling: None, ..featured_config() };
        let wide = |heads, kv_heads, head_dim| ModelConfig {
            vocab_size: 4096,
            hidden_size: 512,
            intermediate_size: 1024,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: head_dim,
            ..tiny_config()
        };
        let layer_attention = windowed.layer_attention[..2].to_vec();
        let configs = [windowed, wide(8, 2, 64), wide(4, 4, 96), ModelConfig { layer_attention, ..wide(14, 2, 128) }];
        for config in configs {
            for precision in [Precision::Bf16, Precision::F32] {
                let options = CudaOptions { invariant_rows: Some(64), kv_bytes: Some(64 << 20), ..CudaOptions::new(4096) };
                let options = CudaOptions { precision, tune: false, ..options };
                if open(&tiny_config(), Precision::F32).is_none() {
                    return;
                }
                let mut device = CudaDevice::new(&config, &MemoryTensors::random(&config, 7), &options).unwrap();
                let vocabulary = config.vocab_size as u32;
                let prefix = tokens(37, 9);
                let rows: Vec<Vec<TokenId>> =
                    (0..24).map(|row| [&prefix[..], &tokens(3 + 17 * row % 150, row as u64)].concat()).collect();
                let own = |row: usize| pages(16 * row as u32..16 * row as u32 + 16);
                let bits = |top: &[(TokenId, f32)]| {
                    let mut bits: Vec<(TokenId, u32)> = top.iter().map(|&(token, logit)| (token, logit.to_bits())).collect();
                    bits.sort_unstable();
                    bits
                };
                let mut alone = Vec::new();
                for (at, row) in rows.iter().enumerate() {
                    let mut plan = StepPlan::default();
                    add_row(&mut plan, row, 0, &own(at), vocabulary);
                    alone.push(bits(&run(&mut device, &plan).top_logits[0]));
                }
                // All but the first token, whose keys and values are there from before, by one pass and by many.
                for seed in 0..4 {
                    let mut random = Random::new(seed);
                    let mut done = vec![1; rows.len()];
                    while done.iter().zip(&rows).any(|(done, row)| *done < row.len()) {
                        let (mut plan, mut ran) = (StepPlan::default(), Vec::new());
                        for (at, row) in rows.iter().enumerate() {
                            if done[at] < row.len() && (seed == 0 || random.below(3) > 0) {
                                let most = if seed == 0 { row.len() as u64 } else { [1, 5, 70][random.below(3) as usize] };
                                let end = row.len().min(done[at] + 1 + random.below(most) as usize);
                                add_row(&mut plan, &row[..end], done[at], &own(at), vocabulary);
                                done[at] = end;
                                ran.push(at);
                            }
                        }
                        let result = run(&mut device, &plan);
                        for (at, top) in ran.into_iter().zip(&result.top_logits) {
                            if done[at] == rows[at].len() {
                                assert_eq!(bits(top), alone[at], "row {at}, seed {seed}, {precision:?}, {config:?}");
                            }
                        }
                    }
                }
                // Pages of the first row's prefix serve all others.
                let mut plan = StepPlan::default();
                for (at, row) in rows.iter().enumerate().skip(1) {
                    let mut table = own(at);
                    table[..2].copy_from_slice(&own(0)[..2]);
                    add_row(&mut plan, row, 2 * PAGE_TOKENS, &table, vocabulary);
                }
                let result = run(&mut device, &plan);
                for (top, alone) in result.top_logits.iter().zip(&alone[1..]) {
                    assert_eq!(&bits(top), alone, "{precision:?}, {config:?}");
                }
            }
        }
    }

    #[test]
    fn chooses_as_the_cpu_device_does() {
        let config = tiny_config();
        let Some(mut gpu) = open(&config, Precision::F32) else { return };
        let options = CpuOptions { threads: None, kv_bytes: 4 << 20, activations: Activations::F32 };
        let mut cpu = CpuDevice::new(&config, &MemoryTensors::random(&config, 7), options).unwrap();
        let mut plan = StepPlan::default();
        let words = config.vocab_size.div_ceil(32) as u32;
        for row in 0..48u32 {
            add_row(&mut plan, &tokens(3 + row as usize % 9, u64::from(row)), 0, &pages(row..row + 1), 0);
            let sample = plan.sample.last_mut().unwrap();
            sample.allowed = match row % 3 {
                0 => Allowed::All,
                1 => {
                    let first = plan.candidates.len() as u32;
                    plan.candidates.extend((0..1 + row % 5).map(|i| (7 * row + 11 * i) % 97));
                    Allowed::Candidates(first..plan.candidates.len() as u32)
                }
                _ => {
                    let first = plan.masks.len() as u32;
                    plan.masks.resize((first + words) as usize, 0);
                    for i in 0..6 {
                        let token = (5 * row + 17 * i) % 97;
                        plan.masks[(first + token / 32) as usize] |= 1 << (token % 32);
                    }
                    Allowed::Mask(first..first + words)
                }
            };
            let temperature = [0.0, 0.7, 1.3][row as usize / 3 % 3];
            let (top_p, top_k) = ([1.0, 0.7][row as usize / 9 % 2], [0, 3][row as usize / 18 % 2]);
            sample.sampling = Sampling { temperature, top_p, top_k, seed: u64::from(row) << 30 };
            (sample.draw, sample.logprobs) = (row % 7, [None, Some(0), Some(3)][row as usize / 5 % 3]);
        }
        let (on_gpu, on_cpu) = (run(&mut gpu, &plan), run(&mut cpu, &plan));
        assert_eq!(on_gpu.sampled, on_cpu.sampled);
        // Two passes of which nothing is known when they are launched, and between them one with other samples.
        let mut other = plan.clone();
        other.sample.truncate(20);
        for device in [&mut gpu as &mut dyn Device, &mut cpu] {
            let expected = [run(device, &plan), run(device, &other), run(device, &plan)];
            assert_eq!(run_open(device, &[&plan, &other, &plan]), expected);
        }
        for (gpu, cpu) in on_gpu.logprobs.iter().zip(&on_cpu.logprobs) {
            assert_eq!(gpu.is_some(), cpu.is_some());
            let (Some(gpu), Some(cpu)) = (gpu, cpu) else { continue };
            close(gpu.logprob, f64::from(cpu.logprob), 1e-3);
            for ((token, logprob), (expected, of_expected)) in gpu.top.iter().zip(&cpu.top) {
                assert_eq!(token, expected);
                close(*logprob, f64::from(*of_expected), 1e-3);
            }
        }
    }

    #[test]
    fn a_prefix_may_be_shared_copied_and_written_twice() {
        for config in [tiny_config(), ModelConfig { rope_scaling: None, ..featured_config() }] {
            let Some(mut device) = open(&config, Precision::F32) else { return };
            let vocabulary = config.vocab_size as u32;
            let (prefix, one, two) = (tokens(21, 1), tokens(9, 2), tokens(14, 3));
            let (first, second) = ([&prefix[..], &one].concat(), [&prefix[..], &two].concat());
            let tensors = MemoryTensors::random(&config, 7);
            let expected = [&first, &second].map(|row| naive_logits(&config, &tensors, row).pop().unwrap());
            let check = |top: &[(TokenId, f32)], expected: &[f64]| {
                top.iter().for_each(|&(token, logit)| close(logit, expected[token as usize], 2e-4));
            };
            // In one pass: the prefix in pages 0 and 1, its tail also in page 5; the second row reads what the first writes.
            let mut plan = StepPlan::default();
            add_row(&mut plan, &first, 0, &pages(0..2), vocabulary);
            let doubled: Vec<_> = plan.writes.iter().filter(|write| (16..21).contains(&write.token)).copied().collect();
            plan.writes.extend(doubled.into_iter().map(|write| KvWrite { page: PageId(5), ..write }));
            add_row(&mut plan, &second, prefix.len(), &[PageId(0), PageId(5), PageId(6)], vocabulary);
            let result = run(&mut device, &plan);
            result.top_logits.iter().zip(&expected).for_each(|(top, expected)| check(top, expected));
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
                check(&run(&mut device, &plan).top_logits[0], &expected[1]);
            }
        }
    }

    /// The second pass is launched before the first has been waited for.
    #[test]
    fn decoding_from_slots_equals_decoding_from_the_host() {
        let config = tiny_config();
        let Some(mut device) = open(&config, Precision::F32) else { return };
        let row = tokens(12, 5);
        let mut answer = Vec::new();
        let mut known = row.clone();
        for _ in 0..10 {
            let mut plan = StepPlan::default();
            add_row(&mut plan, &known, if known.len() == row.len() { 0 } else { known.len() - 1 }, &pages(0..4), 0);
            answer.push(run(&mut device, &plan).sampled[0]);
            known.push(*answer.last().unwrap());
        }
        let mut tickets = VecDeque::new();
        let mut ahead = Vec::new();
        let mut known = row.clone();
        for step in 0..10 {
            let mut plan = StepPlan::default();
            add_row(&mut plan, &known, if step == 0 { 0 } else { known.len() - 1 }, &pages(8..12), 0);
            plan.sample[0].slot = RowSlot(3);
            if step > 0 {
                plan.tokens = vec![TokenSource::Device(RowSlot(3))];
            }
            tickets.push_back(device.launch(&plan).unwrap());
            known.push(0);
            if tickets.len() == 2 {
                let mut result = StepResult::default();
                device.wait(tickets.pop_front().unwrap(), &mut result).unwrap();
                ahead.extend(result.sampled);
            }
        }
        let mut result = StepResult::default();
        device.wait(tickets.pop_front().unwrap(), &mut result).unwrap();
        ahead.extend(result.sampled);
        assert_eq!(ahead, answer);
    }

    #[test]
    fn states_are_given_where_they_are_asked_for() {
        let config = tiny_config();
        let Some(mut gpu) = open(&config, Precision::F32) else { return };
        let options = CpuOptions { threads: None, kv_bytes: 4 << 20, activations: Activations::F32 };
        let mut cpu = CpuDevice::new(&config, &MemoryTensors::random(&config, 7), options).unwrap();
        let mut plan = StepPlan::default();
        for row in 0..3 {
            add_row(&mut plan, &tokens(9, u64::from(row)), 0, &pages(row..row + 1), 0);
            plan.sample[row as usize].allowed = if row == 1 { Allowed::All } else { Allowed::Hidden };
        }
        let (on_gpu, on_cpu) = (run(&mut gpu, &plan), run(&mut cpu, &plan));
        assert_eq!(on_gpu.sampled, on_cpu.sampled);
        for (gpu, cpu) in on_gpu.hidden.iter().zip(&on_cpu.hidden) {
            assert_eq!(gpu.len(), cpu.len());
            gpu.iter().zip(cpu).for_each(|(gpu, cpu)| close(*gpu, f64::from(*cpu), 2e-4));
        }
    }

    #[test]
    fn unusable_plans_and_tickets_are_errors() {
        let Some(mut device) = open(&tiny_config(), Precision::F32) else { return };
        let mut plan = StepPlan::default();
        add_row(&mut plan, &[1, 2], 0, &pages(0..1), 0);
        let fault = |device: &mut CudaDevice, plan: &StepPlan| device.launch(plan).unwrap_err().to_string();
        plan.tokens[0] = TokenSource::Host(10_000);
        assert!(fault(&mut device, &plan).contains("token 10000"));
        plan.tokens[0] = TokenSource::Device(RowSlot(2));
        assert!(fault(&mut device, &plan).contains("slot 2"));
        plan.block_tables[0] = PageId(u32::MAX);
        assert!(fault(&mut device, &plan).contains("page"));
        assert!(device.poll(StepTicket(0), &mut StepResult::default()).is_err());
        let mut long = StepPlan::default();
        add_row(&mut long, &[1; 600], 0, &pages(0..38), 0);
        assert!(fault(&mut device, &long).contains("600 tokens"));
        for _ in 0..IN_FLIGHT_MAX {
            device.launch(&StepPlan::default()).unwrap();
        }
        assert!(device.launch(&StepPlan::default()).is_err());
    }

    #[test]
    fn a_gpu_that_is_not_there_is_a_sentence() {
        let error = super::super::find(4096).unwrap_err().to_string();
        assert!(error.contains("no GPU"), "{error}");
    }
}
