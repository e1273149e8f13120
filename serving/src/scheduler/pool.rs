//! The KV pool: which pages are in use, by how many, and which must not be reused yet.
//!
//! The pool knows page numbers only. Who holds a page (a node of the prefix tree, the tail of a row) is the holder's business;
//! each holder takes one reference and gives it back.

use crate::device::PoolSpec;
use crate::step::{PAGE_TOKENS, PageId};

/// The pages of one device.
#[derive(Clone, Debug)]
pub struct KvPool {
    pages: Vec<PageState>,
    free: Vec<PageId>,
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
    /// Makes a pool whose pages are all free.
    pub fn new(spec: PoolSpec) -> Self {
        // Taken from the end, so that low pages are used first.
        let free = (0..spec.pages).rev().map(PageId).collect();
        KvPool { pages: vec![PageState::Free; spec.pages as usize], free }
    }

    /// Returns the number of pages, in use or not.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Returns the number of free pages.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns the number of pages that are not free.
    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Returns the state of a page.
    pub fn state(&self, page: PageId) -> PageState {
        self.pages[page.0 as usize]
    }

    /// Takes `count` free pages, each with one reference. The caller must have seen that as many are free.
    pub fn allocate(&mut self, count: usize) -> Vec<PageId> {
        let rest = self.free.len().checked_sub(count).expect("pages are counted before they are taken");
        let taken: Vec<PageId> = self.free.drain(rest..).rev().collect();
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
        let mut free = vec![false; self.total()];
        for page in &self.free {
            assert!(!std::mem::replace(&mut free[page.0 as usize], true), "{page:?} is free twice");
        }
        for (index, state) in self.pages.iter().enumerate() {
            match state {
                PageState::Free => assert!(free[index], "page {index} is lost"),
                PageState::Device { references, locks } => {
                    assert!(!free[index], "page {index} is free and in use");
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
            self.free.push(page);
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
    fn pages_are_counted_by_position() {
        assert_eq!(pages_between(0, 0), 0);
        assert_eq!(pages_between(20, 20), 0);
        assert_eq!(pages_between(0, 16), 1);
        assert_eq!(pages_between(15, 17), 2);
        assert_eq!(pages_between(16, 17), 1);
    }
}
