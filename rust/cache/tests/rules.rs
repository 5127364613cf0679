//! The cache's rules, one by one.

use octavo_cache::{BlockTable, Cache, CacheConfig, CacheConfigError, Namespace, OutOfBlocks, PrefixMatch};

const CONFIG: CacheConfig = CacheConfig {
    num_blocks: 4,
    block_size: 2,
    prefix_caching: true,
    hash_seed: 1,
    hash_bits: 128,
    open_blocks: false,
};

fn cache(num_blocks: u32) -> (Cache, Namespace) {
    let mut cache = Cache::new(CacheConfig { num_blocks, ..CONFIG }).expect("sound limits");
    let namespace = cache.intern_namespace(None, 0, 0);
    (cache, namespace)
}

/// A table with these tokens computed, from cached blocks where there are any.
fn fill(cache: &mut Cache, namespace: Namespace, tokens: &[u32]) -> BlockTable {
    let mut found = PrefixMatch::default();
    cache.find_prefix(namespace, tokens, tokens.len() as u32 - 1, &mut found);
    let mut table = cache.start_table(namespace, &found);
    let mut copies = Vec::new();
    cache.reserve(&mut table, tokens.len() as u32, &mut copies).expect("room");
    assert!(copies.is_empty());
    cache.commit(&mut table, tokens, tokens.len() as u32);
    table
}

fn hits(cache: &Cache, namespace: Namespace, tokens: &[u32], limit: u32) -> u32 {
    let mut found = PrefixMatch::default();
    cache.find_prefix(namespace, tokens, limit, &mut found);
    found.num_blocks()
}

#[test]
fn impossible_limits_are_named() {
    let fault = |config| Cache::new(config).expect_err("a fault");
    assert_eq!(fault(CacheConfig { num_blocks: 0, ..CONFIG }), CacheConfigError::NoBlocks);
    assert_eq!(fault(CacheConfig { block_size: 0, ..CONFIG }), CacheConfigError::EmptyBlocks);
    assert_eq!(
        fault(CacheConfig { hash_bits: 129, ..CONFIG }),
        CacheConfigError::HashBits { hash_bits: 129 }
    );
    let too_many = CacheConfig { num_blocks: 1 << 31, ..CONFIG };
    assert_eq!(
        fault(too_many).to_string(),
        "num_blocks 2147483648 x block_size 2 exceeds 2^32 - 1 slots; use fewer blocks"
    );
}

#[test]
fn hits_are_full_blocks_within_the_limit() {
    let (mut cache, ns) = cache(4);
    let _table = fill(&mut cache, ns, &[1, 2, 3, 4, 5]);
    assert_eq!(hits(&cache, ns, &[1, 2, 3, 4, 5], 5), 2);
    assert_eq!(hits(&cache, ns, &[1, 2, 3, 4], 3), 1, "the last token is left to compute");
    assert_eq!(hits(&cache, ns, &[1, 2, 3, 9], 4), 1);
    assert_eq!(hits(&cache, ns, &[3, 4], 2), 0, "a block counts only behind its own prefix");
    assert_eq!(hits(&cache, ns, &[1, 2], 0), 0);
}

#[test]
fn no_hit_crosses_a_namespace() {
    let (mut cache, ns) = cache(4);
    let _table = fill(&mut cache, ns, &[1, 2, 3]);
    for (salt, adapter, attention) in [(Some("a"), 0, 0), (None, 1, 0), (Some(""), 0, 0), (None, 0, 1)] {
        let other = cache.intern_namespace(salt, adapter, attention);
        assert_eq!(hits(&cache, other, &[1, 2, 3], 3), 0, "{salt:?} {adapter} {attention}");
    }
}

#[test]
fn a_namespace_is_not_reused_while_blocks_carry_it() {
    let (mut cache, _) = cache(4);
    let first = cache.intern_namespace(Some("first"), 0, 0);
    let mut table = fill(&mut cache, first, &[1, 2, 3]);
    cache.release(&mut table);
    cache.release_namespace(first);
    let second = cache.intern_namespace(Some("second"), 0, 0);
    assert_eq!(hits(&cache, second, &[1, 2, 3], 3), 0);
    let again = cache.intern_namespace(Some("first"), 0, 0);
    assert_eq!(hits(&cache, again, &[1, 2, 3], 3), 1, "its blocks are still found");
}

#[test]
fn equal_blocks_computed_side_by_side_become_one() {
    let (mut cache, ns) = cache(4);
    let mut tables =
        [cache.start_table(ns, &PrefixMatch::default()), cache.start_table(ns, &PrefixMatch::default())];
    for table in &mut tables {
        cache.reserve(table, 2, &mut Vec::new()).expect("room");
    }
    assert_ne!(tables[0].blocks(), tables[1].blocks());
    for table in &mut tables {
        cache.commit(table, &[7, 8], 2);
    }
    assert_eq!(tables[0].blocks(), tables[1].blocks());
    assert_eq!((cache.refs(tables[0].blocks()[0]), cache.available()), (2, 3));
    cache.check_invariants(&tables);
}

