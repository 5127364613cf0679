//! octavo-model: from a Hugging Face folder to logits on the CPU.
//!
//! `families` turns config.json into a `ModelSpec` (a decoder as data) and names its tensors; `checkpoint` maps and
//! checks safetensors; `load` asks a `source` for them as `weights` (`floats` packs them, `packed` maps a file in which
//! `packing` wrote them); `forward` runs a flat batch of tokens over the paged KV pool.
#![deny(unsafe_code)]

mod buffer;
mod checkpoint;
mod config;
mod damage;
mod error;
pub mod families;
mod floats;
mod forward;
mod kv;
mod load;
mod packed;
mod packed_form;
mod packing;
mod quantized;
mod rope;
mod rope_config;
mod source;
mod spec;
mod tails;
mod weights;

pub use checkpoint::{Checkpoint, Entry, Tensor, read_entries, shards_of};
pub use config::{Config, parse_json, read_json};
pub use error::ModelError;
pub use forward::{Batch, Model, Scratch};
pub use kv::{KvFormat, KvPool, block_bytes, tail_bytes};
pub use load::{Spared, WeightFormat};
pub use packed_form::{Origin, quantization_config};
pub use packing::{Quantized, quantize};
pub use rope::{RopeScaling, RopeSpec, RopeTable};
pub use spec::{
    Activation, AttentionSpec, Dtype, ExpertGroups, FeedForwardSpec, GqaSpec, LayerSpec, MlaSpec, MlpSpec,
    ModelSpec, MoeSpec, NormKind, NormPlacement, NormSpec, QkNorm, Scoring, SharedExpertSpec,
};
pub use weights::read_family;
