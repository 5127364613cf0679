//! Packs: held tables, namespaces attached to them, and random operations against the content of every slot.

use octavo_cache::{BlockTable, Cache, CacheConfig, Namespace, PrefixMatch};
use proptest::prelude::*;

const SIZE: u32 = 2;

fn cache(num_blocks: u32, prefix_caching: bool) -> Cache {
    Cache::new(CacheConfig {
        num_blocks,
        block_size: SIZE,
        prefix_caching,
        hash_seed: 5,
        hash_bits: 3,
        open_blocks: false,
    })
    .expect("the limits are sound")
}

fn ready(cache: &mut Cache, id: u32, tokens: &[u32]) {
    cache.hold_pack(id, tokens.to_vec()).expect("room");
    cache.finish_pack(id);
}

/// A table with all of `tokens` in it, and how many blocks of it were found.
fn open(cache: &mut Cache, namespace: Namespace, tokens: &[u32]) -> (BlockTable, u32) {
    let mut found = PrefixMatch::default();
    cache.find_prefix(namespace, tokens, tokens.len() as u32 - 1, &mut found);
    let mut table = cache.start_table(namespace, &found);
    cache.reserve(&mut table, tokens.len() as u32, &mut Vec::new()).expect("room");
    cache.commit(&mut table, tokens, tokens.len() as u32);
    (table, found.num_blocks())
}

#[test]
fn a_request_begins_with_the_packs_blocks_and_goes_on_in_its_own_namespace() {
    let mut cache = cache(20, true);
    ready(&mut cache, 7, &[1, 2, 3, 4]);
    let tokens = [1, 2, 3, 4, 5, 6, 7];
    assert!(
        cache.pack_begins(7, &tokens) && !cache.pack_begins(7, &[1, 2, 3]) && !cache.pack_begins(8, &tokens)
    );
    let pack = cache.pack_blocks(7).to_vec();
    let [a, b] = [Some("a"), Some("b")].map(|salt| cache.attach_namespace(7, salt, 0, 0));
    let (first, hits) = open(&mut cache, a, &tokens);
    assert_eq!((hits, &first.blocks()[..2]), (2, &pack[..]));
    let (second, hits) = open(&mut cache, a, &tokens);
    assert_eq!((hits, second.blocks()[2]), (3, first.blocks()[2]));
    let (other, hits) = open(&mut cache, b, &tokens);
    assert_eq!(hits, 2, "only the pack is shared with another salt");
    assert_ne!(other.blocks()[2], first.blocks()[2]);
    assert_eq!(cache.pinned_blocks(), 2);
    // Without the pack the same tokens are another prompt.
    let plain = cache.intern_namespace(Some("a"), 0, 0);
    let (without, hits) = open(&mut cache, plain, &tokens);
    assert_eq!(hits, 0);
    cache.check_invariants([&first, &second, &other, &without]);
    cache.check_namespaces([a, b, plain]);
    for mut table in [first, second, other, without] {
        cache.release(&mut table);
    }
    let stats = cache.stats();
    assert_eq!((stats.live_blocks, stats.pinned_blocks), (0, 2));
}

#[test]
fn a_pack_is_not_evicted_until_it_is_released() {
    let mut cache = cache(6, true);
    ready(&mut cache, 1, &[1, 2, 3, 4]);
    let plain = cache.intern_namespace(None, 0, 0);
    for round in 0..4 {
        let (mut table, _) = open(&mut cache, plain, &[round + 10; 8]);
        assert_eq!(cache.available(), 0);
        assert!(cache.hold_pack(2, vec![0; 2]).is_err(), "no block is left");
        cache.release(&mut table);
    }
    assert_eq!(cache.pack_blocks(1).len(), 2);
    let name = cache.attach_namespace(1, None, 0, 0);
    cache.release_pack(1);
    assert_eq!((cache.pinned_blocks(), cache.available()), (0, 6));
    // An attached namespace finds what is left of the pack, and then computes it like any prompt.
    let (mut table, hits) = open(&mut cache, name, &[1, 2, 3, 4, 5]);
    assert_eq!(hits, 2);
    cache.release(&mut table);
    let (mut table, _) = open(&mut cache, plain, &[99; 12]);
    cache.release(&mut table);
    let (table, hits) = open(&mut cache, name, &[1, 2, 3, 4, 5]);
    assert_eq!(hits, 0);
    cache.check_invariants([&table]);
    cache.check_namespaces([plain, name]);
}

