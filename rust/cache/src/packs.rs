//! Packs: tables that are held by name, apart from any sequence.
//!
//! A pack is a text whose whole blocks stay in the pool. Its blocks lie in a namespace of their own. A namespace that
//! is *attached* to a pack begins with the pack's blocks and goes on with its own:
//!
//! ```text
//! namespace of the pack        block 0    block 1    block 2
//!                                                       |
//! salt "a", attached                                    +---- block 3  block 4
//! salt "b", attached                                    +---- block 3'
//! ```
//!
//! What a request writes lies behind the pack, in the request's namespace: no hit crosses from "a" to "b". A pack's id
//! names one text and is never used again. An attached namespace outlives its pack: what is left of the pack's blocks
//! can still be found, and the others are computed like any prompt.

use crate::block::BlockId;
use crate::cache::Cache;
use crate::error::OutOfBlocks;
use crate::held::HeldPack;
use crate::namespace::Namespace;
use crate::table::BlockTable;

impl Cache {
    /// Takes blocks for a pack of these `tokens`, which are whole blocks. Their content is still to be written:
    /// [`Cache::pack_blocks`] names them, and [`Cache::finish_pack`] ends that. Fails without any change.
    ///
    /// `id` names no other pack, before or after.
    pub fn hold_pack(&mut self, id: u32, tokens: Vec<u32>) -> Result<(), OutOfBlocks> {
        debug_assert!(tokens.len().is_multiple_of(self.block_size() as usize), "packs hold whole blocks");
        let len = tokens.len() as u32;
        let namespace = self.namespaces.intern_pack(id, len / self.block_size());
        let mut table = BlockTable { namespace, ..BlockTable::default() };
        if let Err(lacking) = self.reserve(&mut table, len, &mut Vec::new()) {
            self.namespaces.release(namespace.0);
            return Err(lacking);
        }
        self.packs.insert(id, HeldPack { table, tokens, ready: false });
        Ok(())
    }

    /// Records that the content of a pack's blocks is there: from now on namespaces can be attached to it.
    pub fn finish_pack(&mut self, id: u32) {
        let Some(HeldPack { mut table, tokens, .. }) = self.packs.remove(id) else { return };
        let len = tokens.len() as u32;
        self.commit(&mut table, &tokens, len);
        self.packs.insert(id, HeldPack { table, tokens, ready: true });
    }

    /// Holds the cached blocks of `tokens`, whole blocks in `namespace`, under `id`. No namespace can be attached to them.
    /// `false` and no change if one of them is not in the cache.
    pub fn hold_cached(&mut self, id: u32, namespace: Namespace, tokens: &[u32]) -> bool {
        let mut found = crate::PrefixMatch::default();
        self.find_prefix(namespace, tokens, tokens.len() as u32, &mut found);
        if (found.num_blocks() * self.block_size()) as usize != tokens.len() {
            return false;
        }
        self.namespaces.retain(namespace.0);
        found.blocks.iter().for_each(|&block| self.pool.retain(block));
        let computed = tokens.len() as u32;
        let table = BlockTable { blocks: found.blocks, computed, reserved: computed, namespace };
        self.packs.insert(id, HeldPack { table, tokens: Vec::new(), ready: false });
        true
    }

    /// Lets a pack go. Blocks that sequences use stay with these; the others can be found until they are evicted.
    pub fn release_pack(&mut self, id: u32) {
        if let Some(HeldPack { mut table, .. }) = self.packs.remove(id) {
            self.release(&mut table);
            self.namespaces.release(table.namespace.0);
        }
    }

    /// The blocks of a held pack, in order; empty if there is none.
    pub fn pack_blocks(&self, id: u32) -> &[BlockId] {
        self.packs.held.get(&id).map_or(&[], |pack| pack.table.blocks())
    }

    /// Whether `tokens` begin with those of a pack whose content is there.
    pub fn pack_begins(&self, id: u32, tokens: &[u32]) -> bool {
        self.packs.held.get(&id).is_some_and(|pack| pack.ready && tokens.starts_with(&pack.tokens))
    }

    /// Namespace of a (salt, adapter, attention policy) triple behind a pack, held until [`Cache::release_namespace`].
    /// Only for sequences that [`Cache::pack_begins`].
    pub fn attach_namespace(
        &mut self,
        pack: u32,
        salt: Option<&str>,
        adapter: u32,
        attention: u32,
    ) -> Namespace {
        match self.packs.held.get(&pack).map(|pack| pack.table.namespace) {
            Some(base) => self.namespaces.intern_attached(base, (salt.map(Box::from), adapter, attention)),
            None => self.intern_namespace(salt, adapter, attention),
        }
    }

    /// A table with the first `blocks` blocks of a pack, to compute the next one again. Release it as any table.
    pub fn fork_pack(&mut self, id: u32, blocks: u32) -> BlockTable {
        let Some(pack) = self.packs.held.get(&id) else { return BlockTable::default() };
        let tokens = blocks * self.block_size();
        let held = &pack.table.blocks[..blocks as usize];
        held.iter().for_each(|&block| self.pool.retain(block));
        BlockTable {
            blocks: held.to_vec(),
            computed: tokens,
            reserved: tokens,
            namespace: pack.table.namespace,
        }
    }

    /// Tokens of a pack.
    pub fn pack_tokens(&self, id: u32) -> &[u32] {
        self.packs.held.get(&id).map_or(&[], |pack| &pack.tokens)
    }

    /// Blocks that packs hold.
    pub fn pinned_blocks(&self) -> u32 {
        self.packs.pinned()
    }
}
