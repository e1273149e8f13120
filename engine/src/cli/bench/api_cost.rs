//! What prompts would cost at a provider that bills by the token and discounts what its cache holds.
//!
//! Two kinds of caches are simulated over the tokens of prompts in the order in which they are sent. Both are taken to hold everything
//! that was sent before, which for the minutes of a batch they do.
//!
//! - **Automatic** (OpenAI): the longest prefix that an earlier prompt had counts as cached, in whole pieces, if it is long enough.
//! - **Marked** (Anthropic): a request marks up to four places where prefixes end that later ones will want; what is written up to the last
//!   of them costs more, what is read up to an earlier mark less. Marks are set where later prompts depart, which whoever knows the
//!   order can do.

/// How a provider discounts what it has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cache {
    /// Prefixes are found in pieces of so many tokens.
    Automatic { piece: usize },
    /// Prefixes are found where an earlier request has marked their end; what is written for that costs `write` times as much.
    Marked { write: f64 },
}

/// Marks that one request may set.
const MARKS_MAX: usize = 4;

/// A price list, in dollars for a million tokens of prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Provider {
    pub(super) name: &'static str,
    input: f64,
    /// What a cached token costs, as a share of another.
    read: f64,
    /// Shorter prefixes are not cached.
    least: usize,
    cache: Cache,
}

/// Published prices of the two models that the paper billed.
pub(super) const PROVIDERS: [Provider; 2] = [
    Provider { name: "GPT-4o mini", input: 0.15, read: 0.5, least: 1024, cache: Cache::Automatic { piece: 128 } },
    Provider { name: "Claude 3.5 Sonnet", input: 3.0, read: 0.1, least: 1024, cache: Cache::Marked { write: 1.25 } },
];

/// What prompts cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bill {
    /// All tokens of prompts.
    pub(super) tokens: u64,
    /// Read from the cache.
    pub(super) read: u64,
    /// Written to it at a price of its own.
    pub(super) written: u64,
    /// In dollars.
    pub(super) dollars: f64,
}

impl Provider {
    /// Bills prompts that are sent one after the other.
    pub(super) fn bill(&self, prompts: &[Vec<u32>]) -> Bill {
        let mut bill = Bill::default();
        let read_and_written: Vec<(usize, usize)> = match self.cache {
            Cache::Automatic { piece } => {
                let found = shared_with_earlier(prompts).into_iter().map(|shared| shared / piece * piece);
                found.map(|found| if found >= self.least { (found, 0) } else { (0, 0) }).collect()
            }
            Cache::Marked { .. } => self.marked(prompts),
        };
        for (prompt, (read, written)) in prompts.iter().zip(read_and_written) {
            bill.tokens += prompt.len() as u64;
            bill.read += read as u64;
            bill.written += written as u64;
        }
        let write = if let Cache::Marked { write } = self.cache { write } else { 1.0 };
        let plain = bill.tokens - bill.read - bill.written;
        let weighted = plain as f64 + self.read * bill.read as f64 + write * bill.written as f64;
        bill.dollars = weighted * self.input / 1e6;
        bill
    }

    /// Returns the tokens that each prompt reads from a cache with marks, and those that it writes there.
    fn marked(&self, prompts: &[Vec<u32>]) -> Vec<(usize, usize)> {
        let with_next: Vec<usize> = prompts.windows(2).map(|pair| common(&pair[0], &pair[1])).collect();
        // The lengths of the prefixes of the prompt in hand that are in the cache, rising.
        let mut marks: Vec<usize> = Vec::new();
        let mut found = Vec::with_capacity(prompts.len());
        for at in 0..prompts.len() {
            let with_last = at.checked_sub(1).map_or(0, |last| with_next[last]);
            marks.retain(|mark| *mark <= with_last);
            let read = marks.last().copied().unwrap_or(0);
            // Where later prompts depart, the nearest first, as long as that is beyond what is read.
            let mut wanted: Vec<usize> = Vec::new();
            for &shared in &with_next[at..] {
                let shared = shared.min(wanted.last().copied().unwrap_or(usize::MAX));
                if shared <= read || shared < self.least || wanted.len() == MARKS_MAX && shared < wanted[MARKS_MAX - 1] {
                    break;
                }
                if wanted.last() != Some(&shared) {
                    wanted.push(shared);
                }
            }
            found.push((read, wanted.first().map_or(0, |end| end - read)));
            marks.extend(wanted.into_iter().rev());
        }
        found
    }

