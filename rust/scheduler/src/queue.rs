//! The waiting sequences in the order of service.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::request::Key;

/// Sequences that hold no blocks, by [`Key`]: a preempted one returns to its old place in front.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    by_key: BTreeMap<Key, u32>,
}

impl Queue {
    pub(crate) fn insert(&mut self, key: Key, sequence: u32) {
        let before = self.by_key.insert(key, sequence);
        debug_assert!(before.is_none(), "{key:?} waits twice");
    }

    pub(crate) fn remove(&mut self, key: Key) {
        let removed = self.by_key.remove(&key);
        debug_assert!(removed.is_some(), "{key:?} does not wait");
    }

    /// The first one behind `key`, or of all.
    pub(crate) fn next(&self, key: Option<Key>) -> Option<(Key, u32)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_key.range((from, Bound::Unbounded)).next().map(|(&key, &sequence)| (key, sequence))
    }

    pub(crate) fn len(&self) -> u32 {
        self.by_key.len() as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, u32)> + '_ {
        self.by_key.iter().map(|(&key, &sequence)| (key, sequence))
    }
}
