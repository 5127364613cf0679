//! Namespaces: what separates two prompts with the same tokens.

use std::collections::BTreeMap;

use crate::block::NONE;

/// An interned (salt, adapter, attention policy) triple. Equal namespaces mean equal triples while they are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespace(pub(crate) u32);

/// Salt, adapter, bits of the attention policy.
pub(crate) type RequestKey = (Option<Box<str>>, u32, u32);

/// What a namespace is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum NamespaceKey {
    /// Sequences of requests; those behind a pack name the pack's namespace, else [`NONE`].
    Request(RequestKey, u32),
    /// The blocks of a pack: its id and their number.
    Pack(u32, u32),
}

/// Counted interning: a namespace is dropped with its last use by a caller or by a block of the prefix index. The maps are
/// ordered, not hashed: salts come from clients.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    ids: BTreeMap<NamespaceKey, u32>,
    names: Vec<Option<(NamespaceKey, u32)>>,
    spare: Vec<u32>,
}

impl Namespaces {
    /// The namespace of requests without a pack.
    pub(crate) fn intern(&mut self, key: RequestKey) -> Namespace {
        self.intern_key(NamespaceKey::Request(key, NONE))
    }

    /// The namespace of requests behind the pack with the namespace `base`, which it keeps in use.
    pub(crate) fn intern_attached(&mut self, base: Namespace, key: RequestKey) -> Namespace {
        let known = self.names.len() - self.spare.len();
        let namespace = self.intern_key(NamespaceKey::Request(key, base.0));
        if self.names.len() - self.spare.len() > known {
            self.retain(base.0);
        }
        namespace
    }

    /// The namespace of a pack's own blocks.
    pub(crate) fn intern_pack(&mut self, id: u32, blocks: u32) -> Namespace {
        self.intern_key(NamespaceKey::Pack(id, blocks))
    }

    /// The pack that a namespace is attached to: its namespace, its id and its blocks.
    pub(crate) fn base(&self, id: u32) -> Option<(u32, u32, u32)> {
        let key = |id: u32| self.names.get(id as usize)?.as_ref().map(|(key, _)| key);
        match key(id) {
            Some(&NamespaceKey::Request(_, base)) if base != NONE => match key(base) {
                Some(&NamespaceKey::Pack(pack, blocks)) => Some((base, pack, blocks)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The namespace that block `i` of a table in namespace `id` is indexed in.
    pub(crate) fn of_block(&self, id: u32, i: usize) -> u32 {
        match self.base(id) {
            Some((base, _, blocks)) if i < blocks as usize => base,
            _ => id,
        }
    }

    fn intern_key(&mut self, key: NamespaceKey) -> Namespace {
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
            if let NamespaceKey::Request(_, base) = key
                && base != NONE
            {
                self.release(base);
            }
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

    fn key(salt: Option<&str>, adapter: u32, attention: u32) -> RequestKey {
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
    fn an_attached_name_keeps_its_base() {
        let mut names = Namespaces::default();
        let pack = names.intern_pack(7, 2);
        let a = names.intern_attached(pack, key(Some("x"), 0, 0));
        assert_eq!(a, names.intern_attached(pack, key(Some("x"), 0, 0)));
        assert_ne!(a, names.intern(key(Some("x"), 0, 0)));
        assert_ne!(a, names.intern_attached(pack, key(Some("y"), 0, 0)));
        assert_eq!(names.base(a.0), Some((pack.0, 7, 2)));
        assert_eq!((0..4).map(|i| names.of_block(a.0, i)).collect::<Vec<_>>(), [pack.0, pack.0, a.0, a.0]);
        assert_eq!(names.of_block(pack.0, 5), pack.0);
        names.release(pack.0);
        names.release(a.0);
        assert_eq!(names.base(a.0), Some((pack.0, 7, 2)), "in use by the attached names");
        names.release(a.0);
        assert_eq!(names.uses().count(), 3, "the pack, x without a pack, and y");
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
