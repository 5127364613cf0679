//! The loaded packs of an engine, by name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use octavo_model::BlockLayout;
use serde::Serialize;

use crate::EngineError;
use crate::packs::fingerprint::PackFacts;
use crate::packs::manifest::{PackForm, Source};

/// Longest name of a pack, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// A loaded pack.
#[derive(Clone, Debug, Serialize)]
pub struct LoadedPack {
    /// What requests call it.
    pub name: String,
    /// Names its content.
    pub digest: String,
    /// Where its text stands in a prompt.
    pub form: PackForm,
    /// Tokens whose keys and values it holds.
    pub tokens: u32,
    /// Bytes of the KV cache that it takes.
    pub bytes: u64,
    /// KV blocks that it takes.
    pub blocks: u32,
    /// Digest of the adapter that it was made with.
    pub adapter: Option<String>,
    /// The documents in its text.
    pub sources: Vec<Source>,
    #[serde(skip)]
    pub(crate) text: String,
    #[serde(skip)]
    pub(crate) ids: Arc<[u32]>,
    #[serde(skip)]
    pub(crate) id: u32,
}

/// See the module's text. Only threads of callers lock it.
#[derive(Default)]
pub(crate) struct Packs {
    /// None: the device keeps no packs.
    pub facts: Option<PackFacts>,
    pub layout: Option<Arc<BlockLayout>>,
    loaded: Mutex<BTreeMap<String, Arc<LoadedPack>>>,
    ids: AtomicU32,
}

impl Packs {
    /// No packs, in an engine whose blocks have this layout.
    pub fn new(layout: Option<Arc<BlockLayout>>) -> Self {
        Self { layout, ..Self::default() }
    }

    /// An id that no pack had before.
    pub fn new_id(&self) -> u32 {
        self.ids.fetch_add(1, Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<LoadedPack>>> {
        self.loaded.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the device needs for packs.
    pub fn device(&self) -> Result<(&PackFacts, &Arc<BlockLayout>), EngineError> {
        let both = self.facts.as_ref().zip(self.layout.as_ref());
        both.ok_or_else(|| {
            EngineError::UnsupportedModel("this device keeps no packs yet: use device=\"cpu\"".into())
        })
    }

    /// All loaded packs, sorted by name.
    pub fn all(&self) -> Vec<Arc<LoadedPack>> {
        self.lock().values().cloned().collect()
    }

    /// The pack of this name.
    pub fn get(&self, name: &str) -> Result<Arc<LoadedPack>, EngineError> {
        let loaded = self.lock();
        loaded.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = loaded.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            EngineError::PackNotFound(format!(
                "pack {name:?} is not loaded: load_pack it first. Loaded: {known}"
            ))
        })
    }

    /// Puts a pack under its name. The one that had the name before is returned.
    pub fn insert(&self, pack: Arc<LoadedPack>) -> Option<Arc<LoadedPack>> {
        self.lock().insert(pack.name.clone(), pack)
    }

    /// Takes a pack out.
    pub fn remove(&self, name: &str) -> Result<Arc<LoadedPack>, EngineError> {
        let pack = self.get(name)?;
        // Another thread may have been faster: then there is nothing left to release.
        self.lock()
            .remove(&pack.name)
            .ok_or_else(|| EngineError::PackNotFound(format!("pack {name:?} is not loaded any more")))
    }
}

/// Checks the name of a pack.
pub(crate) fn check_name(name: &str) -> Result<(), EngineError> {
    let bad =
        |c: char| c.is_control() || c.is_whitespace() || matches!(c, '+' | ',' | '@' | '=' | '/' | '\\');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(bad) {
        return Err(EngineError::InvalidRequest(format!(
            "name is {name:?}: a text of 1 to {MAX_NAME_BYTES} bytes without spaces and + , @ = / \\ is expected"
        )));
    }
    Ok(())
}
