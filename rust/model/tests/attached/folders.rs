//! Folders of adapters: what is refused, with the file and the field or tensor, and what changes nothing.

use std::path::Path;

use octavo_kernels::{Kernels, WeightDtype};
use octavo_model::{AdapterFile, Model, ModelError};
use serde_json::{Value, json};

use crate::random::{RandomAdapter, RandomModel, Tensors, write_adapter};
use crate::rows::load;

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

struct Case {
    model: Model,
    adapter: RandomAdapter,
    folder: tempfile::TempDir,
}

impl Case {
    fn new(family: &str, kind: &str) -> Case {
        let base = RandomModel::new(family);
        let dir = tempfile::tempdir().expect("dir");
        base.write(dir.path());
        let model = load(&Kernels::new(1, None).expect("kernels"), dir.path(), WeightDtype::INT8);
        Case { model, adapter: RandomAdapter::new(&base, kind, 7), folder: tempfile::tempdir().expect("dir") }
    }

    fn open(&self, change: impl FnOnce(&mut Value, &mut Tensors)) -> Result<AdapterFile, ModelError> {
        let (mut config, mut tensors) = (self.adapter.config.clone(), self.adapter.tensors());
        change(&mut config, &mut tensors);
        write_adapter(self.folder.path(), &config, &tensors);
        self.model.open_adapter(self.folder.path())
    }

    fn refused(&self, change: impl FnOnce(&mut Value, &mut Tensors)) -> ModelError {
        self.open(change).err().expect("refused")
    }
}

fn class(error: &ModelError) -> &'static str {
    match error {
        ModelError::NoAdapter { .. } => "missing",
        ModelError::UnsupportedAdapter { .. } => "unsupported",
        ModelError::CorruptAdapter { .. } => "corrupt",
        ModelError::ForeignAdapter { .. } => "foreign",
        ModelError::BadConfig { .. } => "config",
        _ => "other",
    }
}

fn expect(error: &ModelError, want: &str, named: &[&str]) {
    let text = error.to_string();
    assert_eq!(class(error), want, "{text}");
    named.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in: {text}"));
    if want == "unsupported" {
        assert!(text.contains("octavo merge MODEL ADAPTER OUT"), "{text}");
    }
}

#[test]
fn fields_that_ask_for_more_are_refused_by_name() {
    let case = Case::new("llama", "plain");
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["experts.gate_up_proj"])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("alora_invocation_tokens", json!([1])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("velora_config", json!({"num_groups": 64})),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("mica")),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("corda_config", json!({"x": 1})),
        ("r", json!(257)),
        ("rank_pattern", json!({"q_proj": 1000})),
        ("rank_pattern", json!({"q(": 4})),
        ("target_modules", json!("q(")),
        ("a_field_of_next_year", json!("on")),
        ("a_field_of_next_year", json!(1)),
    ] {
        let error = case.refused(|config, _| config[key] = value.clone());
        expect(&error, "unsupported", &[key, "adapter_config.json"]);
    }
    for (key, value) in [
        ("peft_type", Value::Null),
        ("peft_type", json!(1)),
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", json!("NaN")),
        ("use_dora", json!("yes")),
        ("use_rslora", json!(1)),
        ("rank_pattern", json!([1])),
        ("rank_pattern", json!({"q_proj": -1})),
        ("alpha_pattern", json!({"q_proj": "x"})),
        ("target_modules", json!(7)),
        ("layers_to_transform", json!(["a"])),
        ("layers_to_transform", json!(-1)),
    ] {
        let error = case.refused(|config, _| config[key] = value.clone());
        expect(&error, "config", &[key, "adapter_config.json"]);
    }
}

#[test]
fn contradictions_between_config_and_tensors_are_refused() {
    let case = Case::new("llama", "plain");
    for (key, value) in [
        ("r", json!(6)),
        ("rank_pattern", json!({"q_proj": 4})),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("target_modules", json!(["k_proj"])),
        ("target_modules", json!(".*k_proj")),
        ("exclude_modules", json!(["q_proj"])),
        ("layers_to_transform", json!([0])),
    ] {
        let error = case.refused(|config, _| config[key] = value.clone());
        expect(&error, "corrupt", &[key, "adapter_model.safetensors", "model.layers."]);
    }
    let both = Case::new("llama", "dora").refused(|config, _| config["lora_bias"] = json!(true));
    expect(&both, "config", &["lora_bias", "use_dora"]);
}

