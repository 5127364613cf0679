//! What a finished step does to its sequences.

use super::Scheduler;
use crate::batch::{BatchSeq, StepInFlight};
use crate::event::{Actions, EndReason, Finished, NextToken, NextTokens, SeqResult};
use crate::request::{Key, Sequence};

impl Scheduler {
    /// Applies the results of the oldest step in flight.
    pub(super) fn apply_results(&mut self, step: u64, results: Vec<SeqResult>, actions: &mut Actions) {
        if self.in_flight.front().is_none_or(|oldest| oldest.step != step) {
            return;
        }
        let Some(StepInFlight { mut seqs, .. }) = self.in_flight.pop_front() else { return };
        let mut results = results.into_iter();
        for seq in seqs.drain(..) {
            let result = results.next().unwrap_or(SeqResult::Failed);
            self.apply_result(seq, result, actions);
        }
        self.spare.push(seqs);
    }

    fn apply_result(&mut self, seq: BatchSeq, result: SeqResult, actions: &mut Actions) {
        let index = seq.sequence;
        let sequence = &mut self.sequences[index];
        sequence.in_flight -= 1;
        sequence.computing -= seq.query_len;
        sequence.placeholders = 0;
        let Some(request) = sequence.request() else {
            self.free_unless_in_flight(index);
            return;
        };
        match result {
            SeqResult::Prefilled if seq.num_samples == 0 => {
                self.commit(seq);
                // Only a request for hidden states has nothing left to compute here.
                let sequence = &self.sequences[index];
                if sequence.table.computed() == sequence.len() {
                    self.end_sample(index, EndReason::Stop, actions);
                }
            }
            SeqResult::Tokens(tokens) if seq.num_samples > 0 && tokens.len() == seq.num_samples as usize => {
                self.commit(seq);
                self.grow(index, request, tokens, actions);
            }
            _ => self.end_request(request, EndReason::Error, actions),
        }
    }

    /// Records that the rows of a sequence are in the cache.
    fn commit(&mut self, seq: BatchSeq) {
        let sequence = &mut self.sequences[seq.sequence];
        let computed = sequence.table.computed() + seq.query_len;
        self.cache.commit(&mut sequence.table, &sequence.tokens, computed);
        if let Some(request) = sequence.request()
            && seq.reports
        {
            self.requests[request].reported = computed;
        }
    }

    /// Appends the sampled tokens: one, or one for each sample that the sequence now splits into.
    fn grow(&mut self, index: u32, request: u32, tokens: NextTokens, actions: &mut Actions) {
        for (sample, &next) in tokens.iter().enumerate().skip(1) {
            self.split_off(index, request, sample as u32, next, actions);
        }
        let sequence = &mut self.sequences[index];
        sequence.num_samples = 1;
        sequence.tokens.push(tokens[0].token);
        let len = sequence.len();
        self.counters.decoded_tokens += tokens.len() as u64;
        if let Some(reason) = ends(tokens[0], len, self.requests[request].max_len) {
            self.end_sample(index, reason, actions);
        }
    }

    /// Makes a sample of its own from a sequence whose prompt is complete, unless it ends with its first token.
    fn split_off(&mut self, from: u32, request: u32, sample: u32, next: NextToken, actions: &mut Actions) {
        let source = &self.sequences[from];
        let len = source.len() + 1;
        if let Some(reason) = ends(next, len, self.requests[request].max_len) {
            actions.finished.push(Finished { request: source.id, sample, reason });
            return;
        }
        let mut tokens = Vec::with_capacity(source.tokens.len() + 16);
        tokens.extend_from_slice(&source.tokens);
        tokens.push(next.token);
        let (id, key) = (source.id, Key { sample, ..source.key });
        let mut split = Sequence::new(request, id, key, tokens, 1);
        split.table = self.cache.fork(&source.table);
        let index = self.sequences.insert(split);
        self.requests[request].sequences.push(index);
        self.run(index);
    }
}

/// Whether a sample of `len` tokens ends with `last`. A stop condition outranks the length.
fn ends(last: NextToken, len: u32, max_len: u32) -> Option<EndReason> {
    if last.stop {
        Some(EndReason::Stop)
    } else if len >= max_len {
        Some(EndReason::Length)
    } else {
        None
    }
}
