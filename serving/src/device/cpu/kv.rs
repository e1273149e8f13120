//! The pool of KV pages.
//!
//! Every layer and KV head has a slab, which holds for each page the keys transposed, `[head_dim][PAGE_TOKENS]`, and then the
//! values, `[PAGE_TOKENS][value_width]`, `value_width` being `head_dim` rounded up to whole vectors. So the scores of a page's 16
//! keys come from vector multiply-adds without sums across lanes, and values are added row by row.
//!
//! A pool is in one piece, or in slabs that are taken and given back while it runs, so that several models share their memory.

use std::collections::TryReserveError;

use rayon::prelude::*;

use super::aligned::AlignedVec;
use crate::device::PoolSpec;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::step::{KvWrite, PAGE_TOKENS, PageCopy, PageId};

/// Bytes of a slab over all layers: large enough to be had from the system and given back by the page, small enough that a model
/// which runs a few rows holds little more than they need.
const SLAB_BYTES: usize = 4 << 20;
/// Below this many keys a task costs less than handing it to a thread.
const TASK_VALUES_MIN: usize = 8192;

/// Keys and values of all pages.
#[derive(Debug)]
pub(super) struct KvPool {
    /// For each layer and KV head, the pages of each slab, empty while it is not taken.
    heads: Vec<Vec<AlignedVec>>,
    /// The binary logarithm of the pages of a slab.
    slab_shift: u32,
    kv_heads: usize,
    head_dim: usize,
    spec: PoolSpec,
}

/// Keys and values of one page, of one layer and KV head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    /// `[head_dim][PAGE_TOKENS]`.
    pub(super) keys: &'a [f32],
    /// `[PAGE_TOKENS][value_width]`.
    pub(super) values: &'a [f32],
}

/// Returns the width of a row of values in a page.
pub(super) fn value_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PAGE_TOKENS)
}

impl KvPool {
    /// Makes a pool of as many pages as fit into `bytes`, in one piece. Fails if none does, or if the system has not so much
    /// memory.
    pub(super) fn new(config: &ModelConfig, bytes: usize) -> Result<Self> {
        let mut pool = KvPool::with_shift(config, bytes, |_| u32::BITS - 1)?;
        pool.take(0)?;
        Ok(pool)
    }

    /// As [`new`](Self::new), in slabs of some megabytes, none of which is taken yet.
    pub(super) fn in_slabs(config: &ModelConfig, bytes: usize) -> Result<Self> {
        KvPool::with_shift(config, bytes, |page_bytes| (SLAB_BYTES / page_bytes).max(1).ilog2())
    }

