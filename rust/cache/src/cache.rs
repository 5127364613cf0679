//! The cache: pool, open blocks, prefix index and namespaces behind one interface.

use std::ops::Range;

use crate::block::{BlockId, NONE};
use crate::error::{CacheConfigError, OutOfBlocks};
use crate::hash::ChainHash;
use crate::held::Packs;
use crate::namespace::{Namespace, Namespaces};
use crate::open_blocks::{OpenBlocks, OpenWrites};
use crate::pool::Pool;
use crate::prefix::{EvictedBlock, PrefixIndex};
use crate::stats::CacheStats;
use crate::table::BlockTable;

/// Configuration of a [`Cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Blocks in the pool.
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Whether full blocks can be found again by their tokens.
    pub prefix_caching: bool,
    /// Key of the prefix hash; keep it secret where clients are not trusted.
    pub hash_seed: u64,
    /// Bits of the prefix hash in use, `0..=128`. Fewer only make look-ups slower, never wrong.
    pub hash_bits: u32,
    /// Whether blocks that are not full have an open block beside them, as int8 caches need.
    pub open_blocks: bool,
}

/// Cached blocks that a prompt can start from. Reused between look-ups; valid until the cache next changes.
#[derive(Debug, Default)]
pub struct PrefixMatch {
    pub(crate) blocks: Vec<BlockId>,
    /// Tokens looked up: whole blocks up to the caller's limit.
    queried: u32,
    idle: u32,
}

impl PrefixMatch {
    /// Blocks found.
    pub fn num_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Number of found blocks that no table holds. Their use takes as many from [`Cache::available`].
    pub fn idle_blocks(&self) -> u32 {
        self.idle
    }

    /// Makes it the empty match.
    pub fn clear(&mut self) {
        self.blocks.clear();
        (self.queried, self.idle) = (0, 0);
    }
}

/// Paged KV bookkeeping for one pool; see the documentation of the crate.
#[derive(Debug)]
pub struct Cache {
    pub(crate) pool: Pool,
    pub(crate) index: PrefixIndex,
    pub(crate) namespaces: Namespaces,
    pub(crate) open_blocks: Option<OpenBlocks>,
    pub(crate) packs: Packs,
    block_size: u32,
    prefix_caching: bool,
    query_tokens: u64,
    hit_tokens: u64,
    evictions: u64,
    evicted: Option<Vec<EvictedBlock>>,
}

impl Cache {
    /// A cache with all blocks free.
    pub fn new(config: CacheConfig) -> Result<Self, CacheConfigError> {
        let CacheConfig { num_blocks, block_size, prefix_caching, hash_seed, hash_bits, open_blocks } =
            config;
        if num_blocks == 0 {
            return Err(CacheConfigError::NoBlocks);
        }
        if block_size == 0 {
            return Err(CacheConfigError::EmptyBlocks);
        }
        if num_blocks.checked_mul(block_size).is_none() {
            return Err(CacheConfigError::TooManySlots { num_blocks, block_size });
        }
        if hash_bits > 128 {
            return Err(CacheConfigError::HashBits { hash_bits });
        }
        // Without prefix caching no block is indexed: no tokens are kept.
        let tokens_kept = if prefix_caching { block_size } else { 0 };
        Ok(Self {
            pool: Pool::new(num_blocks),
            index: PrefixIndex::new(num_blocks, tokens_kept, ChainHash::new(hash_seed, hash_bits)),
            namespaces: Namespaces::default(),
            open_blocks: open_blocks.then(|| OpenBlocks::new(num_blocks)),
            packs: Packs::default(),
            block_size,
            prefix_caching,
            query_tokens: 0,
            hit_tokens: 0,
            evictions: 0,
            evicted: None,
        })
    }

    /// Tokens per block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks that can be handed out now: free ones and evictable ones.
    pub fn available(&self) -> u32 {
        self.pool.available()
    }

    /// Table entries that name this block.
    pub fn refs(&self, block: BlockId) -> u32 {
        self.pool.refs(block)
    }

    /// Namespace of a (salt, adapter slot, bits of the attention policy) triple, held until
    /// [`Cache::release_namespace`].
    pub fn intern_namespace(&mut self, salt: Option<&str>, adapter: u32, attention: u32) -> Namespace {
        self.namespaces.intern((salt.map(Box::from), adapter, attention))
    }

    /// Drops one use of a namespace.
    pub fn release_namespace(&mut self, namespace: Namespace) {
        self.namespaces.release(namespace.0);
    }

