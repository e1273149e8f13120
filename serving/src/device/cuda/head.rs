//! The end of a pass: logits where tokens are chosen, and the choice.
//!
//! Samples are put in three groups. Those that look at the whole vocabulary are multiplied with the LM head, a bounded number of
//! rows at a time, and their token is chosen on the GPU: the largest logit, or a draw. Those with a list of candidates, greedy,
//! are multiplied with the candidates' rows of the head alone. Those that ask for a state have it copied out. Chosen tokens go to
//! their slots, where the next pass finds them, and to the host. Where probabilities are asked for, the row of logits is copied
//! to the host as well, which computes them when it takes the result.

use std::ops::Range;
use std::sync::Arc;

use super::driver::{Arg, Buffer, Gpu, Kernel, Pinned, Size};
use super::forward::Decoder;
use super::gemm::{Product, padded, padded_sizes};
use super::kernels::{Kernels, Precision};
use super::metadata::Metadata;
use crate::device::sampler::{Scored, keep_largest, logprobs};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::request::TokenId;
use crate::step::{Allowed, SampleRow, StepPlan, StepResult};

/// Bytes of logits that are held at a time.
const LOGITS_BYTES: usize = 256 << 20;

/// Warps of a block of `candidate_logits`.
pub(super) const PAIR_WARPS: usize = 8;

/// Threads of the kernels that look at one row of logits.
pub(super) const ROW_THREADS: u32 = 512;

/// Chooses tokens.
#[derive(Debug)]
pub(super) struct Head {
    gpu: Arc<Gpu>,
    precision: Precision,
    candidate_logits: Kernel,
    argmax_rows: Kernel,
    argmax_lists: Kernel,
    sample_rows: Kernel,
    /// [samples, hidden], in the order of the groups.
    inputs: Buffer<u8>,
    /// [rows at a time, vocabulary].
    logits: Buffer<f32>,
    rows_at_a_time: usize,
    /// Logits of candidates, one list after the other.
    list_logits: Buffer<f32>,
    /// The chosen tokens, in the order of the plan.
    chosen: Buffer<i32>,
}

/// What the host has of a pass once it has ended.
#[derive(Debug)]
pub(super) struct HostResult {
    tokens: Pinned<i32>,
    /// Rows of logits and lists of candidates' logits that were asked for.
    logits: Pinned<f32>,
    /// States that were asked for.
    states: Pinned<u8>,
    samples: usize,
    wanted: Vec<Wanted>,
}

/// Something of a sample besides its token.
#[derive(Debug)]
struct Wanted {
    sample: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    /// The state, so many bytes into `states`.
    State { at: usize },
    /// From the logits of the whole vocabulary, from `at` on: the largest, and probabilities, among `among` where it is set.
    Row { at: usize, among: Option<Vec<TokenId>>, top_logits: usize, logprobs: Option<usize> },
    /// The probability among `tokens`, whose logits lie from `at` on.
    List { at: usize, tokens: Vec<TokenId> },
}

/// How the samples of a plan are worked on; indices into `StepPlan::sample`.
#[derive(Debug, Default)]
struct Groups {
    /// Look at the whole vocabulary.
    whole: Vec<usize>,
    /// Look at their candidates.
    lists: Vec<usize>,
    /// Ask for a state.
    hidden: Vec<usize>,
}

impl Groups {
    /// Groups the samples of a plan. Draws from candidates look at the whole vocabulary, through a mask.
    fn of(plan: &StepPlan) -> Self {
        let mut groups = Groups::default();
        for (i, sample) in plan.sample.iter().enumerate() {
            match sample.allowed {
                Allowed::Hidden => groups.hidden.push(i),
                Allowed::Candidates(_)
                    if sample.top_logits == 0 && sample.sampling.temperature == 0.0 && sample.logprobs.unwrap_or(0) == 0 =>
                {
                    groups.lists.push(i);
                }
                _ => groups.whole.push(i),
            }
        }
        groups
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.whole.iter().chain(&self.lists).chain(&self.hidden).copied()
    }
}

