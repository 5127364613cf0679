//! Values of keys that config.json leaves out: those of the config classes of transformers 5. A test compares both.
//!
//! A key that is there, be it null, keeps its value.

use serde_json::{Map, Value};

use crate::config::Config;

/// A default; [`fill`] turns it into a JSON value.
#[derive(Clone, Copy)]
enum KeyDefault {
    Int(u64),
    Flag(bool),
}

use KeyDefault::{Flag, Int};

type Defaults = &'static [(&'static str, KeyDefault)];

/// `model_type`, sizes, other keys.
type Row = (&'static str, [(&'static str, KeyDefault); 5], Defaults);

const fn sizes(
    hidden: u64,
    intermediate: u64,
    layers: u64,
    heads: u64,
    vocab: u64,
) -> [(&'static str, KeyDefault); 5] {
    [
        ("hidden_size", Int(hidden)),
        ("intermediate_size", Int(intermediate)),
        ("num_hidden_layers", Int(layers)),
        ("num_attention_heads", Int(heads)),
        ("vocab_size", Int(vocab)),
    ]
}

/// By `model_type`: sizes, and the other keys whose default is not the same in every family.
const DEFAULTS: &[Row] = &[
    ("llama", sizes(4096, 11008, 32, 32, 32_000), &[]),
    (
        "mistral",
        sizes(4096, 14336, 32, 32, 32_000),
        &[("num_key_value_heads", Int(8)), ("sliding_window", Int(4096))],
    ),
    ("mixtral", sizes(4096, 14336, 32, 32, 32_000), &[("num_key_value_heads", Int(8))]),
    (
        "qwen2",
        sizes(4096, 22016, 32, 32, 151_936),
        &[("num_key_value_heads", Int(32)), ("sliding_window", Int(4096)), ("max_window_layers", Int(28))],
    ),
    (
        "qwen2_moe",
        sizes(2048, 5632, 24, 16, 151_936),
        &[
            ("num_key_value_heads", Int(16)),
            ("sliding_window", Int(4096)),
            ("moe_intermediate_size", Int(1408)),
            ("shared_expert_intermediate_size", Int(5632)),
            ("num_experts_per_tok", Int(4)),
            ("num_local_experts", Int(60)),
        ],
    ),
    (
        "qwen3",
        sizes(4096, 22016, 32, 32, 151_936),
        &[("num_key_value_heads", Int(32)), ("sliding_window", Int(4096)), ("max_window_layers", Int(28))],
    ),
    (
        "qwen3_moe",
        sizes(2048, 6144, 24, 32, 151_936),
        &[
            ("num_key_value_heads", Int(4)),
            ("sliding_window", Int(4096)),
            ("moe_intermediate_size", Int(768)),
            ("num_experts_per_tok", Int(8)),
            ("num_local_experts", Int(128)),
        ],
    ),
    ("smollm3", sizes(2048, 11008, 36, 16, 128_256), &[("num_key_value_heads", Int(4))]),
    ("olmo2", sizes(4096, 11008, 32, 32, 50_304), &[]),
    ("olmo3", sizes(4096, 11008, 32, 32, 50_304), &[("sliding_window", Int(4096))]),
    ("granite", sizes(4096, 11008, 32, 32, 32_000), &[]),
    ("phi3", sizes(3072, 8192, 32, 32, 32_064), &[("original_max_position_embeddings", Int(4096))]),
    ("gemma", sizes(3072, 24576, 28, 16, 256_000), &[("num_key_value_heads", Int(16))]),
    (
        "gemma2",
        sizes(2304, 9216, 26, 8, 256_000),
        &[("num_key_value_heads", Int(4)), ("sliding_window", Int(4096))],
    ),
    (
        "gemma3_text",
        sizes(2304, 9216, 26, 8, 262_208),
        &[("num_key_value_heads", Int(4)), ("sliding_window", Int(4096))],
    ),
    ("glm4", sizes(4096, 13696, 40, 32, 151_552), &[("num_key_value_heads", Int(2))]),
    ("cohere2", sizes(8192, 22528, 40, 64, 256_000), &[("sliding_window", Int(4096))]),
    (
        "deepseek_v2",
        sizes(4096, 11008, 32, 32, 102_400),
        &[
            ("q_lora_rank", Int(1536)),
            ("kv_lora_rank", Int(512)),
            ("qk_nope_head_dim", Int(128)),
            ("qk_rope_head_dim", Int(64)),
            ("v_head_dim", Int(128)),
            ("n_routed_experts", Int(64)),
            ("n_shared_experts", Int(2)),
            ("moe_intermediate_size", Int(1407)),
            ("first_k_dense_replace", Int(0)),
        ],
    ),
    (
        "deepseek_v3",
        sizes(7168, 18432, 61, 128, 129_280),
        &[
            ("q_lora_rank", Int(1536)),
            ("kv_lora_rank", Int(512)),
            ("qk_nope_head_dim", Int(128)),
            ("qk_rope_head_dim", Int(64)),
            ("v_head_dim", Int(128)),
            ("n_routed_experts", Int(256)),
            ("n_shared_experts", Int(1)),
            ("moe_intermediate_size", Int(2048)),
            ("num_experts_per_tok", Int(8)),
            ("first_k_dense_replace", Int(3)),
            ("norm_topk_prob", Flag(true)),
        ],
    ),
];

/// The keys of `config`, and the defaults of the family `model_type` for those that are not there.
pub fn fill(config: &Config<'_>, model_type: &str) -> Map<String, Value> {
    let mut map = config.map().clone();
    let rows = DEFAULTS.iter().filter(|(kind, ..)| *kind == model_type);
    for (key, default) in rows.flat_map(|(_, sizes, others)| sizes.iter().chain(others.iter())) {
        // The same key under its other name.
        if *key == "num_local_experts" && map.contains_key("num_experts") {
            continue;
        }
        let value = match *default {
            Int(n) => Value::from(n),
            Flag(flag) => Value::from(flag),
        };
        map.entry(*key).or_insert(value);
    }
    map
}
