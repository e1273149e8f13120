//! The prefix tree: a radix tree over token sequences whose nodes hold the KV pages of their tokens.
//!
//! A node has the tokens between its parent's end and its own, compared as tokens and never by hash. Sharing is exact to the
//! token: where two sequences part in the middle of a page, the later one gets its own copy of that page (see [`Run`]).
//!
//! A node is *locked* while a running row, or the next row of a batch, goes through it. With its last lock a node is freed,
//! unless it is *kept*: the head of a batch that later batches are likely to begin with. Kept nodes without locks are a cache;
//! they are evicted when pages are needed, least recently used leaf first.

use std::collections::HashMap;

use super::pool::{KvPool, PageState};
use super::run::Run;
use crate::request::TokenId;
use crate::step::PageId;

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(u32);

impl NodeId {
    /// The empty prefix; always there.
    pub(super) const ROOT: NodeId = NodeId(0);
}

/// The tree. Every node but the root is locked or kept.
#[derive(Debug)]
pub(super) struct PrefixTree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    clock: u64,
}

#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// Children by their first token, in ascending order.
    children: Vec<(TokenId, NodeId)>,
    tokens: Vec<TokenId>,
    run: Run,
    /// Locks on this node and on all nodes below it.
    locks: u32,
    kept: bool,
    last_use: u64,
}

impl Node {
    fn end(&self) -> usize {
        self.run.start + self.tokens.len()
    }

    fn child(&self, token: TokenId) -> Result<usize, usize> {
        self.children.binary_search_by_key(&token, |(first, _)| *first)
    }
}

impl PrefixTree {
    /// Makes an empty tree.
    pub(super) fn new() -> Self {
        let root = Node {
            parent: NodeId::ROOT,
            children: Vec::new(),
            tokens: Vec::new(),
            run: Run::default(),
            locks: 0,
            kept: true,
            last_use: 0,
        };
        PrefixTree { nodes: vec![Some(root)], vacant: Vec::new(), clock: 0 }
    }

    /// Finds the longest prefix of `tokens` in the tree and returns the node at which it ends, splitting a node if need be.
    pub(super) fn reach(&mut self, tokens: &[TokenId], pool: &mut KvPool) -> NodeId {
        let mut id = NodeId::ROOT;
        loop {
            let node = self.node(id);
            let rest = &tokens[node.end()..];
            let Some(Ok(index)) = rest.first().map(|token| node.child(*token)) else { return id };
            id = node.children[index].1;
            let child = self.node(id);
            let shared = child.tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if shared < child.tokens.len() {
                return self.split(id, shared, pool);
            }
        }
    }

    /// Enters the part of `tokens` that lies beyond `parent` as a new child and returns it; `parent` itself if nothing does.
    ///
    /// `parent` must be what [`reach`](Self::reach) returned, and the pool must have the pages of [`Run::follow_cost`].
    pub(super) fn insert(&mut self, parent: NodeId, tokens: &[TokenId], pool: &mut KvPool) -> NodeId {
        let start = self.end(parent);
        let Some(first) = tokens.get(start) else { return parent };
        let run = self.node_mut(parent).run.follow(start, tokens.len(), pool);
        let id = self.add(Node {
            parent,
            children: Vec::new(),
            tokens: tokens[start..].to_vec(),
            run,
            locks: 0,
            kept: false,
            last_use: self.clock,
        });
        let parent = self.node_mut(parent);
        let index = parent.child(*first).expect_err("the parent is the longest match");
        parent.children.insert(index, (*first, id));
        id
    }

    /// Locks the path from the root to a node.
    pub(super) fn lock(&mut self, leaf: NodeId) {
        self.clock += 1;
        let clock = self.clock;
        for id in self.upwards(leaf) {
            let node = self.node_mut(id);
            node.locks += 1;
            node.last_use = clock;
        }
    }

    /// Gives back one lock of the path from the root to a node, and frees what nothing needs any more.
    pub(super) fn unlock(&mut self, leaf: NodeId, pool: &mut KvPool) {
        for id in self.upwards(leaf) {
            let node = self.node_mut(id);
            node.locks -= 1;
            if node.locks == 0 && !node.kept {
                self.remove(id, pool);
            }
        }
    }

    /// Marks the first `count` tokens of the path to `leaf` as worth keeping after their last lock.
    pub(super) fn keep(&mut self, leaf: NodeId, count: usize, pool: &mut KvPool) {
        for id in self.upwards(leaf) {
            let node = self.node(id);
            let inside = count.saturating_sub(node.run.start).min(node.tokens.len());
            if inside == node.tokens.len() {
                self.node_mut(id).kept = true;
            } else if inside > 0 && !node.kept {
                let front = self.split(id, inside, pool);
                self.node_mut(front).kept = true;
            }
        }
    }

    /// Returns how many pages the eviction of all kept nodes without locks would free.
    pub(super) fn evictable_pages(&self, pool: &KvPool) -> usize {
        let mut held: HashMap<PageId, u32> = HashMap::new();
        for node in self.nodes.iter().skip(1).flatten().filter(|node| node.locks == 0) {
            for page in &node.run.pages {
                *held.entry(*page).or_default() += 1;
            }
        }
        let freed =
            held.iter().filter(|&(&page, &references)| pool.state(page) == PageState::Device { references, locks: 0 });
        freed.count()
    }