/// How the samples of a pass are worked on, and where their descriptions lie, as places in the metadata of the pass.
#[derive(Debug)]
pub(super) struct Samples {
    groups: Groups,
    /// `int[samples]`: the row of the sampled residual stream, in the order of the groups.
    index: usize,
    /// `int4[greedy]` for `argmax_rows` and 16 words each for `sample_rows`, for each block of rows of logits.
    blocks: Vec<Block>,
    masks: usize,
    /// `int2[pairs]`.
    pairs: usize,
    pair_count: usize,
    /// `int[pairs]`.
    tokens: usize,
    /// `int4[lists]`.
    lists: usize,
}

/// Rows of logits that are computed together.
#[derive(Debug)]
struct Block {
    /// Among the whole group.
    rows: std::ops::Range<usize>,
    greedy: usize,
    greedy_count: usize,
    draws: usize,
    draw_count: usize,
}

impl Head {
    /// Takes memory for passes that sample up to `capacity` tokens.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        kernels: &Kernels,
        precision: Precision,
        config: &ModelConfig,
        capacity: usize,
    ) -> Result<Self> {
        let capacity = padded(capacity);
        let rows_at_a_time = padded((LOGITS_BYTES / 4 / config.vocab_size).clamp(8, capacity));
        let inputs = gpu.allocate(capacity * config.hidden_size * precision.bytes())?;
        inputs.fill(0)?;
        Ok(Head {
            gpu: Arc::clone(gpu),
            precision,
            candidate_logits: kernels.get("head", "candidate_logits", 0)?,
            argmax_rows: kernels.get("sample", "argmax_rows", 0)?,
            argmax_lists: kernels.get("sample", "argmax_lists", 0)?,
            sample_rows: kernels.get("sample", "sample_rows", 0)?,
            inputs,
            logits: gpu.allocate(rows_at_a_time * config.vocab_size)?,
            rows_at_a_time,
            list_logits: gpu.allocate(1 << 16)?,
            chosen: gpu.allocate(capacity)?,
        })
    }

    /// Runs the product for every number of rows that a pass may have, for the reason of [`Decoder::run_every_size`].
    pub(super) fn run_every_size(&self, decoder: &mut Decoder) -> Result<()> {
        for m in padded_sizes(self.rows_at_a_time) {
            let product = self.product(decoder, 0..m);
            // SAFETY: the buffers have room for so many rows.
            unsafe { decoder.gemm.run(product) }?;
        }
        self.gpu.synchronize()
    }

    /// Returns the product that gives the logits of some of the inputs.
    fn product(&self, decoder: &Decoder, rows: Range<usize>) -> Product {
        let ModelConfig { vocab_size, hidden_size, .. } = decoder.config;
        Product {
            m: rows.len(),
            n: vocab_size,
            k: hidden_size,
            x: self.inputs.at(rows.start * hidden_size * self.precision.bytes()),
            w: decoder.weights.head.at(0),
            y: self.logits.at(0),
            bias: 0,
            accumulate: false,
            wide: true,
            scales: None,
        }
    }

    /// Makes room for the result of one pass at a time.
    pub(super) fn host_result(&self) -> Result<HostResult> {
        let gpu = &self.gpu;
        let (tokens, logits, states) = (gpu.pinned(self.chosen.len())?, gpu.pinned(0)?, gpu.pinned(0)?);
        Ok(HostResult { tokens, logits, states, samples: 0, wanted: Vec::new() })
    }

    /// Describes the samples of a checked plan that leaves nothing open. `live` are the sampled tokens, ascending.
    pub(super) fn describe(&self, plan: &StepPlan, live: &[i32], vocabulary: usize, metadata: &mut Metadata) -> Samples {
        let groups = Groups::of(plan);
        let row_of = |i: usize| live.partition_point(|&token| token < plan.sample[i].token as i32) as i32;
        let index: Vec<i32> = groups.all().map(row_of).collect();
        let words = vocabulary.div_ceil(32);
        let mut masks: Vec<i32> = plan.masks.iter().map(|&word| word as i32).collect();
        let mut blocks = Vec::new();
        for first in (0..groups.whole.len()).step_by(self.rows_at_a_time) {
            let rows = first..groups.whole.len().min(first + self.rows_at_a_time);
            let (mut greedy, mut draws) = (Vec::new(), Vec::new());
            for row in rows.clone() {
                let i = groups.whole[row];
                let sample = &plan.sample[i];
                let mask = match &sample.allowed {
                    Allowed::Mask(range) => range.start as i32,
                    Allowed::Candidates(range) => {
                        let at = masks.len();
                        masks.resize(at + words, 0);
                        for &token in &plan.candidates[range.start as usize..range.end as usize] {
                            masks[at + token as usize / 32] |= (1u32 << (token % 32)) as i32;
                        }
                        at as i32
                    }
                    Allowed::All | Allowed::Hidden | Allowed::Open => -1,
                };
                let place = [(row - first) as i32, sample.slot.0 as i32, mask, i as i32];
                if sample.sampling.temperature == 0.0 {
                    greedy.extend(place);
                } else {
                    draws.extend(draw_words(sample, place));
                }
            }
            let (greedy_count, draw_count) = (greedy.len() / 4, draws.len() / DRAW_WORDS);
            let (greedy, draws) = (metadata.push(&greedy), metadata.push(&draws));
            blocks.push(Block { rows, greedy, greedy_count, draws, draw_count });
        }
        let (mut pairs, mut tokens, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        for (at, &i) in groups.lists.iter().enumerate() {
            let row = (groups.whole.len() + at) as i32;
            let candidates = candidates_of(plan, &plan.sample[i]);
            lists.extend([tokens.len() as i32, candidates.len() as i32, plan.sample[i].slot.0 as i32, i as i32]);
            for &token in candidates {
                pairs.extend([row, token as i32]);
                tokens.push(token as i32);
            }
        }
        Samples {
            index: metadata.push(&index),
            blocks,
            masks: metadata.push(&masks),
            pairs: metadata.push(&pairs),
            pair_count: tokens.len(),
            tokens: metadata.push(&tokens),
            lists: metadata.push(&lists),
            groups,
        }
    }

    /// Chooses a token for every sample, and copies what is asked for to the host.
    ///
    /// # Safety
    ///
    /// `plan` must be checked and have run; `samples` must have been made of it and lie in `metadata`, which is on the GPU; there
    /// must be [room](Self::make_room) for them, in `host` too, which must not be touched before the pass has ended.
    pub(super) unsafe fn run(
        &mut self,
        decoder: &mut Decoder,
        plan: &StepPlan,
        samples: &Samples,
        metadata: &Metadata,
        slots: &Buffer<i32>,
        host: &mut HostResult,
    ) -> Result<()> {
        host.samples = plan.sample.len();
        host.wanted.clear();
        if plan.sample.is_empty() {
            return Ok(());
        }
        let (vocabulary, hidden) = (decoder.config.vocab_size, decoder.config.hidden_size);
        let groups = &samples.groups;
        let row_bytes = hidden * self.precision.bytes();
        // SAFETY: the kernels' parameters in their order. `index` names rows of the sampled residual stream, rows of logits and of
        // inputs are within their buffers, and tokens, slots and masks were checked with the plan.
        unsafe {
            decoder.normalise_live(metadata.at(samples.index), plan.sample.len(), self.inputs.at(0))?;
            let mut copied = 0;
            for block in &samples.blocks {
                let product = self.product(decoder, block.rows.clone());
                decoder.gemm.run(product)?;
                let args: [Arg; 7] = [
                    (&self.logits).into(),
                    vocabulary.into(),
                    metadata.at(block.greedy).into(),
                    metadata.at(samples.masks).into(),
                    vocabulary.into(),
                    slots.into(),
                    (&self.chosen).into(),
                ];
                self.gpu.launch(self.argmax_rows, Size::of(block.greedy_count, ROW_THREADS), &args)?;
                let args: [Arg; 7] = [args[0], args[1], metadata.at(block.draws).into(), args[3], args[4], args[5], args[6]];
                self.gpu.launch(self.sample_rows, Size::of(block.draw_count, ROW_THREADS), &args)?;
                for row in block.rows.clone() {
                    let i = groups.whole[row];
                    let sample = &plan.sample[i];
                    if !needs_row(sample) {
                        continue;
                    }
                    self.gpu.copy_out(
                        &self.logits,
                        (row - block.rows.start) * vocabulary,
                        &mut host.logits,
                        copied,
                        vocabulary,
                    )?;
                    let logprobs = sample.logprobs.map(|top| top as usize);
                    let candidates = candidates_of(plan, sample);
                    let among = (logprobs == Some(0) && !candidates.is_empty()).then(|| candidates.to_vec());
                    let what = What::Row { at: copied, among, top_logits: sample.top_logits as usize, logprobs };
                    host.wanted.push(Wanted { sample: i, what });
                    copied += vocabulary;
                }
            }
            if !groups.lists.is_empty() {
                let args: [Arg; 6] = [
                    (&self.inputs).into(),
                    decoder.weights.head.at(0).into(),
                    metadata.at(samples.pairs).into(),
                    (&self.list_logits).into(),
                    samples.pair_count.into(),
                    hidden.into(),
                ];
                let blocks = Size::of(samples.pair_count.div_ceil(PAIR_WARPS), 32 * PAIR_WARPS as u32);
                self.gpu.launch(self.candidate_logits, blocks, &args)?;
                let args: [Arg; 5] = [
                    (&self.list_logits).into(),
                    metadata.at(samples.tokens).into(),
                    metadata.at(samples.lists).into(),
                    slots.into(),
                    (&self.chosen).into(),
                ];
                self.gpu.launch(self.argmax_lists, Size::of(groups.lists.len(), 32), &args)?;
                let mut first = 0;
                for &i in &groups.lists {
                    let candidates = candidates_of(plan, &plan.sample[i]);
                    if plan.sample[i].logprobs.is_some() {
                        self.gpu.copy_out(&self.list_logits, first, &mut host.logits, copied, candidates.len())?;
                        let what = What::List { at: copied, tokens: candidates.to_vec() };
                        host.wanted.push(Wanted { sample: i, what });
                        copied += candidates.len();
                    }
                    first += candidates.len();
                }
            }
            let first_state = groups.whole.len() + groups.lists.len();
            for (at, &i) in groups.hidden.iter().enumerate() {
                self.gpu.copy_out(
                    &self.inputs,
                    (first_state + at) * row_bytes,
                    &mut host.states,
                    at * row_bytes,
                    row_bytes,
                )?;
                host.wanted.push(Wanted { sample: i, what: What::State { at: at * row_bytes } });
            }
            self.gpu.copy_out(&self.chosen, 0, &mut host.tokens, 0, plan.sample.len())
        }
    }

    /// Takes more memory where a pass asks for more than any before.
    pub(super) fn make_room(
        &mut self,
        plan: &StepPlan,
        samples: &Samples,
        config: &ModelConfig,
        host: &mut HostResult,
    ) -> Result<()> {
        let ModelConfig { vocab_size: vocabulary, hidden_size: hidden, .. } = *config;
        let groups = &samples.groups;
        if samples.pair_count > self.list_logits.len() {
            self.list_logits = self.gpu.allocate(samples.pair_count.next_power_of_two())?;
        }
        let rows = groups.whole.iter().filter(|&&i| needs_row(&plan.sample[i])).count();
        let logits = rows * vocabulary + samples.pair_count;
        if logits > host.logits.len() && (rows > 0 || plan.sample.iter().any(|sample| sample.logprobs.is_some())) {
            host.logits = self.gpu.pinned(logits.next_power_of_two())?;
        }
        let states = groups.hidden.len() * hidden * self.precision.bytes();
        if states > host.states.len() {
            host.states = self.gpu.pinned(states.next_power_of_two())?;
        }
        Ok(())
    }
}

