//! octavo-engine: from a request to its output.
//!
//! `Engine` is the handle that callers hold; `engine_loop` the thread that owns scheduler, executor and requests.
//! Between them stand one queue in and one queue per request out, and no lock.
#![forbid(unsafe_code)]

mod adapters;
mod attention;
mod cgroup;
mod command;
mod config;
mod cpu;
mod cpu_adapters;
mod cpu_memory;
mod detokenizer;
#[cfg(test)]
mod device_sampling_tests;
mod engine;
mod engine_loop;
#[cfg(test)]
mod engine_tests;
mod error;
mod executor;
mod fields;
mod generation;
mod generation_keys;
mod health;
mod inbox;
mod info;
mod limits;
mod load;
mod mailbox;
mod memory;
mod metrics;
mod output;
mod packs;
mod params;
mod pooling;
mod quantize;
mod report;
mod request;
mod requests;
mod resolve;
mod sample_step;
mod sampling;
mod stats;
mod status;
mod stop;
mod stream;
mod strict_json;
mod structured;
mod submit;
mod template;
#[cfg(test)]
mod test_engine;
mod token_text;
mod tokenizer;

pub use adapters::{AdapterBackend, AdapterInfo, AdapterStats, LoadedAdapter, PackedAdapter};
pub use attention::{AttentionConfig, AttentionMode};
pub use config::{CacheSize, EngineConfig};
pub use cpu::CpuExecutor;
pub use engine::{Engine, EngineParts, Prompt};
pub use error::EngineError;
pub use executor::{Executor, ExecutorInfo, StepError, StepInput, StepOutput, Ticket};
pub use fields::{FieldError, read_fields};
pub use generation::GenerationDefaults;
pub use health::Health;
pub use info::ExecutorFacts;
pub use limits::Limits;
pub use memory::{MemoryFacts, MemoryPart, machine_memory};
pub use metrics::HistogramSnapshot;
pub use output::{
    Delta, FinishReason, PromptLogprobs, RequestMetrics, SampleDelta, StopReason, TokenLogprob,
};
pub use packs::{LoadedPack, NewPack, PackCall, PackFacts, PackForm, Source, describe_pack};
pub use params::{SamplingDefaults, SamplingParams};
pub use pooling::{Pooling, PoolingParams};
pub use quantize::quantize_weights;
pub use report::Report;
pub use resolve::{ResolvedConfig, resolve_for_gpu};
pub use sampling::{Logprob, SampleSpec, SampledToken};
pub use stats::EngineStats;
pub use stream::RequestStream;
pub use strict_json::{JsonLimits, parse_strict};
pub use structured::{
    Budgeted, FittedSchema, JSON_WHITESPACE, SchemaLoss, Structure, Structured, fit_schema,
};
pub use submit::OnFull;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;

/// Parts of the sampler, for its bench. No promise is made about them.
#[doc(hidden)]
pub mod internals {
    pub use crate::sampling::{Cuts, Exact, History, Sampler, SamplingRules};

    /// Rules of `params` for a model without defaults of its own.
    pub fn rules(params: &crate::SamplingParams) -> SamplingRules {
        SamplingRules::new(params, &crate::SamplingDefaults::default(), 1, Vec::new(), Vec::new())
    }
}
