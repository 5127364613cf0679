//! The cache against a naive model: random operations, compared in every count, every hit and every slot's content.

use std::rc::Rc;

use octavo_cache::{BlockTable, Cache, CacheConfig, Namespace, PrefixMatch};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    /// A new sequence with this prompt: look up, reserve, commit. Dropped again if there is no room.
    Open {
        salted: bool,
        prompt: Vec<u32>,
    },
    /// More tokens for a sequence.
    Grow {
        which: usize,
        tokens: Vec<u32>,
    },
    Fork {
        which: usize,
    },
    Release {
        which: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let tokens = |most| prop::collection::vec(0..2u32, 1..most);
    prop_oneof![
        3 => (any::<bool>(), tokens(14)).prop_map(|(salted, prompt)| Op::Open { salted, prompt }),
        4 => (any::<usize>(), tokens(6)).prop_map(|(which, tokens)| Op::Grow { which, tokens }),
        1 => any::<usize>().prop_map(|which| Op::Fork { which }),
        2 => any::<usize>().prop_map(|which| Op::Release { which }),
    ]
}

/// A full block of the model: all that its content depends on.
struct Full {
    salted: bool,
    prefix: Vec<u32>,
    refs: u32,
    released: u64,
}

struct Sequence {
    salted: bool,
    tokens: Vec<u32>,
    table: BlockTable,
    /// The partly filled last block; a clone of the handle is another reader.
    partial: Option<Rc<()>>,
}

struct Model {
    size: usize,
    num_blocks: u32,
    cache: Cache,
    names: [Namespace; 2],
    sequences: Vec<Sequence>,
    full: Vec<Full>,
    evictions: u64,
    clock: u64,
    /// What each slot holds: salt and all tokens up to there.
    slots: Vec<Option<(bool, Vec<u32>)>>,
}

impl Model {
    fn new(num_blocks: u32, block_size: u32, hash_bits: u32) -> Self {
        let config = CacheConfig {
            num_blocks,
            block_size,
            prefix_caching: true,
            hash_seed: 5,
            hash_bits,
            open_blocks: false,
        };
        let mut cache = Cache::new(config).expect("the limits are sound");
        let names = [cache.intern_namespace(None, 0, 0), cache.intern_namespace(Some("s"), 0, 0)];
        Self {
            size: block_size as usize,
            num_blocks,
            cache,
            names,
            sequences: Vec::new(),
            full: Vec::new(),
            evictions: 0,
            clock: 0,
            slots: vec![None; (num_blocks * block_size) as usize],
        }
    }

    fn find(&mut self, salted: bool, prefix: &[u32]) -> Option<&mut Full> {
        self.full.iter_mut().find(|f| f.salted == salted && f.prefix == prefix)
    }

    fn live(&self) -> u32 {
        let mut partials: Vec<_> =
            self.sequences.iter().filter_map(|s| s.partial.as_ref()).map(Rc::as_ptr).collect();
        partials.sort();
        partials.dedup();
        (partials.len() + self.full.iter().filter(|f| f.refs > 0).count()) as u32
    }

    fn cached(&self) -> u32 {
        self.full.iter().filter(|f| f.refs == 0).count() as u32
    }

    fn open(&mut self, salted: bool, prompt: Vec<u32>) {
        let mut hits = 0;
        while (hits + 1) * self.size < prompt.len()
            && let Some(full) = self.find(salted, &prompt[..(hits + 1) * self.size])
        {
            full.refs += 1;
            hits += 1;
        }
        let mut found = PrefixMatch::default();
        let namespace = self.names[usize::from(salted)];
        self.cache.find_prefix(namespace, &prompt, prompt.len() as u32 - 1, &mut found);
        assert_eq!(found.num_blocks() as usize, hits, "hits of {prompt:?}");
        let table = self.cache.start_table(namespace, &found);
        assert_eq!(table.computed() as usize, hits * self.size);
        let rest = prompt[hits * self.size..].to_vec();
        self.sequences.push(Sequence {
            salted,
            tokens: prompt[..hits * self.size].to_vec(),
            table,
            partial: None,
        });
        let index = self.sequences.len() - 1;
        if !self.grow(index, &rest) {
            self.release(index);
        }
    }

