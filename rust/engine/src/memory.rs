//! The memory plan: bytes of each part, with the reason, decided once at load.

use std::path::Path;

use octavo_kernels::BLOCK_SIZE;
use octavo_model::Dtype;
use serde::{Deserialize, Serialize};

use crate::EngineError;
use crate::cgroup;
use crate::config::{CacheSize, EngineConfig};
use crate::limits::{Device, Limits};

/// Share of the free memory that the KV cache takes by default: on a GPU, allocators and libraries need the rest.
const CPU_SHARE: f64 = 0.5;
const GPU_SHARE: f64 = 0.9;
/// Least memory for adapters by default. Nothing takes it before an adapter is used.
const MIN_LORA_MEMORY: u64 = 256 << 20;
/// Max number of KV blocks: slots are 32-bit integers.
const MAX_BLOCKS: u64 = u32::MAX as u64 / 64;

/// One part of the memory plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPart {
    /// Name of the part.
    pub name: String,
    /// Max bytes.
    pub bytes: u64,
    /// The reason of this size.
    pub reason: String,
}

impl MemoryPart {
    pub(crate) fn new(name: &str, bytes: u64, reason: String) -> Self {
        Self { name: name.into(), bytes, reason }
    }
}

/// Memory of a device and of a model on it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryFacts {
    /// Memory of the device.
    pub total_bytes: u64,
    /// Free memory, without weights and, on a GPU, the largest step.
    pub free_bytes: u64,
    /// One KV block, all layers together.
    pub block_bytes: u64,
    /// The floats of one open block of an int8 cache, all layers together.
    pub open_block_bytes: u64,
    /// Attention scores for each KV block.
    pub score_bytes: u64,
    /// The weights.
    pub weight_bytes: u64,
    /// The largest step at its peak, beside weights and KV cache.
    pub step_bytes: u64,
}

/// Memory that this process can have, in bytes: (total, available now). The limit of a container counts as the machine's.
pub fn machine_memory() -> (u64, u64) {
    memory_under(Path::new("/"))
}

/// `machine_memory` with the system's files below `root`.
fn memory_under(root: &Path) -> (u64, u64) {
    let (total, available) = physical_memory(root);
    let (limit, free) = cgroup::limits(root).unwrap_or((total, available));
    (total.min(limit), available.min(free))
}

fn physical_memory(root: &Path) -> (u64, u64) {
    let fallback = (8 << 30, 4 << 30);
    let Ok(text) = std::fs::read_to_string(root.join("proc/meminfo")) else { return fallback };
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(available)) => (total, available),
        _ => fallback,
    }
}

/// Memory that the KV cache may take.
struct Budget {
    bytes: u64,
    /// Where the number comes from, for messages.
    source: String,
    /// Set by the caller: the cache takes all of it.
    explicit: bool,
}

impl Budget {
    fn new(size: Option<CacheSize>, device: Device, total: u64, free: u64) -> Result<Self, EngineError> {
        let invalid = |text: String| Err(EngineError::InvalidRequest(format!("kv_cache_memory is {text}")));
        let owner = if device == Device::Cpu { "this machine" } else { "the device" };
        let (bytes, source) = match (size, device) {
            (Some(CacheSize::Bytes(bytes)), Device::Cpu) if bytes > total => {
                return invalid(format!("{bytes} bytes: this machine has {total}"));
            }
            (Some(CacheSize::Bytes(bytes)), _) => (bytes, "kv_cache_memory".to_string()),
            (Some(CacheSize::Fraction(f)), _) if f > 0.0 && f < 1.0 => {
                ((total as f64 * f) as u64, format!("kv_cache_memory: {f} of {owner}'s {total} bytes"))
            }
            (Some(CacheSize::Fraction(f)), _) => {
                return invalid(format!("{f}: a fraction above 0 and below 1 is expected"));
            }
            (None, Device::Cpu) => {
                ((free as f64 * CPU_SHARE) as u64, "half of the memory that is free".to_string())
            }
            (None, Device::Gpu) => {
                let share = 100.0 * GPU_SHARE;
                let source = format!("{share}% of what is free beside weights and the largest step");
                ((free as f64 * GPU_SHARE) as u64, source)
            }
        };
        if device == Device::Gpu && size.is_some() && bytes > free {
            return Err(EngineError::DeviceMemory(format!(
                "the KV cache is to have {bytes} bytes ({source}), and {free} are free beside weights and the largest \
                 step: lower kv_cache_memory, max_num_batched_tokens or max_num_seqs"
            )));
        }
        Ok(Self { bytes, source, explicit: size.is_some() })
    }

    /// The error where one sequence of `len` tokens, `needs` bytes, does not fit.
    fn too_small(&self, device: Device, len: u64, needs: u64) -> EngineError {
        let remedy = match device {
            Device::Cpu => "raise kv_cache_memory or lower max_model_len",
            Device::Gpu => "raise kv_cache_memory, or lower max_model_len or max_num_batched_tokens",
        };
        let text = format!(
            "the KV cache has {} bytes ({}) and one sequence of {len} tokens needs {needs}: {remedy}",
            self.bytes, self.source
        );
        match device {
            Device::Gpu if !self.explicit => EngineError::DeviceMemory(text),
            _ => EngineError::InvalidRequest(text),
        }
    }
}

