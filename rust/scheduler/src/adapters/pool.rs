//! Which adapters are in memory: packed at first use, evicted least recently used first, pinned while requests need them.
//!
//! A request needs one adapter. It waits here, in the order of (priority, request), until its adapter is in memory beside
//! the pinned ones. A request whose adapter does not fit may be overtaken by later ones up to [`MAX_BYPASS`] times. Then
//! these wait, too: the pins end, and it gets its turn.

use std::collections::BTreeMap;

use crate::RequestId;

/// How often a request whose adapter does not fit may be overtaken.
const MAX_BYPASS: u32 = 8;

/// Order of service: (priority, request), lower first.
pub type PoolKey = (i32, RequestId);

#[derive(Debug, Clone, Copy)]
struct Resident {
    bytes: u64,
    /// Requests that need it; while it is packed, none.
    pins: u32,
    packed: bool,
    last_use: u64,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    id: u32,
    bytes: u64,
    /// It was found not to fit.
    blocked: bool,
    bypassed: u32,
}

/// What may happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// This request has its adapter, which is pinned for it.
    Ready {
        /// Which request.
        request: RequestId,
        /// Its key.
        key: PoolKey,
        /// Its adapter.
        id: u32,
    },
    /// This adapter is to be packed, for the request of this key among others. [`AdapterPool::packed`] or
    /// [`AdapterPool::failed`] ends it.
    Pack {
        /// Which adapter.
        id: u32,
        /// Who needs it.
        key: PoolKey,
        /// Adapters to drop first.
        evict: Vec<u32>,
    },
}

/// The adapters in memory, and the requests that wait for one.
#[derive(Debug)]
pub struct AdapterPool {
    budget: u64,
    used: u64,
    uses: u64,
    residents: BTreeMap<u32, Resident>,
    waiting: BTreeMap<PoolKey, Waiting>,
}

