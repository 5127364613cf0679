//! What stands before the names of all tensors: nothing in a base model, or the names of wrappers.

use std::collections::BTreeSet;

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::families::Family;

/// The prefix that families give.
const MODEL: &str = "model.";
/// A tensor of every family, in its first layer.
const ANCHOR: &str = "layers.0.self_attn.o_proj.weight";
const HEAD: &str = "lm_head.weight";
/// Modules that wrap a model, or parts of it, and add their name. They mean nothing else.
const WRAPPERS: &[&str] =
    &["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module"];
/// Modules that hold a text model, before its own names.
const HOLDERS: &[&str] = &["model", "base_model", "language_model", "text_model", "llm"];
/// Names that PEFT gives to parts of an adapter.
const ADAPTER: &[&str] =
    &["lora_A", "lora_B", "lora_embedding_A", "base_layer", "modules_to_save", "original_module"];

/// Renames the tensors to the family's names.
///
/// # Errors
/// `Unsupported` where the names do not show which tensors are the model's.
pub fn fit(family: &mut Family, checkpoint: &mut Checkpoint) -> Result<(), ModelError> {
    let adapter = |name: &&str| name.split('.').any(|part| ADAPTER.contains(&part));
    if let Some(name) = checkpoint.names().find(adapter) {
        return refuse(format!(
            "the weights hold a PEFT adapter that is not merged (tensor {name}). Merge it with PEFT (merge_and_unload) and \
             save the model again"
        ));
    }
    if checkpoint.names().any(|name| name.split('.').any(|part| WRAPPERS.contains(&part))) {
        rename(checkpoint, &|name| unwrapped(name))?;
    }
    let prefixes = prefixes(checkpoint);
    if prefixes.iter().any(|prefix| prefix == MODEL) {
        return Ok(());
    }
    let mut prefixes = prefixes.into_iter();
    match (prefixes.next(), prefixes.next()) {
        (Some(prefix), None) if prefix.split_terminator('.').all(|part| HOLDERS.contains(&part)) => {
            family.base |= prefix.is_empty();
            rename(checkpoint, &|name| renamed(name, &prefix))
        }
        (Some(prefix), None) => refuse(format!(
            "the names of the tensors begin with {prefix:?} (as {prefix}{ANCHOR}), and octavo expects {MODEL:?} or nothing. \
             Rename them, or save the text model with transformers (save_pretrained)"
        )),
        (Some(first), Some(second)) => refuse(format!(
            "the checkpoint holds several models: names of tensors begin with {first:?} and with {second:?}. Save the text \
             model alone, with names that begin with {MODEL:?}"
        )),
        (None, _) => other_names(family, checkpoint),
    }
}

/// Each text before [`ANCHOR`] in the name of a tensor.
fn prefixes(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let before = checkpoint.names().filter_map(|name| name.strip_suffix(ANCHOR));
    before.filter(|before| before.is_empty() || before.ends_with('.')).map(String::from).collect()
}

/// The family's name of a module of the layers that an adapter calls `path`; None: it is not in the layers of the text model.
pub fn module_name(path: &str) -> Option<String> {
    let path = unwrapped(path);
    let before = path.split('.').take_while(|part| HOLDERS.contains(part)).map(|part| part.len() + 1).sum();
    let rest = path.get(before..)?;
    rest.starts_with("layers.").then(|| format!("{MODEL}{rest}"))
}

/// The name without wrappers.
fn unwrapped(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// The family's name of a tensor, where `prefix` stands before the layers. The head stands beside the model or in it.
fn renamed(name: &str, prefix: &str) -> String {
    if let Some((before, after)) = name.find(HEAD).map(|at| name.split_at(at))
        && prefix.starts_with(before)
        && (before.is_empty() || before.ends_with('.'))
    {
        return after.to_string();
    }
    name.strip_prefix(prefix).map_or_else(|| name.to_string(), |rest| format!("{MODEL}{rest}"))
}

fn rename(checkpoint: &mut Checkpoint, to: &dyn Fn(&str) -> String) -> Result<(), ModelError> {
    match checkpoint.rename(to) {
        None => Ok(()),
        Some(name) => refuse(format!(
            "the checkpoint holds {name} twice, under names with different beginnings. Save the text model alone"
        )),
    }
}

/// A checkpoint without the anchor: damaged, or with names of another kind.
fn other_names(family: &Family, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let known = |name: &str| name.contains("layers.0.") && name.contains("self_attn.");
    match checkpoint.names().next() {
        Some(first) if !checkpoint.names().any(known) && !checkpoint.has(family.names.norm) => {
            refuse(format!(
                "the tensors are not named as those of {} in transformers: the first is {first}, and {MODEL}{ANCHOR} is not there. \
             Convert the checkpoint to the form of transformers, with the script of its authors",
                family.spec.architecture
            ))
        }
        // The missing tensor is named when it is read.
        _ => Ok(()),
    }
}

fn refuse(what: String) -> Result<(), ModelError> {
    Err(ModelError::Unsupported(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_beside_and_in_the_model_get_their_name() {
        for (name, prefix, want) in [
            ("embed_tokens.weight", "", "model.embed_tokens.weight"),
            ("lm_head.weight", "", "lm_head.weight"),
            ("language_model.lm_head.weight", "language_model.model.", "lm_head.weight"),
            ("lm_head.weight", "model.language_model.", "lm_head.weight"),
            ("model.lm_head.weight_scale", "model.model.", "lm_head.weight_scale"),
            ("vision.lm_head.weight", "language_model.model.", "vision.lm_head.weight"),
            ("model.language_model.norm.weight", "model.language_model.", "model.norm.weight"),
        ] {
            assert_eq!(renamed(name, prefix), want, "{name}");
        }
        assert_eq!(unwrapped("_orig_mod.model.layers.0._checkpoint_wrapped_module.a"), "model.layers.0.a");
    }
}
