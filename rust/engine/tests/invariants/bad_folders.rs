//! Each damaged or hostile model folder has its typed error, at once, with the file, key or tensor named.

use std::path::Path;
use std::time::{Duration, Instant};

use octavo_engine::{CacheSize, Engine, EngineConfig, EngineError, Prompt, SamplingParams};
use serde_json::{Value, json};

use crate::folder::{TestModel, mistral, put, qwen3, safetensors, tokenizer_json, with_header};
use crate::gather::{gather, settled};

fn options() -> EngineConfig {
    EngineConfig {
        threads: Some(1),
        kv_cache_memory: Some(CacheSize::Bytes(4 << 20)),
        quantization: "none".into(),
        ..EngineConfig::default()
    }
}

/// Loads what `damage` made of a sound folder; the error must come soon and name all `words`.
fn refused(class: &str, words: &[&str], damage: impl FnOnce(&Path, TestModel)) {
    let dir = tempfile::tempdir().expect("dir");
    qwen3().write(dir.path());
    damage(dir.path(), qwen3());
    let begin = Instant::now();
    let error = Engine::load(dir.path(), &options()).err().unwrap_or_else(|| panic!("{words:?} loads"));
    assert!(begin.elapsed() < Duration::from_secs(120), "{words:?}: {:?}", begin.elapsed());
    assert_eq!(error.class_name(), class, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

fn config(key: &str, value: Value) -> impl FnOnce(&Path, TestModel) {
    let key = key.to_string();
    move |folder, mut model| {
        model.config[key] = value;
        put(folder, "config.json", model.config.to_string());
    }
}

fn weights(content: Vec<u8>) -> impl FnOnce(&Path, TestModel) {
    move |folder, _| put(folder, "model.safetensors", content)
}

const NORM: &str = "model.norm.weight";
const CORRUPT: &str = "CorruptModelError";
const MISSING: &str = "ModelNotFoundError";

#[test]
fn missing_files() {
    let error = Engine::load(Path::new("/no/such/folder"), &options()).err().expect("no folder");
    assert_eq!(error.class_name(), MISSING);
    assert!(error.to_string().contains("/no/such/folder"));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        refused(MISSING, &[file], |folder, _| std::fs::remove_file(folder.join(file)).expect("remove"));
    }
    refused(MISSING, &["two.safetensors"], |folder, _| {
        index(folder, json!({NORM: "one.safetensors", "x": "two.safetensors"}));
    });
}

#[test]
fn configs_that_are_unknown_impossible_or_huge() {
    let unsupported = "UnsupportedModelError";
    refused(unsupported, &["MambaForCausalLM", "Qwen3ForCausalLM"], |folder, mut model| {
        model.config["architectures"] = json!(["MambaForCausalLM"]);
        model.config["model_type"] = "mamba".into();
        put(folder, "config.json", model.config.to_string());
    });
    refused(unsupported, &["relu"], config("hidden_act", "relu".into()));
    refused(unsupported, &["quantization_config"], config("quantization_config", json!({"bits": 4})));
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(1u64 << 40)),
        ("vocab_size", json!(1e300)),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!("four")),
        ("num_key_value_heads", json!(3)),
        ("intermediate_size", Value::Null),
        ("head_dim", json!(100_000)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1)),
        ("architectures", json!("Qwen3ForCausalLM")),
    ] {
        refused(CORRUPT, &[key], config(key, value));
    }
    // Sizes that are allowed as such and are not those of the weights: no memory is taken for them.
    refused(CORRUPT, &["shape", "131072"], config("hidden_size", json!(1 << 17)));
    refused(CORRUPT, &["model.layers.2."], config("num_hidden_layers", json!(1024)));
    refused(CORRUPT, &["config.json"], |folder, _| put(folder, "config.json", "{\"a\": "));
    refused(CORRUPT, &["config.json", "object"], |folder, _| put(folder, "config.json", "[1]"));
    refused(CORRUPT, &["config.json", "at most"], |folder, _| {
        put(folder, "config.json", vec![b' '; 9 << 20])
    });
}

