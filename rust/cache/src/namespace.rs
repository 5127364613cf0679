//! Namespaces: what separates two prompts with the same tokens.

use std::collections::BTreeMap;

use crate::block::NONE;

/// An interned (salt, adapter) pair. Two equal names mean equal pairs, for as long as the name is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespace(pub(crate) u32);

type Key = (Option<Box<str>>, Option<Box<str>>);

/// Counted interning: a name lives while a caller or a block of the prefix index uses it, so that ever new salts do
/// not pile up. Ordered maps, not hashed ones: salts come from clients.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    ids: BTreeMap<Key, u32>,
    names: Vec<Option<(Key, u32)>>,
    spare: Vec<u32>,
}

impl Namespaces {
    pub(crate) fn intern(&mut self, salt: Option<&str>, adapter: Option<&str>) -> Namespace {
        let key: Key = (salt.map(Box::from), adapter.map(Box::from));
        if let Some(&id) = self.ids.get(&key) {
            self.retain(id);
            return Namespace(id);
        }
        let entry = Some((key.clone(), 1));
        let id = match self.spare.pop() {
            Some(id) => {
                self.names[id as usize] = entry;
                id
            }
            None => {
                self.names.push(entry);
                self.names.len() as u32 - 1
            }
        };
        debug_assert_ne!(id, NONE);
        self.ids.insert(key, id);
        Namespace(id)
    }

    pub(crate) fn retain(&mut self, id: u32) {
        match self.names.get_mut(id as usize) {
            Some(Some((_, uses))) => *uses += 1,
            _ => debug_assert!(false, "namespace {id} is not interned"),
        }
    }

    pub(crate) fn release(&mut self, id: u32) {
        let Some(slot) = self.names.get_mut(id as usize) else { return };
        let Some((_, uses)) = slot else {
            debug_assert!(false, "namespace {id} is not interned");
            return;
        };
        *uses -= 1;
        if *uses == 0
            && let Some((key, _)) = slot.take()
        {
            self.ids.remove(&key);
            self.spare.push(id);
        }
    }

    /// Uses of each live name, by id.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.names.iter().enumerate().filter_map(|(id, slot)| Some((id as u32, slot.as_ref()?.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pairs_share_a_name_and_others_do_not() {
        let mut names = Namespaces::default();
        let a = names.intern(Some("x"), None);
        assert_eq!(a, names.intern(Some("x"), None));
        let others =
            [(None, None), (None, Some("x")), (Some("x"), Some("")), (Some(""), None), (Some("xx"), None)];
        for (salt, adapter) in others {
            assert_ne!(a, names.intern(salt, adapter), "{salt:?} {adapter:?}");
        }
    }

    #[test]
    fn a_name_is_dropped_with_its_last_use() {
        let mut names = Namespaces::default();
        let a = names.intern(Some("x"), None);
        names.retain(a.0);
        names.release(a.0);
        assert_eq!(a, names.intern(Some("x"), None));
        names.release(a.0);
        names.release(a.0);
        assert_eq!(names.uses().count(), 0);
        assert!(names.ids.is_empty());
        assert_eq!(names.intern(Some("y"), None), a, "the id is used again");
    }
}
