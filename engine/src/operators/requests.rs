//! The requests of one round on their way to the backend, batch by batch and as far as the budget admits them.

use std::iter::Peekable;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::StreamExt;
use futures::stream::{ReadyChunks, SelectAll};
use refrain_serving::{Batch, CompletionStream, Request};

use crate::operators::ask::Member;
use crate::operators::budget::Account;

/// Requests in one batch to the backend. Two batches are under way at a time, so that the backend always has work.
const BATCH_REQUESTS: usize = 8192;
/// Completions that are taken together where so many are ready: what they need is then locked once for all of them.
const COMPLETIONS_MAX: usize = 256;

/// The requests of one round that are not answered yet.
pub(super) struct Requests<'a> {
    pub(super) waiting: Peekable<std::vec::IntoIter<Request>>,
    pub(super) running: SelectAll<ReadyChunks<CompletionStream>>,
    pub(super) n_running: usize,
    /// A batch is submitted when no more than so many requests run.
    submit_at: usize,
    /// Of each member.
    pub(super) accounts: Vec<Account>,
    /// The member behind each request, and its place in the schedule.
    origin: &'a [(usize, usize)],
    head_len: u32,
    /// When the first of them was submitted.
    pub(super) first: Instant,
}

impl<'a> Requests<'a> {
    /// Lets requests of some members wait. `origin` is by id the member behind each request and its place in the schedule; all begin
    /// with the same `head_len` tokens.
    pub(super) fn new(requests: Vec<Request>, members: &[Member<'_>], origin: &'a [(usize, usize)], head_len: u32) -> Self {
        let account = |member: &Member| Account::new(&member.asker.budget, member.asker.call.options.max_tokens);
        Requests {
            waiting: requests.into_iter().peekable(),
            running: SelectAll::new(),
            n_running: 0,
            submit_at: BATCH_REQUESTS,
            accounts: members.iter().map(account).collect(),
            origin,
            head_len,
            first: Instant::now(),
        }
    }

    /// Submits as many batches as the backend should have.
    pub(super) fn submit_all(&mut self, members: &[Member<'_>]) {
        while self.n_running <= self.submit_at && self.submit(members) {}
    }

    /// Submits a batch of the requests that wait, as far as the budget admits them. Returns whether there was anything to submit.
    fn submit(&mut self, members: &[Member<'_>]) -> bool {
        let mut batch = Vec::new();
        self.submit_at = BATCH_REQUESTS;
        while batch.len() < BATCH_REQUESTS
            && let Some(request) = self.waiting.peek()
        {
            let (member, _) = self.origin[request.id.0 as usize];
            let asker = members[member].asker;
            if !self.accounts[member].admit(asker.tokens(request)) {
                // What running requests give back is waited for, rather than used for a batch of one at each completion.
                self.submit_at = (self.n_running + batch.len()) / 2;
                break;
            }
            asker.stats.calls.fetch_add(1, Ordering::Relaxed);
            asker.stats.tokens_total.fetch_add(request.prompt_len() as u64, Ordering::Relaxed);
            batch.extend(self.waiting.next());
        }
        let Some(first) = members.first().filter(|_| !batch.is_empty()) else { return false };
        self.n_running += batch.len();
        let keep_prefix = match first.asker.keeps_rows {
            true => batch.iter().map(row_len).max().unwrap_or(0),
            false => self.head_len,
        };
        let completions = first.asker.backend.submit(Batch {
            requests: batch,
            share_prefixes: first.asker.share_prefixes,
            priority: first.asker.priority,
            keep_prefix,
            ..Batch::default()
        });
        self.running.push(completions.ready_chunks(COMPLETIONS_MAX));
        true
    }
}

/// Returns the tokens of a prompt up to the end of its row, where the instruction comes last.
fn row_len(request: &Request) -> u32 {
    let tail = request.prompt.last().map_or(0, |tail| tail.len());
    (request.prompt_len() - tail) as u32
}
