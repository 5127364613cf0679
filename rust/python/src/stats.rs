//! What `LLM.stats` returns.

use octavo_engine::Engine;
use serde_json::{Map, Value, json};

/// The counters of an engine by name.
pub fn document(engine: &Engine) -> Value {
    let s = engine.stats();
    json!({
        "requests": {"running": s.requests_running, "waiting": s.requests_waiting.max(engine.queued() as u64),
                     "finished": s.requests_finished},
        "blocks": {"total": s.blocks_total, "free": s.blocks_free, "cached": s.blocks_cached, "live": s.blocks_live,
                   "pinned": s.blocks_pinned},
        "steps": s.steps,
        "mixed_steps": s.mixed_steps,
        "failed_steps": s.failed_steps,
        "max_batch": s.max_batch,
        "max_batch_tokens": s.max_batch_tokens,
        "prompt_tokens": s.prompt_tokens,
        "cached_prompt_tokens": s.cached_prompt_tokens,
        "generated_tokens": s.generated_tokens,
        "finished": {"stop": s.finished_stop, "length": s.finished_length, "abort": s.finished_abort,
                     "error": s.finished_error},
        "preemptions": s.preemptions,
        "evictions": s.evictions,
        "step_seconds": s.step_us as f64 / 1e6,
        "adapters": engine.adapter_stats(),
        "attention": engine.report().iter().map(|(name, x)| (name.to_string(), x.into())).collect::<Map<_, _>>(),
    })
}
