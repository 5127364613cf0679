//! Adapters in the simulation: names get other contents, and lose them, in every turn; the memory holds few at once.
//!
//! The truth is kept apart: which content a request's name stood for when it was submitted. What runs must have that.

use std::collections::{BTreeMap, BTreeSet};

use octavo_scheduler::{AdapterNames, AdapterPool, Event, Grant, NO_ADAPTER, NewRequest, PoolKey};

use super::random::{Random, mix};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Contents, counted from 1; 0 stands for none.
const CONTENTS: u32 = 3;
const NO_CONTENT: u64 = 0;

/// A request's part.
struct Claim {
    key: PoolKey,
    id: u32,
    content: u64,
    bytes: u64,
    /// Its adapter is in memory, and stays there.
    pinned: bool,
}

pub struct SimAdapters {
    random: Random,
    names: AdapterNames,
    pool: AdapterPool,
    /// The content of each name, as the caller gave it.
    truth: BTreeMap<&'static str, u64>,
    claims: BTreeMap<u64, Claim>,
    /// What is being packed: id, content, and turns until it is done.
    packing: Option<(u32, u64, u32)>,
    /// Content of each adapter in memory, by id.
    pub memory: BTreeMap<u32, u64>,
    /// Content that each request must run with.
    pub contents: BTreeMap<u64, u64>,
    /// Requests that wait for their adapter.
    pub held: BTreeSet<u64>,
    /// Contents replaced, adapters packed, requests held in all.
    pub reloads: u64,
    pub packs: u64,
    pub holds: u64,
}

fn bytes_of(content: u64) -> u64 {
    2 + content % 3
}

impl SimAdapters {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(mix(seed, 5));
        let budget = u64::from(random.range(4, 12));
        Self {
            random,
            names: AdapterNames::default(),
            pool: AdapterPool::new(budget),
            truth: BTreeMap::new(),
            claims: BTreeMap::new(),
            packing: None,
            memory: BTreeMap::new(),
            contents: BTreeMap::new(),
            held: BTreeSet::new(),
            reloads: 0,
            packs: 0,
            holds: 0,
        }
    }

    /// What happens to names in one turn.
    pub fn change_names(&mut self) {
        let name = self.random.pick(&NAMES);
        if self.random.one_in(3) {
            let content = u64::from(self.random.range(1, CONTENTS));
            let before = self.truth.insert(name, content);
            let loaded = self.names.load(name, &format!("digest {content}"), None).expect("a good name");
            self.reloads += u64::from(before.is_some_and(|before| before != content));
            loaded.replaced.into_iter().for_each(|old| self.drop_nameless(old));
        } else if self.random.one_in(6) && self.truth.remove(name).is_some() {
            let id = self.names.unload(name).expect("it is loaded");
            self.drop_nameless(id);
        }
    }

    /// Gives a new request one of the names there are, or none.
    pub fn choose(&mut self, request: &mut NewRequest) {
        let name = self.random.pick(&NAMES);
        let content = self.truth.get(name).copied().filter(|_| !self.random.one_in(3));
        // Without salts there are hits enough.
        (request.adapter, request.salt) = (NO_ADAPTER, None);
        self.contents.insert(request.id, content.unwrap_or(NO_CONTENT));
        let Some(content) = content else { return };
        let found = self.names.resolve(name).expect("it is loaded");
        let (key, bytes) = ((request.priority, request.id), bytes_of(content));
        let pinned = self.pool.try_pin(key, found.id);
        if !pinned {
            self.pool.wait(key, found.id, bytes);
            self.held.insert(request.id);
            self.holds += 1;
        }
        (request.adapter, request.held) = (found.id, !pinned);
        self.claims.insert(request.id, Claim { key, id: found.id, content, bytes, pinned });
    }

    /// Does what the memory allows. Returns the requests whose adapter could not be packed.
    pub fn load(&mut self, events: &mut Vec<Event>) -> Vec<u64> {
        let mut failed = Vec::new();
        if let Some((id, content, turns)) = self.packing.take() {
            if turns > 0 {
                self.packing = Some((id, content, turns - 1));
            } else if self.random.one_in(12) {
                failed.extend(self.pool.failed(id).into_iter().map(|(_, request)| request));
            } else {
                self.packs += 1;
                self.memory.insert(id, content);
                self.pool.packed(id);
                self.drop_nameless(id);
            }
        }
        // One thread packs: what could be granted meanwhile waits for it.
        while self.packing.is_none()
            && let Some(grant) = self.pool.next_grant()
        {
            match grant {
                Grant::Ready { request, .. } => {
                    self.claims.get_mut(&request).expect("it waits").pinned = true;
                    self.held.remove(&request);
                    events.push(Event::Release { request });
                }
                Grant::Pack { id, key, evict } => {
                    for id in &evict {
                        self.memory.remove(id).expect("it was in memory");
                    }
                    let claim = self.claims.values().find(|claim| claim.key == key).expect("it waits");
                    assert_eq!(claim.bytes, bytes_of(claim.content));
                    self.packing = Some((id, claim.content, self.random.range(0, 3)));
                }
            }
        }
        for &request in &failed {
            self.held.remove(&request);
            self.claims.remove(&request);
            events.push(Event::Fail { request });
        }
        self.pool.check_invariants();
        failed
    }

    /// Releases what requests hold that have ended with all their steps.
    pub fn release(&mut self, has_ended: impl Fn(u64) -> bool) {
        let ended: Vec<u64> = self.claims.keys().copied().filter(|&request| has_ended(request)).collect();
        for request in ended {
            let claim = self.claims.remove(&request).expect("it is there");
            self.held.remove(&request);
            if claim.pinned {
                self.pool.unpin(claim.id);
            } else {
                assert!(self.pool.forget(claim.key), "request {request} waits");
            }
            self.drop_nameless(claim.id);
        }
        self.pool.check_invariants();
    }

    /// At the end, no adapter is pinned.
    pub fn check_end(&mut self) {
        assert!(self.claims.is_empty() && self.held.is_empty(), "a request holds an adapter at the end");
        if let Some((id, ..)) = self.packing {
            self.pool.packed(id);
            self.memory.insert(id, NO_CONTENT);
        }
        for id in std::mem::take(&mut self.memory).into_keys() {
            assert!(self.pool.drop_idle(id), "adapter {id} is pinned at the end");
        }
        assert_eq!(self.pool.bytes(), 0, "memory of adapters leaks");
    }

    fn drop_nameless(&mut self, id: u32) {
        if !self.names.has(id) && self.pool.drop_idle(id) {
            self.memory.remove(&id).expect("it was in memory");
        }
    }
}
