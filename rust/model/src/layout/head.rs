//! The output head where the checkpoint and `tie_word_embeddings` say different things.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::families::Family;

/// Fits the head as transformers 5 does: of two tied tensors one is enough, and two that differ are not tied. A base model has
/// no head.
///
/// # Errors
/// `Corrupt` for a tensor of another shape.
pub fn fit(family: &mut Family, checkpoint: &mut Checkpoint) -> Result<(), ModelError> {
    let (embed, head) = (family.names.embed, family.names.head);
    let spec = &mut family.spec;
    if !spec.tied_embeddings {
        spec.has_head = checkpoint.has(head) || !family.base;
        return Ok(());
    }
    // int8 tensors have their scales beside them.
    let scales = [format!("{embed}_scale"), format!("{head}_scale")];
    let same = |c: &Checkpoint| {
        let scaled = scales.iter().any(|name| c.has(name));
        c.same(embed, head) && (!scaled || c.same(&scales[0], &scales[1]))
    };
    match (checkpoint.has(embed), checkpoint.has(head)) {
        (false, true) => {
            checkpoint.move_to(head, embed);
            checkpoint.move_to(&scales[1], &scales[0]);
        }
        (true, true) if !same(checkpoint) => {
            spec.tied_embeddings = false;
            checkpoint.warn(format!(
                "tie_word_embeddings is true, and {head} in the checkpoint differs from {embed}: the stored head is used, as in \
                 transformers. Set tie_word_embeddings to false if it is meant"
            ));
        }
        // An equal head is held once.
        _ => {}
    }
    Ok(())
}

/// As `fit`, for a file of `octavo quantize`: what it holds decides.
pub fn fit_packed(family: &mut Family, checkpoint: &Checkpoint) {
    let head = format!("{}.", family.names.head);
    let there = checkpoint.names().any(|name| name.starts_with(&head));
    let spec = &mut family.spec;
    spec.tied_embeddings &= !there;
    spec.has_head = there || spec.tied_embeddings;
}
