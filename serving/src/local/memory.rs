//! One budget of bytes for the KV pages of all models of an engine.
//!
//! A model whose next row lacks pages takes slabs while the budget lasts, then those that others do not use: empty slabs of
//! any model, and cached prefixes of models without work. What it still lacks, only rows that end can free. So that these do
//! not make room for their like for ever, the model *claims*: a model that runs nothing, or holds less than an equal share.
//! While the first claim stands, no other model admits rows, and prefixes that they keep for rows to come are evicted once they
//! run nothing. In the end the claimant may have the whole budget, and no row needs more.

use std::collections::VecDeque;

use super::model::{Model, ModelId};
use crate::device::Device;
use crate::error::Error;
use crate::scheduler::{KvPool, Memory};

/// What all models may hold, and what they do.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    used: usize,
    /// Models that wait for memory before others may admit rows, in order.
    claims: VecDeque<ModelId>,
}

impl Budget {
    /// Makes a budget of which nothing is used.
    pub(super) fn new(bytes: usize) -> Self {
        Budget { bytes, used: 0, claims: VecDeque::new() }
    }

    /// Returns the bytes of all slabs that are taken.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Takes note of a model's end: its memory is free.
    pub(super) fn forget(&mut self, model: &Model) {
        self.used -= model.page_bytes(model.scheduler.pool().total());
        self.claims.retain(|id| *id != model.id);
    }

    /// Forgets the claims of models that have no work left.
    pub(super) fn keep_claims(&mut self, works: impl Fn(ModelId) -> bool) {
        self.claims.retain(|id| works(*id));
    }

    /// Enters a claim, or ends it, by what the model's last plan lacked. `active` models have work.
    pub(super) fn note(&mut self, model: &Model, active: usize) {
        let shortage = model.scheduler.shortage();
        let wanted = model.page_bytes(model.scheduler.pool().total().saturating_add(shortage));
        let due = shortage > 0 && (model.scheduler.running_rows() == 0 || wanted <= self.bytes / active.max(1));
        match self.claims.iter().position(|id| *id == model.id) {
            None if due => self.claims.push_back(model.id),
            Some(index) if !due => drop(self.claims.remove(index)),
            _ => {}
        }
    }

    /// Returns whether any model waits for memory before others may admit rows.
    pub(super) fn is_claimed(&self) -> bool {
        !self.claims.is_empty()
    }

    fn has(&self, bytes: usize) -> bool {
        bytes <= self.bytes - self.used
    }

    fn is_first(&self, id: ModelId) -> bool {
        self.claims.front() == Some(&id)
    }
}

/// The memory of one model during its turn.
pub(super) struct Share<'a> {
    pub(super) budget: &'a mut Budget,
    pub(super) id: ModelId,
    pub(super) device: &'a mut dyn Device,
    /// The other models.
    pub(super) others: Vec<&'a mut Model>,
    /// Why the device could not take a slab that the budget allows.
    pub(super) failure: Option<Error>,
}

impl Share<'_> {
    /// Makes others give back slabs until so many bytes are free. Returns whether they are.
    fn collect(&mut self, bytes: usize) -> bool {
        let first = self.budget.is_first(self.id);
        self.others.sort_by_key(|other| !other.scheduler.is_idle());
        for other in &mut self.others {
            while !self.budget.has(bytes) {
                let evict = first || other.scheduler.is_idle();
                let slabs = if evict { other.scheduler.give_back(1) } else { other.scheduler.give_back_empty(1) };
                let [slab] = slabs[..] else { break };
                other.device.give_slab(slab);
                self.budget.used -= other.page_bytes(other.scheduler.pool().slab_len(slab));
            }
        }
        self.budget.has(bytes)
    }
}

impl Memory for Share<'_> {
    fn may_admit(&self) -> bool {
        self.budget.claims.is_empty() || self.budget.is_first(self.id)
    }

    fn provide(&mut self, pool: &mut KvPool, free: usize) {
        let page_bytes = self.device.pool().page_bytes;
        while pool.free() < free {
            let Some((slab, pages)) = pool.next_slab() else { return };
            let bytes = pages * page_bytes;
            if !self.budget.has(bytes) && !self.collect(bytes) {
                return;
            }
            if let Err(error) = self.device.take_slab(slab) {
                self.failure = Some(error);
                return;
            }
            self.budget.used += bytes;
            pool.grow();
        }
    }
}
