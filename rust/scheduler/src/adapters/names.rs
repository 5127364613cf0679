//! Names of adapters: name to generation to adapter id.
//!
//! An adapter id names one content, by its digest, and never another one. Cached blocks are keyed by the id, so a name that
//! gets other weights finds no block of the old ones, and two names of equal weights share theirs.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::plan::NO_ADAPTER;

/// Longest name, in bytes.
const MAX_NAME: usize = 256;
/// Most names that a message lists.
const MAX_SHOWN: usize = 8;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterName {
    /// The name, without a generation.
    pub name: String,
    /// Counts the contents that the name has had, from 1 on.
    pub generation: u64,
    /// Names the content.
    pub id: u32,
}

/// What loading a name did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedName {
    /// The name's generation from now on.
    pub generation: u64,
    /// Names the content.
    pub id: u32,
    /// The id that the name stood for, if it was another one.
    pub replaced: Option<u32>,
}

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// The text is no name of an adapter.
    #[error("{name:?} is no name of an adapter: {why}")]
    Bad {
        /// The text.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// No adapter has the name.
    #[error("there is no adapter {name:?}: {known}. Load it with load_adapter")]
    NotFound {
        /// The name.
        name: String,
        /// The names there are, as a sentence.
        known: String,
    },
    /// The name has another generation.
    #[error(
        "adapter {name:?} has generation {found}, not {wanted}: it was loaded again. Give {name:?} for the newest one"
    )]
    OtherGeneration {
        /// The name.
        name: String,
        /// Generation asked for.
        wanted: u64,
        /// Generation there is.
        found: u64,
    },
    /// A load expected another generation.
    #[error(
        "adapter {name:?} has generation {found}, and expected_generation is {expected}: it was changed meanwhile. Read \
         adapters(), and load it again if that is still wanted (0: the name is free)"
    )]
    Conflict {
        /// The name.
        name: String,
        /// Generation expected; 0: none.
        expected: u64,
        /// Generation there is; 0: none.
        found: u64,
    },
}

#[derive(Debug, Clone)]
struct NameEntry {
    generation: u64,
    digest: String,
    id: u32,
    loaded: bool,
}

/// Names and the adapter ids that they stand for.
#[derive(Debug, Default)]
pub struct AdapterNames {
    /// An unloaded name stays: its generations go on.
    names: BTreeMap<String, NameEntry>,
    ids: BTreeMap<String, u32>,
}

impl AdapterNames {
    /// Checks that `name` can name an adapter.
    ///
    /// # Errors
    /// [`NameError::Bad`].
    pub fn check(name: &str) -> Result<(), NameError> {
        let why = if name.is_empty() {
            "it is empty"
        } else if name.len() > MAX_NAME {
            "it has more than 256 bytes"
        } else if name.contains(['@', '+', ',']) {
            "\"@\", \"+\" and \",\" separate names from what follows them"
        } else if name.contains(char::is_control) || name.trim() != name {
            "it has a control character, or white space at its beginning or end"
        } else {
            return Ok(());
        };
        Err(NameError::Bad { name: name.chars().take(MAX_NAME).collect(), why })
    }

    /// Makes `name` stand for the content `digest`. With `expected`, only if that is its generation (0: it is free).
    ///
    /// # Errors
    /// [`NameError::Bad`], [`NameError::Conflict`].
    pub fn load(&mut self, name: &str, digest: &str, expected: Option<u64>) -> Result<LoadedName, NameError> {
        Self::check(name)?;
        let before = self.names.get(name);
        let found = before.filter(|n| n.loaded).map_or(0, |n| n.generation);
        if let Some(expected) = expected.filter(|e| *e != found) {
            return Err(NameError::Conflict { name: name.into(), expected, found });
        }
        let old = before.filter(|n| n.loaded).map(|n| n.id);
        let generation = match before {
            Some(n) if n.digest == digest => n.generation,
            Some(n) => n.generation + 1,
            None => 1,
        };
        let next = self.ids.len() as u32;
        debug_assert!(next < NO_ADAPTER);
        let id = *self.ids.entry(digest.into()).or_insert(next);
        self.names.insert(name.into(), NameEntry { generation, digest: digest.into(), id, loaded: true });
        Ok(LoadedName { generation, id, replaced: old.filter(|old| *old != id) })
    }

    /// Removes a name. Returns the id that it stood for.
    ///
    /// # Errors
    /// [`NameError::NotFound`].
    pub fn unload(&mut self, name: &str) -> Result<u32, NameError> {
        match self.names.get_mut(name).filter(|n| n.loaded) {
            Some(found) => {
                found.loaded = false;
                Ok(found.id)
            }
            None => Err(self.not_found(name)),
        }
    }

    /// What `text` stands for: a name, or a name with the generation that it must have, such as `sql@3`.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn resolve(&self, text: &str) -> Result<AdapterName, NameError> {
        let (name, wanted) = match text.split_once('@') {
            Some((name, generation)) => {
                let why = "behind \"@\" stands a generation, a number from 1 on";
                let bad = || NameError::Bad { name: text.chars().take(MAX_NAME).collect(), why };
                (name, Some(generation.parse::<u64>().map_err(|_| bad())?))
            }
            None => (text, None),
        };
        Self::check(name)?;
        let found = self.names.get(name).filter(|n| n.loaded).ok_or_else(|| self.not_found(name))?;
        match wanted {
            Some(wanted) if wanted != found.generation => {
                Err(NameError::OtherGeneration { name: name.into(), wanted, found: found.generation })
            }
            _ => Ok(AdapterName { name: name.into(), generation: found.generation, id: found.id }),
        }
    }

    /// All names that are loaded, in order.
    pub fn iter(&self) -> impl Iterator<Item = AdapterName> + '_ {
        let loaded = self.names.iter().filter(|(_, n)| n.loaded);
        loaded.map(|(name, n)| AdapterName { name: name.clone(), generation: n.generation, id: n.id })
    }

    /// Whether a name stands for this id.
    pub fn has(&self, id: u32) -> bool {
        self.names.values().any(|n| n.loaded && n.id == id)
    }

    fn not_found(&self, name: &str) -> NameError {
        let mut names: Vec<String> = self.iter().map(|n| format!("{:?}", n.name)).collect();
        let known = match names.len() {
            0 => "none is loaded".into(),
            1..=MAX_SHOWN => format!("loaded are {}", names.join(", ")),
            count => {
                names.truncate(MAX_SHOWN);
                format!("loaded are {} and {} more", names.join(", "), count - MAX_SHOWN)
            }
        };
        NameError::NotFound { name: name.chars().take(MAX_NAME).collect(), known }
    }
}
