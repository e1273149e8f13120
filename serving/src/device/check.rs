//! Validates a plan once, so that the kernels may index without asking.

use std::ops::Range;

use super::Bind;
use crate::error::{Error, Result};
use crate::request::{Sampling, TokenId};
use crate::step::{Allowed, KvWrite, PAGE_TOKENS, PageCopy, PageId, RowSlot, RowSpan, SampleRow, StepPlan};

/// Slots are numbered below this: the device keeps a token for each number.
pub(super) const SLOTS_MAX: u32 = 1 << 20;

/// What a plan must agree with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Pages of the pool.
    pub(super) pages: u32,
    /// Size of the vocabulary.
    pub(super) vocabulary: usize,
}

/// Fails with `Error::Device`, naming what is wrong, if `plan` breaks a promise of `StepPlan`. Input tokens are not looked at, nor
/// what is left open.
pub(super) fn check_plan(plan: &StepPlan, limits: Limits) -> Result<()> {
    let StepPlan { tokens, positions, writes, rows, block_tables, sample, copies, .. } = plan;
    ensure(tokens.len() == positions.len(), || format!("{} tokens have {} positions", tokens.len(), positions.len()))?;
    ensure(u32::try_from(tokens.len()).is_ok(), || format!("{} tokens are too many", tokens.len()))?;
    for &page in block_tables {
        check_page(page, limits)?;
    }
    check_rows(rows, positions, block_tables.len())?;
    check_writes(writes, positions, limits)?;
    for sample in sample {
        check_sample(sample, plan, limits)?;
    }
    check_copies(copies, limits)
}

/// Lets `bind` say what a checked plan leaves open, and fails if what it says is malformed or nothing.
pub(super) fn bind_plan(plan: &mut StepPlan, bind: Bind<'_>, limits: Limits) -> Result<()> {
    if !plan.is_open() {
        return Ok(());
    }
    bind(plan);
    ensure(!plan.is_open(), || "what a sample may choose was left open".to_string())?;
    plan.sample.iter().try_for_each(|sample| check_sample(sample, plan, limits))
}

/// Fails if a copy names pages or tokens that do not exist.
pub(super) fn check_copies(copies: &[PageCopy], limits: Limits) -> Result<()> {
    copies.iter().try_for_each(|copy| {
        check_page(copy.from, limits)?;
        check_page(copy.to, limits)?;
        ensure(copy.tokens as usize <= PAGE_TOKENS, || format!("{copy:?} copies more than a page"))
    })
}

/// Fails if a token is not of the vocabulary.
pub(super) fn check_token(token: TokenId, limits: Limits) -> Result<()> {
    ensure((token as usize) < limits.vocabulary, || {
        format!("token {token} is outside a vocabulary of {}", limits.vocabulary)
    })
}

fn check_rows(rows: &[RowSpan], positions: &[u32], tables: usize) -> Result<()> {
    let mut covered = 0;
    for row in rows {
        let RowSpan { tokens, pages } = row;
        ensure(tokens.start == covered && tokens.start <= tokens.end, || {
            format!("{row:?} leaves a gap after token {covered}")
        })?;
        ensure(inside(tokens, positions.len()), || format!("{row:?} ends after {} tokens", positions.len()))?;
        ensure(inside(pages, tables), || format!("{row:?} ends after {tables} block table entries"))?;
        covered = tokens.end;
        let positions = &positions[tokens.start as usize..tokens.end as usize];
        let consecutive = positions.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
        ensure(consecutive, || format!("the positions of {row:?} are not consecutive"))?;
        let room = pages.len() * PAGE_TOKENS;
        let last = positions.last().map_or(0, |&last| last as usize + 1);
        ensure(last <= room, || format!("{row:?} has pages for {room} positions and needs {last}"))?;
    }
    ensure(covered as usize == positions.len(), || format!("rows cover {covered} of {} tokens", positions.len()))
}

fn check_writes(writes: &[KvWrite], positions: &[u32], limits: Limits) -> Result<()> {
    let mut written = vec![false; positions.len()];
    for write in writes {
        check_page(write.page, limits)?;
        let position = positions.get(write.token as usize);
        ensure(position.is_some_and(|&at| at % PAGE_TOKENS as u32 == write.offset), || {
            format!("{write:?} misses its token")
        })?;
        written[write.token as usize] = true;
    }
    match written.iter().position(|written| !written) {
        None => Ok(()),
        Some(token) => Err(Error::Device(format!("malformed plan: token {token} is never written"))),
    }
}

fn check_sample(sample: &SampleRow, plan: &StepPlan, limits: Limits) -> Result<()> {
    let SampleRow { token, slot, allowed, sampling, .. } = sample;
    let StepPlan { candidates, masks, .. } = plan;
    ensure((*token as usize) < plan.tokens.len(), || format!("a sample after token {token} of {}", plan.tokens.len()))?;
    check_slot(*slot)?;
    check_sampling(sampling)?;
    match allowed {
        Allowed::All | Allowed::Hidden | Allowed::Open => Ok(()),
        Allowed::Candidates(range) => {
            ensure(inside(range, candidates.len()) && !range.is_empty(), || format!("no candidates lie at {range:?}"))?;
            candidates[range.start as usize..range.end as usize].iter().try_for_each(|&token| check_token(token, limits))
        }
        Allowed::Mask(range) => {
            let words = limits.vocabulary.div_ceil(32);
            ensure(inside(range, masks.len()) && range.len() == words, || {
                format!("no mask of {words} words lies at {range:?}")
            })?;
            let mask = &masks[range.start as usize..range.end as usize];
            let any = (0..limits.vocabulary).any(|token| mask[token / 32] >> (token % 32) & 1 == 1);
            ensure(any, || format!("the mask at {range:?} allows no token"))
        }
    }
}