    /// Finds the longest run of cached full blocks that `tokens` starts with, within its first `limit` tokens. In a
    /// namespace that is attached to a pack the run begins with the pack's blocks.
    ///
    /// A caller that needs the logits of the last token passes `limit < tokens.len()`.
    pub fn find_prefix(&self, namespace: Namespace, tokens: &[u32], limit: u32, found: &mut PrefixMatch) {
        found.clear();
        let base = self.namespaces.base(namespace.0);
        let held = base.and_then(|(_, pack, _)| self.packs.ready(pack)).unwrap_or_default();
        let limit = tokens.len().min(limit as usize);
        let blocks = tokens[..limit].chunks_exact(self.block_size as usize);
        let held = &held[..held.len().min(blocks.len())];
        found.blocks.extend_from_slice(held);
        found.queried = held.len() as u32 * self.block_size;
        if !self.prefix_caching {
            return;
        }
        found.queried = blocks.len() as u32 * self.block_size;
        let mut parent = held.last().copied().unwrap_or(NONE);
        let mut hash = match parent {
            NONE => self.index.hash.root(self.namespaces.of_block(namespace.0, 0)),
            held => self.index.node(held).hash,
        };
        for (i, tokens) in blocks.enumerate().skip(held.len()) {
            hash = self.index.hash.block(hash, tokens);
            let own =
                base.filter(|&(_, _, blocks)| i < blocks as usize).map_or(namespace.0, |(base, ..)| base);
            let Some(block) = self.index.find(parent, own, hash, tokens) else { break };
            found.idle += u32::from(self.pool.refs(block) == 0);
            found.blocks.push(block);
            parent = block;
        }
    }

    /// A table that starts with the blocks of a match made since the last change of the cache.
    pub fn start_table(&mut self, namespace: Namespace, found: &PrefixMatch) -> BlockTable {
        for &block in &found.blocks {
            self.pool.retain(block);
        }
        let computed = found.num_blocks() * self.block_size;
        self.query_tokens += u64::from(found.queried);
        self.hit_tokens += u64::from(computed);
        BlockTable { blocks: found.blocks.clone(), computed, reserved: computed, namespace }
    }

    /// New tokens that the table can take with `spare` more blocks.
    pub fn room(&self, table: &BlockTable, spare: u32) -> u32 {
        let held = table.blocks.len() as u32;
        let copy = u32::from(self.write_needs_copy(table));
        if copy > spare {
            return 0;
        }
        (held + spare - copy).saturating_mul(self.block_size).saturating_sub(table.computed)
    }

    /// Makes room for `len` tokens in total: takes new blocks, and copies the partly filled last block first if
    /// others read it too.
    ///
    /// A copy is appended to `copies` as `[source, destination]`. In one list no block is both a source and a destination,
    /// and no destination occurs twice: the copies may be made in any order, before anything is written. Fails without any
    /// change.
    pub fn reserve(
        &mut self,
        table: &mut BlockTable,
        len: u32,
        copies: &mut Vec<[BlockId; 2]>,
    ) -> Result<(), OutOfBlocks> {
        let copy = self.write_needs_copy(table) && len > table.computed;
        let total = len.div_ceil(self.block_size) as usize;
        let needed = total.saturating_sub(table.blocks.len()) as u32 + u32::from(copy);
        let available = self.pool.available();
        if needed > available {
            return Err(OutOfBlocks { needed, available });
        }
        if copy {
            let destination = self.take_unread(copies).ok_or(OutOfBlocks { needed, available })?;
            let last = (table.computed / self.block_size) as usize;
            let source = std::mem::replace(&mut table.blocks[last], destination);
            self.release_block(source, false);
            copies.push([source, destination]);
        }
        while table.blocks.len() < total {
            let block = self.take().ok_or(OutOfBlocks { needed, available })?;
            table.blocks.push(block);
        }
        table.reserved = table.reserved.max(len);
        Ok(())
    }

    /// Plans where the tokens at `positions`, reserved before, are written in open blocks. `copies` are the copies on
    /// write of that reservation. Does nothing in a cache without open blocks.
    pub fn write_open_blocks(
        &mut self,
        table: &BlockTable,
        positions: Range<u32>,
        copies: &[[BlockId; 2]],
        mut out: OpenWrites<'_>,
    ) {
        let Some(open_blocks) = &mut self.open_blocks else { return };
        for &[source, destination] in copies {
            debug_assert!(open_blocks.get(source).is_some(), "block {source} is partly filled and not open");
            if let Some(source) = open_blocks.get(source) {
                out.copies.push([source, open_blocks.open(destination)]);
            }
        }
        open_blocks.write(&table.blocks, self.block_size, positions, &mut out);
    }

    /// Makes the open blocks that were given back available. Called when a plan begins.
    pub fn recycle_open_blocks(&mut self) {
        if let Some(open_blocks) = &mut self.open_blocks {
            open_blocks.recycle();
        }
    }

    /// Open blocks that exist: the largest number in use so far. Their ids are `0..num_open_blocks`.
    pub fn num_open_blocks(&self) -> u32 {
        self.open_blocks.as_ref().map_or(0, OpenBlocks::count)
    }

    /// Records that the first `computed` of a sequence's `tokens` are in the cache, and puts the blocks that became full
    /// into the prefix index.
    ///
    /// Where an equal block is indexed already, the table switches to it and its own is freed: block ids of the table may
    /// change. A step in flight with the old ids is done before a later step writes the freed block.
    pub fn commit(&mut self, table: &mut BlockTable, tokens: &[u32], computed: u32) {
        debug_assert!(computed >= table.computed && computed as usize <= tokens.len());
        debug_assert!(table.blocks.len() as u32 >= computed.div_ceil(self.block_size));
        let first = table.computed / self.block_size;
        let end = computed / self.block_size;
        table.computed = computed;
        if !self.prefix_caching {
            return;
        }
        for i in first as usize..end as usize {
            let size = self.block_size as usize;
            self.index_block(table, i, &tokens[i * size..(i + 1) * size]);
        }
    }

