//! The KV pool: which pages are in use, by how many, and which must not be reused yet.
//!
//! The pool knows page numbers only. Who holds a page (a node of the prefix tree, the tail of a row) is the holder's business;
//! each holder takes one reference and gives it back.
//!
//! Pages come in slabs, which are taken when pages are needed and given back when all their pages are free. Low slabs are used
//! first, so that high ones become empty.

use std::ops::Range;

use crate::device::PoolSpec;
use crate::step::{PAGE_TOKENS, PageId};

/// The pages of one device.
#[derive(Clone, Debug)]
pub struct KvPool {
    pages: Vec<PageState>,
    slab_pages: usize,
    /// The free pages of each slab that is there.
    slabs: Vec<Option<Vec<PageId>>>,
    total: usize,
    free: usize,
}

/// Where the memory of a pool comes from.
pub trait Memory {
    /// Returns whether rows may be admitted; not while others need what is given back first.
    fn may_admit(&self) -> bool;

    /// Lets a pool [grow](KvPool::grow) until so many pages are free, or as far as there is memory.
    fn provide(&mut self, pool: &mut KvPool, free: usize);
}

/// The memory of a pool that has all of its own.
#[derive(Clone, Copy, Debug)]
pub struct Fixed;

impl Memory for Fixed {
    fn may_admit(&self) -> bool {
        true
    }

    fn provide(&mut self, _pool: &mut KvPool, _free: usize) {}
}

/// Where the contents of a page are. A page is in exactly one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nowhere: the page may be given out.
    Free,
    /// On the device.
    Device {
        /// How many nodes and rows hold the page.
        references: u32,
        /// How many copies in flight read the page. While there are any, the page is not reused, even if nobody holds it.
        locks: u32,
    },
}

impl KvPool {
    /// Makes a pool whose pages are all there and free.
    pub fn new(spec: PoolSpec) -> Self {
        let mut pool = KvPool::in_slabs(spec, spec.pages);
        pool.grow();
        pool
    }

    /// Makes a pool of which no slab is there yet; each has `slab_pages` pages, the last one perhaps fewer.
    pub fn in_slabs(spec: PoolSpec, slab_pages: u32) -> Self {
        let (pages, slab_pages) = (spec.pages as usize, slab_pages.max(1) as usize);
        let slabs = vec![None; pages.div_ceil(slab_pages)];
        KvPool { pages: vec![PageState::Free; pages], slab_pages, slabs, total: 0, free: 0 }
    }

    /// Returns how many pages there can be.
    pub fn limit(&self) -> usize {
        self.pages.len()
    }

    /// Returns the number of pages that are there, in use or not.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns the number of free pages.
    pub fn free(&self) -> usize {
        self.free
    }

    /// Returns the number of pages that are not free.
    pub fn used(&self) -> usize {
        self.total - self.free
    }

    /// Returns the first slab that is not there, and how many pages it has.
    pub fn next_slab(&self) -> Option<(u32, usize)> {
        let slab = self.slabs.iter().position(Option::is_none)?;
        Some((slab as u32, self.slab_range(slab).len()))
    }

    /// Adds the [next slab](Self::next_slab), whose memory has been taken.
    pub fn grow(&mut self) {
        let Some((slab, count)) = self.next_slab() else { return };
        // Taken from the end, so that low pages are used first.
        let pages = self.slab_range(slab as usize).rev().map(|page| PageId(page as u32)).collect();
        self.slabs[slab as usize] = Some(pages);
        self.total += count;
        self.free += count;
    }

    /// Removes up to `count` slabs of which nothing is used, the highest first, and returns them; their memory is to be given back.
    pub fn shrink(&mut self, count: usize) -> Vec<u32> {
        let mut removed = Vec::new();
        for slab in (0..self.slabs.len()).rev() {
            let pages = self.slab_range(slab).len();
            if removed.len() < count && self.slabs[slab].as_ref().is_some_and(|free| free.len() == pages) {
                self.slabs[slab] = None;
                self.total -= pages;
                self.free -= pages;
                removed.push(slab as u32);
            }
        }
        removed
    }

    /// Returns how many pages a slab has.
    pub fn slab_len(&self, slab: u32) -> usize {
        self.slab_range(slab as usize).len()
    }

    fn slab_range(&self, slab: usize) -> Range<usize> {
        slab * self.slab_pages..((slab + 1) * self.slab_pages).min(self.pages.len())
    }

    /// Returns the state of a page.
    pub fn state(&self, page: PageId) -> PageState {
        self.pages[page.0 as usize]
    }

    /// Takes `count` free pages, each with one reference. The caller must have seen that as many are free.
    pub fn allocate(&mut self, count: usize) -> Vec<PageId> {
        self.free = self.free.checked_sub(count).expect("pages are counted before they are taken");
        let mut taken = Vec::with_capacity(count);
        for free in self.slabs.iter_mut().flatten() {
            let rest = free.len().saturating_sub(count - taken.len());
            taken.extend(free.drain(rest..).rev());
        }
        for page in &taken {
            self.pages[page.0 as usize] = PageState::Device { references: 1, locks: 0 };
        }
        taken
    }