#[test]
fn eviction_takes_the_oldest_and_leaves_before_parents() {
    let (mut cache, ns) = cache(4);
    let mut old = fill(&mut cache, ns, &[1, 1, 2, 2]);
    let mut new = fill(&mut cache, ns, &[3, 3, 4, 4]);
    cache.release(&mut old);
    cache.release(&mut new);
    cache.record_evictions();
    let table = fill(&mut cache, ns, &[9, 9]);
    assert_eq!(hits(&cache, ns, &[1, 1, 2, 2], 4), 1, "the older sequence lost its last block");
    assert_eq!(hits(&cache, ns, &[3, 3, 4, 4], 4), 2);
    let evicted = cache.take_evicted();
    assert_eq!(evicted.iter().map(|e| e.block).collect::<Vec<_>>(), table.blocks());
    assert!(cache.take_evicted().is_empty());
    cache.check_invariants([&table]);
}

#[test]
fn use_renews_a_cached_block() {
    let (mut cache, ns) = cache(4);
    for tokens in [[1, 1], [2, 2], [1, 1]] {
        let mut found = PrefixMatch::default();
        cache.find_prefix(ns, &tokens, 2, &mut found);
        let mut table = cache.start_table(ns, &found);
        cache.reserve(&mut table, 2, &mut Vec::new()).expect("room");
        cache.commit(&mut table, &tokens, 2);
        cache.release(&mut table);
    }
    let _taken = fill(&mut cache, ns, &[5, 5, 6, 6, 7]);
    assert_eq!([hits(&cache, ns, &[1, 1], 2), hits(&cache, ns, &[2, 2], 2)], [1, 0]);
}

#[test]
fn a_failed_reservation_changes_nothing() {
    let (mut cache, ns) = cache(3);
    let mut table = fill(&mut cache, ns, &[1, 2, 3]);
    let fork = cache.fork(&table);
    let mut copies = Vec::new();
    let error = cache.reserve(&mut table, 6, &mut copies).expect_err("too much");
    assert_eq!(error, OutOfBlocks { needed: 2, available: 1 });
    assert_eq!((table.blocks(), copies.len(), cache.available()), (fork.blocks(), 0, 1));
    cache.check_invariants([&table, &fork]);
}

#[test]
fn only_a_shared_partial_block_is_copied() {
    let (mut cache, ns) = cache(4);
    let mut first = fill(&mut cache, ns, &[1, 2, 3]);
    let mut second = cache.fork(&first);
    let mut copies = Vec::new();
    let shared = first.blocks()[1];
    assert_eq!(cache.copy_source(&first), Some(shared));
    cache.reserve(&mut first, 4, &mut copies).expect("room");
    assert_eq!(copies, [[shared, first.blocks()[1]]]);
    cache.reserve(&mut second, 4, &mut copies).expect("room");
    assert_eq!(copies.len(), 1, "the last reader writes in place");
    let full = fill(&mut cache, ns, &[1, 2]);
    let mut third = cache.fork(&full);
    cache.reserve(&mut third, 3, &mut copies).expect("room");
    assert_eq!(copies.len(), 1, "a full block is never written");
}

#[test]
fn room_counts_the_last_block_and_its_copy() {
    let (mut cache, ns) = cache(4);
    let table = fill(&mut cache, ns, &[1, 2, 3]);
    assert_eq!([cache.room(&table, 0), cache.room(&table, 2)], [1, 5]);
    let _fork = cache.fork(&table);
    assert_eq!([cache.room(&table, 0), cache.room(&table, 1), cache.room(&table, 2)], [0, 1, 3]);
}

#[test]
fn a_source_of_a_copy_is_no_destination_of_another() {
    let (mut cache, ns) = cache(4);
    let mut a = [fill(&mut cache, ns, &[1]), BlockTable::default()];
    a[1] = cache.fork(&a[0]);
    let mut b = [fill(&mut cache, ns, &[2]), BlockTable::default()];
    b[1] = cache.fork(&b[0]);
    let _other = fill(&mut cache, ns, &[3]);
    let mut copies = Vec::new();
    cache.reserve(&mut a[0], 2, &mut copies).expect("room");
    // The source of the copy is freed; it is now the only block to be had, and its content is still needed.
    cache.release(&mut a[1]);
    let error = cache.reserve(&mut b[0], 2, &mut copies).expect_err("no block without danger");
    assert_eq!(error, OutOfBlocks { needed: 1, available: 1 });
    assert_eq!(copies.len(), 1);
    cache.reserve(&mut b[0], 2, &mut Vec::new()).expect("room in the next step");
}

#[test]
fn without_prefix_caching_nothing_is_found_or_kept() {
    let mut cache = Cache::new(CacheConfig { prefix_caching: false, ..CONFIG }).expect("sound limits");
    let ns = cache.intern_namespace(None, 0, 0);
    let mut table = fill(&mut cache, ns, &[1, 2, 3]);
    assert_eq!(hits(&cache, ns, &[1, 2, 3], 3), 0);
    cache.release(&mut table);
    let stats = cache.stats();
    assert_eq!((stats.free_blocks, stats.cached_blocks, stats.query_tokens), (4, 0, 0));
}

#[test]
fn tokens_asked_and_found_are_counted_once_a_table() {
    let (mut cache, ns) = cache(4);
    let mut table = fill(&mut cache, ns, &[1, 2, 3, 4, 5]);
    cache.release(&mut table);
    let _again = fill(&mut cache, ns, &[1, 2, 3, 4, 5]);
    let stats = cache.stats();
    assert_eq!((stats.query_tokens, stats.hit_tokens), (8, 4));
}