#[test]
fn safetensors_that_lie() {
    let sound = safetensors(&qwen3().tensors);
    for cut in [0, 7, 8, 100, sound.len() / 2, sound.len() - 1] {
        refused(CORRUPT, &["model.safetensors"], weights(sound[..cut].to_vec()));
    }
    refused(CORRUPT, &["model.safetensors"], weights([sound.clone(), vec![0; 4]].concat()));
    let header = |text: &str, bytes| weights(with_header(text, &vec![0; bytes]));
    let entry = |shape: &str, from, to| {
        format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let two = |a: &str, b: &str| format!("{{\"a\":{a},\"b\":{b}}}");
    refused(CORRUPT, &["safetensors"], header(&two(&entry("[2]", 0, 8), &entry("[2]", 4, 12)), 12));
    refused(CORRUPT, &["safetensors"], header(&two(&entry("[2]", 0, 8), &entry("[2]", 12, 20)), 20));
    refused(CORRUPT, &["safetensors"], header(&format!("{{\"a\":{}}}", entry("[9]", 0, 36)), 8));
    refused(
        CORRUPT,
        &["safetensors"],
        header(&format!("{{\"a\":{}}}", entry("[4611686018427387905]", 0, 4)), 4),
    );
    let twice = format!("{{\"a\":{},\"a\":{}}}", entry("[2]", 0, 8), entry("[2]", 0, 8));
    refused(CORRUPT, &["tensor a", "twice"], header(&twice, 8));
    let mut oversize = sound.clone();
    oversize[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refused(CORRUPT, &["model.safetensors"], weights(oversize));
}

#[test]
fn tensors_of_the_wrong_shape_or_dtype_or_none() {
    refused(CORRUPT, &[NORM, "[32]", "[64]"], |folder, mut model| {
        let norm = model.tensors.iter_mut().find(|t| t.0 == NORM).expect("norm");
        (norm.1, norm.2) = (vec![32], vec![1.0; 32]);
        put(folder, "model.safetensors", safetensors(&model.tensors));
    });
    refused(CORRUPT, &[NORM], |folder, mut model| {
        model.tensors.retain(|t| t.0 != NORM);
        put(folder, "model.safetensors", safetensors(&model.tensors));
    });
    refused(CORRUPT, &[NORM, "I32"], |folder, model| {
        let file = safetensors(&model.tensors);
        let (header, data) =
            file[8..].split_at(u64::from_le_bytes(file[..8].try_into().expect("8")) as usize);
        let mut header: Value = serde_json::from_slice(header).expect("header");
        header[NORM]["dtype"] = "I32".into();
        put(folder, "model.safetensors", with_header(&header.to_string(), data));
    });
    refused(CORRUPT, &["lm_head.weight"], |folder, mut model| {
        model.config["tie_word_embeddings"] = false.into();
        put(folder, "config.json", model.config.to_string());
    });
    refused(CORRUPT, &["index.json", "file name"], |folder, _| {
        index(folder, json!({NORM: "../one.safetensors"}));
    });
}

/// As transformers, which some published folders need.
#[test]
fn an_index_that_does_not_fit_the_files_is_a_warning() {
    let warnings = |damage: fn(&Path)| {
        let dir = tempfile::tempdir().expect("dir");
        qwen3().write(dir.path());
        damage(dir.path());
        Engine::load(dir.path(), &options()).expect("loads").info()["warnings"].to_string()
    };
    let entry = warnings(|folder| index(folder, json!({"nothing.weight": "one.safetensors"})));
    assert!(entry.contains("nothing.weight"), "{entry}");
    // The file of one part goes first.
    let beside = warnings(|folder| {
        put(folder, "model.safetensors.index.json", r#"{"weight_map": {"x": "../two.safetensors"}}"#);
    });
    assert!(beside.contains("model.safetensors.index.json"), "{beside}");
}

/// Renames the weights to one.safetensors, which only an index finds.
fn index(folder: &Path, weight_map: Value) {
    std::fs::rename(folder.join("model.safetensors"), folder.join("one.safetensors")).expect("rename");
    put(folder, "model.safetensors.index.json", json!({"weight_map": weight_map}).to_string());
}

#[test]
fn hostile_tokenizers() {
    for text in
        ["", "{}", "[]", "{\"model\": 3}", "\u{0}\u{1}", "{\"model\": {\"type\": \"BPE\", \"vocab\": 7}}"]
    {
        refused(CORRUPT, &["tokenizer.json"], |folder, _| put(folder, "tokenizer.json", text));
    }
    refused(CORRUPT, &["tokenizer.json"], |folder, _| {
        let mut json = tokenizer_json();
        json["model"]["merges"] = json!(["a zzz"]);
        put(folder, "tokenizer.json", json.to_string());
    });
    refused(CORRUPT, &["tokenizer.json"], |folder, _| {
        let mut json = tokenizer_json();
        json["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": false});
        put(folder, "tokenizer.json", json.to_string());
    });
    refused(CORRUPT, &["tokenizer_config.json"], |folder, _| put(folder, "tokenizer_config.json", "[]"));
}

/// A tokenizer whose vocabulary is larger than the model's: the id is named when it comes up, and only that request fails.
#[test]
fn a_tokenizer_that_is_not_the_models() {
    let dir = tempfile::tempdir().expect("dir");
    qwen3().write(dir.path());
    let mut json = tokenizer_json();
    let mut added = json["added_tokens"][0].clone();
    (added["id"], added["content"]) = (260.into(), "<far>".into());
    json["added_tokens"]
        .as_array_mut()
        .expect("list")
        .push(json!({"id": 257, "content": "<x>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    for id in 258..=259 {
        let mut one = added.clone();
        (one["id"], one["content"]) = (id.into(), format!("<{id}>").into());
        json["added_tokens"].as_array_mut().expect("list").push(one);
    }
    json["added_tokens"].as_array_mut().expect("list").push(added);
    put(dir.path(), "tokenizer.json", json.to_string());
    let engine = Engine::load(dir.path(), &options()).expect("engine");
    let params = SamplingParams { max_tokens: Some(2), ignore_eos: true, ..SamplingParams::default() };
    let refused = engine.submit(Prompt::Text("x<far>".into(), true), &params).err().expect("refused");
    assert!(matches!(&refused, EngineError::InvalidRequest(e) if e.contains("260")), "{refused}");
    let stream = engine.submit(Prompt::Text("x".into(), true), &params).expect("submitted");
    assert_eq!(gather(&stream, 1).tokens[0].len(), 2);
    settled(&engine);
}

/// Values that are no numbers: the model loads, the warning names the tensor, and requests that meet them fail alone.
#[test]
fn weights_that_are_not_numbers_are_warned_of_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    for mut model in [qwen3(), mistral()] {
        model.write(dir.path());
        let engine = Engine::load(dir.path(), &options()).expect("engine");
        assert_eq!(engine.info()["warnings"], json!([]));
        model.values("model.layers.1.mlp.up_proj.weight")[77] = f32::NAN;
        model.values(NORM)[3] = f32::INFINITY;
        model.write(dir.path());
        for quantization in ["none", "int8"] {
            let options = EngineConfig { quantization: quantization.into(), ..options() };
            let engine = Engine::load(dir.path(), &options).expect("engine");
            let warnings = engine.info()["warnings"].as_array().expect("list").clone();
            let text: Vec<&str> = warnings.iter().filter_map(|w| w.as_str()).collect();
            assert_eq!(text.len(), 2, "{text:?}");
            for tensor in ["model.layers.1.mlp.up_proj.weight", NORM] {
                let said = |warning: &&str| warning.contains(&format!("{tensor} has 1 value"));
                assert!(text.iter().any(said), "{tensor}: {text:?}");
            }
            let params = SamplingParams { max_tokens: Some(2), ..SamplingParams::default() };
            let stream = engine.submit(Prompt::Text("x".into(), true), &params).expect("submitted");
            let out = gather(&stream, 1);
            assert_eq!(out.error, Some("ExecutionError"), "{quantization}");
            settled(&engine);
        }
    }
}

#[test]
fn options_that_cannot_be() {
    let dir = tempfile::tempdir().expect("dir");
    qwen3().write(dir.path());
    let invalid = |options: EngineConfig, word: &str| {
        let error = Engine::load(dir.path(), &options).err().expect(word);
        assert_eq!(error.class_name(), "InvalidRequestError", "{error}");
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    };
    invalid(EngineConfig { isa: Some("sse9".into()), ..options() }, "sse9");
    invalid(EngineConfig { threads: Some(0), ..options() }, "threads");
    invalid(EngineConfig { kv_cache_memory: Some(CacheSize::Bytes(1)), ..options() }, "kv_cache_memory");
    invalid(
        EngineConfig { kv_cache_memory: Some(CacheSize::Bytes(1 << 50)), ..options() },
        "kv_cache_memory",
    );
    invalid(
        EngineConfig { kv_cache_memory: Some(CacheSize::Fraction(f64::NAN)), ..options() },
        "kv_cache_memory",
    );
    invalid(EngineConfig { max_model_len: Some(513), ..options() }, "max_model_len");
    invalid(EngineConfig { max_num_seqs: Some(0), ..options() }, "max_num_seqs");
    invalid(EngineConfig { chat_template: Some("{% if".into()), ..options() }, "template");
    invalid(EngineConfig { dtype: "float8".into(), ..options() }, "dtype");
    invalid(EngineConfig { quantization: "int4".into(), ..options() }, "4 bits");
}
