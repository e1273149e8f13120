//! Puts one step plan together: tokens, writes, page tables, samples, and the copies of pages at which prefixes part.

use ahash::AHashMap;

use super::pool::KvPool;
use crate::constraint::Next;
use crate::step::{Allowed, KvWrite, PAGE_TOKENS, PageCopy, PageId, RowSpan, SampleRow, StepPlan, TokenSource};

/// A step plan in the making.
#[derive(Debug)]
pub(super) struct StepBuilder {
    plan: StepPlan,
    budget: usize,
    /// For each page written in this step, the input token at each place.
    written: AHashMap<PageId, [Option<u32>; PAGE_TOKENS]>,
    /// The copies of this step by target.
    copied: AHashMap<PageId, PageCopy>,
    row_start: u32,
}

impl StepBuilder {
    /// Starts a plan of at most `budget` tokens.
    pub(super) fn new(budget: usize) -> Self {
        let (plan, written, copied) = (StepPlan::default(), AHashMap::new(), AHashMap::new());
        StepBuilder { plan, budget, written, copied, row_start: 0 }
    }

    /// Returns how many more tokens the step may have.
    pub(super) fn room(&self) -> usize {
        self.budget - self.plan.tokens.len()
    }

    /// Adds the next token of the current row, whose keys and values go to `page`.
    pub(super) fn compute(&mut self, token: TokenSource, position: usize, page: PageId) {
        let index = self.plan.tokens.len() as u32;
        self.plan.tokens.push(token);
        self.plan.positions.push(position as u32);
        self.write(index, page, position % PAGE_TOKENS);
    }

    /// Fills the first `tokens` places of `to` with those of `from`: with a copy, as far as they were computed in an earlier
    /// step, and by writing the tokens of this step to both pages, since copies precede the pass.
    pub(super) fn split_page(&mut self, from: PageId, to: PageId, tokens: usize, pool: &mut KvPool) {
        let fresh = self.written.get(&from).copied().unwrap_or_default();
        let old = fresh[..tokens].iter().position(Option::is_some).unwrap_or(tokens);
        if old > 0 {
            self.copy(from, to, old, pool);
        }
        for (offset, token) in fresh[..tokens].iter().enumerate().skip(old) {
            let token = token.expect("a page is computed in order, and up to where it splits before it is split");
            self.write(token, to, offset);
        }
    }

    /// Ends the current row, whose last token is at `position`; `table` holds the pages of the row's whole path.
    pub(super) fn end_row(&mut self, table: &[PageId], position: usize) {
        let tokens = self.row_start..self.plan.tokens.len() as u32;
        let first_page = self.plan.block_tables.len() as u32;
        let last = self.plan.writes.last().expect("a row of a step computes a token").page;
        // Where the path splits within the last page and the chunk ends before that, the table names the page after the
        // split. The page before it is the one just written.
        self.plan.block_tables.extend_from_slice(&table[..position / PAGE_TOKENS]);
        self.plan.block_tables.push(last);
        let pages = first_page..self.plan.block_tables.len() as u32;
        self.row_start = tokens.end;
        self.plan.rows.push(RowSpan { tokens, pages });
    }

    /// Asks for the token after the last one; `allowed` is what its constraint said.
    pub(super) fn sample(&mut self, allowed: Option<&Next>, mut sample: SampleRow) {
        sample.token = self.plan.tokens.len() as u32 - 1;
        sample.allowed = allow(&mut self.plan, allowed);
        self.plan.sample.push(sample);
    }

    /// Returns the plan.
    pub(super) fn finish(self) -> StepPlan {
        self.plan
    }

    fn write(&mut self, token: u32, page: PageId, offset: usize) {
        self.plan.writes.push(KvWrite { token, page, offset: offset as u32 });
        self.written.entry(page).or_default()[offset] = Some(token);
    }

    /// Copies within a step run in no particular order, so what was copied in this step is copied from its origin again.
    fn copy(&mut self, from: PageId, to: PageId, tokens: usize, pool: &mut KvPool) {
        let from = self.copied.get(&from).map_or(from, |copy| {
            debug_assert!(tokens <= copy.tokens as usize);
            copy.from
        });
        pool.lock(from);
        let copy = PageCopy { from, to, tokens: tokens as u32 };
        self.plan.copies.push(copy);
        self.copied.insert(to, copy);
    }
}

/// Enters what a constraint said in a plan. Where it said nothing yet, that stays open.
pub(super) fn allow(plan: &mut StepPlan, allowed: Option<&Next>) -> Allowed {
    match allowed {
        None => Allowed::Open,
        Some(Next::OneOf(tokens)) => Allowed::Candidates(append(&mut plan.candidates, tokens)),
        Some(Next::Mask(words)) => Allowed::Mask(append(&mut plan.masks, words)),
        Some(Next::Hidden { .. }) => Allowed::Hidden,
        Some(Next::Free) => Allowed::All,
        // No choice, found when the pass was under way: any token will do, and one logit is less than all.
        Some(Next::Forced(_) | Next::Finish(_)) => Allowed::Candidates(append(&mut plan.candidates, &[0])),
    }
}

/// Appends values to an arena and returns where they are.
fn append<T: Copy>(arena: &mut Vec<T>, values: &[T]) -> std::ops::Range<u32> {
    let start = arena.len() as u32;
    arena.extend_from_slice(values);
    start..arena.len() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PoolSpec;

    #[test]
    fn a_split_page_is_part_copy_and_part_writes() {
        let mut pool = KvPool::new(PoolSpec { pages: 3, page_bytes: 1 });
        pool.allocate(3);
        let [a, b, c] = [0, 1, 2].map(PageId);
        let mut builder = StepBuilder::new(8);
        // Page `a` has two tokens of earlier steps, then one of this step; `b` splits after it and goes on; `c` splits from `b`.
        builder.compute(TokenSource::Host(7), 2, a);
        builder.end_row(&[a], 2);
        builder.split_page(a, b, 3, &mut pool);
        builder.compute(TokenSource::Host(8), 3, b);
        builder.end_row(&[b], 3);
        builder.split_page(b, c, 4, &mut pool);
        builder.compute(TokenSource::Host(9), 4, c);
        builder.end_row(&[c], 4);
        let plan = builder.finish();
        let copy = |to| PageCopy { from: a, to, tokens: 2 };
        assert_eq!(plan.copies, [copy(b), copy(c)]);
        let writes = plan.writes.iter().map(|write| (write.token, write.page, write.offset));
        let expected = [(0, a, 2), (0, b, 2), (1, b, 3), (0, c, 2), (1, c, 3), (2, c, 4)];
        assert_eq!(writes.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_chunk_that_ends_before_a_split_reads_the_page_before_it() {
        let [first, before, after] = [0, 1, 2].map(PageId);
        let mut builder = StepBuilder::new(8);
        builder.compute(TokenSource::Host(1), 15, first);
        builder.compute(TokenSource::Host(1), 16, before);
        // The path splits at position 17, so its table has the page after the split.
        builder.end_row(&[first, after], 16);
        assert_eq!(builder.finish().block_tables, [first, before]);
    }
}
