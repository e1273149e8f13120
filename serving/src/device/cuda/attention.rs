//! The work of attention in a pass: items for the kernels of attention.cu, the same for all layers with the same window.
//!
//! An item is what one block does for each KV head: some neighbouring query tokens and a range of keys. A token's query heads of
//! a KV head are rows of the block's matrix products, so a few tokens of one row of the pass make an item of up to 16 rows, for
//! which the time is that of reading keys and values, and many tokens make tiles of up to 128.
//!
//! **Cuts.** Long ranges of keys are cut, so that many blocks work where there are few rows. Where depends on the length alone,
//! not on what else is in the pass: equal rows get equal bits.
//!
//! **Shared prefixes.** Rows that begin with the same pages read these once, as tiles over the tokens of all of them, without a
//! mask (as Hydragen, Juravsky et al. 2024, and ChunkAttention, Ye et al. 2024). Rows stand in depth-first order of the prefix
//! tree, so those that share are neighbours, and comparing neighbours' page tables finds the tree again. Its nodes are looked at
//! from the root down, and those whose [`saving`] is positive are read once, at most [`SHARED_LEVELS`] for a row; all of them or,
//! where that does not make up for two more kernels, none.
//!
//! **Batch invariance.** Cuts at fixed lengths are not all: whether a prefix is shared, and which kernel has a token, depend on what
//! else is in the pass. [`invariant_work`] lists work whose results do not.
//!
//! A token with several ranges of keys gets a partial result from each, and `merge_partials` puts them together.

use std::cmp::Reverse;
use std::num::NonZeroUsize;
use std::ops::Range;

use crate::step::{PAGE_TOKENS, PageId, StepPlan};

/// Matrix rows of an item of `attend_few`.
pub(super) const FEW_ROWS: u32 = 16;
/// Matrix rows of an item of `attend_tile`.
const TILE_ROWS: u32 = 128;
/// Shared prefixes of a row. Each costs its tokens another partial result.
const SHARED_LEVELS: u32 = 2;
/// Keys after which the warps of `attend_few` come to the same places again: each has every fourth page.
const FEW_ROUND: usize = 4 * PAGE_TOKENS;
/// Rows of the pass with more tiles than this keep several multiprocessors busy without cuts.
const CUT_TILES_MAX: u32 = 4;

/// What sharing must save for two more kernels in a row to pay: bytes that are read from the L2 cache meanwhile (17 µs of 6.3 TB/s,
/// measured on an H100 with 64 rows, where 512 shared keys of 4 KiB break even).
const SHARING_BYTES: f64 = 107e6;

/// What the model's attention is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Query heads of a KV head, at most [`FEW_ROWS`].
    pub(super) group: u32,
    /// Bytes of the keys and values of a token in one layer.
    pub(super) kv_bytes: usize,
}

/// Keys of an item, where it is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Of up to [`FEW_ROWS`] matrix rows.
    few: u32,
    /// Of more.
    tile: u32,
    /// Of a shared prefix: there are few of them, whose time is that of one block.
    shared: u32,
    /// Whether shared prefixes are read once.
    share: bool,
}

/// From the one wanted to one that needs no partial results.
const CUTS: [Cut; 4] = [
    Cut { few: 512, tile: 1024, shared: 256, share: true },
    Cut { few: 4096, tile: 4096, shared: 4096, share: true },
    Cut { few: u32::MAX, tile: u32::MAX, shared: u32::MAX, share: true },
    Cut { few: u32::MAX, tile: u32::MAX, shared: u32::MAX, share: false },
];

/// What one block does for each KV head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkItem {
    /// Tokens of the pass.
    pub(super) queries: Range<u32>,
    /// First entry in `StepPlan::block_tables` of the row whose pages are read.
    pub(super) table: u32,
    /// Positions of the keys; the first is the first of a page.
    pub(super) keys: Range<u32>,
    /// The position of the first query; `None` where all queries see all keys.
    pub(super) position: Option<u32>,
    /// Where the first query's partial result goes; `None` where the result is whole.
    pub(super) partial: Option<u32>,
}