#[test]
fn a_pack_without_its_content_is_found_by_none() {
    let mut cache = cache(8, true);
    cache.hold_pack(3, vec![1, 2, 3, 4]).expect("room");
    assert!(!cache.pack_begins(3, &[1, 2, 3, 4, 5]));
    let mut fork = cache.fork_pack(3, 1);
    assert_eq!(fork.blocks(), &cache.pack_blocks(3)[..1]);
    cache.release(&mut fork);
    cache.release_pack(3);
    assert_eq!(cache.stats().free_blocks, 8, "nothing of it is cached");
    cache.check_namespaces([]);
}

#[test]
fn without_a_prefix_index_the_packs_blocks_are_used_all_the_same() {
    let mut cache = cache(8, false);
    ready(&mut cache, 3, &[1, 2, 3, 4]);
    let name = cache.attach_namespace(3, None, 0, 0);
    let (table, hits) = open(&mut cache, name, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(hits, 2);
    // The last token is always computed: its block is not taken from the pack.
    let (whole, hits) = open(&mut cache, name, &[1, 2, 3, 4]);
    assert_eq!(hits, 1);
    cache.check_invariants([&table, &whole]);
}

#[test]
fn cached_blocks_are_held_for_export() {
    let mut cache = cache(4, true);
    let plain = cache.intern_namespace(None, 0, 0);
    let (mut table, _) = open(&mut cache, plain, &[1, 2, 3, 4]);
    let blocks = table.blocks().to_vec();
    cache.release(&mut table);
    assert!(!cache.hold_cached(9, plain, &[1, 2, 9, 9]), "not all of it is there");
    assert!(cache.hold_cached(9, plain, &[1, 2, 3, 4]));
    assert_eq!((cache.pack_blocks(9), cache.pinned_blocks()), (&blocks[..], 2));
    assert!(!cache.pack_begins(9, &[1, 2, 3, 4, 5]), "nothing can be attached to it");
    let (mut other, _) = open(&mut cache, plain, &[7, 8, 9, 9]);
    cache.check_invariants([&other]);
    cache.release(&mut other);
    cache.release_pack(9);
    cache.check_namespaces([plain]);
    assert_eq!(cache.stats().live_blocks, 0);
}

#[derive(Debug, Clone)]
enum Op {
    Load { which: u32, blocks: u32 },
    Unload { which: u32 },
    Open { pack: u32, salted: bool, tail: Vec<u32> },
    Release { which: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let tail = prop::collection::vec(0..2u32, 0..7);
    prop_oneof![
        1 => (0..2u32, 1..4u32).prop_map(|(which, blocks)| Op::Load { which, blocks }),
        1 => (0..2u32).prop_map(|which| Op::Unload { which }),
        4 => (0..3u32, any::<bool>(), tail).prop_map(|(pack, salted, tail)| Op::Open { pack, salted, tail }),
        3 => any::<usize>().prop_map(|which| Op::Release { which }),
    ]
}

/// What a block of a request may read: the tokens up to there, of a pack or of a tenant.
type Content = (Option<u32>, bool, Vec<u32>);

/// Two packs that come and go under new ids, and requests of two tenants, with the content of every block.
struct World {
    cache: Cache,
    packs: [Option<(u32, Vec<u32>)>; 2],
    ids: u32,
    open: Vec<(Namespace, BlockTable)>,
    content: Vec<Option<Content>>,
}

impl World {
    fn load(&mut self, which: u32, blocks: u32) {
        if self.packs[which as usize].is_some() {
            return;
        }
        let tokens = vec![which; (blocks * SIZE) as usize];
        self.ids += 1;
        let id = self.ids;
        if self.cache.hold_pack(id, tokens.clone()).is_err() {
            return;
        }
        for (i, &block) in self.cache.pack_blocks(id).iter().enumerate() {
            let end = (i + 1) * SIZE as usize;
            self.content[block as usize] = Some((Some(id), false, tokens[..end].to_vec()));
        }
        self.cache.finish_pack(id);
        self.packs[which as usize] = Some((id, tokens));
    }

    fn request(&mut self, pack: u32, salted: bool, tail: Vec<u32>) {
        let salt = salted.then_some("s");
        let pack = self.packs.get(pack as usize).and_then(Clone::clone);
        let (id, mut tokens) = pack.map_or((None, Vec::new()), |(id, tokens)| (Some(id), tokens));
        let shared = tokens.len() / SIZE as usize;
        tokens.extend(tail);
        tokens.push(1);
        let namespace = match id {
            Some(id) => self.cache.attach_namespace(id, salt, 0, 0),
            None => self.cache.intern_namespace(salt, 0, 0),
        };
        let mut found = PrefixMatch::default();
        self.cache.find_prefix(namespace, &tokens, tokens.len() as u32 - 1, &mut found);
        let mut table = self.cache.start_table(namespace, &found);
        if self.cache.reserve(&mut table, tokens.len() as u32, &mut Vec::new()).is_err() {
            self.cache.release(&mut table);
            self.cache.release_namespace(namespace);
            return;
        }
        let own = |i: usize| -> Content {
            let owner = if i < shared { (id, false) } else { (id, salted) };
            (owner.0, owner.1, tokens[..((i + 1) * SIZE as usize).min(tokens.len())].to_vec())
        };
        for (i, &block) in table.blocks().iter().enumerate() {
            if i < found.num_blocks() as usize {
                assert_eq!(self.content[block as usize], Some(own(i)), "block {i} of the hit");
            } else {
                self.content[block as usize] = Some(own(i));
            }
        }
        self.cache.commit(&mut table, &tokens, tokens.len() as u32);
        self.open.push((namespace, table));
    }

    fn release(&mut self, which: usize) {
        if !self.open.is_empty() {
            let (namespace, mut table) = self.open.swap_remove(which % self.open.len());
            self.cache.release(&mut table);
            self.cache.release_namespace(namespace);
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Load { which, blocks } => self.load(which, blocks),
            Op::Unload { which } => {
                if let Some((id, _)) = self.packs[which as usize].take() {
                    self.cache.release_pack(id);
                }
            }
            Op::Open { pack, salted, tail } => self.request(pack, salted, tail),
            Op::Release { which } => self.release(which),
        }
        self.cache.check_invariants(self.open.iter().map(|(_, table)| table));
        self.cache.check_namespaces(self.open.iter().map(|&(namespace, _)| namespace));
        for &(id, ref tokens) in self.packs.iter().flatten() {
            let blocks = self.cache.pack_blocks(id);
            assert_eq!(blocks.len() as u32 * SIZE, tokens.len() as u32);
            for (i, &block) in blocks.iter().enumerate() {
                let end = (i + 1) * SIZE as usize;
                let content = Some((Some(id), false, tokens[..end].to_vec()));
                assert_eq!(self.content[block as usize], content, "block {i} of pack {id} was overwritten");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_hit_has_the_content_of_another_tenant_or_pack(
        num_blocks in 3..14u32, ops in prop::collection::vec(op(), 1..60)
    ) {
        let mut world = World {
            cache: cache(num_blocks, true),
            packs: [None, None],
            ids: 0,
            open: Vec::new(),
            content: vec![None; num_blocks as usize],
        };
        for op in ops {
            world.run(op);
        }
        while !world.open.is_empty() {
            world.release(0);
        }
        for (id, _) in world.packs.iter().flatten() {
            world.cache.release_pack(*id);
        }
        let stats = world.cache.stats();
        prop_assert_eq!(stats.free_blocks + stats.cached_blocks, num_blocks);
    }
}
