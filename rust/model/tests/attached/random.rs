//! Random models and random adapters, on disk and in numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// splitmix64: the seed replays the test.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -size..size.
    pub fn floats(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| size * ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)).collect()
    }
}

/// A model in numbers.
pub struct RandomModel {
    pub config: Value,
    pub tensors: Tensors,
}

const HIDDEN: usize = 40;
const VOCAB: usize = 61;

impl RandomModel {
    /// Llama with biases, Phi-3 with fused projections, or DeepSeek-V2 with latents and a shared expert.
    pub fn new(family: &str) -> RandomModel {
        let mut config = json!({"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 2, "intermediate_size": 56, "vocab_size": VOCAB, "dtype": "float32",
            "tie_word_embeddings": false, "max_position_embeddings": 256});
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]),
            ("lm_head.weight".into(), vec![VOCAB, HIDDEN]),
            ("model.norm.weight".into(), vec![HIDDEN]),
        ];
        let mut rows: Vec<(&str, usize, usize)> = vec![("self_attn.o_proj", HIDDEN, 40)];
        match family {
            "llama" => {
                rows.extend([("self_attn.q_proj", 40, HIDDEN), ("self_attn.k_proj", 20, HIDDEN)]);
                rows.extend([("self_attn.v_proj", 20, HIDDEN), ("mlp.gate_proj", 56, HIDDEN)]);
                rows.extend([("mlp.up_proj", 56, HIDDEN), ("mlp.down_proj", HIDDEN, 56)]);
                (config["attention_bias"], config["mlp_bias"]) = (json!(true), json!(true));
                config["architectures"] = json!(["LlamaForCausalLM"]);
            }
            "phi3" => {
                rows.extend([("self_attn.qkv_proj", 80, HIDDEN), ("mlp.gate_up_proj", 112, HIDDEN)]);
                rows.push(("mlp.down_proj", HIDDEN, 56));
                config["architectures"] = json!(["Phi3ForCausalLM"]);
                config["pad_token_id"] = json!(0);
            }
            _ => {
                rows[0].2 = 32;
                rows.extend([("self_attn.q_a_proj", 12, HIDDEN), ("self_attn.q_b_proj", 48, 12)]);
                rows.extend([("self_attn.kv_a_proj_with_mqa", 20, HIDDEN), ("self_attn.kv_b_proj", 64, 16)]);
                let latent = json!({"architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": 12, "kv_lora_rank": 16,
                    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
                    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1,
                    "first_k_dense_replace": 1});
                latent.as_object().expect("object").iter().for_each(|(k, v)| config[k] = v.clone());
            }
        }
        for i in 0..2 {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{i}.{name}"), shape.to_vec()))
            };
            for (name, outputs, inputs) in &rows {
                add(&format!("{name}.weight"), &[*outputs, *inputs]);
                if family == "llama" {
                    add(&format!("{name}.bias"), &[*outputs]);
                }
            }
            add("input_layernorm.weight", &[HIDDEN]);
            add("post_attention_layernorm.weight", &[HIDDEN]);
            if family == "deepseek" {
                add("self_attn.q_a_layernorm.weight", &[12]);
                add("self_attn.kv_a_layernorm.weight", &[16]);
                let mut block = |name: &str, inner: usize| {
                    add(&format!("{name}.gate_proj.weight"), &[inner, HIDDEN]);
                    add(&format!("{name}.up_proj.weight"), &[inner, HIDDEN]);
                    add(&format!("{name}.down_proj.weight"), &[HIDDEN, inner]);
                };
                if i == 0 {
                    block("mlp", 56);
                } else {
                    (0..4).for_each(|e| block(&format!("mlp.experts.{e}"), 24));
                    block("mlp.shared_experts", 24);
                    add("mlp.gate.weight", &[4, HIDDEN]);
                }
            }
        }
        let mut rng = Rng(family.len() as u64);
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let size = if shape.len() == 1 { 1.0 } else { 0.3 };
            let values = rng.floats(shape.iter().product(), size);
            (name, (shape, values))
        });
        RandomModel { config, tensors: tensors.collect() }
    }

    pub fn write(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("write");
        write_tensors(&folder.join("model.safetensors"), &self.tensors);
    }

    /// Names, outputs and inputs of the modules that adapters may change.
    pub fn modules(&self) -> Vec<(String, usize, usize)> {
        let named = |name: &str| {
            let short =
                name.strip_suffix("_proj.weight").or_else(|| name.strip_suffix("_with_mqa.weight"))?;
            let free = short.contains(".layers.") && !short.contains("kv_b") && !short.contains(".experts.");
            free.then(|| name.trim_end_matches(".weight").to_string())
        };
        let modules = self.tensors.iter();
        modules.filter_map(|(name, (shape, _))| Some((named(name)?, shape[0], shape[1]))).collect()
    }

    /// The model with the adapter's weights in its own.
    pub fn merged(&self, adapter: &RandomAdapter) -> RandomModel {
        let mut tensors = self.tensors.clone();
        for (module, m) in &adapter.modules {
            let (shape, weights) = tensors.get_mut(&format!("{module}.weight")).expect("module");
            let inputs = shape[1];
            for (row, weights) in weights.chunks_exact_mut(inputs).enumerate() {
                let mut sums: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
                for (column, sum) in sums.iter_mut().enumerate() {
                    for j in 0..m.rank {
                        *sum +=
                            m.scale * f64::from(m.b[row * m.rank + j]) * f64::from(m.a[j * inputs + column]);
                    }
                }
                let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
                let gain = m.magnitude.as_ref().map_or(1.0, |magnitude| f64::from(magnitude[row]) / length);
                weights.iter_mut().zip(sums).for_each(|(w, sum)| *w = (gain * sum) as f32);
            }
            if let Some(bias) = &m.bias {
                let (_, base) = tensors.get_mut(&format!("{module}.bias")).expect("bias");
                base.iter_mut().zip(bias).for_each(|(b, x)| *b += m.scale as f32 * x);
            }
        }
        RandomModel { config: self.config.clone(), tensors }
    }
}

