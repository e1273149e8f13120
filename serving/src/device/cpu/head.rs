//! The end of a pass: logits where tokens are chosen, and the choice.
//!
//! Samples that ask for all logits share matrix products with the whole LM head, a bounded number of rows at a time. Samples
//! with equal candidate lists share a product with those rows of the head only; its sums have the same order, hence its logits
//! the same bits.

use rayon::prelude::*;

use super::aligned::AlignedVec;
use super::forward::{Buffers, Decoder};
use super::gemm::GemmScratch;
use super::panels::PackedMatrix;
use crate::device::sampler::{Scored, choose, greedy, keep_largest, logprobs};
use crate::request::{TokenId, TokenLogprobs};
use crate::step::{Allowed, SampleRow, StepPlan, StepResult};

/// Logits that are held at a time: 16 MiB.
const LOGITS_MAX: usize = 4 << 20;

/// Buffers of the head, kept from pass to pass.
#[derive(Debug, Default)]
pub(super) struct HeadBuffers {
    inputs: AlignedVec,
    logits: AlignedVec,
    whole: Vec<usize>,
    restricted: Vec<usize>,
}

/// Chooses a token for every sample of `plan`, after `Decoder::forward` has run it.
pub(super) fn sample(decoder: &Decoder, plan: &StepPlan, hidden: &mut Buffers, buffers: &mut HeadBuffers) -> StepResult {
    let count = plan.sample.len();
    let mut result = StepResult {
        sampled: vec![0; count],
        top_logits: vec![Vec::new(); count],
        logprobs: vec![None; count],
        hidden: vec![Vec::new(); count],
    };
    let HeadBuffers { inputs, logits, whole, restricted } = buffers;
    whole.clear();
    restricted.clear();
    for (i, sample) in plan.sample.iter().enumerate() {
        if sample.allowed == Allowed::Hidden {
            result.hidden[i] = state_of(hidden, sample, decoder.config.hidden_size).to_vec();
            continue;
        }
        let few = matches!(sample.allowed, Allowed::Candidates(_)) && sample.top_logits == 0 && !needs_all(sample);
        if few { restricted.push(i) } else { whole.push(i) }
    }
    let Buffers { normed, live, gemm, .. } = hidden;
    let mut products = Products { decoder, plan, normed, live, gemm, inputs, logits };
    products.run(&decoder.weights.head, None, whole, &mut result);

    restricted.sort_by_key(|&i| candidates(plan, &plan.sample[i]));
    for equal in restricted.chunk_by(|&a, &b| candidates(plan, &plan.sample[a]) == candidates(plan, &plan.sample[b])) {
        let tokens = candidates(plan, &plan.sample[equal[0]]);
        products.run(&decoder.head_of(tokens), Some(tokens), equal, &mut result);
    }
    result
}

/// Returns whether probabilities of the whole vocabulary are asked for.
fn needs_all(sample: &SampleRow) -> bool {
    match sample.allowed {
        Allowed::Candidates(_) => sample.logprobs.is_some_and(|top| top > 0),
        Allowed::All | Allowed::Mask(_) => sample.logprobs.is_some(),
        Allowed::Hidden | Allowed::Open => false,
    }
}

/// The state of a sample's token after the last norm.
fn state_of<'a>(hidden: &'a Buffers, sample: &SampleRow, width: usize) -> &'a [f32] {
    let at = hidden.live.partition_point(|&token| token < sample.token);
    &hidden.normed[at * width..(at + 1) * width]
}

/// The candidates of a sample; none for samples without a list.
fn candidates<'a>(plan: &'a StepPlan, sample: &SampleRow) -> &'a [TokenId] {
    match &sample.allowed {
        Allowed::Candidates(range) => &plan.candidates[range.start as usize..range.end as usize],
        Allowed::All | Allowed::Mask(_) | Allowed::Hidden | Allowed::Open => &[],
    }
}

/// What products with the head read and write.
struct Products<'a> {
    decoder: &'a Decoder,
    plan: &'a StepPlan,
    normed: &'a [f32],
    live: &'a [u32],
    gemm: &'a mut GemmScratch,
    inputs: &'a mut AlignedVec,
    logits: &'a mut AlignedVec,
}

impl Products<'_> {
    /// Chooses for the samples numbered in `which`. Columns of `head` are `tokens`, or the whole vocabulary.
    fn run(&mut self, head: &PackedMatrix, tokens: Option<&[TokenId]>, which: &[usize], result: &mut StepResult) {
        let (plan, hidden) = (self.plan, head.k());
        for which in which.chunks((LOGITS_MAX / head.n()).max(1)) {
            self.inputs.resize(which.len() * hidden);
            for (row, &i) in self.inputs.chunks_exact_mut(hidden).zip(which) {
                let at = self.live.partition_point(|&token| token < plan.sample[i].token);
                row.copy_from_slice(&self.normed[at * hidden..(at + 1) * hidden]);
            }
            self.logits.resize(which.len() * head.n());
            self.decoder.logits(self.gemm, self.inputs, head, self.logits);
            let rows = self.logits.par_chunks(head.n()).zip(which);
            let chosen: Vec<_> = rows.map(|(logits, &i)| (i, pick(plan, &plan.sample[i], tokens, logits))).collect();
            for (i, Pick { token, top_logits, logprobs }) in chosen {
                result.sampled[i] = token;
                result.top_logits[i] = top_logits;
                result.logprobs[i] = logprobs;
            }
        }
    }
}

/// What one sample asked for.
struct Pick {
    token: TokenId,
    top_logits: Vec<Scored>,
    logprobs: Option<TokenLogprobs>,
}

/// Chooses a token and says what is asked of its company. `logits` belong to `tokens`, or to the whole vocabulary.
fn pick(plan: &StepPlan, sample: &SampleRow, tokens: Option<&[TokenId]>, logits: &[f32]) -> Pick {
    let all = || (0..).zip(logits.iter().copied());
    let mut top_logits = Vec::new();
    if sample.top_logits > 0 {
        top_logits.extend(all());
        keep_largest(&mut top_logits, sample.top_logits as usize);
    }
    let mut allowed: Vec<Scored> = match (&sample.allowed, tokens) {
        (_, Some(tokens)) => tokens.iter().copied().zip(logits.iter().copied()).collect(),
        (Allowed::All, None) if sample.sampling.temperature == 0.0 => largest(logits).into_iter().collect(),
        (Allowed::All | Allowed::Hidden | Allowed::Open, None) => all().collect(),
        (Allowed::Candidates(_), None) => {
            candidates(plan, sample).iter().map(|&token| (token, logits[token as usize])).collect()
        }
        (Allowed::Mask(range), None) => {
            let mask = &plan.masks[range.start as usize..range.end as usize];
            all().filter(|&(token, _)| mask[token as usize / 32] >> (token % 32) & 1 == 1).collect()
        }
    };
    let basis = sample.logprobs.map(|_| if needs_all(sample) { all().collect() } else { allowed.clone() });
    let fallback = greedy(&allowed);
    let token = choose(&mut allowed, &sample.sampling, sample.draw).or(fallback);
    let token = token.expect("a checked plan allows at least one token");
    let logprobs = sample.logprobs.zip(basis).map(|(top, basis)| logprobs(basis, token, top as usize));
    Pick { token, top_logits, logprobs }
}

/// Returns the first largest logit that is a number, or the first of all.
fn largest(logits: &[f32]) -> Option<Scored> {
    let mut best = (0, *logits.first()?);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 || (best.1.is_nan() && !logit.is_nan()) {
            best = (token, logit);
        }
    }
    Some(best)
}
