//! Preemption: a victim gives up its blocks when a sequence that should run finds none.
//!
//! The victim comes later in the order of service than the sequence that needs the block. The first sequence is never
//! chosen and makes progress in every step, and no two sequences take blocks from each other in turns. The victim keeps
//! its tokens and waits at its old place. Its full blocks stay cached until they are evicted.

use super::Scheduler;
use crate::event::Actions;
use crate::request::SeqState;

impl Scheduler {
    /// Frees blocks for the running sequence at `place` of the order. `false`: no block can be gained, it has to wait.
    ///
    /// While a step is in flight there is no victim: the candidates are part of it.
    pub(super) fn make_room(&mut self, place: usize, actions: &mut Actions) -> bool {
        if !self.in_flight.is_empty() {
            return false;
        }
        let needing = self.running[place];
        let copy_source = self.cache.copy_source(&self.sequences[needing].table);
        let gains = |&&victim: &&u32| {
            let table = &self.sequences[victim].table;
            // With the last other reader of a shared block gone, no copy of it is needed.
            let ends_sharing =
                copy_source.is_some_and(|b| self.cache.refs(b) == 2 && table.blocks().contains(&b));
            ends_sharing || self.cache.release_gains(table)
        };
        let later = &self.running[place + 1..];
        // For the first in the order even victims that share all their blocks with each other: together they gain.
        let last = later.last().filter(|_| place == 0);
        let Some(&victim) = later.iter().rev().find(gains).or(last) else { return false };
        let before = self.cache.available();
        self.preempt(victim, actions);
        debug_assert!(
            place == 0
                || self.cache.available() > before
                || copy_source.is_some_and(|block| self.cache.refs(block) == 1),
            "a preemption gained nothing"
        );
        true
    }

    pub(super) fn preempt(&mut self, index: u32, actions: &mut Actions) {
        let sequence = &mut self.sequences[index];
        debug_assert!(sequence.in_flight == 0, "a planned sequence is preempted");
        self.cache.release(&mut sequence.table);
        sequence.state = SeqState::Waiting { preempted: true, bypassed: 0 };
        self.waiting.insert(sequence.key, index);
        self.stop_running(index);
        self.counters.preemptions += 1;
        actions.preempted += 1;
    }
}
