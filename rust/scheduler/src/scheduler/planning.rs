//! Which sequences get tokens of the next step.
//!
//! Decodes come first, then prefills that already run, then admissions, each in the order of (priority, arrival). One
//! exception guarantees progress of the first sequence in the order. If it is a prefill, it gets its chunk before the
//! decodes, which keep a token and a block each as far as there are any.
//!
//! With async scheduling a step is planned while the one before is in flight:
//!
//! ```text
//! step n     planned ---- in flight ----------- done
//! step n+1                   planned ---- in flight ----------- done
//! ```
//!
//! A sequence of step n continues in step n+1 at its next position, with a placeholder if step n samples a token for
//! it. A sequence whose placeholder is its last token by length does not continue. One that ends by a stop computes one
//! step in vain. Such a plan preempts no sequence, since the victims are in flight. If blocks are lacking, the next
//! plan waits until nothing is in flight: the first sequence in the order waits for one step at most.

use super::Scheduler;
use crate::batch::BatchBuilder;
use crate::event::Actions;

impl Scheduler {
    /// Plans a chunk for the first sequence in the order, if it is a prefill.
    pub(super) fn plan_first_prefill(&mut self, batch: &mut BatchBuilder, actions: &mut Actions) {
        let Some(&first) = self.running.first() else { return };
        if !self.is_prefill(batch, first) {
            return;
        }
        loop {
            let decodes = self.running.iter().filter(|&&s| self.is_decode(batch, s)).count() as u32;
            let available = self.cache.available();
            let spare = available.saturating_sub(decodes).max(available.min(1));
            let budget = batch.budget().saturating_sub(decodes).max(1);
            if self.push_prefill(batch, first, budget, spare) {
                return;
            }
            if !self.make_room(0, actions) {
                batch.stalled = true;
                return;
            }
        }
    }

    /// Plans the next token of all decodes, with preemption if blocks are lacking.
    pub(super) fn plan_decodes(&mut self, batch: &mut BatchBuilder, actions: &mut Actions) {
        let mut place = 0;
        while place < self.running.len() && batch.budget() > 0 {
            let index = self.running[place];
            if self.is_prefill(batch, index) {
                batch.prefills = true;
            } else if self.is_decode(batch, index) {
                while !self.push(batch, index, 1) {
                    if !self.make_room(place, actions) {
                        batch.stalled = true;
                        break;
                    }
                }
            }
            place += 1;
        }
    }

    /// Plans chunks of running prefills.
    pub(super) fn plan_prefills(&mut self, batch: &mut BatchBuilder) {
        let mut place = 0;
        while batch.prefills && place < self.running.len() && batch.budget() > 0 {
            let index = self.running[place];
            if self.is_prefill(batch, index)
                && !self.push_prefill(batch, index, batch.budget(), self.cache.available())
            {
                batch.stalled = true;
            }
            place += 1;
        }
    }

    /// Whether a running sequence takes more than one token, and is not in the batch yet.
    fn is_prefill(&self, batch: &BatchBuilder, index: u32) -> bool {
        let sequence = &self.sequences[index];
        sequence.remaining() > 1 && !batch.contains(sequence)
    }

    /// Whether a running sequence takes one token, and is not in the batch yet. One whose placeholder is its last token
    /// takes none.
    fn is_decode(&self, batch: &BatchBuilder, index: u32) -> bool {
        let sequence = &self.sequences[index];
        let continues = sequence.request().is_some_and(|r| sequence.len() < self.requests[r].max_len);
        sequence.remaining() == 1 && continues && !batch.contains(sequence)
    }

    /// Appends the longest chunk that `budget` tokens and `spare` blocks allow. `false`: none.
    pub(super) fn push_prefill(
        &mut self,
        batch: &mut BatchBuilder,
        index: u32,
        budget: u32,
        spare: u32,
    ) -> bool {
        let sequence = &self.sequences[index];
        let room = self.cache.room(&sequence.table, spare).saturating_sub(sequence.computing);
        let cap = self.config.prefill_chunk.unwrap_or(u32::MAX);
        let mut chunk = sequence.remaining().min(budget).min(cap).min(room);
        // Rows reported before a preemption are computed again in a chunk of their own, without logits.
        if let Some(request) = sequence.request().map(|r| &self.requests[r])
            && request.owes_prompt_rows()
            && sequence.scheduled() < request.reported
        {
            chunk = chunk.min(request.reported - sequence.scheduled());
        }
        chunk > 0 && self.push(batch, index, chunk)
    }

    /// Appends the next `chunk` tokens of a sequence. `false` and no change if blocks are lacking.
    fn push(&mut self, batch: &mut BatchBuilder, index: u32, chunk: u32) -> bool {
        let sequence = &mut self.sequences[index];
        let Some(request) = sequence.request() else { return false };
        batch.push(&mut self.cache, index, sequence, &self.requests[request], chunk)
    }
}
