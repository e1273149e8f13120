//! A run: consecutive positions of a path and the pages that hold their keys and values.
//!
//! Pages are flat: page `p` of a path holds positions `p * PAGE_TOKENS ..`. A run that begins in the middle of a page either
//! *continues* the last page of the run before it, or has its own copy of that page, which is filled when its first token is
//! computed. At most one run may continue another one, so each place of a page has one writer.

use super::pool::{KvPool, pages_between};
use crate::step::{PAGE_TOKENS, PageId};

/// Pages for the positions from `start` on. The tokens themselves are the holder's.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// The position of the first token.
    pub(super) start: usize,
    /// The pages from `start / PAGE_TOKENS` on.
    pub(super) pages: Vec<PageId>,
    /// How many leading tokens have been handed to the device, in an earlier step or in the one being planned.
    pub(super) computed: usize,
    /// Whether the first page is the last page of the run before.
    pub(super) continues: bool,
    /// Whether another run continues in the last page.
    pub(super) continued: bool,
}

impl Run {
    /// Makes the run that follows `self` and holds positions `start..end`, taking pages from the pool.
    pub(super) fn follow(&mut self, start: usize, end: usize, pool: &mut KvPool) -> Run {
        let continues = self.can_continue(start);
        let mut pages = Vec::with_capacity(pages_between(start, end));
        if continues {
            let shared = self.last_page();
            pool.retain(shared);
            pages.push(shared);
            self.continued = true;
        }
        pages.extend(pool.allocate(pages_between(start, end) - pages.len()));
        Run { start, pages, computed: 0, continues, continued: false }
    }

    /// Returns how many pages [`follow`](Self::follow) takes from the pool.
    pub(super) fn follow_cost(&self, start: usize, end: usize) -> usize {
        pages_between(start, end) - usize::from(self.can_continue(start) && start < end)
    }

    /// Gives back what [`follow`](Self::follow) took; `self` is the run that was followed.
    pub(super) fn unfollow(&mut self, run: Run, pool: &mut KvPool) {
        if run.continues {
            self.continued = false;
        }
        for page in run.pages {
            pool.release(page);
        }
    }

    /// Cuts the run at a position inside it: `self` keeps what comes after, the result holds what comes before.
    pub(super) fn split_front(&mut self, at: usize, pool: &mut KvPool) -> Run {
        let mid_page = !at.is_multiple_of(PAGE_TOKENS);
        let front_pages = pages_between(self.start, at);
        let rest = self.pages[at / PAGE_TOKENS - self.start / PAGE_TOKENS..].to_vec();
        let mut pages = std::mem::replace(&mut self.pages, rest);
        pages.truncate(front_pages);
        if mid_page {
            pool.retain(self.pages[0]);
        }
        let front_computed = self.computed.min(at - self.start);
        let front =
            Run { start: self.start, pages, computed: front_computed, continues: self.continues, continued: mid_page };
        self.start = at;
        self.computed -= front_computed;
        self.continues = mid_page;
        front
    }

    /// Returns the page that holds a position of the run.
    pub(super) fn page_at(&self, position: usize) -> PageId {
        self.pages[position / PAGE_TOKENS - self.start / PAGE_TOKENS]
    }

    /// Returns the page of the run's last position.
    pub(super) fn last_page(&self) -> PageId {
        *self.pages.last().expect("a run that is followed in the middle of a page has pages")
    }

    /// Returns how many leading tokens of the first page must be copied into it before the run's first token is computed.
    pub(super) fn split_tokens(&self) -> usize {
        if self.computed == 0 && !self.continues { self.start % PAGE_TOKENS } else { 0 }
    }

    /// Writes the run's pages into a flat page table. Pages of deeper runs replace those of the runs before.
    pub(super) fn extend_table(&self, table: &mut Vec<PageId>) {
        table.truncate(self.start / PAGE_TOKENS);
        table.extend_from_slice(&self.pages);
    }

    fn can_continue(&self, start: usize) -> bool {
        !start.is_multiple_of(PAGE_TOKENS) && !self.continued
    }
}
