//! Which request must be answered first so that others find their prefix in the service's prompt cache.
//!
//! Services cache the prompt of a request once it is computed: requests with the same long head that are sent together are each
//! computed, and paid for, in full. So the first request of a long shared head goes ahead of those that share it.

use std::sync::Arc;

use crate::request::{Request, Segment};

/// Returns for each request the one that it waits for. `requests` are depth first by shared prefix, and a prefix counts from
/// `least` tokens on; a nested one if it is longer by that much.
pub(super) fn leaders(requests: &[Request], least: usize) -> Vec<Option<usize>> {
    let least = least.max(1);
    let shared: Vec<usize> = requests.windows(2).map(|pair| shared(&pair[0].prompt, &pair[1].prompt)).collect();
    let mut leaders = Vec::with_capacity(requests.len());
    // Open groups, outermost first: the length that members share, and their leader.
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for index in 0..requests.len() {
        let before = if index == 0 { 0 } else { shared[index - 1] };
        while groups.last().is_some_and(|(length, _)| before < *length) {
            groups.pop();
        }
        leaders.push(groups.last().map(|(_, leader)| *leader));
        let known = groups.last().map_or(before, |(length, _)| before.max(*length));
        if shared.get(index).is_some_and(|next| *next >= known + least) {
            groups.push((known + least, index));
        }
    }
    leaders
}

/// Returns how many leading tokens two prompts share.
fn shared(left: &[Segment], right: &[Segment]) -> usize {
    let whole = left.iter().zip(right).take_while(|(a, b)| Arc::ptr_eq(a, b)).count();
    let known: usize = left[..whole].iter().map(|segment| segment.len()).sum();
    let rest = |prompt: &[Segment]| prompt[whole..].to_vec();
    let (left, right) = (rest(left), rest(right));
    let tokens = left.iter().flat_map(|segment| segment.iter()).zip(right.iter().flat_map(|segment| segment.iter()));
    known + tokens.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{OutputShape, RequestId, Sampling};

    /// Each word is a prompt, each letter a token; prefixes count from two letters on.
    #[track_caller]
    fn check(prompts: &str, expected: &[Option<usize>]) {
        let request = |prompt: &str| {
            let (head, rest) = prompt.split_at(1);
            let segment = |text: &str| -> Segment { text.bytes().map(u32::from).collect() };
            let prompt = vec![segment(head), segment(rest)];
            Request::new(RequestId(0), prompt, Arc::new(OutputShape::Text), Sampling::GREEDY, 1)
        };
        let requests: Vec<_> = prompts.split(' ').map(request).collect();
        assert_eq!(leaders(&requests, 2), expected, "{prompts}");
    }

    #[test]
    fn followers_wait_for_the_first_of_their_head() {
        check("ab", &[None]);
        check("abx aby abz", &[None, Some(0), Some(0)]);
        check("ax ay bx by", &[None, None, None, None]);
        check("abx aby cdx cdy e", &[None, Some(0), None, Some(2), None]);
    }

    #[test]
    fn nested_heads_have_leaders_of_their_own() {
        check("abcdx abcdy abefx abefy abgx", &[None, Some(0), Some(0), Some(2), Some(0)]);
        // What the request before has computed needs no other leader.
        check("abcdx abcdy abcdz", &[None, Some(0), Some(0)]);
    }

    #[test]
    fn shared_segments_are_not_read() {
        let head: Segment = vec![1, 2, 3].into();
        let prompt = |tail: u32| vec![Arc::clone(&head), Segment::from([tail, 9])];
        assert_eq!((shared(&prompt(4), &prompt(5)), shared(&prompt(4), &prompt(4))), (3, 5));
        assert_eq!(shared(std::slice::from_ref(&head), &[[1, 2].into(), [3].into()]), 3);
    }
}
