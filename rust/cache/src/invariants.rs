//! The cache's invariants, checked in full. Costs O(all blocks); for tests and simulations.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::{BlockId, NONE};
use crate::cache::Cache;
use crate::namespace::Namespace;
use crate::table::BlockTable;

impl Cache {
    /// Checks every invariant against the list of all tables in use, beside those of packs.
    ///
    /// # Panics
    /// With the broken invariant, if there is one.
    pub fn check_invariants<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) {
        self.check_tables(tables, []);
    }

    /// [`Cache::check_invariants`] where some tables have `ended`: they hold blocks, and their namespace may be gone.
    ///
    /// # Panics
    /// With the broken invariant, if there is one.
    pub fn check_tables<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a BlockTable>,
        ended: impl IntoIterator<Item = &'a BlockTable>,
    ) {
        let n = self.pool.len() as usize;
        let mut held = vec![0u32; n];
        let mut partial = vec![false; n];
        let tables: Vec<&BlockTable> = tables.into_iter().collect();
        let named = tables.into_iter().chain(self.packs.tables()).map(|table| (table, true));
        let ended: Vec<&BlockTable> = ended.into_iter().collect();
        for (table, named) in named.chain(ended.into_iter().map(|table| (table, false))) {
            self.check_table(table, named);
            for &block in &table.blocks {
                held[block as usize] += 1;
            }
            if !table.reserved.is_multiple_of(self.block_size()) {
                partial[table.blocks[(table.reserved / self.block_size()) as usize] as usize] = true;
            }
        }
        self.check_open_blocks(&partial);
        let mut place = vec![None; n];
        for (i, block) in self.pool.lru().enumerate() {
            assert!(place[block as usize].replace(i).is_none(), "block {block} is twice in the LRU list");
        }
        let mut free = vec![false; n];
        for &block in self.pool.free() {
            assert!(!std::mem::replace(&mut free[block as usize], true), "block {block} is twice free");
        }
        for block in 0..n {
            let refs = self.pool.refs(block as BlockId);
            assert_eq!(refs, held[block], "block {block}: reference count and table entries differ");
            let indexed = self.index.contains(block as BlockId);
            let states = [refs > 0, place[block].is_some(), free[block]];
            let expected = [refs > 0, refs == 0 && indexed, refs == 0 && !indexed];
            assert_eq!(states, expected, "block {block}: [live, cached, free], indexed: {indexed}");
        }
        let stats = self.stats();
        let held = held.iter().filter(|&&h| h > 0).count() as u32;
        assert_eq!(stats.free_blocks + stats.cached_blocks + held, stats.num_blocks, "blocks are conserved");
        assert_eq!(
            stats.pinned_blocks + stats.live_blocks,
            held,
            "held by packs (left) or sequences (right)"
        );
        self.check_packs();
        self.check_index(&place);
    }

    /// Checks that each namespace has exactly the uses it should: those of `holders`, and one of each indexed block. That of
    /// a pack has one more, and one of each attached namespace.
    ///
    /// # Panics
    /// With the namespace that was dropped in use or is kept without use.
    pub fn check_namespaces(&self, holders: impl IntoIterator<Item = Namespace>) {
        let mut expected = BTreeMap::new();
        let indexed = (0..self.pool.len()).filter(|&b| self.index.contains(b));
        let names = indexed.map(|b| self.index.node(b).namespace);
        let packs = self.packs.tables().map(|table| table.namespace.0);
        let known: BTreeMap<_, _> = self.namespaces.uses().collect();
        let bases = known.keys().filter_map(|&name| self.namespaces.base(name)).map(|(base, ..)| base);
        for name in names.chain(holders.into_iter().map(|n| n.0)).chain(packs).chain(bases) {
            *expected.entry(name).or_insert(0u32) += 1;
        }
        assert_eq!(known, expected, "uses of each namespace, counted (left) and found (right)");
    }

    /// `partial`: whether a block is held and partly filled.
    fn check_open_blocks(&self, partial: &[bool]) {
        let Some(open_blocks) = &self.open_blocks else { return };
        let mut seen = vec![false; open_blocks.count() as usize];
        for (block, &partial) in partial.iter().enumerate() {
            let open = open_blocks.get(block as BlockId);
            assert_eq!(open.is_some(), partial, "block {block}: open (left), partly filled (right)");
            if let Some(open) = open {
                assert!(
                    !std::mem::replace(&mut seen[open as usize], true),
                    "open block {open} is used twice"
                );
            }
        }
        for open in open_blocks.unused() {
            assert!(!std::mem::replace(&mut seen[open as usize], true), "open block {open} is used and free");
        }
        assert!(seen.iter().all(|&seen| seen), "open blocks are conserved");
    }

    /// Checks that packs hold whole blocks, which can be found where namespaces are attached to them.
    fn check_packs(&self) {
        let mut pinned: BTreeSet<BlockId> = BTreeSet::new();
        for (id, pack) in self.packs.all() {
            let table = &pack.table;
            pinned.extend(&table.blocks);
            assert!(table.reserved.is_multiple_of(self.block_size()), "pack {id} ends within a block");
            let ready = self.packs.ready(id).is_some();
            assert!(!ready || table.computed == table.reserved, "pack {id} lacks its content");
        }
        assert_eq!(pinned.len() as u32, self.packs.pinned(), "blocks that packs hold");
    }

    /// `named`: the table's namespace is in use.
    fn check_table(&self, table: &BlockTable, named: bool) {
        let size = self.block_size();
        assert!(table.reserved >= table.computed, "a table has tokens without a slot");
        assert!(table.blocks.len() as u32 >= table.computed.div_ceil(size), "a table lacks committed blocks");
        for (i, &block) in table.blocks.iter().enumerate() {
            let full = (i as u32 + 1) * size <= table.computed;
            if self.index.contains(block) {
                assert!(full, "block {block} is indexed but not full in a table");
                let parent = if i == 0 { NONE } else { table.blocks[i - 1] };
                assert_eq!(
                    self.index.node(block).parent,
                    parent,
                    "block {block} lies behind a strange block"
                );
                let own = self.index.node(block).namespace;
                let expected = self.namespaces.of_block(table.namespace.0, i);
                assert!(!named || own == expected, "block {block} crosses namespaces: {own}, not {expected}");
            }
            if i as u32 * size >= table.computed {
                assert_eq!(self.pool.refs(block), 1, "block {block} is reserved for writing but shared");
            }
        }
    }

    /// `place` is each cached block's place in the LRU list.
    fn check_index(&self, place: &[Option<usize>]) {
        let mut children = vec![0u32; place.len()];
        let mut uses = BTreeMap::new();
        for block in (0..place.len() as BlockId).filter(|&b| self.index.contains(b)) {
            let node = self.index.node(block);
            let tokens = self.index.tokens(block);
            *uses.entry(node.namespace).or_insert(0u32) += 1;
            let hash = self.index.hash_behind(node.parent, node.namespace, tokens);
            assert_eq!(node.hash, hash, "block {block} has the hash of another content");
            let found = self.index.find(node.parent, node.namespace, hash, tokens);
            assert_eq!(found, Some(block), "block {block} cannot be found or has a twin");
            if node.parent == NONE {
                continue;
            }
            let parent = self.index.node(node.parent);
            assert!(parent.indexed, "block {block} outlived its parent {}", node.parent);
            let base = self.namespaces.base(node.namespace).map(|(base, ..)| base);
            assert!(
                parent.namespace == node.namespace || base == Some(parent.namespace),
                "block {block} and its parent differ in namespace"
            );
            children[node.parent as usize] += 1;
            match (place[block as usize], place[node.parent as usize]) {
                (Some(own), Some(parents)) => {
                    assert!(own < parents, "block {block} is evicted after its parent")
                }
                (None, Some(_)) => panic!("block {block} is live and its parent {} is not", node.parent),
                _ => {}
            }
        }
        for (block, &count) in children.iter().enumerate() {
            if self.index.contains(block as BlockId) {
                assert_eq!(self.index.node(block as BlockId).children, count, "children of block {block}");
            }
        }
        let known: BTreeMap<_, _> = self.namespaces.uses().collect();
        for (namespace, count) in uses {
            assert!(
                known.get(&namespace).is_some_and(|&k| k >= count),
                "namespace {namespace} dropped in use"
            );
        }
    }
}
