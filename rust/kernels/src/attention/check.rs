//! Checks of the arguments of attention.

use super::kv_cache::{KvDtype, KvLayer};
use super::params::{AttentionParams, BLOCK_SIZE, SeqView, first_visible};

/// Checks every shape and index; unsafe code of attention relies on it.
pub(super) fn check(
    layer: &KvLayer,
    q: &[f32],
    q_stride: usize,
    seqs: &[SeqView<'_>],
    params: &AttentionParams,
    out: &[f32],
) {
    let AttentionParams { heads, kv_heads, head_dim, window, .. } = *params;
    assert_eq!(
        (kv_heads, head_dim),
        (layer.kv_heads, layer.head_dim),
        "(kv_heads, head_dim) of the KV layer"
    );
    assert!(heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads} KV heads");
    assert!(window != Some(0), "a window of no tokens");
    let width = heads * head_dim;
    assert!(q_stride >= width, "q row stride {q_stride} below the {width} of a row");
    let mut free = 0;
    for (index, seq) in seqs.iter().enumerate() {
        let SeqView { query_start, query_len, context_len, .. } = *seq;
        assert!(query_start >= free, "sequence {index} overlaps the one before it");
        free = query_start.saturating_add(query_len);
        if query_len == 0 {
            continue;
        }
        assert!(
            query_len <= context_len,
            "sequence {index}: {query_len} queries in a context of {context_len}"
        );
        let rows = (free - 1).saturating_mul(q_stride);
        assert!(
            q.len() >= rows.saturating_add(width),
            "q holds {} values, sequence {index} needs more",
            q.len()
        );
        assert!(
            out.len() >= free.saturating_mul(width),
            "out holds {} values, sequence {index} needs more",
            out.len()
        );
        check_blocks(layer, index, seq, window);
    }
}

/// Checks the block tables of sequence `index`.
fn check_blocks(layer: &KvLayer, index: usize, seq: &SeqView<'_>, window: Option<u32>) {
    let SeqView { query_len, context_len, block_table, open_blocks, .. } = *seq;
    let blocks = context_len.div_ceil(BLOCK_SIZE);
    assert!(block_table.len() >= blocks, "sequence {index}: {} blocks for {context_len}", block_table.len());
    let first = first_visible(context_len - query_len, window) / BLOCK_SIZE;
    for &block in &block_table[first..blocks] {
        assert!(
            (block as usize) < layer.num_blocks,
            "sequence {index}: block {block} of {}",
            layer.num_blocks
        );
    }
    if matches!(layer.dtype(), KvDtype::Int8(_)) {
        let new = blocks - seq.first_new_block();
        assert!(
            open_blocks.len() >= new,
            "sequence {index}: {} open blocks for {new} blocks",
            open_blocks.len()
        );
        for &open in &open_blocks[..new] {
            assert!(
                (open as usize) < layer.num_open_blocks(),
                "sequence {index}: open block {open} of {}",
                layer.num_open_blocks()
            );
        }
    }
}
