//! How much memory goes where, decided once at load, with the reason of each part.

use octavo_kernels::{BLOCK_SIZE, DynamicParams};
use octavo_model::{KvFormat, Model, ModelSpec, block_bytes, tail_bytes};
use serde::Serialize;

use crate::EngineError;
use crate::config::EngineConfig;
use crate::executor::ROWS_PER_READ;

/// Share of the available memory that the KV cache may take when the caller sets no limit.
const DEFAULT_SHARE: f64 = 0.5;
/// Sequences that run at once by default.
const DEFAULT_MAX_NUM_SEQS: usize = 64;
/// Tokens of a step by default: enough to keep matmuls at their speed, few enough that decodes do not wait long.
const DEFAULT_MAX_BATCHED_TOKENS: usize = 512;
/// Requests that may wait by default.
const DEFAULT_MAX_QUEUE: usize = 1024;

/// One part of the memory plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPart {
    /// What takes the memory.
    pub name: String,
    /// How much, at most.
    pub bytes: u64,
    /// Why that much.
    pub reason: String,
}

/// The limits that an engine runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Longest sequence, prompt and output together.
    pub max_model_len: u32,
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens of one step.
    pub max_num_batched_tokens: u32,
    /// Requests that may wait.
    pub max_queue: u32,
    /// Tokens of a KV block.
    pub block_size: u32,
    /// KV blocks.
    pub num_blocks: u32,
}

/// Memory of this machine in bytes: (total, available now).
pub fn machine_memory() -> (u64, u64) {
    let fallback = (8 << 30, 4 << 30);
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return fallback };
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(available)) => (total, available),
        _ => fallback,
    }
}