/// A change of a folder, the class of the error, and words of its message.
type Change<'a> = (&'a dyn Fn(&mut Tensors), &'a str, &'a [&'a str]);

#[test]
fn tensors_that_cannot_be_right_are_named() {
    let case = Case::new("llama", "plain");
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let of = |t: &mut Tensors, key: &str| t.remove(key).expect("tensor");
    let add = |t: &mut Tensors, key: &str, shape: &[usize]| {
        t.insert(key.into(), (shape.to_vec(), vec![0.5; shape.iter().product()]));
    };
    let changes: &[Change<'_>] = &[
        (&|t| t.clear(), "corrupt", &["no tensors"]),
        (&|t| drop(of(t, &a)), "corrupt", &["lora_A", "q_proj"]),
        (&|t| drop(of(t, &b)), "corrupt", &["lora_B", "q_proj"]),
        (&|t| t.get_mut(&a).expect("A").1[3] = f32::NAN, "corrupt", &[&a, "NaN"]),
        (&|t| t.get_mut(&b).expect("B").1[3] = f32::INFINITY, "corrupt", &[&b, "infinite"]),
        (&|t| t.get_mut(&b).expect("B").1[3] = f32::MAX, "corrupt", &[&b, "scale"]),
        (&|t| add(t, &a, &[5, 48]), "foreign", &[&a, "[5, 48]", "[5, 40]"]),
        (&|t| add(t, &b, &[64, 5]), "foreign", &[&b, "[64, 5]", "[40, 5]"]),
        (&|t| add(t, &a, &[200]), "corrupt", &[&a, "[200]"]),
        (&|t| add(t, &format!("{Q}.lora_A.other.weight"), &[5, 40]), "corrupt", &["same module"]),
        (&|t| add(t, "base_model.model.lm_head.weight", &[2, 2]), "unsupported", &["lm_head.weight"]),
        (&|t| add(t, "base_model.model.lm_head.lora_A.weight", &[2, 2]), "unsupported", &["output head"]),
        (
            &|t| add(t, "base_model.model.model.embed_tokens.lora_embedding_A", &[2, 2]),
            "unsupported",
            &["embed"],
        ),
        (
            &|t| add(t, "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", &[5, 40]),
            "foreign",
            &["layers.7"],
        ),
        (
            &|t| add(t, "base_model.model.vision.layers.0.q_proj.lora_A.weight", &[5, 40]),
            "foreign",
            &["vision"],
        ),
        (
            &|t| add(t, "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight", &[5, 40]),
            "unsupported",
            &["experts"],
        ),
    ];
    for (change, want, named) in changes {
        expect(&case.refused(|_, tensors| change(tensors)), want, named);
    }
    let deepseek = Case::new("deepseek", "plain");
    let kv_b = "base_model.model.model.layers.0.self_attn.kv_b_proj.lora_A.weight";
    expect(&deepseek.refused(|_, t| add(t, kv_b, &[5, 16])), "unsupported", &["kv_b_proj"]);
    let foreign = Case::new("phi3", "plain").open(|_, t| *t = case.adapter.tensors());
    expect(&foreign.err().expect("refused"), "foreign", &["has no module model.layers.0."]);
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    let case = Case::new("llama", "plain");
    let folder = case.folder.path();
    let open = |folder: &Path| case.model.open_adapter(folder).err().expect("refused");
    expect(&open(&folder.join("nowhere")), "missing", &["nowhere"]);
    expect(&open(folder), "missing", &["adapter_config.json"]);
    case.open(|_, _| ()).expect("sound");
    let (config, tensors) = (folder.join("adapter_config.json"), folder.join("adapter_model.safetensors"));
    expect(&open(&tensors), "missing", &["no folder"]);
    let whole = std::fs::read(&tensors).expect("read");
    for (content, word) in
        [(&whole[..whole.len() - 1], "safetensors"), (&[], "empty"), (b"version https", "safetensors")]
    {
        std::fs::write(&tensors, content).expect("write");
        expect(&open(folder), "corrupt", &["adapter_model.safetensors", word]);
    }
    std::fs::remove_file(&tensors).expect("remove");
    expect(&open(folder), "missing", &["adapter_model.safetensors"]);
    std::fs::write(folder.join("adapter_model.bin"), b"pickle").expect("write");
    expect(&open(folder), "missing", &["adapter_model.bin"]);
    std::fs::write(&tensors, &whole).expect("write");
    for content in ["", "[]", "{\"peft_type\": \"LORA\",}", "{", &" ".repeat((1 << 20) + 1)] {
        std::fs::write(&config, content).expect("write");
        expect(&open(folder), "corrupt", &["adapter_config.json"]);
    }
}

#[test]
fn the_digest_covers_what_changes_an_effect() {
    let case = Case::new("llama", "plain");
    let digest =
        |change: &dyn Fn(&mut Value, &mut Tensors)| case.open(change).expect("adapter").digest().to_string();
    let first = digest(&|_, _| ());
    assert!(first.len() == 64 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
    for (key, value) in
        [("lora_dropout", json!(0.5)), ("peft_version", json!("9")), ("r", json!(5.0)), ("x", json!(null))]
    {
        assert_eq!(digest(&|config, _| config[key] = value.clone()), first, "{key}");
    }
    assert_ne!(digest(&|config, _| config["lora_alpha"] = json!(11)), first);
    assert_ne!(digest(&|config, _| config["use_rslora"] = json!(true)), first);
    assert_ne!(digest(&|_, t| t.get_mut(&format!("{Q}.lora_A.weight")).expect("A").1[0] += 1.0), first);
}

#[test]
fn other_spellings_of_names_are_read() {
    let case = Case::new("llama", "plain");
    let renamed = |from: &str, to: &str| {
        let file = case.open(|_, t| *t = t.iter().map(|(k, v)| (k.replace(from, to), v.clone())).collect());
        file.expect(to).modules().iter().map(|m| m.name.clone()).collect::<Vec<_>>()
    };
    let want = renamed("x", "x");
    assert_eq!(want.len(), 14);
    for (from, to) in [
        ("lora_A.weight", "lora_A.default.weight"),
        ("base_model.model.model.", "base_model.model."),
        ("base_model.model.model.", "base_model.model.model.language_model."),
        ("base_model.model.model.", "base_model.model._orig_mod.model."),
        ("base_model.model.", ""),
    ] {
        assert_eq!(renamed(from, to), want, "{to}");
    }
    let few = case.open(|_, t| t.retain(|name, _| !name.contains("v_proj"))).expect("adapter");
    assert!(few.warnings().iter().any(|w| w.contains("v_proj")), "{:?}", few.warnings());
    assert_eq!(few.modules().len(), 12);
}
