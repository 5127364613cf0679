//! octavo-model: from a model folder to logits on the CPU.
//!
//! ```text
//! folder --- config.json ---> families ---> ModelSpec (a decoder as data) + tensor names
//!    |                                          |
//!    +------ safetensors ---> checkpoint        |
//!                                |              v
//!                    checkpoint_source or   <- walk -> ModelWeights ---> forward over the paged KvPool
//!                    octavo_file::reader                                 ^
//!                                                                        |
//! folder of an adapter ---> AdapterFile ---> Adapter --------------------+
//! ```
#![deny(unsafe_code)]

mod adapter;
mod checkpoint;
mod checkpoint_files;
mod checkpoint_source;
mod compressed_tensors;
mod config;
mod error;
pub mod families;
mod file_words;
mod folder;
mod forward;
mod json;
mod kv;
mod layout;
mod load;
mod mmap;
mod nonfinite;
mod octavo_file;
mod other_forms;
mod rope;
mod rope_config;
mod source;
mod spec;
mod spec_sizes;
mod walk;
mod weight_format;
mod weights;

pub use adapter::{Adapter, AdapterConfig, AdapterFile, AdapterModule, AdapterTensor, Site};
pub use checkpoint::{Checkpoint, Tensor, TensorEntry, read_entries};
pub use checkpoint_files::shards_of;
pub use config::{Config, read_json};
pub use error::ModelError;
pub use folder::{
    DEFAULT_TEMPLATE, HfFolder, ModelFolder, TokenizerFiles, open, open_tokenizer, read_family,
};
pub use forward::{AdapterRows, Batch, Model, Scratch};
pub use json::parse_json;
pub use kv::{BlockLayout, KvFormat, KvPool, block_bytes, open_block_bytes};
pub use layout::{open_model, warn_of_unused};
pub use octavo_file::format::{Origin, quantization_config};
pub use octavo_file::writer::{Quantized, quantize};
pub use rope::{RopeAngles, RopeScaling, RopeSpec};
pub use spec::{
    ActivationKind, AttentionSpec, Dtype, ExpertGroups, FeedForwardSpec, GqaSpec, LayerSpec, MlaSpec,
    MlpSpec, ModelSpec, MoeSpec, NormKind, NormPlacement, NormSpec, QkNorm, Scoring, SharedExpertSpec,
};
pub use weight_format::{KeptInBf16, WeightFormat};
