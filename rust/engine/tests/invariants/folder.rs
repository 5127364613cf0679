//! Model folders as the tests need them: config.json, tokenizer.json and small random weights.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Vocabulary of the test models: 256 bytes, `<eos>`, and three ids that no text has.
pub const VOCAB: usize = 260;

/// A config and the tensors that it asks for.
pub struct TestModel {
    pub config: Value,
    /// Name, shape, values.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

const HIDDEN: usize = 64;
const INNER: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const LAYERS: usize = 2;

/// Two layers with norms on query and key heads and a tied head.
pub fn qwen3() -> TestModel {
    model(
        json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": HEAD_DIM, "tie_word_embeddings": true}),
        true,
    )
}

/// Two layers that see 24 tokens back, less than a block.
pub fn mistral() -> TestModel {
    model(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 24}), false)
}

fn model(mut config: Value, qwen: bool) -> TestModel {
    let sizes = [
        ("hidden_size", HIDDEN),
        ("intermediate_size", INNER),
        ("num_attention_heads", HEADS),
        ("num_key_value_heads", KV_HEADS),
        ("num_hidden_layers", LAYERS),
        ("vocab_size", VOCAB),
        ("max_position_embeddings", 512),
        ("eos_token_id", 256),
    ];
    for (key, value) in sizes {
        config[key] = value.into();
    }
    config["dtype"] = "float32".into();
    let mut random = Random(7);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let count: usize = shape.iter().product();
        // Matrices keep the scale of their input; norms are near 1.
        let values = (0..count).map(|_| match shape {
            [_, columns] => random.signed() * (3.0 / *columns as f32).sqrt(),
            _ => 1.0 + 0.2 * random.signed(),
        });
        tensors.push((name, shape.to_vec(), values.collect()));
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
    for i in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{i}.{name}.weight");
        add(at("input_layernorm"), &[HIDDEN]);
        add(at("post_attention_layernorm"), &[HIDDEN]);
        add(at("self_attn.q_proj"), &[HEADS * HEAD_DIM, HIDDEN]);
        add(at("self_attn.k_proj"), &[KV_HEADS * HEAD_DIM, HIDDEN]);
        add(at("self_attn.v_proj"), &[KV_HEADS * HEAD_DIM, HIDDEN]);
        add(at("self_attn.o_proj"), &[HIDDEN, HEADS * HEAD_DIM]);
        add(at("mlp.gate_proj"), &[INNER, HIDDEN]);
        add(at("mlp.up_proj"), &[INNER, HIDDEN]);
        add(at("mlp.down_proj"), &[HIDDEN, INNER]);
        if qwen {
            add(at("self_attn.q_norm"), &[HEAD_DIM]);
            add(at("self_attn.k_norm"), &[HEAD_DIM]);
        }
    }
    add("model.norm.weight".into(), &[HIDDEN]);
    if !qwen {
        add("lm_head.weight".into(), &[VOCAB, HIDDEN]);
    }
    TestModel { config, tensors }
}

impl TestModel {
    /// Writes a whole model folder.
    pub fn write(&self, folder: &Path) {
        put(folder, "config.json", self.config.to_string());
        put(folder, "tokenizer.json", tokenizer_json().to_string());
        put(folder, "model.safetensors", safetensors(&self.tensors));
    }

    /// Values of a tensor.
    pub fn values(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self.tensors.iter_mut().find(|t| t.0 == name).expect("tensor").2
    }
}

/// Writes a file of a folder.
pub fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(folder.join(name), content).expect("write");
}

/// A safetensors file of f32 tensors.
pub fn safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with any header.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A byte-level tokenizer without merges: token id = byte value, plus `<eos>` = 256.
pub fn tokenizer_json() -> Value {
    // In GPT-2's byte alphabet printable bytes stand for themselves, the others for the characters from 256 on.
    let mut other = 256;
    let mut vocab = Map::new();
    for byte in 0..256u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { byte } else { other };
        other += u32::from(!printable);
        vocab.insert(char::from_u32(code).expect("a character").to_string(), byte.into());
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 256, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []},
    })
}