/// An adapter in numbers.
pub struct RandomAdapter {
    pub config: Value,
    pub modules: BTreeMap<String, RandomModule>,
}

pub struct RandomModule {
    pub rank: usize,
    pub scale: f64,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub magnitude: Option<Vec<f32>>,
}

impl RandomAdapter {
    /// On all modules. `kind`: plain, rslora, patterns, dora or bias.
    pub fn new(model: &RandomModel, kind: &str, seed: u64) -> RandomAdapter {
        let mut rng = Rng(seed);
        let mut config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 5, "lora_alpha": 10,
            "lora_dropout": 0.1, "bias": "none", "base_model_name_or_path": "x", "peft_version": "0.21.2",
            "modules_to_save": null, "use_rslora": kind == "rslora", "use_dora": kind == "dora",
            "lora_bias": kind == "bias", "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": false,
            "init_lora_weights": true, "target_modules": []});
        if kind == "patterns" {
            config["rank_pattern"] = json!({"o_proj": 3, r"layers\.1\.self_attn\.q.*": 17});
            config["alpha_pattern"] = json!({"^model.layers.0.mlp.*": 2, "o_proj": 6.5});
        }
        let modules = model.modules().into_iter().map(|(name, outputs, inputs)| {
            let (mut rank, mut alpha) = (5, 10.0);
            if kind == "patterns" {
                let of_layer_1 = name.contains("layers.1.self_attn.q");
                rank = if name.ends_with("o_proj") {
                    3
                } else if of_layer_1 {
                    17
                } else {
                    5
                };
                alpha = if name.contains("layers.0.mlp") {
                    2.0
                } else if name.ends_with("o_proj") {
                    6.5
                } else {
                    10.0
                };
            }
            let root = if kind == "rslora" { 5.0_f64.sqrt() } else { rank as f64 };
            let module = RandomModule {
                rank,
                scale: alpha / root,
                a: rng.floats(rank * inputs, 0.3),
                b: rng.floats(outputs * rank, 0.1),
                bias: (kind == "bias").then(|| rng.floats(outputs, 0.3)),
                magnitude: (kind == "dora")
                    .then(|| rng.floats(outputs, 0.5).iter().map(|x| x + 1.0).collect()),
            };
            (name, module)
        });
        let modules: BTreeMap<_, _> = modules.collect();
        let ends = modules.keys().filter_map(|name| name.rsplit('.').next());
        config["target_modules"] = ends.collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        RandomAdapter { config, modules }
    }

    /// Its tensors as PEFT names them.
    pub fn tensors(&self) -> Tensors {
        let mut tensors = Tensors::new();
        for (name, m) in &self.modules {
            let mut add = |end: &str, shape: Vec<usize>, values: &[f32]| {
                tensors.insert(format!("base_model.model.{name}.{end}"), (shape, values.to_vec()))
            };
            add("lora_A.weight", vec![m.rank, m.a.len() / m.rank], &m.a);
            add("lora_B.weight", vec![m.b.len() / m.rank, m.rank], &m.b);
            if let Some(bias) = &m.bias {
                add("lora_B.bias", vec![bias.len()], bias);
            }
            if let Some(magnitude) = &m.magnitude {
                add("lora_magnitude_vector", vec![magnitude.len()], magnitude);
            }
        }
        tensors
    }

    pub fn write(&self, folder: &Path) {
        write_adapter(folder, &self.config, &self.tensors());
    }
}

pub fn write_adapter(folder: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("write");
    write_tensors(&folder.join("adapter_model.safetensors"), tensors);
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat((8 + text.len()).next_multiple_of(64) - 8 - text.len()));
    let file = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat();
    std::fs::write(path, file).expect("write");
}