    fn with_shift(config: &ModelConfig, bytes: usize, slab_shift: impl FnOnce(usize) -> u32) -> Result<Self> {
        let (kv_heads, head_dim) = (config.kv_heads, config.head_dim);
        let page_floats = page_floats(head_dim);
        let page_bytes = config.layers * kv_heads * page_floats * size_of::<f32>();
        let pages = u32::try_from(bytes / page_bytes).unwrap_or(u32::MAX);
        if pages == 0 {
            return Err(Error::OutOfMemory(format!(
                "a KV budget of {bytes} bytes holds no page of {page_bytes} bytes; raise the KV budget"
            )));
        }
        // Asks the allocator first, though nothing is taken yet: a budget that can never be had is an error now.
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|error| no_memory(bytes, &error))?;
        let slab_shift = slab_shift(page_bytes);
        let slabs = ((u64::from(pages) - 1) >> slab_shift) + 1;
        let heads = (0..config.layers * kv_heads).map(|_| (0..slabs).map(|_| AlignedVec::default()).collect()).collect();
        Ok(KvPool { heads, slab_shift, kv_heads, head_dim, spec: PoolSpec { pages, page_bytes } })
    }

    /// Takes the memory of a slab.
    pub(super) fn take(&mut self, slab: u32) -> Result<()> {
        let pages = self.slab_pages(slab);
        let floats = pages * page_floats(self.head_dim);
        self.check_memory(floats, pages * self.spec.page_bytes)?;
        self.heads.iter_mut().for_each(|head| head[slab as usize] = AlignedVec::zeroed(floats));
        Ok(())
    }

    /// Fails if the system does not give every head `floats` values: an infallible allocation would end the process.
    ///
    /// Asks for all of them at once. Asked head by head, glibc would take sizes that it saw freed from its heap, and writing zeros
    /// there commits memory that no page uses yet.
    fn check_memory(&self, floats: usize, bytes: usize) -> Result<()> {
        let mut probe = Vec::<f32>::new();
        let reserved = probe.try_reserve_exact(self.heads.len() * (floats + PAGE_TOKENS));
        std::hint::black_box(&probe);
        reserved.map_err(|error| no_memory(bytes, &error))
    }

    /// Gives the memory of a slab back.
    pub(super) fn give(&mut self, slab: u32) {
        self.heads.iter_mut().for_each(|head| head[slab as usize] = AlignedVec::default());
    }

    /// Returns whether the memory of a page is there.
    pub(super) fn has(&self, page: PageId) -> bool {
        self.heads[0].get((page.0 >> self.slab_shift) as usize).is_some_and(|slab| !slab.is_empty())
    }

    /// Returns the pages of every slab, the last one perhaps apart.
    pub(super) fn pages_per_slab(&self) -> u32 {
        (1 << self.slab_shift).min(self.spec.pages)
    }

    fn slab_pages(&self, slab: u32) -> usize {
        let first = slab << self.slab_shift;
        (self.spec.pages - first).min(1 << self.slab_shift) as usize
    }

    /// Returns the size of the pool.
    pub(super) fn spec(&self) -> PoolSpec {
        self.spec
    }

    /// Returns one page of one layer and KV head.
    pub(super) fn page(&self, layer: usize, kv_head: usize, page: PageId) -> Page<'_> {
        let size = page_floats(self.head_dim);
        let (slab, index) = place(page, self.slab_shift);
        let slab = &self.heads[layer * self.kv_heads + kv_head][slab];
        let (keys, values) = slab[index * size..][..size].split_at(self.head_dim * PAGE_TOKENS);
        Page { keys, values }
    }

    /// Stores keys and values of tokens. Rows of `qkv` are `stride` apart; keys of all heads begin at `keys`, values follow them.
    pub(super) fn write(&mut self, layer: usize, writes: &[KvWrite], qkv: &[f32], stride: usize, keys: usize) {
        let (heads, dim, shift) = (self.kv_heads, self.head_dim, self.slab_shift);
        let slabs = &mut self.heads[layer * heads..(layer + 1) * heads];
        let heads_per_task = (TASK_VALUES_MIN / (writes.len() * dim).max(1)).max(1);
        slabs.par_iter_mut().enumerate().with_min_len(heads_per_task).for_each(|(head, slabs)| {
            for write in writes {
                let row = &qkv[write.token as usize * stride..][..stride];
                let (key, value) = (&row[keys + head * dim..][..dim], &row[keys + (heads + head) * dim..][..dim]);
                let (slab, index) = place(write.page, shift);
                store(&mut slabs[slab], index, write.offset as usize, key, value);
            }
        });
    }

    /// Copies pages in order.
    pub(super) fn copy(&mut self, copies: &[PageCopy]) {
        if copies.is_empty() {
            return;
        }
        let (dim, shift) = (self.head_dim, self.slab_shift);
        self.heads.par_iter_mut().for_each(|slabs| {
            for copy in copies {
                copy_page(slabs, shift, copy, dim);
            }
        });
    }
}

/// Floats of one page of one layer and KV head.
fn page_floats(head_dim: usize) -> usize {
    (head_dim + value_width(head_dim)) * PAGE_TOKENS
}

/// Returns the slab of a page, and the page's number in it.
fn place(page: PageId, slab_shift: u32) -> (usize, usize) {
    ((page.0 >> slab_shift) as usize, (page.0 & ((1 << slab_shift) - 1)) as usize)
}

fn no_memory(bytes: usize, error: &TryReserveError) -> Error {
    Error::OutOfMemory(format!("cannot allocate {bytes} bytes for the KV pool ({error}); lower the KV budget"))
}

fn store(slab: &mut [f32], index: usize, offset: usize, key: &[f32], value: &[f32]) {
    let size = page_floats(key.len());
    let (keys, values) = slab[index * size..][..size].split_at_mut(key.len() * PAGE_TOKENS);
    for (column, &key) in keys.as_chunks_mut::<PAGE_TOKENS>().0.iter_mut().zip(key) {
        column[offset] = key;
    }
    values[offset * value_width(value.len())..][..value.len()].copy_from_slice(value);
}

