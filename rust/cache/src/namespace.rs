//! Namespaces: what separates two prompts with the same tokens.

use std::collections::BTreeMap;

use crate::block::NONE;

/// An interned (salt, adapter, attention policy) triple. Equal namespaces mean equal triples while they are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespace(pub(crate) u32);

/// Salt, adapter slot, bits of the attention policy.
pub(crate) type NamespaceKey = (Option<Box<str>>, u32, u32);

/// Counted interning: a namespace is dropped with its last use by a caller or by a block of the prefix index. The maps are
/// ordered, not hashed: salts come from clients.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    ids: BTreeMap<NamespaceKey, u32>,
    names: Vec<Option<(NamespaceKey, u32)>>,
    spare: Vec<u32>,
}

impl Namespaces {
    pub(crate) fn intern(&mut self, key: NamespaceKey) -> Namespace {
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

    fn key(salt: Option<&str>, adapter: u32, attention: u32) -> NamespaceKey {
        (salt.map(Box::from), adapter, attention)
    }

    #[test]
    fn equal_keys_share_a_name_and_others_do_not() {
        let mut names = Namespaces::default();
        let a = names.intern(key(Some("x"), 0, 0));
        assert_eq!(a, names.intern(key(Some("x"), 0, 0)));
        let others = [
            (None, 0, 0),
            (None, 1, 0),
            (Some("x"), 1, 0),
            (Some("x"), 0, 1),
            (Some(""), 0, 0),
            (Some("xx"), 0, 0),
        ];
        for (salt, adapter, attention) in others {
            assert_ne!(a, names.intern(key(salt, adapter, attention)), "{salt:?} {adapter} {attention}");
        }
    }

    #[test]
    fn a_name_is_dropped_with_its_last_use() {
        let mut names = Namespaces::default();
        let a = names.intern(key(Some("x"), 0, 0));
        names.retain(a.0);
        names.release(a.0);
        assert_eq!(a, names.intern(key(Some("x"), 0, 0)));
        names.release(a.0);
        names.release(a.0);
        assert_eq!(names.uses().count(), 0);
        assert!(names.ids.is_empty());
        assert_eq!(names.intern(key(Some("y"), 0, 0)), a, "the id is used again");
    }
}