    /// What a share of cached tokens saves by the paper's formula, against another share. The paper bills what is written to a marked cache as if
    /// it were also sent (2.25 times); `corrected` bills it once (1.25 times). Both take every token that is not read to be written.
    pub(super) fn estimate(&self, stored: f64, ordered: f64, corrected: bool) -> f64 {
        let fresh = match self.cache {
            Cache::Automatic { .. } => 1.0,
            Cache::Marked { write } if corrected => write,
            Cache::Marked { write } => 1.0 + write,
        };
        let cost = |hit: f64| hit * self.read + (1.0 - hit) * fresh;
        1.0 - cost(ordered) / cost(stored)
    }
}

/// Returns how many leading tokens each prompt shares with any before it.
///
/// In sorted order the earlier prompt that shares most with one is the nearest earlier one on either side; both are found in one pass
/// each, by a stack of prompts with the prefix that they share with the one in hand.
pub(super) fn shared_with_earlier(prompts: &[Vec<u32>]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..prompts.len()).collect();
    sorted.sort_by(|a, b| prompts[*a].cmp(&prompts[*b]).then(a.cmp(b)));
    let mut shared = vec![0; prompts.len()];
    for backwards in [false, true] {
        // Prompts passed so far that are earlier than all passed after them, with the prefix that each shares with the last one passed.
        let mut passed: Vec<(usize, usize)> = Vec::new();
        let mut last: Option<usize> = None;
        for step in 0..sorted.len() {
            let at = sorted[if backwards { sorted.len() - 1 - step } else { step }];
            if let Some(last) = last {
                let with_last = common(&prompts[last], &prompts[at]);
                passed
                    .iter_mut()
                    .rev()
                    .take_while(|(_, prefix)| *prefix > with_last)
                    .for_each(|(_, prefix)| *prefix = with_last);
            }
            while passed.last().is_some_and(|(other, _)| *other > at) {
                passed.pop();
            }
            if let Some((_, prefix)) = passed.last() {
                shared[at] = shared[at].max(*prefix);
            }
            passed.push((at, prompts[at].len()));
            last = Some(at);
        }
    }
    shared
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn provider(least: usize, cache: Cache) -> Provider {
        Provider { name: "test", input: 1e6, read: 0.1, least, cache }
    }

    /// A prompt of runs of equal tokens.
    fn prompt(runs: &[(u32, usize)]) -> Vec<u32> {
        runs.iter().flat_map(|(token, len)| std::iter::repeat_n(*token, *len)).collect()
    }

    proptest! {
        #[test]
        fn what_is_shared_is_what_comparing_with_all_earlier_prompts_gives(
            prompts in prop::collection::vec(prop::collection::vec(0u32..3, 0..6), 0..30)
        ) {
            let slow = |at: usize| prompts[..at].iter().map(|earlier| common(earlier, &prompts[at])).max().unwrap_or(0);
            let expected: Vec<usize> = (0..prompts.len()).map(slow).collect();
            prop_assert_eq!(shared_with_earlier(&prompts), expected);
        }

        #[test]
        fn no_cache_that_is_marked_reads_what_was_not_written(
            prompts in prop::collection::vec(prop::collection::vec(0u32..2, 1..8), 1..30)
        ) {
            let bill = provider(1, Cache::Marked { write: 1.25 }).bill(&prompts);
            prop_assert!(bill.read + bill.written <= bill.tokens);
            let shared: usize = shared_with_earlier(&prompts).iter().sum();
            prop_assert!(bill.read <= shared as u64);
        }
    }

    #[test]
    fn an_automatic_cache_counts_whole_pieces_of_long_prefixes() {
        let long = prompt(&[(1, 1200)]);
        let prompts =
            [long.clone(), prompt(&[(1, 1200), (2, 10)]), prompt(&[(1, 1000), (3, 300)]), prompt(&[(1, 1200), (2, 5)])];
        let bill = provider(1024, Cache::Automatic { piece: 128 }).bill(&prompts);
        // 1,200 shared tokens are 9 pieces; 1,000 are too few.
        assert_eq!((bill.tokens, bill.read, bill.written), (1200 + 1210 + 1300 + 1205, 2 * 1152, 0));
        assert!((bill.dollars - (bill.tokens as f64 - 0.9 * 2304.0)).abs() < 1e-6);
    }

    #[test]
    fn marks_are_set_where_later_prompts_depart() {
        let row = |group: u32, row: u32| prompt(&[(0, 10), (group, 20), (row, 5)]);
        let prompts = [row(1, 91), row(1, 92), row(1, 93), row(2, 94), row(2, 95), row(3, 96)];
        let bill = provider(4, Cache::Marked { write: 1.25 }).bill(&prompts);
        // The first writes 30 and marks 10 and 30, two read 30. The fourth reads 10 and writes 20, the fifth reads 30, the last 10.
        assert_eq!((bill.tokens, bill.read, bill.written), (6 * 35, 30 + 30 + 10 + 30 + 10, 30 + 20));
        let none = provider(40, Cache::Marked { write: 1.25 }).bill(&prompts);
        assert_eq!((none.read, none.written), (0, 0), "prefixes are too short");
    }

    /// What is saved over prompts of which none has anything in common: `of_group` prompts of so many tokens begin with the same ones.
    fn saved(provider: Provider, of_group: u32, shared: usize, tokens: usize) -> f64 {
        let row = |row: u32| prompt(&[(row / of_group, shared), (1_000_000 + row, tokens - shared)]);
        let prompts: Vec<Vec<u32>> = (0..20 * of_group).map(row).collect();
        let apart: Vec<Vec<u32>> = (0..20 * of_group).map(|row| prompt(&[(row, tokens)])).collect();
        1.0 - provider.bill(&prompts).dollars / provider.bill(&apart).dollars
    }

    /// The paper's bills are of rows that were shuffled before: their stored order shares nothing.
    #[test]
    fn hits_of_the_papers_bills_save_about_what_they_saved() {
        let [openai, anthropic] = PROVIDERS;
        // 62.2 % read at half the price is 31.1 %; the paper's bill was 32 % smaller.
        assert!((saved(openai, 10, 1280, 1852) - 0.311).abs() < 0.0005);
        // 30.6 %, of which the paper saved 21 %: it depends on how much is written for that.
        let (pairs, tens) = (saved(anthropic, 2, 1530, 2500), saved(anthropic, 10, 1360, 4000));
        assert!((pairs - (0.9 * 0.306 - 0.25 * 0.306)).abs() < 1e-9 && (tens - (0.9 * 0.306 - 0.25 * 0.034)).abs() < 1e-9);
        assert!(0.10 < pairs && pairs < tens && tens < 0.28, "{pairs} {tens}");
    }

    #[test]
    fn the_papers_formula_gives_the_papers_figures() {
        let [openai, anthropic] = PROVIDERS;
        // Movies: 34.6 % to 85.7 %.
        assert!((openai.estimate(0.346, 0.857, false) - 0.31).abs() < 0.005);
        assert!((anthropic.estimate(0.346, 0.857, false) - 0.73).abs() < 0.005);
        assert!((anthropic.estimate(0.346, 0.857, true) - 0.69).abs() < 0.005);
    }
}
