//! LoRA adapters in the form of PEFT: read, checked and packed for the kernels.
//!
//! ```text
//! adapter_config.json -------> config (patterns)  --+
//! adapter_model.safetensors -> keys -> modules -----+--> AdapterFile --- pack (dora) ---> Adapter
//!                                       |
//!                        sites: the projections of the model
//! ```
//!
//! Names of tensors are the truth; the config gives scales, and must not contradict them.

mod config;
mod dora;
mod file;
mod keys;
mod pack;
mod patterns;
mod sites;

pub use config::AdapterConfig;
pub use file::{AdapterFile, AdapterModule};
pub use keys::AdapterTensor;
pub use pack::Adapter;
pub(crate) use pack::{base, pack};
pub use sites::Site;
