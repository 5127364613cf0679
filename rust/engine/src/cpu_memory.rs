//! The memory plan on the CPU.

use octavo_model::{Model, ModelSpec, block_bytes, open_block_bytes};

use crate::EngineError;
use crate::attention::AttentionConfig;
use crate::executor::ROWS_PER_READ;
use crate::memory::{MemoryFacts, MemoryPart, machine_memory, open_blocks_part};
use crate::resolve::ResolvedConfig;

/// Memory figures of a loaded model on this machine.
///
/// # Errors
/// `InvalidRequest` for a KV format that the model cannot have.
pub(crate) fn memory_facts(model: &Model, resolved: &ResolvedConfig) -> Result<MemoryFacts, EngineError> {
    let weight_bytes = model.weight_bytes() as u64;
    let (total_bytes, available) = machine_memory();
    // The system counts the pages of a mapped file as free, and every step reads them.
    let mapped = if model.origin().is_some() { weight_bytes } else { 0 };
    Ok(MemoryFacts {
        total_bytes,
        free_bytes: available.saturating_sub(mapped),
        block_bytes: block_bytes(model.spec(), resolved.kv_format)? as u64,
        weight_bytes,
        ..MemoryFacts::default()
    })
}

/// The memory plan on the CPU.
///
/// # Errors
/// `InvalidRequest` for a KV format that the model cannot have.
pub(crate) fn memory_parts(
    model: &Model,
    resolved: &ResolvedConfig,
    facts: &MemoryFacts,
    threads: usize,
    kv_reason: &str,
) -> Result<Vec<MemoryPart>, EngineError> {
    let (spec, limits) = (model.spec(), resolved.limits);
    let (seqs, tokens) = (limits.max_num_seqs as usize, limits.max_num_batched_tokens as usize);
    let logits = ROWS_PER_READ.min(seqs) * spec.vocab * 4;
    let mut parts = vec![
        MemoryPart::new("weights", facts.weight_bytes, weights_reason(model)),
        MemoryPart::new(
            "kv_cache",
            u64::from(limits.num_blocks) * facts.block_bytes,
            format!("{kv_reason}; taken from the system as it fills"),
        ),
        MemoryPart::new(
            "step_buffers",
            step_bytes(spec, tokens),
            format!("activations of a step of {tokens} tokens; grown by the largest step that runs"),
        ),
        MemoryPart::new(
            "logits",
            logits as u64,
            format!("f32 rows of {} entries, at most {ROWS_PER_READ} at a time", spec.vocab),
        ),
    ];
    let open_block_bytes = open_block_bytes(spec, resolved.kv_format)? as u64;
    parts.extend(open_blocks_part(resolved.kv_format.float, limits, open_block_bytes));
    if resolved.attention.is_some() {
        let context = limits.max_model_len as usize;
        let bytes = threads * AttentionConfig::buffer_bytes(spec.largest_group(), context);
        let reason = format!(
            "float32 masses of blocks for queries that choose what they read, over {context} tokens on {threads} \
             threads; grown by the longest context that runs"
        );
        parts.push(MemoryPart::new("attention_masses", bytes as u64, reason));
    }
    Ok(parts)
}

fn weights_reason(model: &Model) -> String {
    let held = format!("{} weights, held as {}", model.spec().parameters(), model.weight_dtype());
    let kept_in_bf16 = match model.kept_in_bf16().len() {
        0 => String::new(),
        n => format!(", {n} tensors of them as Bf16"),
    };
    let mapped = if model.origin().is_some() { "; the mapped file, shared with other processes" } else { "" };
    held + &kept_in_bf16 + mapped
}

/// Bytes of the forward pass's buffers for a step of `rows` tokens.
fn step_bytes(spec: &ModelSpec, rows: usize) -> u64 {
    (rows * 4 * spec.step_values_per_token()) as u64
}
