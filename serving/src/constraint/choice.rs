//! One of several labels: a trie over the tokens that the tokenizer itself would write for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Constraint, Next};
use crate::error::{Error, Result};
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// The labels of a choice. Node 0 is the root.
#[derive(Debug)]
pub(super) struct LabelTrie {
    nodes: Vec<Node>,
    end_tokens: Vec<TokenId>,
}

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<TokenId, usize>,
    /// Whether a label ends here. Longer labels may go on from here.
    is_label: bool,
}

impl LabelTrie {
    /// Builds the trie. Fails without labels, and for a label that is empty or that the tokenizer cannot write.
    pub(super) fn new(labels: &[String], tokenizer: &dyn Tokenizer) -> Result<Arc<Self>> {
        let mut trie = LabelTrie { nodes: vec![Node::default()], end_tokens: tokenizer.end_tokens().to_vec() };
        trie.end_tokens.sort_unstable();
        for label in labels {
            let tokens = tokenizer.encode(label);
            if tokens.is_empty() || tokenizer.decode(&tokens) != *label {
                return Err(Error::Invalid(format!("the label {label:?} cannot be written in the model's tokens")));
            }
            trie.insert(&tokens);
        }
        if trie.nodes[0].children.is_empty() {
            return Err(Error::Invalid("a choice needs at least one label".to_owned()));
        }
        // Only an end token tells a label from a longer one that begins with it.
        if trie.end_tokens.is_empty() && trie.nodes.iter().any(|node| node.is_label && !node.children.is_empty()) {
            return Err(Error::Invalid("one label begins with another, and the model has no end token".to_owned()));
        }
        Ok(Arc::new(trie))
    }

    fn insert(&mut self, tokens: &[TokenId]) {
        let mut at = 0;
        for token in tokens {
            let new = self.nodes.len();
            at = *self.nodes[at].children.entry(*token).or_insert(new);
            if at == new {
                self.nodes.push(Node::default());
            }
        }
        self.nodes[at].is_label = true;
    }

    /// Returns what may follow the tokens that lead to a node.
    fn next(&self, node: usize) -> Next {
        let (mut at, mut forced) = (&self.nodes[node], Vec::new());
        while let (false, 1, Some((token, child))) = (at.is_label, at.children.len(), at.children.first_key_value()) {
            forced.push(*token);
            at = &self.nodes[*child];
        }
        match (at.children.is_empty(), forced.is_empty()) {
            (true, _) => Next::Finish(forced),
            (false, false) => Next::Forced(forced),
            (false, true) => {
                let ends = self.end_tokens.iter().filter(|_| at.is_label);
                let mut tokens: Vec<_> = at.children.keys().chain(ends).copied().collect();
                tokens.sort_unstable();
                Next::OneOf(tokens)
            }
        }
    }
}

/// How far one request has come in the trie.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    trie: Arc<LabelTrie>,
    node: usize,
}

impl Choice {
    /// Starts at the root.
    pub(super) fn new(trie: Arc<LabelTrie>) -> Self {
        Choice { trie, node: 0 }
    }
}

impl Constraint for Choice {
    fn next(&mut self) -> Result<Next> {
        Ok(self.trie.next(self.node))
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        let child = self.trie.nodes[self.node].children.get(&token);
        self.node = *child.ok_or_else(|| Error::Invalid(format!("token {token} continues no label")))?;
        Ok(())
    }

    fn is_complete(&mut self) -> bool {
        self.trie.nodes[self.node].is_label
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::constraint::compile::tests::{MINI, write};

    fn state(labels: &[&str]) -> Result<Choice> {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        Ok(Choice::new(LabelTrie::new(&labels, MINI.as_ref())?))
    }

    /// Follows every path through the trie and collects the answers.
    fn answers(labels: &[&str]) -> BTreeSet<String> {
        fn follow(mut state: Choice, written: Vec<TokenId>, found: &mut BTreeSet<String>) {
            match state.next().unwrap() {
                Next::Finish(rest) => assert!(found.insert(MINI.decode(&[written, rest].concat()))),
                Next::Forced(tokens) => {
                    tokens.iter().for_each(|token| state.accept(*token).unwrap());
                    follow(state, [written, tokens].concat(), found);
                }
                Next::OneOf(tokens) => {
                    for token in tokens {
                        if token == 2 {
                            assert!(state.is_complete() && found.insert(MINI.decode(&written)));
                            continue;
                        }
                        let mut state = state.clone();
                        state.accept(token).unwrap();
                        follow(state, [written.clone(), vec![token]].concat(), found);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let mut found = BTreeSet::new();
        follow(state(labels).unwrap(), vec![], &mut found);
        found
    }

    #[track_caller]
    fn check(labels: &[&str]) {
        assert_eq!(answers(labels), labels.iter().map(|label| (*label).to_owned()).collect());
    }

    #[test]
    fn every_label_can_be_reached_and_nothing_else() {
        check(&["yes", "no"]);
        check(&["positive", "negative", "neutral", "not sure"]);
        check(&["a", "ab", "abc", "abcd e", "b"]);
        check(&["sport", "sports", "sports news"]);
        check(&["größe", "größer", "日本", "日本語", "🦀", "🦀🦀", "e\u{301}"]);
        check(&[" leading", "trailing ", "two\nlines", "<|end|>"]);
    }

    #[test]
    fn a_single_label_needs_no_decision() {
        let tokens = MINI.encode("science fiction");
        assert!(tokens.len() > 1);
        assert_eq!(state(&["science fiction"]).unwrap().next().unwrap(), Next::Finish(tokens));
    }

    #[test]
    fn what_is_left_of_the_last_possible_label_follows_at_once() {
        let labels = ["alpha centauri", "beta centauri"];
        let mut choice = state(&labels).unwrap();
        let tokens = MINI.encode(labels[1]);
        assert!(matches!(choice.next().unwrap(), Next::OneOf(first) if first.contains(&tokens[0])));
        choice.accept(tokens[0]).unwrap();
        assert_eq!(choice.next().unwrap(), Next::Finish(tokens[1..].to_vec()));
        assert!(!choice.is_complete());
    }

    #[test]
    fn a_shared_beginning_is_forced() {
        let (left, right) = (MINI.encode("class 12"), MINI.encode("class 13"));
        let shared = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
        let mut choice = state(&["class 12", "class 13"]).unwrap();
        assert_eq!(choice.next().unwrap(), Next::Forced(left[..shared].to_vec()));
    }

    #[test]
    fn refuses_no_labels_empty_labels_and_foreign_tokens() {
        assert!(matches!(state(&[]), Err(Error::Invalid(_))));
        assert!(matches!(state(&["a", ""]), Err(Error::Invalid(_))));
        let mut choice = state(&["yes", "no"]).unwrap();
        assert!(choice.accept(0).is_err());
    }

    proptest! {
        #[test]
        fn any_labels_can_be_reached(labels in prop::collection::btree_set("[ab ]{1,6}|.{1,4}", 1..8)) {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            prop_assert_eq!(answers(&labels), labels.iter().map(|label| (*label).to_owned()).collect());
            let written = write(&mut state(&labels).unwrap(), 1000, |allowed| allowed[allowed.len() - 1]);
            prop_assert!(labels.contains(&written.unwrap().as_str()));
        }
    }
}