impl WorkItem {
    /// Returns the item as the kernels read it.
    pub(super) fn words(&self) -> [i32; 8] {
        let WorkItem { queries, table, keys, position, partial } = self;
        let or_none = |value: &Option<u32>| value.map_or(-1, |value| value as i32);
        [
            queries.start as i32,
            queries.len() as i32,
            *table as i32,
            keys.start as i32,
            keys.end as i32,
            or_none(position),
            or_none(partial),
            0,
        ]
    }
}

/// The partial results of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) token: u32,
    /// In `Work::slots`.
    pub(super) slots: Range<u32>,
}

impl Merge {
    /// Returns the merge as the kernel reads it.
    pub(super) fn words(&self) -> [i32; 4] {
        [self.token as i32, self.slots.start as i32, self.slots.len() as i32, 0]
    }
}

/// The work of attention in a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Items of up to [`TILE_ROWS`] matrix rows, those with most keys first.
    pub(super) tiles: Vec<WorkItem>,
    /// Items of up to [`FEW_ROWS`] matrix rows, those with most keys first.
    pub(super) few: Vec<WorkItem>,
    /// Tokens with partial results.
    pub(super) merges: Vec<Merge>,
    /// Where the partial results of `merges` lie.
    pub(super) slots: Vec<u32>,
    /// Number of partial results.
    pub(super) partials: u32,
}

/// Lists the work of a checked plan in layers with `window`.
///
/// There will be no more than `partials_max` partial results; where they are too few, ranges of keys are cut less, and at last
/// prefixes are not shared.
pub(super) fn work(plan: &StepPlan, shape: Shape, window: Option<NonZeroUsize>, partials_max: usize) -> Work {
    let group = shape.group;
    let rows = rows_of(plan, group);
    // With a window, rows at different positions do not see the same keys.
    let shared = if window.is_none() { shared_prefixes(&rows, shape) } else { Vec::new() };
    let fitting = CUTS.iter().find_map(|&cut| {
        let work = Planner { group, window, cut, owed: Vec::new(), work: Work::default() }.plan(&rows, &shared);
        (work.partials as usize <= partials_max).then_some(work)
    });
    fitting.expect("the last cut has no partial results")
}

/// Lists the work of a checked plan in layers with `window` such that the bits of a token's result depend on its position and on the
/// keys and values that it sees alone: not on what else is in the pass, nor on how its row was cut into chunks.
///
/// Every token has one item of `attend_few`, over all its keys. Its company there has the same last page, and ranges begin where the
/// same warp has the first page: further pages would not be seen, but rounding of the running maximum could still show.
pub(super) fn invariant_work(plan: &StepPlan, group: u32, window: Option<NonZeroUsize>) -> Work {
    let mut work = Work::default();
    for row in rows_of(plan, group) {
        let (mut token, page) = (row.tokens.start, PAGE_TOKENS as u32);
        while token < row.tokens.end {
            let position = row.position + token - row.tokens.start;
            let count = (FEW_ROWS / group).min(page - position % page).min(row.tokens.end - token);
            let seen = window.map_or(0, |window| (position as usize + 1).saturating_sub(window.get()));
            let first = seen / FEW_ROUND * FEW_ROUND;
            work.few.push(WorkItem {
                queries: token..token + count,
                table: row.table,
                keys: first as u32..position + count,
                position: Some(position),
                partial: None,
            });
            token += count;
        }
    }
    work.few.sort_by_key(|item| Reverse(item.keys.len()));
    work
}

/// A row of the pass that has tokens.
#[derive(Clone, Debug)]
struct Row<'a> {
    tokens: Range<u32>,
    /// Position of its first token.
    position: u32,
    /// First entry in `StepPlan::block_tables`.
    table: u32,
    /// Pages that all its tokens see to the end, with at least one key more after them.
    full: &'a [PageId],
    /// Tiles of its tokens, if they are more than a few.
    tiles: Option<u32>,
}

fn rows_of(plan: &StepPlan, group: u32) -> Vec<Row<'_>> {
    let rows = plan.rows.iter().filter(|row| !row.tokens.is_empty());
    rows.map(|row| {
        let position = plan.positions[row.tokens.start as usize];
        let pages = &plan.block_tables[row.pages.start as usize..row.pages.end as usize];
        let matrix_rows = row.tokens.len() as u32 * group;
        Row {
            tokens: row.tokens.clone(),
            position,
            table: row.pages.start,
            full: &pages[..position as usize / PAGE_TOKENS],
            tiles: (matrix_rows > FEW_ROWS).then(|| (row.tokens.len() as u32).div_ceil(TILE_ROWS / group)),
        }
    })
    .collect()
}

