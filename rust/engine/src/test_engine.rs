//! An engine over an executor of a test: a tokenizer of bytes, small limits.

use std::sync::Arc;

use octavo_kernels::Kernels;
use octavo_scheduler::AttentionPolicy;

use crate::tokenizer::tests::byte_level;
use crate::*;

/// Bytes, and the end of a text.
pub const VOCAB: usize = 257;

/// An executor that returns logits only, one step at a time.
pub fn executor_info() -> ExecutorInfo {
    ExecutorInfo {
        vocab_size: VOCAB,
        hidden_size: None,
        samples_on_device: false,
        max_in_flight: 1,
        open_blocks: false,
        attention: AttentionPolicy::DENSE,
        bounds_attention: true,
        kernels: Arc::new(Kernels::single()),
    }
}

/// The engine over `executor`; `change` alters its limits.
pub fn engine_over(executor: impl Executor + 'static, change: impl FnOnce(&mut Limits)) -> Engine {
    let mut limits = Limits {
        max_model_len: 128,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_queue: 16,
        block_size: 4,
        num_blocks: 256,
        max_loras: 8,
        max_lora_rank: 256,
        max_lora_memory: 1 << 20,
    };
    change(&mut limits);
    let engine = Engine::start(EngineParts {
        executor: Box::new(executor),
        tokenizer: byte_level(),
        template: None,
        vocab: VOCAB,
        spec: None,
        generation: GenerationDefaults { eos: vec![256], ..GenerationDefaults::default() },
        limits,
        prefix_caching: true,
        prefill_chunk: None,
        seed: 3,
        info: serde_json::json!({}),
    });
    engine.expect("engine")
}