    fn grow(&mut self, which: usize, tokens: &[u32]) -> bool {
        let live = self.live();
        let size = self.size;
        let before = self.sequences[which].tokens.len();
        let len = before + tokens.len();
        let shared = self.sequences[which].partial.as_ref().is_some_and(|p| Rc::strong_count(p) > 1);
        let needed = (len.div_ceil(size) - before.div_ceil(size)) as u32 + u32::from(shared);
        let available = self.num_blocks - live;

        let sequence = &mut self.sequences[which];
        let mut copies = Vec::new();
        let reserved = self.cache.reserve(&mut sequence.table, len as u32, &mut copies);
        if let Err(error) = reserved {
            assert_eq!((error.needed, error.available), (needed, available));
        }
        assert_eq!(reserved.is_ok(), needed <= available, "{needed} of {available}");
        assert_eq!(copies.len(), usize::from(shared && reserved.is_ok()), "copies on write");
        if reserved.is_err() {
            return false;
        }
        for [source, destination] in copies {
            for offset in 0..size {
                self.slots[destination as usize * size + offset] =
                    self.slots[source as usize * size + offset].clone();
            }
        }
        sequence.tokens.extend_from_slice(tokens);
        for p in before..len {
            let slot = sequence.table.blocks()[p / size] as usize * size + p % size;
            self.slots[slot] = Some((sequence.salted, sequence.tokens[..=p].to_vec()));
        }
        self.cache.commit(&mut sequence.table, &sequence.tokens, len as u32);
        let (salted, all) = (sequence.salted, sequence.tokens.clone());

        let free = available - self.cached();
        for _ in free..needed {
            self.evict();
        }
        for end in (before / size + 1..=len / size).map(|blocks| blocks * size) {
            match self.find(salted, &all[..end]) {
                Some(full) => full.refs += 1,
                None => self.full.push(Full { salted, prefix: all[..end].to_vec(), refs: 1, released: 0 }),
            }
        }
        let sequence = &mut self.sequences[which];
        if len.is_multiple_of(size) {
            sequence.partial = None;
        } else if shared || len / size > before / size || sequence.partial.is_none() {
            sequence.partial = Some(Rc::new(()));
        }
        true
    }

    fn evict(&mut self) {
        let idle = self.full.iter().enumerate().filter(|(_, f)| f.refs == 0);
        let oldest = idle.min_by_key(|(_, f)| f.released).map(|(i, _)| i).expect("a block to evict");
        self.full.remove(oldest);
        self.evictions += 1;
    }

    fn fork(&mut self, which: usize) {
        let Sequence { salted, ref tokens, ref table, ref partial } = self.sequences[which];
        let fork = Sequence {
            salted,
            tokens: tokens.clone(),
            table: self.cache.fork(table),
            partial: partial.clone(),
        };
        for end in (self.size..=fork.tokens.len()).step_by(self.size) {
            self.find(salted, &fork.tokens[..end]).expect("a full block is indexed").refs += 1;
        }
        self.sequences.push(fork);
    }

    fn release(&mut self, which: usize) {
        let mut sequence = self.sequences.swap_remove(which);
        self.cache.release(&mut sequence.table);
        for blocks in (1..=sequence.tokens.len() / self.size).rev() {
            self.clock += 1;
            let clock = self.clock;
            let full = self.find(sequence.salted, &sequence.tokens[..blocks * self.size]);
            let full = full.expect("a full block is indexed");
            full.refs -= 1;
            full.released = clock;
        }
    }

    fn check(&self) {
        self.cache.check_invariants(self.sequences.iter().map(|s| &s.table));
        let stats = self.cache.stats();
        assert_eq!(stats.live_blocks, self.live(), "live blocks");
        assert_eq!(stats.cached_blocks, self.cached(), "cached blocks");
        assert_eq!(stats.evictions, self.evictions, "evictions");
        for sequence in &self.sequences {
            assert_eq!(sequence.table.computed() as usize, sequence.tokens.len());
            for p in 0..sequence.tokens.len() {
                let slot = sequence.table.blocks()[p / self.size] as usize * self.size + p % self.size;
                let expected = Some((sequence.salted, sequence.tokens[..=p].to_vec()));
                assert_eq!(self.slots[slot], expected, "content at position {p}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]
    #[test]
    fn behaves_like_the_naive_model(
        num_blocks in 1..14u32,
        block_size in 1..5u32,
        hash_bits in prop::sample::select(vec![0, 2, 128]),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut model = Model::new(num_blocks, block_size, hash_bits);
        for op in ops {
            let n = model.sequences.len();
            match op {
                Op::Open { salted, prompt } => model.open(salted, prompt),
                Op::Grow { which, tokens } if n > 0 => { model.grow(which % n, &tokens); }
                Op::Fork { which } if n > 0 => model.fork(which % n),
                Op::Release { which } if n > 0 => model.release(which % n),
                _ => {}
            }
            model.check();
        }
        while !model.sequences.is_empty() {
            model.release(0);
        }
        model.check();
        prop_assert_eq!(model.cache.stats().live_blocks, 0);
    }
}