/// Returns for each row how many leading pages it shares with the row before; 0 for the first.
fn common_pages(rows: &[Row<'_>]) -> Vec<u32> {
    let equal = |pair: &[Row<'_>]| pair[0].full.iter().zip(pair[1].full).take_while(|(a, b)| a == b).count() as u32;
    std::iter::once(0).chain(rows.windows(2).map(equal)).take(rows.len()).collect()
}

/// A prefix that is read once for several rows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    rows: Range<usize>,
    /// In the page table of each of the rows; what comes before is shared as well.
    pages: Range<u32>,
}

/// Returns the prefixes to be read once, each before those of its subtrees.
fn shared_prefixes(rows: &[Row<'_>], shape: Shape) -> Vec<Shared> {
    let mut walk = TreeWalk { rows, common: common_pages(rows), group: shape.group, shared: Vec::new(), saved: 0.0 };
    walk.visit(0..rows.len(), 0, SHARED_LEVELS);
    if walk.saved * shape.kv_bytes as f64 > SHARING_BYTES { walk.shared } else { Vec::new() }
}

/// Finds the tree of prefixes in what neighbouring rows have in common.
struct TreeWalk<'a> {
    rows: &'a [Row<'a>],
    common: Vec<u32>,
    group: u32,
    shared: Vec<Shared>,
    saved: f64,
}

impl TreeWalk<'_> {
    /// Decides about the subtree of `rows`, of which the first `depth` pages are shared already, with `levels` more to go.
    fn visit(&mut self, rows: Range<usize>, depth: u32, levels: u32) {
        if rows.len() < 2 || levels == 0 {
            return;
        }
        let common = self.common[rows.start + 1..rows.end].iter().copied().min().expect("there are two rows");
        let pages = depth..common.max(depth);
        let saved = saving(&self.rows[rows.clone()], (pages.len() * PAGE_TOKENS) as u32, self.group);
        let (mut depth, mut levels) = (depth, levels);
        if saved > 0.0 {
            self.saved += saved;
            (depth, levels) = (common, levels - 1);
            self.shared.push(Shared { rows: rows.clone(), pages });
        }
        // Neighbours within a subtree share more.
        let mut first = rows.start;
        for end in rows.start + 1..=rows.end {
            if end == rows.end || self.common[end] <= common {
                self.visit(first..end, depth, levels);
                first = end;
            }
        }
    }
}

