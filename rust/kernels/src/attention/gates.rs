//! Which queries choose what they read, and which read everything without looking: the gate of dynamic attention.
//!
//! Choosing costs something, and heads that look everywhere gain nothing by it. Whether it pays is tried at the first token of
//! each block and kept with the block, for each KV head: where it did not, the block's other queries read everything. So
//! what a query does depends on the tokens before it alone, as everything in attention does: not on chunks, batches, or who
//! computed a shared block.

use std::ops::Range;

use super::report::{AttentionReport, DynamicParams, Mode};
use super::{AttentionParams, BLOCK_SIZE, SeqView};

/// Share of the blocks' values above which choosing takes about as long as reading everything, or longer.
const PAYS_BELOW: f32 = 0.7;

/// Queries of one sequence that choose or not alike, for each KV head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// Within the sequence's share of the step.
    pub(super) queries: Range<usize>,
    pub(super) role: Role,
    /// Whether they follow a gate that another section of the step sets.
    pub(super) waits: bool,
}

/// What queries do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Read everything.
    Dense,
    /// Choose.
    Choose,
    /// Choose, and set the gate of this block of the sequence.
    Try(usize),
    /// As the gate of this block of the sequence says.
    Follow(usize),
}

/// The queries of a sequence, in order: those that `choice` lets choose are parted by blocks.
pub(super) fn sections(choice: &DynamicParams, seq: &SeqView<'_>, params: &AttentionParams) -> Vec<Section> {
    let start = seq.context_len - seq.query_len;
    let dense = choice.dense_queries(seq, params);
    let mut all = Vec::new();
    let mut add = |first: usize, end: usize, role: Role| {
        if first < end {
            let waits = matches!(role, Role::Follow(block) if block * BLOCK_SIZE >= start);
            all.push(Section { queries: first..end, role, waits });
        }
    };
    add(0, dense, Role::Dense);
    if choice.mode == Mode::Budget {
        // What queries read is limited, whatever pays.
        add(dense, seq.query_len, Role::Choose);
        return all;
    }
    let mut first = dense;
    while first < seq.query_len {
        let block = (start + first) / BLOCK_SIZE;
        let end = ((block + 1) * BLOCK_SIZE - start).min(seq.query_len);
        if (start + first).is_multiple_of(BLOCK_SIZE) {
            add(first, first + 1, Role::Try(block));
            first += 1;
        }
        // The first token of the first block that chooses may have seen too few tokens to try.
        let tried = block * BLOCK_SIZE + 1 >= choice.min_context;
        add(first, end, if tried { Role::Follow(block) } else { Role::Choose });
        first = end;
    }
    all
}

/// Whether a gate is to be closed behind the query that gave `report`.
pub(super) fn closes(report: &AttentionReport) -> bool {
    report.value_blocks as f32 > PAYS_BELOW * report.blocks as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every query has one role, the same however a sequence is cut into steps.
    #[test]
    fn roles_depend_on_positions_only() {
        let params =
            AttentionParams { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, window: None, softcap: None };
        for min_context in [0, 1, 32, 33, 40, 64, 65, 200] {
            let choice = DynamicParams { min_context, ..DynamicParams::default() };
            let roles = |from: usize, to: usize| {
                let seq = SeqView {
                    query_start: 0,
                    query_len: to - from,
                    context_len: to,
                    block_table: &[],
                    open_blocks: &[],
                };
                let sections = sections(&choice, &seq, &params);
                let ends = sections.iter().map(|s| s.queries.end);
                assert!(
                    sections
                        .iter()
                        .map(|s| s.queries.start)
                        .eq(std::iter::once(0).chain(ends).take(sections.len()))
                );
                sections.into_iter().flat_map(|s| s.queries.map(move |_| s.role)).collect::<Vec<_>>()
            };
            let whole = roles(0, 150);
            for (position, role) in whole.iter().enumerate() {
                assert_eq!(roles(position, position + 1), [*role], "position {position}");
                let want = match (position + 1 < min_context, position % BLOCK_SIZE) {
                    (true, _) => Role::Dense,
                    (false, 0) => Role::Try(position / BLOCK_SIZE),
                    (false, place) if position - place + 1 >= min_context => {
                        Role::Follow(position / BLOCK_SIZE)
                    }
                    (false, _) => Role::Choose,
                };
                assert_eq!(*role, want, "position {position} of at least {min_context}");
            }
            for cut in [1, 31, 32, 33, 64, 149] {
                assert_eq!([roles(0, cut), roles(cut, 150)].concat(), whole, "cut at {cut}");
            }
        }
    }
}
