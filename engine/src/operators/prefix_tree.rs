//! Scheduled prompts as a tree of what they share: a radix tree over tokens, for people to look at.

use std::ops::Range;

use refrain_optimizer::reorder::saved_of_prompts;
use refrain_serving::{Request, Segment, TokenId, Tokenizer};
use serde_json::{Value, json};

/// The longest text of a node, in bytes.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// The first prompts of a schedule, and what they share.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefixTree {
    /// What all prompts begin with.
    pub root: PrefixNode,
    /// Distinct questions of the sample, of which the tree holds the first.
    pub questions: usize,
    /// Tokens of the prompts in the tree.
    pub prompt_tokens: u64,
    /// Of these, found in a cache that holds everything.
    pub shared_tokens: u64,
}

/// A run of tokens that the same prompts have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefixNode {
    /// Prompts that have it.
    pub prompts: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Its text, shortened where it is long; control tokens have none.
    pub text: String,
    /// How the prompts go on, in the order of the schedule; none where they end.
    pub children: Vec<PrefixNode>,
}

impl PrefixTree {
    /// Joins the prompts of the first `limit` requests, which are in the order of their schedule.
    pub(super) fn new(requests: &[Request], limit: usize, tokenizer: &dyn Tokenizer) -> Self {
        let first = &requests[..limit.min(requests.len())];
        let prompts: Vec<Vec<TokenId>> = first
            .iter()
            .map(|request| request.prompt.iter().flat_map(|segment| segment.iter().copied()).collect())
            .collect();
        let segments: Vec<&[Segment]> = first.iter().map(|request| request.prompt.as_slice()).collect();
        PrefixTree {
            root: node(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0, tokenizer),
            questions: requests.len(),
            prompt_tokens: prompts.iter().map(|prompt| prompt.len() as u64).sum(),
            shared_tokens: saved_of_prompts(&segments, 1),
        }
    }

    /// Returns the tree under names that stay.
    pub(super) fn to_json(&self) -> Value {
        let PrefixTree { root, questions, prompt_tokens, shared_tokens } = self;
        json!({
            "questions": questions,
            "prompt_tokens": prompt_tokens,
            "shared_tokens": shared_tokens,
            "root": root.to_json(),
        })
    }
}

impl PrefixNode {
    fn to_json(&self) -> Value {
        let PrefixNode { prompts, tokens, text, children } = self;
        let children: Vec<Value> = children.iter().map(PrefixNode::to_json).collect();
        json!({"prompts": prompts, "tokens": tokens, "text": text, "children": children})
    }
}

/// Joins prompts that are equal before `start`.
fn node(prompts: &[&[TokenId]], start: usize, tokenizer: &dyn Tokenizer) -> PrefixNode {
    let end = common_end(prompts, start);
    let mut groups: Vec<(TokenId, Vec<&[TokenId]>)> = vec![];
    for prompt in prompts {
        let Some(next) = prompt.get(end) else { continue };
        match groups.iter_mut().find(|(token, _)| token == next) {
            Some((_, group)) => group.push(prompt),
            None => groups.push((*next, vec![prompt])),
        }
    }
    PrefixNode {
        prompts: prompts.len(),
        tokens: end - start,
        text: prompts.first().map_or_else(String::new, |prompt| text(prompt, start..end, tokenizer)),
        children: groups.iter().map(|(_, group)| node(group, end, tokenizer)).collect(),
    }
}

/// Returns where the first of the prompts ends or differs from another.
fn common_end(prompts: &[&[TokenId]], start: usize) -> usize {
    let Some((first, others)) = prompts.split_first() else { return start };
    let shared = |other: &&[TokenId]| first[start..].iter().zip(&other[start..]).take_while(|(a, b)| a == b).count();
    start + others.iter().map(shared).min().unwrap_or(first.len() - start)
}

fn text(prompt: &[TokenId], range: Range<usize>, tokenizer: &dyn Tokenizer) -> String {
    let mut text = tokenizer.decode(&prompt[range]);
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use refrain_serving::mock::MockBackend;
    use refrain_serving::{Backend, OutputShape, RequestId, Sampling};

    use super::*;

    /// Each text is a prompt, and each of its letters a token; `|` parts its segments.
    fn tree(prompts: &[&str], limit: usize) -> PrefixTree {
        let tokenizer = MockBackend::new(1).tokenizer();
        let request = |(id, prompt): (usize, &&str)| {
            let segments = prompt.split('|').map(|segment| tokenizer.encode(segment).into()).collect();
            Request::new(RequestId(id as u32), segments, Arc::new(OutputShape::Text), Sampling::GREEDY, 1)
        };
        let requests: Vec<Request> = prompts.iter().enumerate().map(request).collect();
        PrefixTree::new(&requests, limit, tokenizer.as_ref())
    }

    fn shown(node: &PrefixNode) -> String {
        let children: Vec<String> = node.children.iter().map(shown).collect();
        let children = if children.is_empty() { String::new() } else { format!("({})", children.join(" ")) };
        format!("{}{}{children}", node.text, node.prompts)
    }

    #[test]
    fn what_prompts_share_is_told_once() {
        let tree = tree(&["head|a|x", "head|a|y", "head|b|x"], 9);
        assert_eq!(shown(&tree.root), "head3(a2(x1 y1) bx1)");
        assert_eq!((tree.questions, tree.prompt_tokens, tree.shared_tokens), (3, 18, 9));
    }

    #[test]
    fn only_the_first_of_a_schedule_are_shown() {
        let tree = tree(&["aa", "ab", "c"], 2);
        assert_eq!((shown(&tree.root).as_str(), tree.questions), ("a2(a1 b1)", 3));
    }

    #[test]
    fn equal_prompts_and_none_have_a_tree() {
        assert_eq!(shown(&tree(&["ab", "ab", "abc"], 9).root), "ab3(c1)");
        assert_eq!(tree(&[], 9).root, PrefixNode { prompts: 0, tokens: 0, text: String::new(), children: vec![] });
    }

    #[test]
    fn long_texts_are_shortened() {
        let long = "é".repeat(TEXT_BYTES_MAX);
        assert!(tree(&[long.as_str()], 9).root.text.len() <= TEXT_BYTES_MAX + 3);
    }
}
