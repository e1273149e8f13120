//! A device without a model, for tests: it checks every plan, and answers from what it reads back from the pages.
//!
//! A place of a page stores the hash of the whole prefix that ends there. A token is sampled as a function of that hash, read
//! through the row's page table, so a wrong page, a missing copy or an overwritten place changes the answer.
//!
//! A device that overlaps the host runs each pass as late as it may: when its result is asked for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::device::{Bind, Device, PoolSpec, StepTicket};
use crate::error::{Error, Result};
use crate::request::{TokenId, TokenLogprobs};
use crate::step::{Allowed, PAGE_TOKENS, PageCopy, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource};
use crate::tokenizer::Tokenizer;

/// Tokens that the device samples from.
pub(crate) const VOCAB: u32 = 8;
/// Ends an answer.
pub(crate) const END: TokenId = 0;

/// A place of a page: the hash of the prefix before its token, and with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    before: u64,
    hash: u64,
    position: usize,
}

#[derive(Debug)]
pub(crate) struct FakeDevice {
    pub(crate) pages: Vec<[Option<Place>; PAGE_TOKENS]>,
    pub(crate) results: HashMap<StepTicket, StepResult>,
    pub(crate) steps: u64,
    /// Whether passes wait in the queue until they are asked for.
    pub(crate) overlaps: bool,
    pub(crate) queue: VecDeque<(StepTicket, StepPlan)>,
    pub(crate) slots: HashMap<RowSlot, TokenId>,
    /// Fails, or panics, in this pass.
    pub(crate) fail_at: Option<u64>,
    pub(crate) panic_at: Option<u64>,
    pub(crate) page_bytes: usize,
    /// Pages of a slab, and the slabs that are taken; `None` for a pool in one piece.
    pub(crate) slabs: Option<(u32, HashSet<u32>)>,
}

impl FakeDevice {
    pub(crate) fn new(pages: u32) -> Self {
        let pages = vec![[None; PAGE_TOKENS]; pages as usize];
        FakeDevice {
            pages,
            results: HashMap::new(),
            steps: 0,
            overlaps: false,
            queue: VecDeque::new(),
            slots: HashMap::new(),
            fail_at: None,
            panic_at: None,
            page_bytes: 1,
            slabs: None,
        }
    }

    /// Panics unless the page's memory is taken.
    fn check_taken(&self, page: PageId) {
        let taken = self.slabs.as_ref().is_none_or(|(pages, taken)| taken.contains(&(page.0 / pages)));
        assert!(taken, "{page:?} has no memory");
    }

    /// Runs a pass from its copies to its samples.
    fn run(&mut self, ticket: StepTicket, plan: &StepPlan) -> Result<()> {
        if self.fail_at == Some(ticket.0) {
            return Err(Error::Device("it was told to fail".to_string()));
        }
        assert!(self.panic_at != Some(ticket.0), "it was told to panic");
        assert_eq!(plan.positions.len(), plan.tokens.len());
        plan.block_tables.iter().for_each(|page| self.check_taken(*page));
        plan.writes.iter().for_each(|write| self.check_taken(write.page));
        plan.copies.iter().flat_map(|copy| [copy.from, copy.to]).for_each(|page| self.check_taken(page));
        self.apply(&plan.copies);
        let mut places = HashSet::new();
        for write in &plan.writes {
            assert_eq!(write.offset as usize, plan.positions[write.token as usize] as usize % PAGE_TOKENS);
            assert!(places.insert((write.page, write.offset)), "a place is written once in a step");
        }
        let mut hashes = Vec::new();
        for row in &plan.rows {
            assert_eq!(row.tokens.start as usize, hashes.len(), "rows cover the tokens in order");
            self.row_pass(plan, row, &mut hashes);
        }
        assert_eq!(hashes.len(), plan.tokens.len());
        for (index, place) in hashes.iter().enumerate() {
            let mut writes = plan.writes.iter().filter(|write| write.token as usize == index);
            assert!(writes.next().is_some(), "token {place:?} is written");
        }
        for row in &plan.rows {
            self.check_context(plan, row, &hashes);
        }
        let sampled: Vec<TokenId> =
            plan.sample.iter().map(|sample| choose_of(plan, sample, hashes[sample.token as usize].hash)).collect();
        self.slots.extend(plan.sample.iter().zip(&sampled).map(|(sample, token)| (sample.slot, *token)));
        let logprobs = plan.sample.iter().zip(&sampled).map(|(sample, token)| Some(logprobs_of(*token, sample.logprobs?)));
        let (logprobs, top_logits) = (logprobs.collect(), vec![Vec::new(); plan.sample.len()]);
        let hidden = plan.sample.iter().map(|sample| match sample.allowed {
            Allowed::Hidden => state(hashes[sample.token as usize].hash),
            _ => Vec::new(),
        });
        self.results.insert(ticket, StepResult { sampled, top_logits, logprobs, hidden: hidden.collect() });
        Ok(())
    }