    /// A second table with the same committed tokens; all blocks are shared.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        let used = table.computed.div_ceil(self.block_size) as usize;
        let blocks = table.blocks[..used].to_vec();
        for &block in &blocks {
            self.pool.retain(block);
        }
        BlockTable { blocks, computed: table.computed, reserved: table.computed, namespace: table.namespace }
    }

    /// Releases all blocks of a table and leaves it empty. Blocks in the prefix index can still be found.
    pub fn release(&mut self, table: &mut BlockTable) {
        // From the end: in LRU order children then come before their parents, and are evicted first.
        for &block in table.blocks.iter().rev() {
            self.release_block(block, self.index.contains(block));
        }
        table.blocks.clear();
        (table.computed, table.reserved) = (0, 0);
    }

    /// Whether releasing this table would make at least one block available.
    pub fn release_gains(&self, table: &BlockTable) -> bool {
        table.blocks.iter().rev().any(|&block| self.pool.refs(block) == 1)
    }

    /// Partly filled block that the table must copy before it writes, if any.
    pub fn copy_source(&self, table: &BlockTable) -> Option<BlockId> {
        self.write_needs_copy(table).then(|| table.blocks[(table.computed / self.block_size) as usize])
    }

    /// Starts a record of evicted blocks, for a second tier that stores blocks that leave the pool.
    pub fn record_evictions(&mut self) {
        self.evicted.get_or_insert_default();
    }

    /// Blocks evicted since the last call; empty unless [`Cache::record_evictions`] was called.
    pub fn take_evicted(&mut self) -> Vec<EvictedBlock> {
        self.evicted.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// State of the pool and counters.
    pub fn stats(&self) -> CacheStats {
        let (num_blocks, free_blocks) = (self.pool.len(), self.pool.free().len() as u32);
        let (cached_blocks, pinned_blocks) = (self.pool.cached(), self.packs.pinned());
        CacheStats {
            num_blocks,
            free_blocks,
            cached_blocks,
            pinned_blocks,
            live_blocks: num_blocks - free_blocks - cached_blocks - pinned_blocks,
            query_tokens: self.query_tokens,
            hit_tokens: self.hit_tokens,
            evictions: self.evictions,
        }
    }

    fn write_needs_copy(&self, table: &BlockTable) -> bool {
        let (block, offset) = (table.computed / self.block_size, table.computed % self.block_size);
        offset != 0 && self.pool.refs(table.blocks[block as usize]) > 1
    }

    fn index_block(&mut self, table: &mut BlockTable, i: usize, tokens: &[u32]) {
        let block = table.blocks[i];
        let parent = if i == 0 { NONE } else { table.blocks[i - 1] };
        let namespace = self.namespaces.of_block(table.namespace.0, i);
        let hash = self.index.hash_behind(parent, namespace, tokens);
        match self.index.find(parent, namespace, hash, tokens) {
            // Only one of two equal blocks can be found. And a table that holds a block holds its indexed parent: else the
            // parent could be evicted first. Hence the table switches to the indexed block.
            Some(equal) => {
                debug_assert_eq!(self.pool.refs(block), 1, "block {block} was written while shared");
                self.pool.retain(equal);
                table.blocks[i] = equal;
                self.release_block(block, false);
            }
            None => {
                self.index.insert(block, parent, namespace, hash, tokens);
                self.namespaces.retain(namespace);
            }
        }
    }

    /// A block with one reference, evicted if none is free.
    fn take(&mut self) -> Option<BlockId> {
        if let Some(block) = self.pool.take_free() {
            return Some(block);
        }
        let block = self.pool.take_oldest()?;
        let hash = self.index.node(block).hash;
        let namespace = self.index.remove(block);
        self.namespaces.release(namespace);
        self.evictions += 1;
        if let Some(evicted) = &mut self.evicted {
            evicted.push(EvictedBlock { block, hash });
        }
        Some(block)
    }

    /// Like `take`, but not a block that one of `copies` still reads.
    fn take_unread(&mut self, copies: &[[BlockId; 2]]) -> Option<BlockId> {
        let is_source = |block: BlockId| copies.iter().any(|copy| copy[0] == block);
        let block = self.take()?;
        if !is_source(block) {
            return Some(block);
        }
        let mut aside = vec![block];
        let taken = loop {
            match self.take() {
                Some(block) if is_source(block) => aside.push(block),
                other => break other,
            }
        };
        for block in aside {
            self.release_block(block, false);
        }
        taken
    }

    /// Drops one reference; with the last one also the open block.
    fn release_block(&mut self, block: BlockId, keep: bool) {
        if self.pool.release(block, keep)
            && let Some(open_blocks) = &mut self.open_blocks
        {
            open_blocks.close(block);
        }
    }
}