impl AdapterPool {
    /// An empty pool of so many bytes.
    pub fn new(budget: u64) -> Self {
        Self { budget, used: 0, uses: 0, residents: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// Bytes of the adapters in memory, those being packed included.
    pub fn bytes(&self) -> u64 {
        self.used
    }

    /// Whether this adapter is in memory.
    pub fn is_resident(&self, id: u32) -> bool {
        self.residents.get(&id).is_some_and(|r| r.packed)
    }

    /// Pins an adapter that is in memory, unless an earlier request has waited long enough. `false`: call
    /// [`AdapterPool::wait`].
    pub fn try_pin(&mut self, key: PoolKey, id: u32) -> bool {
        if !self.is_resident(id) || !self.may_overtake(key) {
            return false;
        }
        self.count_bypass(key);
        self.pin(id);
        true
    }

    /// Puts a request into the queue. `bytes` is at most the pool's budget.
    pub fn wait(&mut self, key: PoolKey, id: u32, bytes: u64) {
        debug_assert!(bytes <= self.budget);
        self.waiting.insert(key, Waiting { id, bytes, blocked: false, bypassed: 0 });
    }

    /// Takes a request out of the queue. `false`: it was not there.
    pub fn forget(&mut self, key: PoolKey) -> bool {
        self.waiting.remove(&key).is_some()
    }

    /// A request needs its adapter no more. Returns whether another one still does.
    pub fn unpin(&mut self, id: u32) -> bool {
        self.uses += 1;
        let uses = self.uses;
        let Some(resident) = self.residents.get_mut(&id) else { return false };
        debug_assert!(resident.pins > 0, "adapter {id} is unpinned once too often");
        resident.pins = resident.pins.saturating_sub(1);
        resident.last_use = uses;
        resident.pins > 0
    }

    /// Drops an adapter that no request needs. `false`: it is needed, or not in memory.
    pub fn drop_idle(&mut self, id: u32) -> bool {
        let idle = self.residents.get(&id).is_some_and(Resident::is_idle);
        let wanted = self.waiting.values().any(|w| w.id == id);
        idle && !wanted && self.remove(id)
    }

    /// The next thing to do, if there is one. Call it until there is none, after each change.
    pub fn next_grant(&mut self) -> Option<Grant> {
        let keys: Vec<PoolKey> = self.waiting.keys().copied().collect();
        for key in keys {
            let Waiting { id, bytes, bypassed, .. } = self.waiting[&key];
            match self.residents.get(&id) {
                Some(resident) if resident.packed => {
                    self.waiting.remove(&key);
                    self.count_bypass(key);
                    self.pin(id);
                    return Some(Grant::Ready { request: key.1, key, id });
                }
                Some(_) => {}
                None => {
                    if let Some(evict) = self.make_room(bytes) {
                        self.used += bytes;
                        let packing = Resident { bytes, pins: 0, packed: false, last_use: self.uses };
                        self.residents.insert(id, packing);
                        return Some(Grant::Pack { id, key, evict });
                    }
                    self.waiting.entry(key).and_modify(|w| w.blocked = true);
                    if bypassed >= MAX_BYPASS {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The adapter is packed: the requests that wait for it get it by [`AdapterPool::next_grant`].
    pub fn packed(&mut self, id: u32) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.packed = true;
        }
    }

    /// The adapter cannot be packed. Returns the requests that waited for it.
    pub fn failed(&mut self, id: u32) -> Vec<PoolKey> {
        self.remove(id);
        let keys: Vec<PoolKey> = self.waiting.iter().filter(|(_, w)| w.id == id).map(|(&k, _)| k).collect();
        self.waiting.retain(|_, w| w.id != id);
        keys
    }

    /// Checks that the sums are right.
    ///
    /// # Panics
    /// With the broken invariant, if there is one.
    pub fn check_invariants(&self) {
        let used: u64 = self.residents.values().map(|r| r.bytes).sum();
        assert_eq!(used, self.used, "the bytes of adapters in memory are counted");
        assert!(self.used <= self.budget, "adapters take {} bytes of {}", self.used, self.budget);
        assert!(self.residents.values().all(|r| r.packed || r.pins == 0), "what is being packed is pinned");
        assert!(self.waiting.values().all(|w| w.bypassed <= MAX_BYPASS), "a request is overtaken for ever");
    }

    /// Whether no earlier request was overtaken as often as it may be.
    fn may_overtake(&self, key: PoolKey) -> bool {
        self.waiting.range(..key).all(|(_, w)| w.bypassed < MAX_BYPASS)
    }

    /// Counts that the request of `key` overtakes the earlier ones that do not fit.
    fn count_bypass(&mut self, key: PoolKey) {
        let blocked = self.waiting.range_mut(..key).filter(|(_, w)| w.blocked);
        blocked.for_each(|(_, w)| w.bypassed += 1);
    }

    fn pin(&mut self, id: u32) {
        self.uses += 1;
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.pins += 1;
            resident.last_use = self.uses;
        }
    }

    /// The adapters dropped for `bytes` more, least recently used first; `None`: the pinned ones leave too little.
    fn make_room(&mut self, bytes: u64) -> Option<Vec<u32>> {
        let idle = self.residents.iter().filter(|(_, r)| r.is_idle());
        let mut idle: Vec<(u64, u32)> = idle.map(|(&id, r)| (r.last_use, id)).collect();
        idle.sort_unstable();
        let mut evict = Vec::new();
        let mut used = self.used;
        for (_, id) in idle {
            if used + bytes <= self.budget {
                break;
            }
            used -= self.residents[&id].bytes;
            evict.push(id);
        }
        if used + bytes > self.budget {
            return None;
        }
        for &id in &evict {
            self.remove(id);
        }
        Some(evict)
    }

    fn remove(&mut self, id: u32) -> bool {
        let removed = self.residents.remove(&id);
        self.used -= removed.map_or(0, |r| r.bytes);
        removed.is_some()
    }
}

impl Resident {
    /// Whether it may be dropped.
    fn is_idle(&self) -> bool {
        self.packed && self.pins == 0
    }
}
