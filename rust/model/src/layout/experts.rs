//! Experts that are stacked in one tensor, as transformers 5 holds them in memory and some programs save them.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::families::Family;
use crate::spec::{FeedForwardSpec, MoeSpec};

/// Takes stacked experts apart into views under the family's names.
///
/// # Errors
/// `Corrupt` for a stack of another shape.
pub fn fit(family: &Family, checkpoint: &mut Checkpoint) -> Result<(), ModelError> {
    for (i, layer) in family.spec.layers.iter().enumerate() {
        if let FeedForwardSpec::Experts(moe) = &layer.mlp {
            layer_experts(family, checkpoint, i, moe)?;
        }
    }
    Ok(())
}

fn layer_experts(
    family: &Family,
    checkpoint: &mut Checkpoint,
    i: usize,
    moe: &MoeSpec,
) -> Result<(), ModelError> {
    let names = &family.names.experts;
    let at = |name: &str| name.replace("{i}", &i.to_string());
    let of = |name: &str, e: usize| format!("{}.weight", at(name).replace("{e}", &e.to_string()));
    let hidden = family.spec.hidden;
    let [gate, up] = names.gate_up else { return Ok(()) };
    let folders = [format!("model.layers.{i}.mlp.experts."), at(gate.split("{e}").next().unwrap_or(gate))];
    // Each stack, the rows of a matrix in it, its columns, and the names of its parts.
    let stacks: [(&str, usize, usize, &[&str]); 4] = [
        ("gate_up_proj", 2 * moe.intermediate, hidden, &[gate, up]),
        ("gate_proj", moe.intermediate, hidden, &[gate]),
        ("up_proj", moe.intermediate, hidden, &[up]),
        ("down_proj", hidden, moe.intermediate, &[names.down]),
    ];
    for (stack, rows, columns, parts) in stacks {
        let spelled = folders.iter().flat_map(|f| [format!("{f}{stack}"), format!("{f}{stack}.weight")]);
        let found = spelled.into_iter().find(|name| checkpoint.has(name));
        if let (Some(name), false) = (found, checkpoint.has(&of(parts[0], 0))) {
            let shape = [moe.experts, rows, columns];
            checkpoint.take_apart(&name, shape, parts.len(), &|e, part| of(parts[part], e))?;
        }
    }
    // A model in memory names its router in one way, whatever the family's files do.
    let router = format!("{}.weight", at(names.router));
    if !checkpoint.has(&router) {
        checkpoint.move_to(&format!("model.layers.{i}.mlp.gate.weight"), &router);
    }
    Ok(())
}