impl HostResult {
    /// Makes it the result of a pass without samples.
    pub(super) fn clear(&mut self) {
        self.samples = 0;
        self.wanted.clear();
    }

    /// Fills in the result of a pass that has ended.
    pub(super) fn fill(&self, precision: Precision, config: &ModelConfig, result: &mut StepResult) {
        let count = self.samples;
        result.sampled.clear();
        result.sampled.extend(self.tokens[..count].iter().map(|&token| token as TokenId));
        result.top_logits = vec![Vec::new(); count];
        result.logprobs = vec![None; count];
        result.hidden = vec![Vec::new(); count];
        for Wanted { sample, what } in &self.wanted {
            match what {
                What::State { at } => {
                    let bytes = &self.states[*at..*at + config.hidden_size * precision.bytes()];
                    result.hidden[*sample] = floats(bytes, precision);
                    result.sampled[*sample] = 0;
                }
                What::Row { at, among, top_logits, logprobs: wanted } => {
                    let row = &self.logits[*at..*at + config.vocab_size];
                    let all = || (0..).zip(row.iter().copied()).collect::<Vec<Scored>>();
                    if *top_logits > 0 {
                        result.top_logits[*sample] = all();
                        keep_largest(&mut result.top_logits[*sample], *top_logits);
                    }
                    let basis = || match among {
                        Some(tokens) => tokens.iter().map(|&token| (token, row[token as usize])).collect(),
                        None => all(),
                    };
                    result.logprobs[*sample] = wanted.map(|top| logprobs(basis(), result.sampled[*sample], top));
                }
                What::List { at, tokens } => {
                    let basis = tokens.iter().copied().zip(self.logits[*at..].iter().copied()).collect();
                    result.logprobs[*sample] = Some(logprobs(basis, result.sampled[*sample], 0));
                }
            }
        }
    }
}