/// Fails if a slot's number is beyond what the device keeps.
pub(super) fn check_slot(slot: RowSlot) -> Result<()> {
    ensure(slot.0 < SLOTS_MAX, || format!("slot {} is beyond {SLOTS_MAX}", slot.0))
}

fn check_sampling(sampling: &Sampling) -> Result<()> {
    let Sampling { temperature, top_p, .. } = *sampling;
    let sound = temperature >= 0.0 && temperature.is_finite() && (0.0..=1.0).contains(&top_p);
    ensure(sound, || format!("temperature {temperature} or top_p {top_p} is out of range"))
}

fn check_page(page: PageId, limits: Limits) -> Result<()> {
    ensure(page.0 < limits.pages, || format!("page {} is outside a pool of {}", page.0, limits.pages))
}

fn inside(range: &Range<u32>, len: usize) -> bool {
    range.start <= range.end && range.end as usize <= len
}

fn ensure(holds: bool, fault: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Device(format!("malformed plan: {}", fault()))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::TokenSource;

    fn sound() -> StepPlan {
        let write = |token: u32| KvWrite { token, page: PageId(1), offset: 3 + token };
        StepPlan {
            tokens: vec![TokenSource::Host(1); 3],
            positions: vec![3, 4, 5],
            writes: (0..3).map(write).collect(),
            rows: vec![RowSpan { tokens: 0..3, pages: 0..1 }],
            block_tables: vec![PageId(1)],
            sample: vec![SampleRow {
                token: 2,
                slot: RowSlot(0),
                allowed: Allowed::All,
                sampling: Sampling::GREEDY,
                draw: 0,
                top_logits: 0,
                logprobs: None,
            }],
            candidates: vec![7, 40],
            masks: vec![0, 1 << 8],
            copies: vec![PageCopy { from: PageId(0), to: PageId(1), tokens: 16 }],
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut StepPlan), fault: &str) {
        let mut plan = sound();
        change(&mut plan);
        let error = check_plan(&plan, Limits { pages: 2, vocabulary: 40 })
            .map_or_else(|error| error.to_string(), |()| "sound".into());
        assert!(error.contains(fault), "{error}");
    }

    #[test]
    fn says_what_is_wrong() {
        check(|_| (), "sound");
        check(|p| p.sample[0].allowed = Allowed::Candidates(0..1), "sound");
        check(|p| p.positions.truncate(2), "3 tokens have 2 positions");
        check(|p| p.positions[1] = 9, "not consecutive");
        check(|p| p.positions = vec![14, 15, 16], "needs 17");
        check(|p| p.block_tables[0] = PageId(2), "page 2 is outside a pool of 2");
        check(|p| p.rows[0].tokens = 0..2, "rows cover 2 of 3");
        check(|p| p.rows[0].tokens = 1..3, "gap");
        check(|p| p.rows[0].tokens = 0..9, "ends after 3 tokens");
        check(|p| p.rows[0].pages = 0..2, "ends after 1 block table");
        check(|p| p.writes.truncate(2), "token 2 is never written");
        check(|p| p.writes[0].offset = 2, "misses its token");
        check(|p| p.writes[0].token = 3, "misses its token");
        check(|p| p.writes[0].page = PageId(9), "page 9");
        check(|p| p.sample[0].token = 3, "sample after token 3");
        check(|p| p.sample[0].slot = RowSlot(u32::MAX), "slot");
        check(|p| p.sample[0].sampling.temperature = f32::NAN, "temperature");
        check(|p| p.sample[0].sampling.top_p = 1.5, "top_p");
        check(|p| p.sample[0].allowed = Allowed::Candidates(0..0), "no candidates");
        check(|p| p.sample[0].allowed = Allowed::Candidates(0..2), "token 40 is outside");
        check(|p| p.sample[0].allowed = Allowed::Candidates(0..3), "no candidates");
        check(|p| p.sample[0].allowed = Allowed::Mask(0..1), "no mask of 2 words");
        check(|p| p.sample[0].allowed = Allowed::Mask(0..2), "allows no token");
        check(|p| p.copies[0].tokens = 17, "more than a page");
        check(|p| p.copies[0].to = PageId(5), "page 5");
    }

    #[test]
    fn what_is_bound_late_is_checked_as_well() {
        let bind = |allowed: Allowed| {
            let mut plan = sound();
            plan.sample[0].allowed = Allowed::Open;
            let limits = Limits { pages: 2, vocabulary: 40 };
            check_plan(&plan, limits).unwrap();
            let bound = bind_plan(&mut plan, &mut |plan| plan.sample[0].allowed = allowed.clone(), limits);
            bound.map_or_else(|error| error.to_string(), |()| "sound".into())
        };
        assert_eq!(bind(Allowed::Candidates(0..1)), "sound");
        assert!(bind(Allowed::Candidates(0..2)).contains("token 40 is outside"));
        assert!(bind(Allowed::Open).contains("left open"));
    }
}
