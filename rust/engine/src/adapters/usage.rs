//! How many requests wait for a name of an adapter, and run with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Adapters in use, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AdapterStats {
    /// Names that running requests use.
    pub running: Vec<String>,
    /// Names that waiting requests use.
    pub waiting: Vec<String>,
    /// Most distinct adapters that run at once.
    pub max: u32,
    /// Names that are loaded.
    pub registered: usize,
    /// Adapters in memory.
    pub resident: usize,
    /// Memory of packed adapters.
    pub resident_bytes: u64,
}

/// Requests of one name.
#[derive(Debug, Default)]
pub(super) struct Usage {
    waiting: AtomicUsize,
    running: AtomicUsize,
}

/// The usage of each name.
#[derive(Debug, Default)]
pub(super) struct Usages(BTreeMap<String, Arc<Usage>>);

impl Usages {
    /// Counts a request of this name, which waits.
    pub fn count(&mut self, name: &str) -> Counted {
        let usage = Arc::clone(self.0.entry(name.into()).or_default());
        usage.waiting.fetch_add(1, Ordering::SeqCst);
        Counted { usage, started: false }
    }

    /// (running, waiting) names, in order.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        let with = |count: fn(&Usage) -> &AtomicUsize| {
            let used = self.0.iter().filter(|(_, usage)| count(usage).load(Ordering::SeqCst) > 0);
            used.map(|(name, _)| name.clone()).collect()
        };
        (with(|usage| &usage.running), with(|usage| &usage.waiting))
    }
}

/// One request in the usage of its name, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    usage: Arc<Usage>,
    started: bool,
}

impl Counted {
    /// The request runs.
    pub fn start(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.usage.running.fetch_add(1, Ordering::SeqCst);
            self.usage.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = if self.started { &self.usage.running } else { &self.usage.waiting };
        count.fetch_sub(1, Ordering::SeqCst);
    }
}