    /// Adds a reference to a page in use.
    pub fn retain(&mut self, page: PageId) {
        *self.counts(page).0 += 1;
    }

    /// Gives one reference back; the last one frees the page, unless it is locked.
    pub fn release(&mut self, page: PageId) {
        let (references, _) = self.counts(page);
        *references = references.checked_sub(1).expect("each holder gives back one reference");
        self.free_if_unused(page);
    }

    /// Keeps a page from being reused while a copy reads it.
    pub fn lock(&mut self, page: PageId) {
        *self.counts(page).1 += 1;
    }

    /// Ends the lock of one copy.
    pub fn unlock(&mut self, page: PageId) {
        let (_, locks) = self.counts(page);
        *locks = locks.checked_sub(1).expect("each copy unlocks what it locked");
        self.free_if_unused(page);
    }

    /// Panics if a page is in two states, or is lost. For tests.
    pub fn check(&self) {
        let mut free = vec![false; self.limit()];
        for (slab, pages) in self.slabs.iter().enumerate() {
            for page in pages.iter().flatten() {
                assert!(self.slab_range(slab).contains(&(page.0 as usize)), "{page:?} is of another slab");
                assert!(!std::mem::replace(&mut free[page.0 as usize], true), "{page:?} is free twice");
            }
        }
        assert_eq!(free.iter().filter(|free| **free).count(), self.free);
        let there = (0..self.slabs.len()).filter(|slab| self.slabs[*slab].is_some());
        assert_eq!(there.map(|slab| self.slab_range(slab).len()).sum::<usize>(), self.total);
        for (index, state) in self.pages.iter().enumerate() {
            let there = self.slabs[index / self.slab_pages].is_some();
            match state {
                PageState::Free => assert!(free[index] || !there, "page {index} is lost"),
                PageState::Device { references, locks } => {
                    assert!(!free[index] && there, "page {index} is free and in use, or without memory");
                    assert!(references + locks > 0, "page {index} is in use by nobody");
                }
            }
        }
    }

    fn counts(&mut self, page: PageId) -> (&mut u32, &mut u32) {
        match &mut self.pages[page.0 as usize] {
            PageState::Device { references, locks } => (references, locks),
            PageState::Free => unreachable!("a holder's page is never free"),
        }
    }

    fn free_if_unused(&mut self, page: PageId) {
        if self.state(page) == (PageState::Device { references: 0, locks: 0 }) {
            self.pages[page.0 as usize] = PageState::Free;
            let slab = self.slabs[page.0 as usize / self.slab_pages].as_mut();
            slab.expect("the slab of a page in use is there").push(page);
            self.free += 1;
        }
    }
}

/// Returns the number of pages that hold positions `start..end`; page `p` holds positions `p * PAGE_TOKENS ..`.
pub(super) fn pages_between(start: usize, end: usize) -> usize {
    if start == end { 0 } else { end.div_ceil(PAGE_TOKENS) - start / PAGE_TOKENS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pages: u32) -> KvPool {
        KvPool::new(PoolSpec { pages, page_bytes: 1 })
    }

    #[test]
    fn the_last_reference_frees_a_page() {
        let mut pool = pool(2);
        let pages = pool.allocate(2);
        assert_eq!(pages, [PageId(0), PageId(1)]);
        pool.retain(pages[0]);
        pool.release(pages[0]);
        assert_eq!(pool.free(), 0);
        pool.release(pages[0]);
        pool.check();
        assert_eq!((pool.free(), pool.used()), (1, 1));
        assert_eq!(pool.state(pages[0]), PageState::Free);
    }

    #[test]
    fn a_locked_page_is_not_reused() {
        let mut pool = pool(1);
        let page = pool.allocate(1)[0];
        pool.lock(page);
        pool.release(page);
        pool.check();
        assert_eq!(pool.free(), 0);
        pool.unlock(page);
        pool.check();
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn slabs_come_when_asked_for_and_go_when_empty() {
        let mut pool = KvPool::in_slabs(PoolSpec { pages: 10, page_bytes: 1 }, 4);
        assert_eq!((pool.limit(), pool.total(), pool.next_slab()), (10, 0, Some((0, 4))));
        (0..3).for_each(|_| pool.grow());
        assert_eq!((pool.total(), pool.free(), pool.next_slab()), (10, 10, None));
        let pages = pool.allocate(6);
        assert_eq!(pages, [0, 1, 2, 3, 4, 5].map(PageId));
        pages[..4].iter().for_each(|page| pool.release(*page));
        pool.check();
        assert_eq!(pool.shrink(1), [2]);
        assert_eq!(pool.shrink(5), [0]);
        assert_eq!((pool.total(), pool.free(), pool.next_slab()), (4, 2, Some((0, 4))));
        pool.check();
        pool.grow();
        assert_eq!(pool.allocate(2), [0, 1].map(PageId), "low pages first");
        pool.check();
    }

    #[test]
    fn pages_are_counted_by_position() {
        assert_eq!(pages_between(0, 0), 0);
        assert_eq!(pages_between(20, 20), 0);
        assert_eq!(pages_between(0, 16), 1);
        assert_eq!(pages_between(15, 17), 2);
        assert_eq!(pages_between(16, 17), 1);
    }
}
