//! Dynamic attention: estimate all blocks from their keys, read the blocks that matter, bound the omitted rest.
//!
//! ```text
//!     probe      which queries select at all                     per block of queries
//!     estimate   softmax mass of each block, with bounds         reads keys, or half of their bits
//!     select     omit the lightest blocks within the bound       for all query heads of a group together
//!     attend     dense attention over the selected blocks        reads keys and values
//!     certify    bound on the omitted mass and the output error
//!     audit      compare with dense attention, where asked for
//! ```
//!
//! With R the blocks that are read, S the omitted blocks, and Z the sums of e^score over either,
//!
//! - the *omitted mass* mu = Z_S / (Z_R + Z_S) is the total variation distance between the exact weights and those
//!   used. Reading R gives Z_R, and Z_S is at most the sum of the estimates' upper bounds;
//! - the output is the softmax over R. Its error is
//!   `mu * |mean of omitted values - output| <= mu * (max |value| in S + |output|)`, because a convex combination is
//!   no longer than its longest part.
//!
//! Both are relative to dense attention over the stored cache. The omitted mass includes the rounding of scores,
//! exponentials and sums, so it holds in exact arithmetic; the output error excludes float rounding. The selection of a
//! query depends on its position and its sequence alone.

mod audit;
mod certify;
mod estimate;
mod probe;
mod report;
mod select;
mod task;

pub(super) use probe::{QueryRange, Role, query_ranges, reads_all};
pub use report::{AttentionReport, DynamicParams, Mode, Selection, Selector};
pub(super) use task::DynamicTask;

use std::cell::RefCell;

use super::kv_cache::KvElement;
use super::params::{BLOCK_SIZE, first_visible};
use super::state::SoftmaxState;
use super::task::AttentionTask;
use crate::simd::{Op, Simd};
use select::BlockSelector;

/// Maximum number of estimates: one, and again while masses are too heavy for their reference.
const MAX_ESTIMATES: usize = 16;

/// Buffers of a thread.
#[derive(Default)]
struct DynamicBuffers {
    /// State of the estimate, for all rows.
    estimate: SoftmaxState,
    selector: BlockSelector,
    /// State of one query over the selected blocks, and over all blocks for an audit.
    selected: SoftmaxState,
    dense: SoftmaxState,
}

thread_local! {
    /// Kept between tasks to spare allocations.
    static BUFFERS: RefCell<DynamicBuffers> = RefCell::default();
}

impl<E: KvElement> Op for DynamicTask<'_, E> {
    type Output = AttentionReport;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> AttentionReport {
        let DynamicBuffers { mut estimate, mut selector, mut selected, mut dense } = BUFFERS.take();
        let mut report = AttentionReport::default();
        estimate.start(&self.task);
        self.begin(s, &mut estimate, &mut selector);
        for _ in 0..MAX_ESTIMATES {
            self.estimate(s, &mut estimate, &mut selector);
            if !selector.rescale(s) {
                break;
            }
        }
        for index in 0..self.task.count {
            let task = AttentionTask { first: self.task.first + index, count: 1, ..self.task };
            let slack = self.slack(s, &estimate, index);
            self.select(s, &mut selector, index, slack);
            task.attend_to(s, &mut selected, &selector.blocks);
            self.certify(s, &selected, &mut selector, index, slack, &mut report);
            let audit = self.params.audit;
            if audit > 0 && task.position(0).is_multiple_of(audit) {
                task.attend(s, &mut dense);
                self.audit(s, &mut selected, &dense, &selector, &mut report);
            }
            task.normalize_and_store(s, &selected);
        }
        BUFFERS.set(DynamicBuffers { estimate, selector, selected, dense });
        report
    }
}

/// The report of a task whose queries read everything.
pub(super) fn dense_report<E: KvElement>(task: &AttentionTask<'_, E>) -> AttentionReport {
    let mut report = AttentionReport::default();
    for index in 0..task.count {
        let position = task.position(index);
        let blocks = position / BLOCK_SIZE - first_visible(position, task.params.window) / BLOCK_SIZE;
        report.add_query(task.group(), blocks, blocks, task.params.head_dim, true);
    }
    report.dense_calls = report.calls;
    report
}