/// `limits` with the number of KV blocks and the context that they allow, and the reason of that number.
///
/// # Errors
/// `InvalidRequest` or `DeviceMemory`, with the options to change.
pub(crate) fn fit_kv_cache(
    config: &EngineConfig,
    limits: Limits,
    device: Device,
    facts: &MemoryFacts,
) -> Result<(Limits, String), EngineError> {
    let block = facts.block_bytes.max(1);
    let budget =
        Budget::new(config.kv_cache_memory, device, facts.total_bytes, free_for_blocks(limits, facts))?;
    let (seqs, len) = (u64::from(limits.max_num_seqs), u64::from(limits.max_model_len));
    let per_sequence = len.div_ceil(BLOCK_SIZE as u64);
    let needed = seqs * per_sequence;
    let affordable = budget.bytes / block;
    // An explicit size is taken whole: more blocks than sequences can fill still serve the prefix cache.
    let num_blocks = if budget.explicit { affordable } else { affordable.min(needed) }.min(MAX_BLOCKS);
    let mut max_model_len = limits.max_model_len;
    if num_blocks < per_sequence {
        if config.max_model_len.is_some() || num_blocks == 0 {
            return Err(budget.too_small(device, len, per_sequence * block));
        }
        max_model_len = num_blocks as u32 * BLOCK_SIZE as u32;
    }
    let source = &budget.source;
    let why = match (budget.explicit, num_blocks < needed) {
        (true, _) => format!("as {source} gives"),
        (false, true) => format!("capped by {source}"),
        (false, false) => format!("{seqs} sequences of {max_model_len} tokens at full length"),
    };
    let colon = if budget.explicit { "," } else { ":" };
    let reason = format!("{num_blocks} blocks of {BLOCK_SIZE} tokens{colon} {why}");
    let max_lora_memory = config.max_lora_memory.unwrap_or_else(|| default_lora_memory(facts));
    Ok((Limits { num_blocks: num_blocks as u32, max_model_len, max_lora_memory, ..limits }, reason))
}

/// Memory for adapters where none is given: a tenth of the weights. A small model's would hold no adapter of a large rank.
fn default_lora_memory(facts: &MemoryFacts) -> u64 {
    (facts.weight_bytes / 10).max(MIN_LORA_MEMORY)
}

/// Free bytes without the open blocks and the scores that go with KV blocks.
fn free_for_blocks(limits: Limits, facts: &MemoryFacts) -> u64 {
    let block = facts.block_bytes.max(1);
    let open = open_bytes(limits, facts.open_block_bytes);
    let free = u128::from(facts.free_bytes.saturating_sub(open));
    (free * u128::from(block) / u128::from(block + facts.score_bytes)) as u64
}

/// Bytes of all open blocks of an int8 cache.
fn open_bytes(limits: Limits, open_block_bytes: u64) -> u64 {
    open_block_bytes * u64::from(limits.max_open_blocks())
}

/// The open blocks of an int8 cache in `dtype`, as many as can be open at once; None for other caches.
pub(crate) fn open_blocks_part(dtype: Dtype, limits: Limits, open_block_bytes: u64) -> Option<MemoryPart> {
    let why = format!(
        "{} values of blocks that are not full yet, three a sequence and those of a step at most",
        dtype.name()
    );
    let bytes = open_bytes(limits, open_block_bytes);
    (bytes > 0).then(|| MemoryPart::new("kv_open_blocks", bytes, why))
}

/// The memory plan on a GPU.
pub(crate) fn gpu_parts(
    dtype: Dtype,
    limits: Limits,
    facts: &MemoryFacts,
    kv_reason: String,
) -> Vec<MemoryPart> {
    let num_blocks = u64::from(limits.num_blocks);
    let step = format!("measured: a step of {} tokens at its peak", limits.max_num_batched_tokens);
    let mut parts = vec![
        MemoryPart::new(
            "weights",
            facts.weight_bytes,
            format!("held as {}, or int8 where quantised", dtype.name()),
        ),
        MemoryPart::new("kv_cache", num_blocks * facts.block_bytes, kv_reason),
        MemoryPart::new("step_buffers", facts.step_bytes, step),
    ];
    parts.extend(open_blocks_part(dtype, limits, facts.open_block_bytes));
    if facts.score_bytes > 0 {
        let why = "f32 scores of the keys that decodes see, of one layer at a time".into();
        parts.push(MemoryPart::new("attention_scores", facts.score_bytes * num_blocks, why));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_limit_holds_where_it_is_lower() {
        let root = tempfile::tempdir().expect("dir");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(path, text).expect("write");
        };
        write(
            "proc/meminfo",
            "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\nSwapTotal: 9 kB\n",
        );
        assert_eq!(memory_under(root.path()), (4 << 30, 2 << 30));
        write("proc/self/cgroup", "0::/\n");
        write("sys/fs/cgroup/memory.max", "1073741824\n");
        write("sys/fs/cgroup/memory.current", "268435456\n");
        assert_eq!(memory_under(root.path()), (1 << 30, 3 << 28));
        write("sys/fs/cgroup/memory.max", "8589934592\n");
        assert_eq!(memory_under(root.path()), (4 << 30, 2 << 30));
    }
}
