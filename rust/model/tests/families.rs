//! config.json to `ModelSpec`: what the families read, and what they refuse by name.

use octavo_model::{AttentionSpec, Config, FeedForwardSpec, GqaSpec, ModelError, ModelSpec, families};
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

fn heads(spec: &ModelSpec) -> Vec<GqaSpec> {
    let heads = |a: &AttentionSpec| match a {
        AttentionSpec::Gqa(heads) => heads.clone(),
        AttentionSpec::Mla(_) => panic!("latent attention"),
    };
    spec.layers.iter().map(|l| heads(&l.attention)).collect()
}

#[test]
fn windows_follow_each_family() {
    let windows = |config: &Value| -> Vec<Option<u32>> {
        heads(&read(config).expect("spec")).iter().map(|a| a.window).collect()
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
fn the_model_type_decides_and_names_are_compared_in_any_case() {
    let read = |names: Value, model_type: Value| {
        let config = with(&[("architectures", names), ("model_type", model_type)]);
        families::read(&Config::new(config.as_object().expect("object")))
    };
    let architecture = |names: Value, model_type: Value| {
        read(names, model_type).map(|f| (f.spec.architecture, f.base, f.warnings.len())).ok()
    };
    let (qwen3, llama) = ("Qwen3ForCausalLM".to_string(), "LlamaForCausalLM".to_string());
    for (names, model_type, want) in [
        (json!(["Qwen3ForCausalLM"]), json!("qwen3"), Some((&qwen3, false, 0))),
        (json!(["Qwen3Model"]), json!("qwen3"), Some((&qwen3, true, 0))),
        (json!(["Foo", "qwen3forcausallm"]), json!(null), Some((&qwen3, false, 0))),
        (json!(["Foo", "Qwen3ForCausalLM"]), json!("qwen3"), Some((&qwen3, false, 0))),
        (json!(["LlamaForCausalLM"]), json!("qwen3"), Some((&qwen3, false, 1))),
        (json!(["LlamaForCausalLM"]), json!("Yi"), Some((&llama, false, 0))),
        (json!([]), json!("llama"), Some((&llama, false, 0))),
        (json!(null), json!("llama"), Some((&llama, false, 0))),
        (json!(["Foo"]), json!("llama"), Some((&llama, false, 1))),
        (json!(["LlamaForSequenceClassification"]), json!("llama"), None),
        (json!(["Foo"]), json!("bar"), None),
        (json!(null), json!(null), None),
    ] {
        let got = architecture(names.clone(), model_type.clone());
        let got = got.as_ref().map(|(name, base, warnings)| (name, *base, *warnings));
        assert_eq!(got, want, "{names} {model_type}");
    }
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
        ("rope_scaling", json!({"rope_type": "spiral", "factor": 4.0}), "spiral"),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "full_attention"),
        ("hidden_act", json!("relu"), "relu"),
        ("is_causal", json!(false), "is_causal false"),
        ("quantization", json!({"bits": 4, "group_size": 64}), "MLX"),
        (
            "compression_config",
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "pack-quantized",
        ),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantised"),
        ("dtype", json!("float8_e4m3fn"), "float8_e4m3fn"),
    ];
    for (key, value, named) in cases {
        let error = read(&with(&[(key, value)])).expect_err(key);
        assert!(matches!(error, ModelError::Unsupported(_)), "{key}: {error:?}");
        assert!(error.to_string().contains(named), "{key}: {error}");
    }
}

fn family(architecture: &str, changes: &[(&str, Value)]) -> Result<ModelSpec, ModelError> {
    let mut config = with(changes);
    config["architectures"] = json!([architecture]);
    for (key, value) in [
        ("kv_lora_rank", 32),
        ("qk_nope_head_dim", 16),
        ("qk_rope_head_dim", 8),
        ("v_head_dim", 16),
        ("moe_intermediate_size", 24),
        ("n_routed_experts", 8),
        ("num_experts", 8),
        ("num_experts_per_tok", 2),
        ("shared_expert_intermediate_size", 24),
        ("n_group", 4),
        ("topk_group", 2),
    ] {
        if config.get(key).is_none() {
            config[key] = json!(value);
        }
    }
    read(&config)
}

