//! Names what a folder or file is instead of a model that loads, with the remedy.

use std::path::Path;

use serde_json::Value;

use crate::config::read_json;
use crate::file_words::named;

/// Maximum number of entries of a folder that are read.
const MAX_ENTRIES: usize = 10_000;

/// Names in `folder`, in order; empty where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.take(MAX_ENTRIES).flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names = names.collect::<Vec<_>>();
    names.sort();
    names
}

/// Files of `folder` that are named as the shards of a checkpoint.
pub fn shards(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| is_shard(name)).collect()
}

fn is_shard(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    numbers.and_then(|n| n.split_once("-of-")).is_some_and(|(i, n)| digits(i) && digits(n))
}

/// What a folder without `config.json` is, if it can be recognised.
pub fn folder(folder: &Path) -> Option<String> {
    if folder.join("adapter_config.json").is_file() {
        return Some(adapter(folder));
    }
    let all = names(folder);
    if all.iter().any(|name| name == "params.json") {
        return Some(
            "there is no config.json, and its params.json is of the original form of Meta or Mistral. Give the folder \
             that is published for transformers"
                .into(),
        );
    }
    if let Some(what) = other_weights(&all) {
        return Some(format!("there is no config.json; {what}"));
    }
    let inner = |name: &&String| folder.join(name).join("config.json").is_file();
    if let Some(name) = all.iter().find(inner) {
        return Some(format!(
            "there is no config.json in it, and there is one in its folder {name}. Give {}",
            folder.join(name).display()
        ));
    }
    let snapshots = folder.join("snapshots");
    let snapshot =
        names(&snapshots).into_iter().find(|name| snapshots.join(name).join("config.json").is_file());
    snapshot.map(|name| {
        format!("the folder is an entry of the hub's cache. Give {}", snapshots.join(name).display())
    })
}

/// What the weights of a folder without `model.safetensors` and index are, if it can be recognised.
pub fn weights(folder: &Path) -> Option<String> {
    if folder.join("adapter_model.safetensors").is_file() || folder.join("adapter_config.json").is_file() {
        return Some(adapter(folder));
    }
    let shards = shards(folder);
    if !shards.is_empty() {
        return Some(format!(
            "there are shards ({}) and no model.safetensors.index.json, which says what they hold. Download that file, too",
            named(&shards)
        ));
    }
    other_weights(&names(folder))
}

/// A warning where an adapter lies beside the model, which then is loaded without it.
pub fn idle_adapter(folder: &Path) -> Option<String> {
    folder.join("adapter_config.json").is_file().then(|| {
        "adapter_config.json is there: the folder holds a PEFT adapter, too, which is not applied. Load it as an \
         adapter, merge it into the model with `octavo merge`, or delete its files"
            .to_string()
    })
}

fn adapter(folder: &Path) -> String {
    let config = read_json(&folder.join("adapter_config.json")).unwrap_or_default();
    let base = config.get("base_model_name_or_path").and_then(Value::as_str);
    let base = base.map_or_else(|| "its base model".into(), |name| format!("its base model ({name})"));
    format!(
        "the folder holds a PEFT adapter (LoRA or the like), not a model. Load {base} and then this folder as an \
         adapter (--lora, load_adapter), or merge the two with `octavo merge`"
    )
}

/// Weights in another format, by the names of files.
fn other_weights(names: &[String]) -> Option<String> {
    let ends = |end: &str| names.iter().filter(|n| n.ends_with(end)).cloned().collect::<Vec<_>>();
    let kinds: [(&str, Vec<String>, &str); 7] = [
        (
            "weights in GGUF, the format of llama.cpp",
            ends(".gguf"),
            "Give the folder that the GGUF file was made from, with config.json and model.safetensors",
        ),
        (
            "the original weights of Meta or Mistral",
            names.iter().filter(|n| n.starts_with("consolidated")).cloned().collect(),
            "Give the folder that is published for transformers, with model.safetensors",
        ),
        (
            "weights as PyTorch pickles, which can run code and are not read",
            [ends(".bin"), ends(".bin.index.json"), ends(".pt"), ends(".pth"), ends(".ckpt")].concat(),
            "Save them with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        ),
        (
            "weights of TensorFlow or Flax",
            [ends(".h5"), ends(".msgpack")].concat(),
            "Load and save them with transformers in safetensors",
        ),
        ("weights in ONNX", ends(".onnx"), "Give the folder that they were made from"),
        ("weights of MLX", ends(".npz"), "Give the folder that they were made from"),
        (
            "safetensors under another name",
            ends(".safetensors"),
            "The file of the weights must be named model.safetensors; if it is a copy in another form, give the original",
        ),
    ];
    kinds.into_iter().find(|(_, found, _)| !found.is_empty()).map(|(kind, found, remedy)| {
        format!("there is no model.safetensors, and there are {kind} ({}). {remedy}", named(&found))
    })
}

/// Tokenizers in another form, by the names of files; None without any.
pub fn tokenizer(folder: &Path) -> Option<String> {
    let known = ["tokenizer.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"];
    let known = known.into_iter().filter(|name| folder.join(name).is_file());
    let found = known.map(String::from).collect::<Vec<_>>();
    (!found.is_empty()).then(|| format!("there is {}, another form, which is not read", found.join(" and ")))
}