    fn row_pass(&mut self, plan: &StepPlan, row: &RowSpan, hashes: &mut Vec<Place>) {
        let table = &plan.block_tables[row.pages.start as usize..row.pages.end as usize];
        let first = plan.positions[row.tokens.start as usize] as usize;
        let last = first + row.tokens.len() - 1;
        assert_eq!(table.len(), last / PAGE_TOKENS + 1, "the table covers the row and no more");
        let mut before = match first.checked_sub(1) {
            Some(position) => {
                self.pages[table[position / PAGE_TOKENS].0 as usize][position % PAGE_TOKENS]
                    .expect("the token before a chunk is written before the chunk")
                    .hash
            }
            None => 0,
        };
        for (position, index) in (first..).zip(row.tokens.clone()) {
            assert_eq!(plan.positions[index as usize] as usize, position, "positions are consecutive");
            let token = match plan.tokens[index as usize] {
                TokenSource::Host(token) => token,
                TokenSource::Device(slot) => {
                    assert!(self.overlaps, "all tokens are known to the host");
                    self.slots[&slot]
                }
            };
            let hash = extend(before, token);
            hashes.push(Place { before, hash, position });
            before = hash;
        }
        for write in plan.writes.iter().filter(|write| row.tokens.contains(&write.token)) {
            self.pages[write.page.0 as usize][write.offset as usize] = Some(hashes[write.token as usize]);
        }
    }

    /// Reads a row's whole context through its table, as attention does once all writes are done.
    fn check_context(&self, plan: &StepPlan, row: &RowSpan, hashes: &[Place]) {
        let table = &plan.block_tables[row.pages.start as usize..row.pages.end as usize];
        let last = plan.positions[row.tokens.end as usize - 1] as usize;
        let mut before = 0;
        for position in 0..=last {
            let place = self.pages[table[position / PAGE_TOKENS].0 as usize][position % PAGE_TOKENS];
            let place = place.expect("every position of the context is written");
            assert_eq!((place.before, place.position), (before, position), "the context is one sequence");
            before = place.hash;
        }
        assert_eq!(before, hashes[row.tokens.end as usize - 1].hash, "the row's last token ends its context");
    }

    fn apply(&mut self, copies: &[PageCopy]) {
        let targets: HashSet<_> = copies.iter().map(|copy| copy.to).collect();
        assert_eq!(targets.len(), copies.len(), "a page is copied into once");
        for PageCopy { from, to, tokens } in copies {
            assert!(!targets.contains(from), "copies do not depend on each other");
            for offset in 0..*tokens as usize {
                let place = self.pages[from.0 as usize][offset];
                assert!(place.is_some(), "what is copied was written");
                self.pages[to.0 as usize][offset] = place;
            }
        }
    }
}

impl Device for FakeDevice {
    fn pool(&self) -> PoolSpec {
        PoolSpec { pages: self.pages.len() as u32, page_bytes: self.page_bytes }
    }

    fn describe(&self) -> String {
        "fake".to_string()
    }

    fn overlaps(&self) -> bool {
        self.overlaps
    }

