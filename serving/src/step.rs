//! The plan of one forward pass: plain data, built on the CPU, the same for every device.

use std::ops::Range;

use crate::request::{Sampling, TokenId, TokenLogprobs};

/// Tokens that one KV page holds.
pub const PAGE_TOKENS: usize = 16;

/// A page of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// A place for a row's latest sampled token on the device. A row keeps its slot from admission to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowSlot(pub u32);

/// Where the device takes an input token from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// The token itself, known to the host.
    Host(TokenId),
    /// The token last sampled into this slot, which the host may not have seen yet.
    Device(RowSlot),
}

/// One forward pass.
///
/// Order within a pass: `copies` first; then in each layer the keys and values of all tokens are written (`writes`) before
/// any attention reads them, so that a row may read pages which another row of the same pass fills; last, `sample`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// Input tokens, row after row.
    pub tokens: Vec<TokenSource>,
    /// The position of each input token in its row.
    pub positions: Vec<u32>,
    /// Where keys and values are stored. Every token is written at least once; a token at which a page splits is written to
    /// each copy of that page.
    pub writes: Vec<KvWrite>,
    /// The rows of the pass; their token ranges cover `tokens` in order, without gaps.
    pub rows: Vec<RowSpan>,
    /// Page tables of all rows, one after the other; `RowSpan::pages` cuts them.
    pub block_tables: Vec<PageId>,
    /// The places where a token is to be chosen.
    pub sample: Vec<SampleRow>,
    /// Candidate tokens of all `Allowed::Candidates`, one list after the other.
    pub candidates: Vec<TokenId>,
    /// Bits of all `Allowed::Mask`, `ceil(vocabulary / 32)` words each; bit `t % 32` of word `t / 32` allows token `t`.
    pub masks: Vec<u32>,
    /// Page contents to copy before the pass.
    pub copies: Vec<PageCopy>,
}

impl StepPlan {
    /// Returns whether the plan asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.copies.is_empty()
    }

    /// Returns whether it is not known yet, of some sample, which tokens are [allowed](Allowed::Open).
    pub fn is_open(&self) -> bool {
        self.sample.iter().any(|sample| sample.allowed == Allowed::Open)
    }
}

/// Stores the keys and values of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvWrite {
    /// Index into `StepPlan::tokens`.
    pub token: u32,
    /// The page written to.
    pub page: PageId,
    /// The place within the page, less than [`PAGE_TOKENS`]. It is the token's position modulo [`PAGE_TOKENS`].
    pub offset: u32,
}

/// One row of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// The row's tokens in `StepPlan::tokens`; they are consecutive positions.
    pub tokens: Range<u32>,
    /// The row's pages in `StepPlan::block_tables`: page `p` holds positions `p * PAGE_TOKENS ..`. They cover every position
    /// up to the row's last token of the pass.
    pub pages: Range<u32>,
}

/// Chooses the token that follows one token of the pass.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// Index into `StepPlan::tokens` of the token whose successor is chosen.
    pub token: u32,
    /// Where the device keeps the chosen token.
    pub slot: RowSlot,
    /// Which tokens may be chosen.
    pub allowed: Allowed,
    /// How the token is chosen.
    pub sampling: Sampling,
    /// The number of this draw within its request, from 0.
    pub draw: u32,
    /// Also return this many of the largest logits, before restriction and temperature.
    pub top_logits: u32,
    /// Also return the logarithm of the chosen token's probability and those of this many of the most probable tokens, before
    /// temperature. Probabilities are of the whole vocabulary, save that 0 of `Allowed::Candidates` means those among the
    /// candidates, since then no other logit is computed.
    pub logprobs: Option<u32>,
}

/// Which tokens may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every token.
    All,
    /// Those in this range of `StepPlan::candidates`; only their logits are computed.
    Candidates(Range<u32>),
    /// Those whose bit is set in this range of `StepPlan::masks`.
    Mask(Range<u32>),
    /// None: nothing is chosen, and the token's own state after the last norm is returned.
    Hidden,
    /// Not known yet: what is said when the device is about to choose; see [`Device::launch_open`](crate::device::Device::launch_open).
    Open,
}

/// Copies the first tokens of a page, in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page read.
    pub from: PageId,
    /// The page written.
    pub to: PageId,
    /// How many leading tokens are copied.
    pub tokens: u32,
}

/// What a pass produced, in the order of `StepPlan::sample`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    /// The chosen tokens.
    pub sampled: Vec<TokenId>,
    /// For each sample the largest logits asked for, in descending order.
    pub top_logits: Vec<Vec<(TokenId, f32)>>,
    /// For each sample the probabilities asked for.
    pub logprobs: Vec<Option<TokenLogprobs>>,
    /// For each sample of [`Allowed::Hidden`] the state asked for, empty for the others; 0 stands for their chosen token.
    pub hidden: Vec<Vec<f32>>,
}
