//! Random limits and requests, every feature on or off by the seed.

use octavo_scheduler::{AttentionPolicy, NO_ADAPTER, NewRequest, Output, SchedulerConfig};

use super::oracle::VOCABULARY;
use super::random::Random;

/// What a seed switches on.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    pub prefix_caching: bool,
    pub chunking: bool,
    /// Off: the pool holds all that may run at once.
    pub preemption: bool,
    /// A stop condition is met about once in so many tokens; 0: never.
    pub stop_one_in: u64,
    /// Many small requests and a few large ones that these overtake.
    pub crowd: bool,
    pub samples: bool,
    pub namespaces: bool,
    pub priorities: bool,
    pub deadlines: bool,
    pub cancels: bool,
    pub failures: bool,
    pub prompt_logits: bool,
    pub drain: bool,
    /// Some requests want hidden states.
    pub hidden: bool,
    /// Steps are planned before the one in flight is done. Not drawn with the others: see `Simulation::timing`.
    pub ahead: bool,
    /// Blocks that are not full are open blocks. Drawn like `ahead`.
    pub open_blocks: bool,
    /// Adapters are loaded and unloaded in every turn. Drawn like `ahead`.
    pub adapters: bool,
}

impl Features {
    pub fn draw(random: &mut Random) -> Self {
        let stop_one_in = random.pick(&[0, 4, 30, 30]);
        let mut on = |n| random.one_in(n);
        Self {
            prefix_caching: !on(4),
            chunking: on(2),
            preemption: !on(6),
            stop_one_in,
            crowd: on(5),
            samples: on(2),
            namespaces: on(3),
            priorities: on(3),
            deadlines: on(4),
            cancels: on(3),
            failures: on(5),
            prompt_logits: on(3),
            drain: on(6),
            hidden: on(3),
            ahead: false,
            open_blocks: false,
            adapters: false,
        }
    }
}

pub fn config(features: Features, random: &mut Random) -> SchedulerConfig {
    let num_blocks = random.range(3, 40);
    let block_size = random.range(1, 4);
    let max_num_seqs = if features.crowd { random.range(4, 16) } else { random.range(1, 8) };
    let mut max_model_len = random.range(4, 64);
    // Mostly every single request fits alone, and many together do not.
    if !random.one_in(4) {
        max_model_len = max_model_len.min(num_blocks * block_size);
    }
    if !features.preemption {
        max_model_len = max_model_len.min(num_blocks / max_num_seqs * block_size).max(2);
    }
    // Where not even one token each fits, fewer may run.
    let most = num_blocks / max_model_len.div_ceil(block_size);
    SchedulerConfig {
        num_blocks,
        block_size,
        max_num_seqs: if features.preemption { max_num_seqs } else { max_num_seqs.min(most).max(1) },
        max_adapters: 8,
        max_num_batched_tokens: if random.one_in(4) { random.range(1, 4) } else { random.range(4, 40) },
        max_model_len,
        max_queue: random.range(1, 24),
        enable_prefix_caching: features.prefix_caching,
        prefill_chunk: if features.chunking { Some(random.range(1, 6)) } else { None },
        hash_seed: random.next(),
        hash_bits: random.pick(&[0, 1, 4, 8, 128]),
        open_blocks: features.open_blocks,
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
    let common = if features.crowd { 0 } else { random.pick(&[0, 0, 4, 8, 12]) };
    let small = features.crowd && !random.one_in(8);
    let longest =
        if features.crowd && !small { config.max_model_len - 1 } else { config.max_model_len / 3 + 1 };
    let own = random.range(1, if small { 2 } else { longest });
    let mut prompt = vec![id as u32 % 2; common];
    prompt.extend((0..own).map(|_| random.range(0, VOCABULARY - 1)));
    let name = |random: &mut Random| -> Option<Box<str>> {
        if features.namespaces { random.pick(&[None, Some("a"), Some("b")]).map(Box::from) } else { None }
    };
    let request = NewRequest {
        id,
        prompt,
        n: if features.samples && !features.crowd { random.range(1, 4) } else { 1 },
        max_tokens: if small || random.one_in(3) { random.range(1, 4) } else { random.range(5, 32) },
        priority: if features.priorities { random.range(0, 4) as i32 - 2 } else { 0 },
        deadline_us: (features.deadlines && random.one_in(3))
            .then(|| now_us + u64::from(random.range(0, 40))),
        salt: name(random),
        adapter: if features.namespaces { random.pick(&[NO_ADAPTER, 0, 1]) } else { NO_ADAPTER },
        held: false,
        attention: AttentionPolicy::new(if features.namespaces && id.is_multiple_of(5) { 0.5 } else { 0.0 }),
        pack: None,
        prompt_logits: features.prompt_logits && random.one_in(2),
        output: Output::Tokens,
    };
    if !(features.hidden && random.one_in(3)) {
        return request;
    }
    // Either all rows or the last one is pooled; the prompt may fill the context.
    let prompt_logits = random.one_in(2);
    let mut prompt = request.prompt;
    if random.one_in(4) {
        prompt.resize(config.max_model_len as usize, 1);
    }
    NewRequest { prompt, n: 1, prompt_logits, output: Output::Hidden, ..request }
}