/// Words of the description of a draw.
pub(super) const DRAW_WORDS: usize = 12;

/// Describes a draw as `sample_rows` reads it.
pub(super) fn draw_words(sample: &SampleRow, [row, slot, mask, result]: [i32; 4]) -> [i32; DRAW_WORDS] {
    let sampling = &sample.sampling;
    let bits = |value: f32| value.to_bits() as i32;
    let (seed_low, seed_high) = (sampling.seed as u32 as i32, (sampling.seed >> 32) as i32);
    [
        bits(sampling.temperature),
        bits(sampling.top_p),
        sampling.top_k.min(i32::MAX as u32) as i32,
        sample.draw as i32,
        seed_low,
        seed_high,
        row,
        slot,
        mask,
        result,
        0,
        0,
    ]
}

/// Returns whether the host needs the logits of a sample that looks at the whole vocabulary.
fn needs_row(sample: &SampleRow) -> bool {
    sample.top_logits > 0 || sample.logprobs.is_some()
}

/// The candidates of a sample; none for samples without a list.
fn candidates_of<'a>(plan: &'a StepPlan, sample: &SampleRow) -> &'a [TokenId] {
    match &sample.allowed {
        Allowed::Candidates(range) => &plan.candidates[range.start as usize..range.end as usize],
        Allowed::All | Allowed::Mask(_) | Allowed::Hidden | Allowed::Open => &[],
    }
}

fn floats(bytes: &[u8], precision: Precision) -> Vec<f32> {
    match precision {
        Precision::Bf16 | Precision::Fp8 => {
            bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        Precision::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}