/// Returns what is saved by reading `keys` keys once for all of `rows`, in keys that are read once for one row. Measured on an
/// H100.
fn saving(rows: &[Row<'_>], keys: u32, group: u32) -> f64 {
    /// The time in which a block of `attend_tile` goes past a key.
    const TILE: f64 = 2.0;
    /// To write and read a partial result, for each query head of a KV head.
    const PARTIAL: f64 = 3.0;
    let tokens: u32 = rows.iter().map(|row| row.tokens.len() as u32).sum();
    let apart: f64 = rows.iter().map(|row| row.tiles.map_or(1.0, |tiles| f64::from(tiles) * TILE)).sum();
    let together = f64::from(tokens.div_ceil(TILE_ROWS / group)) * TILE;
    let partials = 1.0 + f64::from(keys) / f64::from(CUTS[0].shared);
    (apart - together) * f64::from(keys) - partials * f64::from(tokens * group) * PARTIAL
}

struct Planner {
    group: u32,
    window: Option<NonZeroUsize>,
    cut: Cut,
    /// Tokens and the slots of their partial results.
    owed: Vec<(u32, u32)>,
    work: Work,
}

impl Planner {
    fn plan(mut self, rows: &[Row<'_>], shared: &[Shared]) -> Work {
        let mut shared_pages = vec![0; rows.len()];
        for shared in if self.cut.share { shared } else { &[] } {
            let of = &rows[shared.rows.clone()];
            let keys = shared.pages.start * PAGE_TOKENS as u32..shared.pages.end * PAGE_TOKENS as u32;
            for queries in chunks(of[0].tokens.start..of[of.len() - 1].tokens.end, TILE_ROWS / self.group) {
                self.add(queries, of[0].table, keys.clone(), None, self.cut.shared, true);
            }
            shared_pages[shared.rows.clone()].fill(shared.pages.end);
        }
        for (row, shared) in rows.iter().zip(shared_pages) {
            self.add_row(row, shared);
        }
        let Planner { mut owed, mut work, .. } = self;
        work.tiles.sort_by_key(|item| Reverse(item.keys.len()));
        work.few.sort_by_key(|item| Reverse(item.keys.len()));
        owed.sort_by_key(|&(token, _)| token);
        for of_token in owed.chunk_by(|a, b| a.0 == b.0) {
            let first = work.slots.len() as u32;
            work.slots.extend(of_token.iter().map(|&(_, slot)| slot));
            work.merges.push(Merge { token: of_token[0].0, slots: first..work.slots.len() as u32 });
        }
        work
    }

    /// Adds what a row reads itself: all but its first `shared` pages.
    fn add_row(&mut self, row: &Row<'_>, shared: u32) {
        let cut_tile = if row.tiles.is_some_and(|tiles| tiles > CUT_TILES_MAX) { u32::MAX } else { self.cut.tile };
        let rows = if row.tiles.is_some() { TILE_ROWS } else { FEW_ROWS };
        for queries in chunks(row.tokens.clone(), rows / self.group) {
            let position = row.position + queries.start - row.tokens.start;
            let seen = self.window.map_or(0, |window| (position as usize + 1).saturating_sub(window.get()));
            let first = (shared as usize).max(seen / PAGE_TOKENS) * PAGE_TOKENS;
            let keys = first as u32..position + queries.len() as u32;
            let few = queries.len() as u32 * self.group <= FEW_ROWS;
            self.add(queries, row.table, keys, Some(position), if few { self.cut.few } else { cut_tile }, shared > 0);
        }
    }

    /// Adds items over `keys`, cut at multiples of `size`; `partial` where the queries have other items as well.
    fn add(&mut self, queries: Range<u32>, table: u32, keys: Range<u32>, position: Option<u32>, size: u32, partial: bool) {
        // What is left over makes the last range longer by up to a half, or is a range if it is more.
        let count = keys.len() as u32;
        let ranges = ((count / size) + u32::from(count % size > size / 2)).max(1);
        for range in 0..ranges {
            let first = keys.start + range * size;
            let end = if range + 1 == ranges { keys.end } else { first + size };
            let slot = (partial || ranges > 1).then_some(self.work.partials);
            if let Some(slot) = slot {
                self.owed.extend(queries.clone().zip(slot..));
                self.work.partials += queries.len() as u32;
            }
            let few = queries.len() as u32 * self.group <= FEW_ROWS;
            let items = if few { &mut self.work.few } else { &mut self.work.tiles };
            items.push(WorkItem { queries: queries.clone(), table, keys: first..end, position, partial: slot });
        }
    }
}

/// Cuts a range into ranges of up to `size`.
fn chunks(range: Range<u32>, size: u32) -> impl Iterator<Item = Range<u32>> {
    let end = range.end;
    range.step_by(size as usize).map(move |first| first..(first + size).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::reference::Random;
    use crate::step::RowSpan;

    /// Rows of (first page ids, cached tokens, new tokens); pages that are not given are the row's own.
    fn plan(rows: &[(&[u32], u32, u32)]) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut fresh = 1 << 20;
        for &(prefix, cached, new) in rows {
            let (token, table) = (plan.positions.len() as u32, plan.block_tables.len() as u32);
            plan.positions.extend(cached..cached + new);
            let pages = (cached + new).div_ceil(PAGE_TOKENS as u32);
            for page in 0..pages {
                fresh += 1;
                plan.block_tables.push(PageId(prefix.get(page as usize).copied().unwrap_or(fresh)));
            }
            plan.rows.push(RowSpan { tokens: token..token + new, pages: table..table + pages });
        }
        plan
    }

    /// Checks that each token sees each of its keys once, by its own row's pages, and that partial results add up.
    #[track_caller]
    fn check(plan: &StepPlan, group: u32, window: Option<usize>, partials_max: usize) -> Work {
        let shape = Shape { group, kv_bytes: 4096 };
        let work = work(plan, shape, window.and_then(NonZeroUsize::new), partials_max);
        assert!(work.partials as usize <= partials_max);
        check_work(plan, group, window, &work);
        let invariant = invariant_work(plan, group, window.and_then(NonZeroUsize::new));
        check_work(plan, group, window, &invariant);
        assert!(invariant.tiles.is_empty() && invariant.merges.is_empty());
        for item in &invariant.few {
            assert!(item.partial.is_none() && (item.keys.start as usize).is_multiple_of(FEW_ROUND), "{item:?}");
            let last = item.position.unwrap() + item.queries.len() as u32 - 1;
            assert_eq!(last / PAGE_TOKENS as u32, item.position.unwrap() / PAGE_TOKENS as u32, "{item:?}");
        }
        work
    }

    /// Checks work of either kind.
    #[track_caller]
    fn check_work(plan: &StepPlan, group: u32, window: Option<usize>, work: &Work) {
        let tokens = plan.positions.len();
        let longest = plan.positions.iter().max().map_or(0, |&position| position as usize + 1);
        let mut seen = vec![vec![0u32; longest]; tokens];
        let mut slots = vec![Vec::new(); tokens];
        let mut whole = vec![0; tokens];
        let row_of = |token: u32| plan.rows.iter().find(|row| row.tokens.contains(&token)).unwrap();
        for (items, most) in [(&work.tiles, TILE_ROWS), (&work.few, FEW_ROWS)] {
            assert!(items.is_sorted_by_key(|item| Reverse(item.keys.len())));
            for item in items {
                assert!(!item.queries.is_empty() && item.queries.len() as u32 * group <= most, "{item:?}");
                assert!(!item.keys.is_empty() && item.keys.start % PAGE_TOKENS as u32 == 0, "{item:?}");
                for (i, token) in (0..).zip(item.queries.clone()) {
                    let position = plan.positions[token as usize];
                    let of_item = item.position.map_or(u32::MAX, |first| first + i);
                    assert!(of_item == position || item.position.is_none());
                    let from = window.map_or(0, |window| (position + 1).saturating_sub(window as u32));
                    for key in item.keys.clone().filter(|&key| key <= of_item && key >= from) {
                        seen[token as usize][key as usize] += 1;
                        let page = key / PAGE_TOKENS as u32;
                        let mine = plan.block_tables[(row_of(token).pages.start + page) as usize];
                        assert_eq!(plan.block_tables[(item.table + page) as usize], mine);
                    }
                    match item.partial {
                        Some(slot) => slots[token as usize].push(slot + i),
                        None => whole[token as usize] += 1,
                    }
                }
            }
        }
        for (token, &position) in plan.positions.iter().enumerate() {
            let from = window.map_or(0, |window| (position as usize + 1).saturating_sub(window));
            let expected = (0..longest).map(|key| u32::from(key >= from && key <= position as usize));
            assert!(seen[token].iter().copied().eq(expected), "token {token} at {position}: {:?}", seen[token]);
        }
        let mut merged = vec![Vec::<u32>::new(); tokens];
        for merge in &work.merges {
            merged[merge.token as usize].extend(&work.slots[merge.slots.start as usize..merge.slots.end as usize]);
        }
        for token in 0..tokens {
            slots[token].sort_unstable();
            merged[token].sort_unstable();
            assert_eq!(slots[token], merged[token]);
            assert!(whole[token] == 1 && slots[token].is_empty() || whole[token] == 0 && slots[token].len() > 1);
        }
        let mut all: Vec<u32> = slots.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..work.partials), "each slot belongs to one token");
    }

    #[test]
    fn a_token_that_decodes_is_an_item_and_a_prompt_is_tiles() {
        let work = check(&plan(&[(&[], 419, 1), (&[], 0, 70)]), 4, None, 1000);
        let item =
            |queries, table, keys, position| WorkItem { queries, table, keys, position: Some(position), partial: None };
        assert_eq!(work.few, [item(0..1, 0, 0..420, 419)]);
        assert_eq!(work.tiles, [item(65..71, 27, 0..70, 64), item(33..65, 27, 0..64, 32), item(1..33, 27, 0..32, 0)]);
        assert_eq!(work.few[0].words(), [0, 1, 0, 0, 420, 419, -1, 0]);
    }

    #[test]
    fn long_contexts_are_cut() {
        let work = check(&plan(&[(&[], 2000, 1), (&[], 700, 1)]), 4, None, 1000);
        let keys: Vec<_> = work.few.iter().map(|item| item.keys.clone()).collect();
        assert_eq!(keys, [0..701, 0..512, 512..1024, 1024..1536, 1536..2001]);
        assert_eq!(work.merges, [Merge { token: 0, slots: 0..4 }]);
        assert!(check(&plan(&[(&[], 2000, 1)]), 4, None, 3).merges.is_empty());
    }

    #[test]
    fn a_window_leaves_out_pages() {
        let work = check(&plan(&[(&[], 1000, 2)]), 2, Some(100), 1000);
        assert_eq!(work.few[0].keys, 896..1002);
        check(&plan(&[(&[], 3, 200), (&[], 90, 40)]), 4, Some(33), 1000);
    }

    #[test]
    fn a_prefix_of_many_rows_is_read_once() {
        let prefix: Vec<u32> = (0..64).collect();
        let rows: Vec<_> = (0..64).map(|i| (&prefix[..], 1024 + i % 40, 1)).collect();
        let work = check(&plan(&rows), 4, None, 1000);
        let items = work.tiles.iter().map(|item| (item.keys.clone(), item.queries.clone())).collect::<Vec<_>>();
        assert_eq!(
            items,
            [0..32, 32..64]
                .map(|queries| [0..256, 256..512, 512..768, 768..1024].map(|keys| (keys, queries.clone())))
                .concat()
        );
        assert!(work.tiles.iter().all(|item| item.position.is_none()));
        assert_eq!(work.partials, 5 * 64);
        assert_eq!(check(&plan(&rows), 4, None, 150).partials, 2 * 64);
        assert_eq!(check(&plan(&rows), 4, None, 100).partials, 0);
    }

    #[test]
    fn a_short_prefix_or_a_few_rows_are_read_apart() {
        let prefix: Vec<u32> = (0..64).collect();
        let few: Vec<_> = (0..8).map(|_| (&prefix[..], 1030, 1)).collect();
        assert!(check(&plan(&few), 4, None, 1000).tiles.is_empty());
        let short: Vec<_> = (0..64).map(|_| (&prefix[..16], 300, 1)).collect();
        assert!(check(&plan(&short), 4, None, 1000).tiles.is_empty());
    }

    #[test]
    fn levels_of_a_tree_are_read_once_each() {
        let prefixes: Vec<Vec<u32>> = (0..4).map(|i| (0..16).chain(1000 * (i + 1)..1000 * (i + 1) + 32).collect()).collect();
        let rows: Vec<_> = (0..128).map(|i| (&prefixes[i / 32][..], 768 + 5, 1)).collect();
        let work = check(&plan(&rows), 4, None, 4000);
        let keys = |range: Range<u32>| work.tiles.iter().filter(|item| item.keys == range).count();
        assert_eq!((keys(0..256), keys(256..512), keys(512..768)), (4, 4, 4));
        assert_eq!(work.partials, 4 * 128);
    }

    #[test]
    fn every_key_is_seen_once_whatever_the_plan() {
        let mut random = Random::new(5);
        for _ in 0..200 {
            let prefixes: Vec<Vec<u32>> = (0..3)
                .map(|i| (0..100).map(|page| if page < 40 { page } else { 1000 * (i + 1) + page }).collect())
                .collect();
            let mut below = |n: u64| random.below(n) as u32;
            let count = 1 + below(70) as usize;
            let mut drawn: Vec<_> = (0..count)
                .map(|_| {
                    (
                        below(3) as usize,
                        below(90) as usize,
                        [0, 5, 300, 700, 1500][below(5) as usize],
                        [0, 1, 1, 1, 3, 50][below(6) as usize],
                    )
                })
                .collect();
            drawn.sort_unstable();
            let rows: Vec<_> = drawn
                .iter()
                // Pages that are shared are full of cached tokens.
                .map(|&(tree, pages, cached, new)| {
                    (&prefixes[tree][..pages.min(cached as usize / PAGE_TOKENS)], cached, new)
                })
                .collect();
            let group = [1, 2, 3, 4, 7, 16][below(6) as usize];
            let window = [None, None, Some(1), Some(64), Some(1000)][below(5) as usize];
            check(&plan(&rows), group, window, [0, 50, 100_000][below(3) as usize]);
        }
    }
}