fn copy_page(slabs: &mut [AlignedVec], slab_shift: u32, copy: &PageCopy, head_dim: usize) {
    let (size, tokens) = (page_floats(head_dim), copy.tokens as usize);
    let ((from_slab, from), (to_slab, to)) = (place(copy.from, slab_shift), place(copy.to, slab_shift));
    let (from, to) = (from * size, to * size);
    let mut copy = |start: usize, len: usize| match slabs.get_disjoint_mut([from_slab, to_slab]) {
        Ok([source, target]) => target[to + start..][..len].copy_from_slice(&source[from + start..][..len]),
        // One slab holds both pages.
        Err(_) => slabs[from_slab].copy_within(from + start..from + start + len, to + start),
    };
    if tokens == PAGE_TOKENS {
        return copy(0, size);
    }
    let values = head_dim * PAGE_TOKENS;
    (0..values).step_by(PAGE_TOKENS).for_each(|row| copy(row, tokens));
    copy(values, tokens * value_width(head_dim));
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, tiny_config};
    use super::*;

    fn key(pool: &KvPool, layer: usize, head: usize, page: u32, offset: usize) -> Vec<f32> {
        let page = pool.page(layer, head, PageId(page));
        (0..pool.head_dim).map(|d| page.keys[d * PAGE_TOKENS + offset]).collect()
    }

    fn value(pool: &KvPool, layer: usize, head: usize, page: u32, offset: usize) -> Vec<f32> {
        pool.page(layer, head, PageId(page)).values[offset * value_width(pool.head_dim)..][..pool.head_dim].to_vec()
    }

    #[test]
    fn writes_land_in_every_page_named_and_copies_take_leading_tokens() {
        let config = tiny_config();
        let (heads, dim) = (config.kv_heads, config.head_dim);
        let mut pool = KvPool::new(&config, 1 << 20).unwrap();
        let (queries, stride) = (config.heads * dim, (config.heads + 2 * heads) * dim);
        let qkv = Random::new(4).floats(2 * stride);
        let write = |token, page, offset| KvWrite { token, page: PageId(page), offset };
        pool.write(1, &[write(0, 3, 5), write(0, 2, 5), write(1, 3, 6)], &qkv, stride, queries);
        for head in 0..heads {
            for (token, page, offset) in [(0, 3, 5), (0, 2, 5), (1, 3, 6)] {
                let row = &qkv[token * stride + queries..];
                assert_eq!(key(&pool, 1, head, page, offset), row[head * dim..][..dim]);
                assert_eq!(value(&pool, 1, head, page, offset), row[(heads + head) * dim..][..dim]);
            }
            assert!(key(&pool, 0, head, 3, 5).iter().all(|&x| x == 0.0));
        }
        pool.copy(&[PageCopy { from: PageId(3), to: PageId(0), tokens: 6 }]);
        assert_eq!((key(&pool, 1, 0, 0, 5), value(&pool, 1, 0, 0, 5)), (key(&pool, 1, 0, 3, 5), value(&pool, 1, 0, 3, 5)));
        assert!(key(&pool, 1, 0, 0, 6).iter().chain(&value(&pool, 1, 0, 0, 6)).all(|&x| x == 0.0));
        pool.copy(&[PageCopy { from: PageId(3), to: PageId(1), tokens: 16 }]);
        assert_eq!(value(&pool, 1, 1, 1, 6), value(&pool, 1, 1, 3, 6));
    }

    #[test]
    fn a_budget_below_one_page_says_what_to_change() {
        let error = KvPool::new(&tiny_config(), 100).unwrap_err();
        assert!(matches!(&error, Error::OutOfMemory(text) if text.contains("raise the KV budget")), "{error}");
        let error = KvPool::new(&tiny_config(), usize::MAX / 8).unwrap_err();
        assert!(matches!(&error, Error::OutOfMemory(text) if text.contains("lower the KV budget")), "{error}");
    }

    #[test]
    fn pages_are_the_same_in_one_piece_and_in_slabs() {
        let config = tiny_config();
        let (heads, dim) = (config.kv_heads, config.head_dim);
        let mut slabs = KvPool::in_slabs(&config, 16 << 20).unwrap();
        let per_slab = slabs.pages_per_slab();
        assert!(per_slab > 1 && per_slab < slabs.spec().pages && !slabs.has(PageId(0)));
        let mut whole = KvPool::new(&config, 16 << 20).unwrap();
        assert_eq!((whole.pages_per_slab(), whole.spec()), (whole.spec().pages, slabs.spec()));
        slabs.take(0).unwrap();
        slabs.take(2).unwrap();
        assert!(slabs.has(PageId(2 * per_slab)) && !slabs.has(PageId(per_slab)));
        let (queries, stride) = (config.heads * dim, (config.heads + 2 * heads) * dim);
        let qkv = Random::new(4).floats(16 * stride);
        let far = PageId(2 * per_slab + 1);
        let writes: Vec<_> = (0..16).map(|token| KvWrite { token, page: PageId(1), offset: token }).collect();
        let copy = |from, to, tokens| PageCopy { from, to, tokens };
        for pool in [&mut slabs, &mut whole] {
            pool.write(1, &writes, &qkv, stride, queries);
            pool.copy(&[copy(PageId(1), far, 16), copy(PageId(1), PageId(0), 5), copy(far, PageId(2 * per_slab), 7)]);
        }
        for page in [PageId(0), PageId(1), far, PageId(2 * per_slab)] {
            for head in 0..heads {
                let (one, other) = (slabs.page(1, head, page), whole.page(1, head, page));
                assert_eq!((one.keys, one.values), (other.keys, other.values));
            }
        }
        slabs.give(2);
        assert!(!slabs.has(far) && slabs.has(PageId(0)));
    }
}
