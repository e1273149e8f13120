//! The pool of KV pages.
//!
//! Every layer and KV head has a slab, which holds for each page the keys transposed, `[head_dim][PAGE_TOKENS]`, and then the
//! values, `[PAGE_TOKENS][value_width]`, `value_width` being `head_dim` rounded up to whole vectors. So the scores of a page's 16
//! keys come from vector multiply-adds without sums across lanes, and values are added row by row.

use rayon::prelude::*;

use super::aligned::AlignedVec;
use crate::device::PoolSpec;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::step::{KvWrite, PAGE_TOKENS, PageCopy, PageId};

/// Below this many keys a task costs less than handing it to a thread.
const TASK_VALUES_MIN: usize = 8192;

/// Keys and values of all pages.
#[derive(Debug)]
pub(super) struct KvPool {
    slabs: Vec<AlignedVec>,
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
    /// Makes a pool of as many pages as fit into `bytes`. Fails if none does, or if the system has not so much memory.
    pub(super) fn new(config: &ModelConfig, bytes: usize) -> Result<Self> {
        let (kv_heads, head_dim) = (config.kv_heads, config.head_dim);
        let page_floats = page_floats(head_dim);
        let page_bytes = config.layers * kv_heads * page_floats * size_of::<f32>();
        let pages = u32::try_from(bytes / page_bytes).unwrap_or(u32::MAX);
        if pages == 0 {
            return Err(Error::OutOfMemory(format!(
                "a KV budget of {bytes} bytes holds no page of {page_bytes} bytes; raise the KV budget"
            )));
        }
        let slabs =
            (0..config.layers * kv_heads).map(|_| slab(pages as usize * page_floats, bytes)).collect::<Result<_>>()?;
        Ok(KvPool { slabs, kv_heads, head_dim, spec: PoolSpec { pages, page_bytes } })
    }

    /// Returns the size of the pool.
    pub(super) fn spec(&self) -> PoolSpec {
        self.spec
    }

    /// Returns one page of one layer and KV head.
    pub(super) fn page(&self, layer: usize, kv_head: usize, page: PageId) -> Page<'_> {
        let size = page_floats(self.head_dim);
        let slab = &self.slabs[layer * self.kv_heads + kv_head];
        let (keys, values) = slab[page.0 as usize * size..][..size].split_at(self.head_dim * PAGE_TOKENS);
        Page { keys, values }
    }

    /// Stores keys and values of tokens. Rows of `qkv` are `stride` apart; keys of all heads begin at `keys`, values follow them.
    pub(super) fn write(&mut self, layer: usize, writes: &[KvWrite], qkv: &[f32], stride: usize, keys: usize) {
        let (heads, dim) = (self.kv_heads, self.head_dim);
        let slabs = &mut self.slabs[layer * heads..(layer + 1) * heads];
        let heads_per_task = (TASK_VALUES_MIN / (writes.len() * dim).max(1)).max(1);
        slabs.par_iter_mut().enumerate().with_min_len(heads_per_task).for_each(|(head, slab)| {
            for write in writes {
                let row = &qkv[write.token as usize * stride..][..stride];
                let (key, value) = (&row[keys + head * dim..][..dim], &row[keys + (heads + head) * dim..][..dim]);
                store(slab, write, key, value);
            }
        });
    }

    /// Copies pages in order.
    pub(super) fn copy(&mut self, copies: &[PageCopy]) {
        if copies.is_empty() {
            return;
        }
        let dim = self.head_dim;
        self.slabs.par_iter_mut().for_each(|slab| {
            for copy in copies {
                copy_page(slab, copy, dim);
            }
        });
    }
}

/// Floats of one page of one layer and KV head.
fn page_floats(head_dim: usize) -> usize {
    (head_dim + value_width(head_dim)) * PAGE_TOKENS
}

fn slab(len: usize, budget: usize) -> Result<AlignedVec> {
    // Asks the allocator first: an infallible allocation would end the process.
    Vec::<f32>::new().try_reserve_exact(len + PAGE_TOKENS).map_err(|error| {
        Error::OutOfMemory(format!("cannot allocate a KV pool of {budget} bytes ({error}); lower the KV budget"))
    })?;
    Ok(AlignedVec::zeroed(len))
}

fn store(slab: &mut [f32], write: &KvWrite, key: &[f32], value: &[f32]) {
    let (size, offset) = (page_floats(key.len()), write.offset as usize);
    let (keys, values) = slab[write.page.0 as usize * size..][..size].split_at_mut(key.len() * PAGE_TOKENS);
    for (column, &key) in keys.as_chunks_mut::<PAGE_TOKENS>().0.iter_mut().zip(key) {
        column[offset] = key;
    }
    values[offset * value_width(value.len())..][..value.len()].copy_from_slice(value);
}

fn copy_page(slab: &mut [f32], copy: &PageCopy, head_dim: usize) {
    let (size, tokens) = (page_floats(head_dim), copy.tokens as usize);
    let (from, to) = (copy.from.0 as usize * size, copy.to.0 as usize * size);
    if tokens == PAGE_TOKENS {
        slab.copy_within(from..from + size, to);
        return;
    }
    let values = head_dim * PAGE_TOKENS;
    for row in (0..values).step_by(PAGE_TOKENS) {
        slab.copy_within(from + row..from + row + tokens, to + row);
    }
    slab.copy_within(from + values..from + values + tokens * value_width(head_dim), to + values);
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
}
