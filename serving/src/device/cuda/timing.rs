//! Where the time of a pass goes on the GPU: events between its parts, set only while somebody asks.

use std::sync::Arc;

use super::driver::{Event, Gpu};
use crate::error::Result;

/// A part of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Matrix products of the layers.
    Gemm,
    /// Attention.
    Attention,
    /// Sums over GPUs that share a model.
    Exchange,
    /// The LM head and the choice of tokens.
    Head,
    /// Everything else on the GPU: norms, rotary embedding, activation, copies.
    Other,
}

/// Milliseconds that passes spent on the GPU, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassTimes {
    /// Matrix products of the layers.
    pub gemm: f64,
    /// Attention.
    pub attention: f64,
    /// Sums over GPUs that share a model, with the time for which the first waits for the others.
    pub exchange: f64,
    /// The LM head and the choice of tokens, with the time for which the GPU waits for masks.
    pub head: f64,
    /// Norms, rotary embedding, activation, copies.
    pub other: f64,
    /// Passes.
    pub passes: u64,
    /// Tokens of these passes.
    pub tokens: u64,
}

impl PassTimes {
    /// Returns the times since an earlier state of these.
    #[must_use]
    pub fn since(&self, earlier: &PassTimes) -> PassTimes {
        let PassTimes { gemm, attention, exchange, head, other, passes, tokens } = *earlier;
        PassTimes {
            gemm: self.gemm - gemm,
            attention: self.attention - attention,
            exchange: self.exchange - exchange,
            head: self.head - head,
            other: self.other - other,
            passes: self.passes - passes,
            tokens: self.tokens - tokens,
        }
    }
}

/// The events of one pass.
#[derive(Debug, Default)]
pub(super) struct Timing {
    on: bool,
    events: Vec<Event>,
    parts: Vec<Part>,
}

impl Timing {
    /// Starts a pass.
    pub(super) fn start(&mut self, gpu: &Arc<Gpu>, on: bool) -> Result<()> {
        self.on = on;
        self.parts.clear();
        // The first mark is where the pass begins; its part is not read.
        self.mark(gpu, Part::Other)
    }

    /// Ends a part that began with the mark before.
    pub(super) fn mark(&mut self, gpu: &Gpu, part: Part) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        if self.events.len() == self.parts.len() {
            self.events.push(gpu.timed_event()?);
        }
        gpu.record(&self.events[self.parts.len()])?;
        self.parts.push(part);
        Ok(())
    }

    /// Adds the times of a pass that has ended.
    pub(super) fn add_to(&self, times: &mut PassTimes) -> Result<()> {
        for i in 1..self.parts.len() {
            let spent = f64::from(self.events[i - 1].milliseconds_to(&self.events[i])?);
            match self.parts[i] {
                Part::Gemm => times.gemm += spent,
                Part::Attention => times.attention += spent,
                Part::Exchange => times.exchange += spent,
                Part::Head => times.head += spent,
                Part::Other => times.other += spent,
            }
        }
        Ok(())
    }
}
