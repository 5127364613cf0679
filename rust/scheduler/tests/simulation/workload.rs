//! Random limits and requests, every feature on or off by the seed.

use octavo_scheduler::{NewRequest, SchedulerConfig};

use crate::oracle::VOCABULARY;
use crate::random::Random;

/// What a seed switches on.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    pub samples: bool,
    pub namespaces: bool,
    pub priorities: bool,
    pub deadlines: bool,
    pub cancels: bool,
    pub failures: bool,
    pub prompt_logits: bool,
    pub drain: bool,
}

impl Features {
    pub fn draw(random: &mut Random) -> Self {
        let mut on = |n| random.one_in(n);
        Self {
            samples: on(2),
            namespaces: on(3),
            priorities: on(3),
            deadlines: on(4),
            cancels: on(3),
            failures: on(5),
            prompt_logits: on(3),
            drain: on(6),
        }
    }
}

pub fn config(random: &mut Random) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: random.range(3, 40),
        block_size: random.range(1, 4),
        max_num_seqs: random.range(1, 8),
        max_num_batched_tokens: if random.one_in(4) { random.range(1, 4) } else { random.range(4, 40) },
        max_model_len: random.range(4, 64),
        max_queue: random.range(1, 24),
        enable_prefix_caching: !random.one_in(4),
        prefill_chunk: if random.one_in(2) { Some(random.range(1, 6)) } else { None },
        hash_seed: random.next(),
        hash_bits: random.pick(&[0, 1, 4, 128]),
    }
}

pub fn request(
    id: u64,
    now_us: u64,
    features: Features,
    config: &SchedulerConfig,
    random: &mut Random,
) -> NewRequest {
    // Prompts share beginnings: a run of one token, then a few random ones.
    let common = random.pick(&[0, 0, 4, 8, 12]);
    let own = random.range(1, config.max_model_len / 3 + 1);
    let mut prompt = vec![id as u32 % 2; common];
    prompt.extend((0..own).map(|_| random.range(0, VOCABULARY - 1)));
    let name = |random: &mut Random| -> Option<Box<str>> {
        if features.namespaces { random.pick(&[None, Some("a"), Some("b")]).map(Box::from) } else { None }
    };
    NewRequest {
        id,
        prompt,
        n: if features.samples { random.range(1, 4) } else { 1 },
        max_tokens: if random.one_in(3) { random.range(1, 4) } else { random.range(5, 32) },
        priority: if features.priorities { random.range(0, 4) as i32 - 2 } else { 0 },
        deadline_us: (features.deadlines && random.one_in(3))
            .then(|| now_us + u64::from(random.range(0, 40))),
        salt: name(random),
        adapter: name(random),
        prompt_logits: features.prompt_logits && random.one_in(2),
    }
}
