//! Tensors of a checkpoint that the model does not use: a warning names them.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;

use crate::families::Family;
use crate::file_words::named;

/// Ends of names of tensors that follow from config.json, which some programs store.
const BUFFERS: [&str; 4] =
    ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "masked_bias"];

/// A sentence about tensors that loading has not asked for.
pub fn warn_of_unused(checkpoint: &Checkpoint, family: &Family) -> Option<String> {
    let layers = family.spec.layers.len();
    // Layers behind the last one that predict further tokens, for speculative decoding, have a projection of both inputs.
    let drafts = checkpoint.names().filter(|name| name.ends_with(".eh_proj.weight"));
    let drafts = drafts.filter_map(layer_of).filter(|i| *i >= layers).collect::<BTreeSet<_>>();
    let expected = |name: &str| {
        BUFFERS.iter().any(|end| name.ends_with(end))
            || name.strip_suffix("_scale").unwrap_or(name) == family.names.head
            || name.starts_with("mtp.")
            || layer_of(name).is_some_and(|i| drafts.contains(&i))
    };
    let unused = checkpoint.unused().filter(|name| !expected(name)).map(String::from).collect::<Vec<_>>();
    (!unused.is_empty()).then(|| {
        format!(
            "{} of the checkpoint's tensors are not used, since config.json describes a model without them: {}",
            unused.len(),
            named(&unused)
        )
    })
}

/// Number of the layer that a tensor is in.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}