    fn launch_open(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepTicket> {
        bind(plan);
        self.steps += 1;
        let ticket = StepTicket(self.steps);
        if self.overlaps {
            assert!(self.queue.len() < 2, "two passes are in flight");
            self.queue.push_back((ticket, plan.clone()));
        } else {
            self.run(ticket, plan)?;
        }
        Ok(ticket)
    }

    fn poll(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<bool> {
        if let Some(finished) = self.results.remove(&ticket) {
            *result = finished;
            return Ok(true);
        }
        let (oldest, plan) = self.queue.pop_front().expect("a pass is asked for until it is done");
        self.run(oldest, &plan)?;
        Ok(false)
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<()> {
        assert!(self.queue.is_empty(), "copies run in launch order");
        self.apply(copies);
        Ok(())
    }

    fn slab_pages(&self) -> u32 {
        self.slabs.as_ref().map_or(self.pages.len() as u32, |(pages, _)| *pages)
    }

    fn take_slab(&mut self, slab: u32) -> Result<()> {
        if let Some((_, taken)) = &mut self.slabs {
            assert!(taken.insert(slab), "a slab is taken once");
        }
        Ok(())
    }

    fn give_slab(&mut self, slab: u32) {
        assert!(self.queue.is_empty(), "a pass still uses the memory");
        let Some((pages, taken)) = &mut self.slabs else { return };
        assert!(taken.remove(&slab), "a slab is given back once");
        let first = (slab * *pages) as usize;
        let end = (first + *pages as usize).min(self.pages.len());
        self.pages[first..end].fill([None; PAGE_TOKENS]);
    }
}

/// A tokenizer whose tokens are the digits.
#[derive(Debug)]
pub(crate) struct Digits;

impl Digits {
    pub(crate) fn shared() -> Arc<dyn Tokenizer> {
        Arc::new(Digits)
    }
}

impl Tokenizer for Digits {
    fn encode(&self, text: &str) -> Vec<TokenId> {
        text.chars().filter_map(|digit| digit.to_digit(VOCAB)).collect()
    }

    fn encode_control(&self, text: &str) -> Vec<TokenId> {
        self.encode(text)
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        tokens.iter().map(TokenId::to_string).collect()
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        &b"01234567"[token as usize..][..1]
    }

    fn vocab_size(&self) -> usize {
        VOCAB as usize
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn render_chat(&self, system: &str, user: &str) -> Result<String> {
        Ok(format!("{system}{user}"))
    }
}

fn choose_of(plan: &StepPlan, sample: &SampleRow, hash: u64) -> TokenId {
    let allowed: Vec<TokenId> = match &sample.allowed {
        Allowed::All | Allowed::Hidden => (0..VOCAB).collect(),
        Allowed::Open => panic!("nothing is open once tokens are chosen"),
        Allowed::Candidates(range) => plan.candidates[range.start as usize..range.end as usize].to_vec(),
        Allowed::Mask(range) => set_bits(&plan.masks[range.start as usize..range.end as usize]),
    };
    choose(hash, sample.sampling.seed, sample.draw, &allowed)
}

/// Probabilities that tell the token and how many were asked for.
pub(crate) fn logprobs_of(token: TokenId, top: u32) -> TokenLogprobs {
    let logprob = -1.0 - token as f32;
    TokenLogprobs { logprob, top: vec![(token, logprob); top as usize] }
}

/// The token that follows a prefix: what the device samples, and what a test expects.
pub(crate) fn choose(hash: u64, seed: u64, draw: u32, allowed: &[TokenId]) -> TokenId {
    let draw = extend(extend(hash, seed as u32), draw);
    allowed[(draw >> 33) as usize % allowed.len()]
}

/// The state of a token: what the device returns, and what a test expects. Exact in f32, and different for different prefixes.
pub(crate) fn state(hash: u64) -> Vec<f32> {
    vec![(hash >> 41) as f32, 1.0, 2.0]
}

/// Returns the tokens whose bit is set.
pub(crate) fn set_bits(words: &[u32]) -> Vec<TokenId> {
    (0..words.len() as u32 * 32).filter(|token| words[*token as usize / 32] & (1 << (token % 32)) != 0).collect()
}

/// Returns the hash of a prefix with one more token.
pub(crate) fn extend(before: u64, token: TokenId) -> u64 {
    let mut hash = (before ^ u64::from(token).wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