    /// Evicts kept nodes without locks, least recently used leaf first, until so many pages are free or none is left.
    pub(super) fn evict(&mut self, free_pages: usize, pool: &mut KvPool) {
        while pool.free() < free_pages && self.evict_oldest(pool) {}
    }

    /// Evicts the least recently used of the kept leaves without locks. Returns whether there was one.
    pub(super) fn evict_oldest(&mut self, pool: &mut KvPool) -> bool {
        let leaves = self.ids().filter(|id| {
            let node = self.node(*id);
            *id != NodeId::ROOT && node.locks == 0 && node.children.is_empty()
        });
        let oldest = leaves.min_by_key(|id| self.node(*id).last_use);
        if let Some(oldest) = oldest {
            self.remove(oldest, pool);
        }
        oldest.is_some()
    }

    /// Returns the position at which a node ends.
    pub(super) fn end(&self, id: NodeId) -> usize {
        self.node(id).end()
    }

    /// Returns the parent of a node; the root's is itself.
    pub(super) fn parent(&self, id: NodeId) -> NodeId {
        self.node(id).parent
    }

    /// Returns the pages of a node.
    pub(super) fn run(&self, id: NodeId) -> &Run {
        &self.node(id).run
    }

    /// Returns the pages of a node.
    pub(super) fn run_mut(&mut self, id: NodeId) -> &mut Run {
        &mut self.node_mut(id).run
    }

    /// Returns the first position on the path to `leaf` that has not been handed to the device; the path's end if all have.
    ///
    /// Positions are computed in order, so the deepest node with a computed token has it.
    pub(super) fn first_gap(&self, leaf: NodeId) -> usize {
        let started = self.upwards(leaf).find(|id| self.run(*id).computed > 0).unwrap_or(NodeId::ROOT);
        let run = self.run(started);
        run.start + run.computed
    }

    /// Returns the nodes of the path to `leaf` that end after `position`, in the path's order.
    pub(super) fn path_after(&self, leaf: NodeId, position: usize) -> Vec<NodeId> {
        let mut path: Vec<NodeId> = self.upwards(leaf).take_while(|id| self.end(*id) > position).collect();
        path.reverse();
        path
    }

    /// Returns the flat page table of the path to `leaf`.
    pub(super) fn table(&self, leaf: NodeId) -> Vec<PageId> {
        let mut table = Vec::new();
        for id in self.path_after(leaf, 0) {
            self.run(id).extend_table(&mut table);
        }
        table
    }

    /// Returns the nodes from `leaf` up to the root, the root left out.
    fn upwards(&self, leaf: NodeId) -> impl Iterator<Item = NodeId> + use<> {
        let mut path = Vec::new();
        let mut id = leaf;
        while id != NodeId::ROOT {
            path.push(id);
            id = self.node(id).parent;
        }
        path.into_iter()
    }

    /// Cuts a node after its first `count` tokens; these become a new node above it, which is returned. The node keeps its id,
    /// so that rows and children stay attached to its end.
    fn split(&mut self, id: NodeId, count: usize, pool: &mut KvPool) -> NodeId {
        let node = self.node_mut(id);
        let rest = node.tokens.split_off(count);
        let tokens = std::mem::replace(&mut node.tokens, rest);
        let run = node.run.split_front(node.run.start + count, pool);
        let first = tokens[0];
        let (parent, locks, kept, last_use) = (node.parent, node.locks, node.kept, node.last_use);
        let children = vec![(node.tokens[0], id)];
        let front = self.add(Node { parent, children, tokens, run, locks, kept, last_use });
        self.node_mut(id).parent = front;
        let parent = self.node_mut(parent);
        let index = parent.child(first).expect("a child is listed by its first token");
        parent.children[index].1 = front;
        front
    }

    fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.vacant.pop() {
            self.nodes[id.0 as usize] = Some(node);
            return id;
        }
        let id = NodeId(u32::try_from(self.nodes.len()).expect("each node holds a page of a pool with u32 pages"));
        self.nodes.push(Some(node));
        id
    }

    fn remove(&mut self, id: NodeId, pool: &mut KvPool) {
        let node = self.nodes[id.0 as usize].take().expect("node ids are valid until their removal");
        debug_assert!(node.children.is_empty() && node.locks == 0);
        self.vacant.push(id);
        let parent = self.node_mut(node.parent);
        let index = parent.child(node.tokens[0]).expect("a child is listed by its first token");
        parent.children.remove(index);
        parent.run.unfollow(node.run, pool);
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> {
        let used = self.nodes.iter().enumerate().filter(|(_, node)| node.is_some());
        used.map(|(index, _)| NodeId(index as u32))
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("node ids are valid until their removal")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("node ids are valid until their removal")
    }
}

#[cfg(test)]
impl PrefixTree {
    /// Returns the number of tokens in the tree.
    pub(super) fn token_count(&self) -> usize {
        self.nodes.iter().flatten().map(|node| node.tokens.len()).sum()
    }

