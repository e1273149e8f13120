//! Whether prompts begin with the instruction, which all rows of a call share, or with the row, which all calls about it share.
//!
//! ```text
//! SELECT ai_summarize(x), ai_sentiment(x), ai_extract(x, …)
//!
//! instruction first                             data first
//! head 1 ─ row 1, row 2, …                      head ─ row 1 ─ instruction 1, instruction 2, instruction 3
//! head 2 ─ row 1, row 2, …                             row 2 ─ instruction 1, instruction 2, instruction 3
//! head 3 ─ row 1, row 2, …
//! ```
//!
//! With `k` calls over `n` distinct rows the first computes `Σ head + k · rows` tokens and the second `head + rows + n · Σ
//! instruction`, where `rows` are the tokens of the trie of rows.
//!
//! The calls need not be of one operator: of `SELECT ai_summarize(x) … WHERE ai_filter(p, x)` the filter computes the rows, and the
//! summaries of those that pass find them in the cache, as long as no more rows lie between the two than the cache holds.

use std::sync::Arc;

use datafusion::common::Result;
use refrain_optimizer::reorder::saved_of_prompts;
use refrain_serving::{Segment, Tokenizer};
use refrain_udf::{Layout, LayoutChoice, OnOverflow, Prompt, PromptLayout};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::prompts::Planner;

/// Data comes first by itself only where that computes so many times fewer tokens: it changes the text of the prompt, and models
/// that have mostly read instructions in front follow those behind less well (docs/benchmarks.md, "Data first").
pub(super) const AUTO_GAIN_MIN: f64 = 1.3;

/// Rows that the decision looks at.
pub(super) const ROWS_LOOKED_AT: usize = 1024;

/// Computed tokens of both layouts, for some rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LayoutCosts {
    pub instruction_first: f64,
    pub data_first: f64,
    /// Tokens of a prompt, on average.
    pub prompt_len: f64,
}

impl LayoutCosts {
    /// Counts the tokens that calls over the same rows would compute, each over a share of them. The first has them all.
    pub(super) fn of(
        calls: &[Arc<PhysicalCall>],
        shares: &[f64],
        tokenizer: &dyn Tokenizer,
        questions: &Questions,
    ) -> Result<Self> {
        let (mut heads, mut tails, mut rows, mut head, mut prompt_len) = (vec![], vec![], 0, 0, 0.0);
        let looked_at: Vec<u32> = (0..questions.len().min(ROWS_LOOKED_AT) as u32).collect();
        for (idx, call) in calls.iter().enumerate() {
            let layout = PromptLayout::new(&call.call, tokenizer)?;
            heads.push(Segment::clone(layout.head()));
            let data_first = PromptLayout::with(&call.call, Layout::DataFirst, tokenizer)?;
            tails.push(Segment::clone(data_first.tail()));
            if idx == 0 {
                head = data_first.head().len() as u64;
                let planned = Planner::new(call, &layout, tokenizer).plan(questions, &looked_at)?;
                let prompts: Vec<_> = planned.requests.iter().map(|request| request.prompt.as_slice()).collect();
                let all: u64 = planned.requests.iter().map(|request| request.prompt_len() as u64).sum();
                rows = (all - saved_of_prompts(&prompts, 1)).saturating_sub(layout.head().len() as u64);
                prompt_len = all as f64 / looked_at.len().max(1) as f64;
            }
        }
        let heads: u64 = beyond_common(&heads).iter().sum();
        let tails: f64 = beyond_common(&tails).iter().zip(shares).map(|(tail, share)| *tail as f64 * share).sum();
        Ok(LayoutCosts {
            instruction_first: heads as f64 + shares.iter().sum::<f64>() * rows as f64,
            data_first: (head + rows) as f64 + looked_at.len() as f64 * tails,
            prompt_len,
        })
    }

    /// Returns how many times fewer tokens are computed if data comes first.
    pub(super) fn gain(self) -> f64 {
        self.instruction_first / self.data_first.max(1.0)
    }
}

/// Returns how many tokens of each text are computed where those before it have been: instructions begin alike, and so do heads.
pub(super) fn beyond_common(texts: &[Segment]) -> Vec<u64> {
    let known = |idx: usize| texts[..idx].iter().map(|other| common(other, &texts[idx])).max().unwrap_or(0);
    (0..texts.len()).map(|idx| texts[idx].len() as u64 - known(idx)).collect()
}

/// Returns how many tokens two texts begin with alike.
pub(super) fn common(one: &[u32], other: &[u32]) -> u64 {
    one.iter().zip(other).take_while(|(a, b)| a == b).count() as u64
}

/// A call of an operator above that reads the same rows as a call of this one.
#[derive(Clone, Debug)]
pub(super) struct CallAbove {
    pub call: Arc<PhysicalCall>,
    /// The call of this operator.
    pub reads_as: usize,
}

/// Calls that read the same rows and so could share them; at least two.
#[derive(Clone, Debug)]
pub(super) struct RowReaders {
    /// Those of the operator.
    pub own: Vec<usize>,
    /// Those of operators above, which are asked later.
    pub above: Vec<Arc<PhysicalCall>>,
}

/// Returns the groups of calls that read the same rows.
pub(super) fn over_the_same_rows(calls: &[Arc<PhysicalCall>], above: &[CallAbove]) -> Vec<RowReaders> {
    let mut groups: Vec<RowReaders> = vec![];
    for (idx, call) in calls.iter().enumerate().filter(|(_, call)| may_share_rows(call)) {
        let above = above.iter().filter(|above| above.reads_as == idx).map(|above| Arc::clone(&above.call));
        match groups.iter_mut().find(|group| reads_the_same(&calls[group.own[0]], call)) {
            Some(group) => {
                group.own.push(idx);
                group.above.extend(above);
            }
            None => groups.push(RowReaders { own: vec![idx], above: above.collect() }),
        }
    }
    groups.retain(|group| group.own.len() + group.above.len() > 1);
    groups
}

/// Returns whether the rows of a call can stand in front. A prompt that is to be cut has a length of its own, whose rows are not those of
/// the others.
pub(super) fn may_share_rows(call: &PhysicalCall) -> bool {
    Layout::DataFirst.suits(&call.call) && call.options.on_overflow == OnOverflow::Error
}

/// Returns whether two calls read the same columns of one input under the same names.
pub(super) fn reads_the_same(one: &PhysicalCall, other: &PhysicalCall) -> bool {
    let labels = |call: &PhysicalCall| match &call.call.prompt {
        Prompt::Fields { labels, passages } => (labels.clone(), *passages),
        Prompt::Template(_) | Prompt::Rows { .. } => (vec![], None),
    };
    one.model == other.model
        && one.inputs == other.inputs
        && one.guard == other.guard
        && labels(one) == labels(other)
        && one.options.dedups() == other.options.dedups()
        && one.options.reorder == other.options.reorder
}

/// Returns the layout of a group of calls, given what each would cost, and whether the model needs the instruction in front.
pub(super) fn chosen(
    choice: LayoutChoice,
    needs_instruction_first: bool,
    costs: impl FnOnce() -> Result<LayoutCosts>,
) -> Result<Layout> {
    Ok(match choice {
        LayoutChoice::InstructionFirst => Layout::InstructionFirst,
        LayoutChoice::DataFirst => Layout::DataFirst,
        LayoutChoice::Auto if needs_instruction_first => Layout::InstructionFirst,
        LayoutChoice::Auto if costs()?.gain() >= AUTO_GAIN_MIN => Layout::DataFirst,
        LayoutChoice::Auto => Layout::InstructionFirst,
    })
}
