//! config.json to `ModelSpec`: what the families read, and what they refuse by name.

use octavo_model::{Config, ModelError, ModelSpec, families};
use serde_json::{Value, json};

fn read(config: &Value) -> Result<ModelSpec, ModelError> {
    families::read(&Config::new(config.as_object().expect("object"))).map(|f| f.spec)
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 100});
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

#[test]
fn windows_follow_each_family() {
    let windows = |config: &Value| -> Vec<Option<u32>> {
        read(config).expect("spec").layers.iter().map(|l| l.attention.window).collect()
    };
    let mistral = ("architectures", json!(["MistralForCausalLM"]));
    assert_eq!(windows(&with(&[mistral.clone(), ("sliding_window", json!(8))])), [Some(8); 3]);
    assert_eq!(windows(&with(&[mistral, ("sliding_window", Value::Null)])), [None; 3]);
    let qwen = [("architectures", json!(["Qwen2ForCausalLM"])), ("sliding_window", json!(8))];
    assert_eq!(windows(&with(&qwen)), [None; 3], "use_sliding_window is off by default");
    let mut upper = qwen.to_vec();
    upper.extend([("use_sliding_window", json!(true)), ("max_window_layers", json!(2))]);
    assert_eq!(windows(&with(&upper)), [None, None, Some(8)]);
    upper.push(("layer_types", json!(["sliding_attention", "full_attention", "full_attention"])));
    assert_eq!(windows(&with(&upper)), [Some(8), None, None], "layer_types rules");
}

#[test]
fn parameters_count_as_the_tensors_do() {
    let spec = read(&with(&[])).expect("spec");
    let layer = 2 * 64 + 64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 96;
    assert_eq!(spec.parameters(), 2 * 100 * 64 + 64 + 3 * layer);
    assert_eq!(spec.kv_elements_per_token(), 3 * 2 * 2 * 16);
}

#[test]
fn what_the_spec_cannot_express_is_refused_by_name() {
    let cases = [
        ("architectures", json!(["MambaForCausalLM"]), "MambaForCausalLM"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "yarn"),
        ("hidden_act", json!("relu"), "relu"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantised"),
        ("dtype", json!("float8_e4m3fn"), "float8_e4m3fn"),
    ];
    for (key, value, named) in cases {
        let error = read(&with(&[(key, value)])).expect_err(key);
        assert!(matches!(error, ModelError::Unsupported(_)), "{key}: {error:?}");
        assert!(error.to_string().contains(named), "{key}: {error}");
    }
}

#[test]
fn impossible_values_are_named_with_the_key() {
    let cases = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!("big")),
        ("num_hidden_layers", json!(1e9)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", Value::Null),
        ("rms_norm_eps", json!(-1.0)),
        ("num_attention_heads", json!(6)),
        ("tie_word_embeddings", json!("yes")),
    ];
    for (key, value) in cases {
        let error = read(&with(&[(key, value)])).expect_err(key);
        assert!(matches!(error, ModelError::BadConfig { .. }), "{key}: {error:?}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}
