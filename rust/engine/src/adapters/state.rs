//! Names, files and memory of adapters.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use octavo_scheduler::{AdapterNames, AdapterPool, PoolKey};

use crate::adapters::backend::AdapterInfo;
use crate::adapters::claim::AdapterJob;
use crate::adapters::usage::Usages;

/// What callers and the loader thread share. The engine thread never locks it.
pub(super) struct AdapterState {
    pub names: AdapterNames,
    /// Of each name that is loaded.
    pub infos: BTreeMap<String, Arc<AdapterInfo>>,
    pub usages: Usages,
    pub pool: AdapterPool,
    pub packed: BTreeMap<u32, Arc<dyn Any + Send + Sync>>,
    pub jobs: BTreeMap<PoolKey, AdapterJob>,
}

impl AdapterState {
    /// Drops an adapter without a name that no request needs. The caller frees it without the lock.
    #[must_use]
    pub fn drop_nameless(&mut self, id: u32) -> Option<Arc<dyn Any + Send + Sync>> {
        if !self.names.has(id) && self.pool.drop_idle(id) { self.packed.remove(&id) } else { None }
    }
}

/// `AdapterState` under its lock.
pub(super) type SharedState = Arc<Mutex<AdapterState>>;

pub(super) fn lock(state: &SharedState) -> MutexGuard<'_, AdapterState> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}
