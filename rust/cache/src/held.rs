//! The tables that packs hold, and how often each block is held.

use std::collections::BTreeMap;

use crate::block::BlockId;
use crate::table::BlockTable;

/// A held table.
#[derive(Debug)]
pub(crate) struct HeldPack {
    pub(crate) table: BlockTable,
    pub(crate) tokens: Vec<u32>,
    /// Whether the blocks have their content: namespaces may be attached.
    pub(crate) ready: bool,
}

/// All held tables, and how many of them hold each block.
#[derive(Debug, Default)]
pub(crate) struct Packs {
    pub(crate) held: BTreeMap<u32, HeldPack>,
    /// Packs that hold a block; only blocks that some pack holds.
    pins: BTreeMap<BlockId, u32>,
}

impl Packs {
    pub(crate) fn insert(&mut self, id: u32, pack: HeldPack) {
        for &block in pack.table.blocks() {
            *self.pins.entry(block).or_insert(0) += 1;
        }
        let before = self.held.insert(id, pack);
        debug_assert!(before.is_none(), "pack {id} is held twice");
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<HeldPack> {
        let pack = self.held.remove(&id)?;
        for block in pack.table.blocks() {
            if let Some(pins) = self.pins.get_mut(block) {
                *pins -= 1;
                if *pins == 0 {
                    self.pins.remove(block);
                }
            }
        }
        Some(pack)
    }

    /// The blocks of a pack whose content is there.
    pub(crate) fn ready(&self, id: u32) -> Option<&[BlockId]> {
        self.held.get(&id).filter(|pack| pack.ready).map(|pack| pack.table.blocks())
    }

    /// Blocks that packs hold.
    pub(crate) fn pinned(&self) -> u32 {
        self.pins.len() as u32
    }

    /// The packs, by id.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, &HeldPack)> {
        self.held.iter().map(|(&id, pack)| (id, pack))
    }

    /// The held tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &BlockTable> {
        self.held.values().map(|pack| &pack.table)
    }
}