#[test]
fn options_of_families_that_the_spec_cannot_express_are_refused_by_name() {
    let cases = [
        ("Gemma3ForCausalLM", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("GemmaForCausalLM", "hidden_activation", json!("relu"), "relu"),
        ("Gemma3ForCausalLM", "rope_parameters", json!({"rope_theta": 1e4}), "one rope for all layers"),
        ("Cohere2ForCausalLM", "use_qk_norm", json!(true), "use_qk_norm"),
        ("Cohere2ForCausalLM", "use_parallel_block", json!(false), "use_parallel_block"),
        (
            "Olmo3ForCausalLM",
            "layer_types",
            json!(["linear_attention", "full_attention", "full_attention"]),
            "linear_attention",
        ),
        ("DeepseekV2ForCausalLM", "topk_method", json!("noaux_tc"), "noaux_tc"),
        ("DeepseekV2ForCausalLM", "norm_topk_prob", json!(true), "norm_topk_prob"),
        ("DeepseekV2ForCausalLM", "mlp_bias", json!(true), "mlp_bias"),
        ("DeepseekV3ForCausalLM", "scoring_func", json!("softmax"), "softmax"),
        ("DeepseekV3ForCausalLM", "moe_layer_freq", json!(2), "moe_layer_freq"),
        ("Phi3ForCausalLM", "partial_rotary_factor", json!(0.2), "rotary embedding over 3 channels"),
    ];
    for (architecture, key, value, named) in cases {
        let error = family(architecture, &[(key, value)]).expect_err(key);
        assert!(matches!(error, ModelError::Unsupported(_)), "{architecture} {key}: {error:?}");
        assert!(error.to_string().contains(named), "{architecture} {key}: {error}");
    }
}

#[test]
fn impossible_values_of_families_are_named_with_the_key() {
    let longrope = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, "x"]});
    let cases = [
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([1, 0])),
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([1, 0, 7])),
        ("Olmo3ForCausalLM", "layer_types", json!(["full_attention"])),
        ("Phi3ForCausalLM", "rope_scaling", longrope),
        ("MixtralForCausalLM", "num_experts_per_tok", json!(99)),
        ("Qwen3MoeForCausalLM", "mlp_only_layers", json!(["one"])),
        ("DeepseekV3ForCausalLM", "n_group", json!(3)),
        ("DeepseekV3ForCausalLM", "topk_group", json!(5)),
        ("DeepseekV3ForCausalLM", "kv_lora_rank", json!(0)),
        ("GraniteForCausalLM", "logits_scaling", json!(0)),
    ];
    for (architecture, key, value) in cases {
        let mut changes = vec![(key, value)];
        if key == "rope_scaling" {
            changes.push(("max_position_embeddings", json!(64)));
        }
        let error = family(architecture, &changes).expect_err(key);
        assert!(matches!(error, ModelError::BadConfig { .. }), "{architecture} {key}: {error:?}");
        let named = if key == "rope_scaling" { "long_factor" } else { key };
        assert!(
            error.to_string().contains(named) || error.to_string().contains("short_factor"),
            "{key}: {error}"
        );
    }
}

/// What LLM Compressor writes for int8 weights and activations.
fn w8a8() -> Value {
    json!({"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "kv_cache_scheme": null, "ignore": ["lm_head"], "sparsity_config": {}, "transform_config": {},
        "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": null,
            "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false,
                        "group_size": null, "actorder": null},
            "input_activations": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token",
                                  "dynamic": true}}}})
}

#[test]
fn other_quantised_checkpoints_are_refused_by_name() {
    read(&with(&[("quantization_config", w8a8())])).expect("W8A8 is read");
    let cases = [
        ("/quant_method", json!("gptq"), "gptq"),
        ("/format", json!("pack-quantized"), "pack-quantized"),
        ("/format", json!("float-quantized"), "float-quantized"),
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme"),
        ("/transform_config", json!({"config_groups": {}}), "transform_config"),
        ("/sparsity_config", json!({"format": "sparse-24-bitmask"}), "sparse-24-bitmask"),
        ("/config_groups", json!({}), "config_groups"),
        ("/config_groups/group_0/weights", Value::Null, "no weights"),
        ("/config_groups/group_0/weights/num_bits", json!(4), "num_bits 4"),
        ("/config_groups/group_0/weights/strategy", json!("group"), "group"),
        ("/config_groups/group_0/weights/symmetric", json!(false), "symmetric false"),
        ("/config_groups/group_0/input_activations/dynamic", json!(false), "dynamic false"),
        ("/config_groups/group_0/input_activations/num_bits", json!(4), "num_bits 4"),
        ("/config_groups/group_0/output_activations", json!({"num_bits": 8}), "output_activations"),
    ];
    for (place, value, named) in cases {
        let mut q = w8a8();
        *q.pointer_mut(place).expect(place) = value;
        let error = read(&with(&[("quantization_config", q)])).expect_err(place);
        assert!(matches!(error, ModelError::Unsupported(_)), "{place}: {error:?}");
        assert!(error.to_string().contains(named), "{place}: {error}");
    }
}

#[test]
fn latents_take_little_of_the_cache() {
    let spec = family("DeepseekV3ForCausalLM", &[]).expect("spec");
    assert_eq!(spec.kv_elements_per_token(), 3 * (32 + 8));
    assert!(
        matches!(spec.layers[0].mlp, FeedForwardSpec::Dense(_)),
        "the first three layers are dense by default"
    );
    let moe = family("DeepseekV3ForCausalLM", &[("first_k_dense_replace", json!(1))]).expect("spec");
    assert!(matches!(moe.layers[1].mlp, FeedForwardSpec::Experts(_)));
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

#[test]
fn the_document_names_every_architecture_with_its_tests() {
    let text = |path: &str| {
        std::fs::read_to_string(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).expect(path)
    };
    let document = text("docs/models.md");
    let cases = text("tests/parity/random_models.py");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let rows: Vec<(&str, &str)> = rows.collect();
    assert_eq!(rows.iter().map(|r| r.0).collect::<Vec<_>>(), families::known(), "docs/models.md");
    for (architecture, rest) in rows {
        let case = rest.rsplit('`').nth(1).expect("the name of a test");
        assert!(cases.contains(&format!("\"{case}")), "{architecture}: no case {case:?} in random_models.py");
    }
}