    /// Panics if the tree contradicts itself, and returns how often its nodes hold each page.
    pub(super) fn check(&self) -> HashMap<PageId, u32> {
        let mut held: HashMap<PageId, u32> = HashMap::new();
        for id in self.ids() {
            let node = self.node(id);
            assert!(node.children.is_sorted());
            let below: u32 = node.children.iter().map(|(_, child)| self.node(*child).locks).sum();
            assert!(id == NodeId::ROOT || node.locks >= below, "{id:?} has fewer locks than its children");
            assert!(node.kept || node.locks > 0, "{id:?} is neither kept nor locked");
            assert_eq!(node.run.pages.len(), super::pool::pages_between(node.run.start, node.end()));
            assert!(node.run.computed <= node.tokens.len());
            for (first, child_id) in &node.children {
                let child = self.node(*child_id);
                assert_eq!((child.parent, child.tokens[0], child.run.start), (id, *first, node.end()));
                assert!(child.run.computed == 0 || node.run.computed == node.tokens.len(), "computed out of order");
                assert!(!child.run.continues || node.run.last_page() == child.run.pages[0]);
            }
            for page in &node.run.pages {
                *held.entry(*page).or_default() += 1;
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PoolSpec;

    fn fixture(pages: u32) -> (PrefixTree, KvPool) {
        (PrefixTree::new(), KvPool::new(PoolSpec { pages, page_bytes: 1 }))
    }

    fn enter(tree: &mut PrefixTree, pool: &mut KvPool, tokens: &[TokenId]) -> NodeId {
        let parent = tree.reach(tokens, pool);
        let leaf = tree.insert(parent, tokens, pool);
        tree.lock(leaf);
        tree.check();
        leaf
    }

    fn tokens(shared: u32, own: u32, mark: u32) -> Vec<TokenId> {
        (0..shared).chain((0..own).map(|token| 1000 * mark + token)).collect()
    }

    #[test]
    fn branches_share_whole_pages_and_copy_the_split_one() {
        let (mut tree, mut pool) = fixture(16);
        let a = enter(&mut tree, &mut pool, &tokens(20, 20, 1));
        assert_eq!(pool.used(), 3);
        let b = enter(&mut tree, &mut pool, &tokens(20, 4, 2));
        assert_eq!(pool.used(), 4);
        assert_eq!(tree.end(tree.parent(a)), 20);
        let (table_a, table_b) = (tree.table(a), tree.table(b));
        assert_eq!(table_a[0], table_b[0]);
        assert_ne!(table_a[1], table_b[1]);
        assert_eq!((tree.run(a).split_tokens(), tree.run(b).split_tokens()), (0, 4));
    }

    #[test]
    fn the_last_lock_frees_a_branch_and_its_place_is_continued() {
        let (mut tree, mut pool) = fixture(16);
        let a = enter(&mut tree, &mut pool, &tokens(20, 20, 1));
        let b = enter(&mut tree, &mut pool, &tokens(20, 4, 2));
        tree.unlock(a, &mut pool);
        tree.check();
        assert_eq!((tree.token_count(), pool.used()), (24, 3));
        let c = enter(&mut tree, &mut pool, &tokens(20, 8, 3));
        assert!(tree.run(c).continues, "the place of the first branch is free again");
        assert_eq!(pool.used(), 3);
        tree.unlock(b, &mut pool);
        tree.unlock(c, &mut pool);
        pool.check();
        assert_eq!((tree.token_count(), pool.used()), (0, 0));
    }

    #[test]
    fn kept_prefixes_are_evicted_when_least_recently_used() {
        let (mut tree, mut pool) = fixture(16);
        for mark in [1, 2] {
            let leaf = enter(&mut tree, &mut pool, &tokens(0, 40, mark));
            tree.keep(leaf, 24, &mut pool);
            tree.unlock(leaf, &mut pool);
        }
        assert_eq!((tree.token_count(), pool.used(), tree.evictable_pages(&pool)), (48, 4, 4));
        let again = tree.reach(&tokens(0, 40, 1), &mut pool);
        tree.lock(again);
        tree.unlock(again, &mut pool);
        tree.evict(13, &mut pool);
        tree.check();
        assert_eq!(tree.token_count(), 24);
        let left = tree.reach(&tokens(0, 40, 1), &mut pool);
        assert_eq!(tree.end(left), 24);
    }

    #[test]
    fn gaps_are_found_along_the_path() {
        let (mut tree, mut pool) = fixture(16);
        let a = enter(&mut tree, &mut pool, &tokens(30, 10, 1));
        tree.run_mut(a).computed = 25;
        let b = enter(&mut tree, &mut pool, &tokens(30, 10, 2));
        assert_eq!((tree.first_gap(a), tree.first_gap(b)), (25, 25));
        let shared = tree.parent(a);
        tree.run_mut(shared).computed = 30;
        tree.run_mut(b).computed = 3;
        assert_eq!((tree.first_gap(a), tree.first_gap(b)), (30, 33));
    }
}
