//! Budgets of the scheduler.

use crate::error::{Error, Result};

/// What a step and the scheduler as a whole may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Most tokens of one forward pass. Larger passes use the device better, until its matrix products stop improving;
    /// smaller ones let running answers grow more evenly.
    pub step_tokens: u32,
    /// Most rows that run at once.
    pub max_rows: u32,
    /// The longest prompt and answer together, in tokens.
    pub max_context: usize,
}

impl SchedulerConfig {
    /// Returns the usual budgets for a model with this context.
    ///
    /// 512 tokens: prompts of 160 tokens through the bundled model on two cores take a third less time than with 64, and 2048
    /// gains only 4 % more. 256 rows leave half of each step to prompts while all of them are answering.
    pub fn new(max_context: usize) -> Self {
        SchedulerConfig { step_tokens: 512, max_rows: 256, max_context }
    }

    /// Returns the usual budgets on a GPU, for a model with this context and number of weights.
    ///
    /// Matrix products are near their best from 4096 tokens on where matrices are large, and gain up to 16384 where they are
    /// small; with 8192 tokens a model of 8 billion weights took 3 to 5 % less time than with 4096 (docs/benchmarks.md). A row
    /// costs a GPU little, and rows that answer leave most of such a step to prompts.
    pub fn on_gpu(max_context: usize, parameters: u64) -> Self {
        let step_tokens = if parameters < 2_000_000_000 { 16_384 } else { 8192 };
        SchedulerConfig { step_tokens, max_rows: 4096, max_context }
    }

    /// Fails if a budget is zero, since nothing could ever run.
    pub fn validate(&self) -> Result<()> {
        let SchedulerConfig { step_tokens, max_rows, max_context } = *self;
        if step_tokens == 0 || max_rows == 0 || max_context == 0 {
            return Err(Error::Invalid("step_tokens, max_rows and max_context must be at least 1".to_string()));
        }
        Ok(())
    }
}
