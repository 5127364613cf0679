//! What the fuzz targets run, one function each. The engine's tests run the same functions over the corpora.
//!
//! A target passes if it returns: with a value that keeps its promises, or with an error. A panic, a crash, memory without
//! bound or no end is a finding.

use octavo_engine::{ChatTemplate, Tokenizer};
use octavo_model::{
    AdapterConfig, AttentionSpec, Config, FeedForwardSpec, families, parse_json, read_entries, shards_of,
};
use serde_json::{Map, json};

/// The header of a safetensors file: every tensor that it names lies inside the file, and has the size of its shape.
pub fn safetensors(file: &[u8]) {
    let Ok(entries) = read_entries(file) else { return };
    for (name, entry) in entries {
        let range = entry.range;
        assert!(range.start <= range.end && range.end <= file.len(), "tensor {name} lies at {range:?}");
        let Ok(dtype) = entry.dtype else { continue };
        let elements = entry.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.bytes()));
        assert_eq!(bytes, Some(range.len()), "tensor {name}");
    }
}

/// The index of a sharded checkpoint: no shard lies outside the folder.
pub fn index(text: &[u8]) {
    let Ok(shards) = parse_json(text).and_then(|index| shards_of(&index)) else { return };
    for shard in shards.values() {
        assert!(!shard.is_empty() && !shard.contains('/') && shard != "..", "shard {shard:?}");
    }
}

/// config.json: what is accepted has sizes within bounds, so that nothing that is made from it overflows.
pub fn config(text: &[u8]) {
    let Ok(map) = parse_json(text) else { return };
    let Ok(family) = families::read(&Config::new(&map)) else { return };
    let spec = family.spec;
    assert!(!spec.layers.is_empty() && spec.hidden > 0 && spec.vocab > 0 && spec.max_position > 0);
    for layer in &spec.layers {
        match &layer.attention {
            AttentionSpec::Gqa(a) => {
                assert!(a.kv_heads > 0 && a.heads.is_multiple_of(a.kv_heads) && a.head_dim > 0);
            }
            AttentionSpec::Mla(a) => {
                assert!(a.heads > 0 && a.kv_lora_rank > 0 && a.qk_rope_head_dim.is_multiple_of(2))
            }
        }
        if let FeedForwardSpec::Experts(m) = &layer.mlp {
            assert!((1..=m.experts).contains(&m.num_experts_per_tok) && m.intermediate > 0);
        }
    }
    assert!(spec.parameters() > 0 && spec.kv_elements_per_token() > 0);
}

/// adapter_config.json: what is accepted gives modules finite factors, or says which field contradicts them.
pub fn adapter(text: &[u8]) {
    let Ok(map) = parse_json(text) else { return };
    let config = match AdapterConfig::parse(&map, "adapter_config.json") {
        Ok(config) => config,
        Err(error) => return assert!(error.to_string().contains("adapter_config.json"), "{error}"),
    };
    for (layer, module) in [(0, "self_attn.q_proj"), (1, "self_attn.o_proj"), (11, "mlp.up_proj")] {
        for rank in [1, 5, 8, 256] {
            match config.scale(&format!("model.layers.{layer}.{module}"), layer, rank) {
                Ok(scale) => assert!(scale.is_finite(), "{scale}"),
                Err(what) => assert!(!what.is_empty()),
            }
        }
    }
}

/// tokenizer.json: what loads can encode and decode.
pub fn tokenizer(text: &[u8]) {
    let Ok(tokenizer) = Tokenizer::parse(text, Map::new()) else { return };
    // Errors are allowed here, too.
    if let Ok(ids) = tokenizer.encode("Hello, wörld 123 \u{1f600}", true) {
        let _ = tokenizer.decode(&ids, false);
    }
    let _ = tokenizer.decode(&[0, 1, 255, u32::MAX], true);
}

/// A chat template: it compiles and renders a small conversation, or is refused, within its bounds.
pub fn template(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    // No text of the template is a text of the tokenizer: any one will do.
    let plain = br#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    let Ok(tokenizer) = Tokenizer::parse(plain, Map::new()) else { panic!("the plain tokenizer") };
    let Ok(template) = ChatTemplate::new(text, &tokenizer) else { return };
    let request = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi <there>"},
            {"role": "assistant", "content": "Hello", "tool_calls": [{"name": "f", "arguments": {"x": 1.5}}]},
        ],
        "add_generation_prompt": true,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    });
    let _ = template.render(&request.to_string());
}