/// Resolves the limits and the size of the KV cache for a loaded model.
///
/// # Errors
/// `InvalidRequest` if the caller's numbers cannot hold together; the message says which to change.
pub fn plan(
    model: &Model,
    options: &EngineConfig,
    kv_format: KvFormat,
    threads: usize,
) -> Result<(Limits, Vec<MemoryPart>), EngineError> {
    let spec = model.spec();
    let refuse = |text: String| Err(EngineError::InvalidRequest(text));
    let at_least = |name: &str, value: Option<usize>, low: usize, default: usize| match value {
        Some(v) if v < low || v > 1 << 28 => Err(EngineError::InvalidRequest(format!(
            "{name} is {v}: an integer from {low} to {} is expected",
            1 << 28
        ))),
        v => Ok(v.unwrap_or(default)),
    };
    let max_num_seqs = at_least("max_num_seqs", options.max_num_seqs, 1, DEFAULT_MAX_NUM_SEQS)?;
    let batched_default = DEFAULT_MAX_BATCHED_TOKENS.max(max_num_seqs);
    let max_num_batched_tokens =
        at_least("max_num_batched_tokens", options.max_num_batched_tokens, 1, batched_default)?;
    let max_queue = at_least("max_queue", options.max_queue, 1, DEFAULT_MAX_QUEUE)?;
    let wanted_len = at_least("max_model_len", options.max_model_len, 2, spec.max_position)?;
    let longest = spec.longest_context();
    if wanted_len > longest {
        return refuse(format!(
            "max_model_len is {wanted_len}: this model was made for at most {longest} tokens (max_position_embeddings)"
        ));
    }

    let block = block_bytes(spec, kv_format)? as u64;
    let (total, available) = machine_memory();
    // The system counts the pages of a mapped file as free, and every step reads them.
    let mapped = if model.origin().is_some() { model.weight_bytes() as u64 } else { 0 };
    let available = available.saturating_sub(mapped);
    let (budget, source) = match (options.kv_cache_bytes, options.kv_cache_fraction) {
        (Some(_), Some(_)) => {
            return refuse("kv_cache_memory is given both in bytes and as a fraction: give one".into());
        }
        (Some(bytes), None) if bytes > total => {
            return refuse(format!("kv_cache_memory is {bytes} bytes: this machine has {total}"));
        }
        (Some(bytes), None) => (bytes, "kv_cache_memory".to_string()),
        (None, Some(f)) if f > 0.0 && f < 1.0 => {
            ((total as f64 * f) as u64, format!("kv_cache_memory: {f} of this machine's {total} bytes"))
        }
        (None, Some(f)) => {
            return refuse(format!("kv_cache_memory is {f}: a fraction above 0 and below 1 is expected"));
        }
        (None, None) => {
            ((available as f64 * DEFAULT_SHARE) as u64, "half of the memory that is free".to_string())
        }
    };
    let affordable = budget / block;
    let explicit = options.kv_cache_bytes.is_some() || options.kv_cache_fraction.is_some();
    let per_sequence = (wanted_len as u64).div_ceil(BLOCK_SIZE as u64);
    let needed = max_num_seqs as u64 * per_sequence;
    // An explicit size is taken whole: more blocks than sequences can fill still serve the prefix cache.
    let num_blocks = if explicit { affordable } else { affordable.min(needed) }.min(u64::from(u32::MAX / 64));
    let mut max_model_len = wanted_len;
    if num_blocks < per_sequence {
        let fits = num_blocks as usize * BLOCK_SIZE;
        let needs = per_sequence * block;
        if options.max_model_len.is_some() || fits < BLOCK_SIZE {
            return refuse(format!(
                "the KV cache has {budget} bytes ({source}) and one sequence of {wanted_len} tokens needs {needs}: raise \
                 kv_cache_memory or lower max_model_len"
            ));
        }
        max_model_len = fits;
    }
    let reason = match (explicit, num_blocks < needed) {
        (true, _) => format!("{num_blocks} blocks of {BLOCK_SIZE} tokens, as {source} gives"),
        (false, true) => format!("{num_blocks} blocks of {BLOCK_SIZE} tokens: capped by {source}"),
        (false, false) => format!(
            "{num_blocks} blocks of {BLOCK_SIZE} tokens: {max_num_seqs} sequences of {max_model_len} tokens at full length"
        ),
    };
    let limits = Limits {
        max_model_len: max_model_len as u32,
        max_num_seqs: max_num_seqs as u32,
        max_num_batched_tokens: max_num_batched_tokens as u32,
        max_queue: max_queue as u32,
        block_size: BLOCK_SIZE as u32,
        num_blocks: num_blocks as u32,
    };
    let part = |name: &str, bytes: usize, reason: String| MemoryPart {
        name: name.into(),
        bytes: bytes as u64,
        reason,
    };
    let mut parts = vec![
        part("weights", model.weight_bytes(), {
            let held = format!("{} weights, held as {:?}", spec.parameters(), model.weight_dtype());
            let kept_in_bf16 = match model.kept_in_bf16().len() {
                0 => String::new(),
                n => format!(", {n} tensors of them as Bf16"),
            };
            let mapped =
                if model.origin().is_some() { "; the mapped file, shared with other processes" } else { "" };
            held + &kept_in_bf16 + mapped
        }),
        part(
            "kv_cache",
            (num_blocks * block) as usize,
            format!("{reason}; taken from the system as it fills"),
        ),
        part(
            "step_buffers",
            step_bytes(spec, max_num_batched_tokens),
            format!(
                "activations of a step of {max_num_batched_tokens} tokens; grown by the largest step that runs"
            ),
        ),
        part(
            "logits",
            ROWS_PER_READ.min(max_num_seqs) * spec.vocab * 4,
            format!("f32 rows of {} entries, at most {ROWS_PER_READ} at a time", spec.vocab),
        ),
    ];
    let tails = tail_bytes(spec, kv_format, max_num_seqs, max_num_batched_tokens)?;
    if tails > 0 {
        let reason = format!(
            "{} values of blocks that are not full yet, one block a sequence and those of a step",
            kv_format.float.name()
        );
        parts.push(part("kv_tails", tails, reason));
    }
    if options.attention.is_some() {
        // As many as have a piece of a long context at once.
        let bytes = threads * DynamicParams::buffer_bytes(spec.largest_group(), max_model_len);
        let reason = format!(
            "float32 masses of blocks for queries that choose what they read, over {max_model_len} tokens on {threads} \
             threads; grown by the longest context that runs"
        );
        parts.push(part("attention_masses", bytes, reason));
    }
    Ok((limits, parts))
}

/// Bytes of the forward pass's buffers for a step of `rows` tokens.
fn step_bytes(spec: &ModelSpec, rows: usize) -> usize {
    rows * 4 * spec.step_values_per_token()
}
