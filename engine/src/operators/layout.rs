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
const ROWS_LOOKED_AT: usize = 1024;

/// Computed tokens of both layouts, for some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayoutCosts {
    pub instruction_first: u64,
    pub data_first: u64,
}

impl LayoutCosts {
    /// Counts the tokens that calls over the same rows would compute.
    pub(super) fn of(calls: &[Arc<PhysicalCall>], tokenizer: &dyn Tokenizer, questions: &Questions) -> Result<Self> {
        let (mut heads, mut tails, mut rows, mut head) = (vec![], vec![], 0, 0);
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
            }
        }
        Ok(LayoutCosts {
            instruction_first: beyond_common(&heads).iter().sum::<u64>() + calls.len() as u64 * rows,
            data_first: head + rows + looked_at.len() as u64 * beyond_common(&tails).iter().sum::<u64>(),
        })
    }

    /// Returns how many times fewer tokens are computed if data comes first.
    pub(super) fn gain(self) -> f64 {
        self.instruction_first as f64 / self.data_first.max(1) as f64
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

/// Returns the groups of calls that read the same rows and so could share them, each of at least two.
pub(super) fn over_the_same_rows(calls: &[Arc<PhysicalCall>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = vec![];
    for (idx, call) in calls.iter().enumerate() {
        // A prompt that is to be cut has a length of its own, whose rows are not those of the others.
        if !Layout::DataFirst.suits(&call.call) || call.options.on_overflow != OnOverflow::Error {
            continue;
        }
        match groups.iter_mut().find(|group| reads_the_same(&calls[group[0]], call)) {
            Some(group) => group.push(idx),
            None => groups.push(vec![idx]),
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

fn reads_the_same(one: &PhysicalCall, other: &PhysicalCall) -> bool {
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
