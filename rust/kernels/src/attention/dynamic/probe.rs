//! The probe of dynamic attention: which queries select blocks, and which read everything.
//!
//! Selecting costs time, and heads that spread their mass gain nothing by it. The first token of each block probes
//! whether it pays, for each KV head, and stores the answer with the block as a *gate*; the block's other queries
//! inherit it:
//!
//! ```text
//!     position    64        65  66  ...  95        96        97 ...
//!     role        Probe(2)  Inherit(2)             Probe(3)  Inherit(3)
//!     gate        set 2     read 2                 set 3     read 3
//! ```
//!
//! So the path of a query depends on the tokens before it alone, not on chunks, on batches, or on the sequence that
//! computed a shared block.

use std::ops::Range;

use super::super::params::{AttentionParams, BLOCK_SIZE, SeqView};
use super::report::{AttentionReport, DynamicParams, Mode};

/// Share of the blocks read above which selecting takes about as long as reading everything, or longer.
const MAX_READ_SHARE: f32 = 0.7;

/// Consecutive queries of one sequence with the same role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueryRange {
    /// Queries of this step.
    pub(crate) queries: Range<usize>,
    pub(crate) role: Role,
    /// Whether they inherit a gate that another range of this step sets.
    pub(crate) waits: bool,
}

/// Role of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Read everything.
    Dense,
    /// Select blocks.
    Select,
    /// Select blocks, and set the gate of this block of the sequence.
    Probe(usize),
    /// Read everything or select blocks, by the gate of this block of the sequence.
    Inherit(usize),
}

/// Ranges of a sequence's queries, in order. Queries that may select are split at blocks.
pub(crate) fn query_ranges(
    choice: &DynamicParams,
    seq: &SeqView<'_>,
    params: &AttentionParams,
) -> Vec<QueryRange> {
    let start = seq.context_len - seq.query_len;
    let dense = choice.dense_queries(seq, params);
    let mut all = Vec::new();
    let mut add = |first: usize, end: usize, role: Role| {
        if first < end {
            let waits = matches!(role, Role::Inherit(block) if block * BLOCK_SIZE >= start);
            all.push(QueryRange { queries: first..end, role, waits });
        }
    };
    add(0, dense, Role::Dense);
    if choice.mode == Mode::Budget {
        // The limit on blocks holds whether it pays or not.
        add(dense, seq.query_len, Role::Select);
        return all;
    }
    let mut first = dense;
    while first < seq.query_len {
        let block = (start + first) / BLOCK_SIZE;
        let end = ((block + 1) * BLOCK_SIZE - start).min(seq.query_len);
        if (start + first).is_multiple_of(BLOCK_SIZE) {
            add(first, first + 1, Role::Probe(block));
            first += 1;
        }
        // The first token of the first selecting block may see too few tokens to probe.
        let probed = block * BLOCK_SIZE + 1 >= choice.min_context;
        add(first, end, if probed { Role::Inherit(block) } else { Role::Select });
        first = end;
    }
    all
}

/// Gate after a probe: whether the block's other queries read everything.
pub(crate) fn reads_all(report: &AttentionReport) -> bool {
    report.value_blocks as f32 > MAX_READ_SHARE * report.blocks as f32
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
                let ranges = query_ranges(&choice, &seq, &params);
                let ends = ranges.iter().map(|s| s.queries.end);
                assert!(
                    ranges
                        .iter()
                        .map(|s| s.queries.start)
                        .eq(std::iter::once(0).chain(ends).take(ranges.len()))
                );
                ranges.into_iter().flat_map(|s| s.queries.map(move |_| s.role)).collect::<Vec<_>>()
            };
            let whole = roles(0, 150);
            for (position, role) in whole.iter().enumerate() {
                assert_eq!(roles(position, position + 1), [*role], "position {position}");
                let want = match (position + 1 < min_context, position % BLOCK_SIZE) {
                    (true, _) => Role::Dense,
                    (false, 0) => Role::Probe(position / BLOCK_SIZE),
                    (false, offset) if position - offset + 1 >= min_context => {
                        Role::Inherit(position / BLOCK_SIZE)
                    }
                    (false, _) => Role::Select,
                };
                assert_eq!(*role, want, "position {position} of at least {min_context}");
            }
            for cut in [1, 31, 32, 33, 64, 149] {
                assert_eq!([roles(0, cut), roles(cut, 150)].concat(), whole, "cut at {cut}");
            }
        }
    }
}
