//! The prefix index: finds the block that holds given tokens after a given prefix.
//!
//! A full block is identified by its parent block (or the root of its namespace) and its token ids. The index is a
//! chained hash table. Its links are in one record per block, hence no operation allocates.

use crate::block::{BlockId, NONE};
use crate::hash::ChainHash;

/// A block that left the prefix index to make room; its content is intact until the next step writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictedBlock {
    /// The block.
    pub block: BlockId,
    /// Its hash in the chain; names the content (with a negligible chance of a clash) for a second tier.
    pub hash: u128,
}

#[derive(Debug, Clone)]
pub(crate) struct IndexedBlock {
    pub(crate) hash: u128,
    /// Previous block of the chain; [`NONE`] for a first block. Cannot go stale: a block with children is not evicted.
    pub(crate) parent: BlockId,
    pub(crate) namespace: u32,
    /// Blocks in the index whose parent is this one.
    pub(crate) children: u32,
    next_in_bucket: BlockId,
    pub(crate) indexed: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    pub(crate) hash: ChainHash,
    block_size: usize,
    nodes: Vec<IndexedBlock>,
    /// Token ids of the indexed blocks, `[num_blocks, block_size]`.
    tokens: Vec<u32>,
    /// First block of each bucket; a power of two.
    buckets: Vec<BlockId>,
}

impl PrefixIndex {
    pub(crate) fn new(num_blocks: u32, block_size: u32, hash: ChainHash) -> Self {
        let (n, block_size) = (num_blocks as usize, block_size as usize);
        let node = IndexedBlock {
            hash: 0,
            parent: NONE,
            namespace: 0,
            children: 0,
            next_in_bucket: NONE,
            indexed: false,
        };
        Self {
            hash,
            block_size,
            nodes: vec![node; n],
            tokens: vec![0; n * block_size],
            buckets: vec![NONE; n.next_power_of_two()],
        }
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.nodes[block as usize].indexed
    }

    pub(crate) fn node(&self, block: BlockId) -> &IndexedBlock {
        &self.nodes[block as usize]
    }

    pub(crate) fn tokens(&self, block: BlockId) -> &[u32] {
        let start = block as usize * self.block_size;
        &self.tokens[start..start + self.block_size]
    }

    /// The hash of a block with `tokens` behind `parent`, which is indexed or [`NONE`].
    pub(crate) fn hash_behind(&self, parent: BlockId, namespace: u32, tokens: &[u32]) -> u128 {
        let before = if parent == NONE { self.hash.root(namespace) } else { self.node(parent).hash };
        self.hash.block(before, tokens)
    }

    /// The block with these tokens behind this parent, if the index has it.
    pub(crate) fn find(
        &self,
        parent: BlockId,
        namespace: u32,
        hash: u128,
        tokens: &[u32],
    ) -> Option<BlockId> {
        let mut block = self.buckets[self.bucket(hash)];
        while block != NONE {
            let node = self.node(block);
            if node.hash == hash
                && node.parent == parent
                && node.namespace == namespace
                && self.tokens(block) == tokens
            {
                return Some(block);
            }
            block = node.next_in_bucket;
        }
        None
    }

    pub(crate) fn insert(
        &mut self,
        block: BlockId,
        parent: BlockId,
        namespace: u32,
        hash: u128,
        tokens: &[u32],
    ) {
        let bucket = self.bucket(hash);
        let next_in_bucket = std::mem::replace(&mut self.buckets[bucket], block);
        self.nodes[block as usize] =
            IndexedBlock { hash, parent, namespace, children: 0, next_in_bucket, indexed: true };
        let start = block as usize * self.block_size;
        self.tokens[start..start + self.block_size].copy_from_slice(tokens);
        if parent != NONE {
            self.nodes[parent as usize].children += 1;
        }
    }

    /// Takes a block without children out of the index and returns its namespace.
    pub(crate) fn remove(&mut self, block: BlockId) -> u32 {
        let IndexedBlock { hash, parent, namespace, children, next_in_bucket, .. } = *self.node(block);
        debug_assert_eq!(children, 0, "block {block} leaves the index before its children");
        let bucket = self.bucket(hash);
        if self.buckets[bucket] == block {
            self.buckets[bucket] = next_in_bucket;
        } else {
            let mut before = self.buckets[bucket];
            while self.nodes[before as usize].next_in_bucket != block {
                before = self.nodes[before as usize].next_in_bucket;
            }
            self.nodes[before as usize].next_in_bucket = next_in_bucket;
        }
        if parent != NONE {
            self.nodes[parent as usize].children -= 1;
        }
        self.nodes[block as usize].indexed = false;
        namespace
    }

    fn bucket(&self, hash: u128) -> usize {
        (hash as usize) & (self.buckets.len() - 1)
    }
}
