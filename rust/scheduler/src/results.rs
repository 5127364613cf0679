//! What a finished step does to its sequences.

use octavo_cache::faults::{Fault, planted};

use crate::event::{Actions, FinishReason, Finished, NextToken, NextTokens, SeqResult};
use crate::request::{Key, Sequence};
use crate::scheduler::Scheduler;

/// A step that was planned and is not done.
#[derive(Debug)]
pub(crate) struct StepInFlight {
    pub(crate) step: u64,
    /// The next step may be planned before this one is done.
    pub(crate) ahead: bool,
    pub(crate) flights: Vec<Flight>,
}

/// One sequence of a step in flight, in the order of the plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    pub(crate) sequence: u32,
    pub(crate) query_len: u32,
    pub(crate) num_samples: u32,
    /// Its rows are prompt rows whose logits were asked for.
    pub(crate) reports: bool,
}

impl Scheduler {
    /// Applies the results of the oldest step in flight.
    pub(crate) fn apply_results(&mut self, step: u64, results: Vec<SeqResult>, actions: &mut Actions) {
        let Some(oldest) = self.in_flight.front() else { return };
        if oldest.step != step && !planted(Fault::StaleStepResult) {
            return;
        }
        let Some(StepInFlight { mut flights, .. }) = self.in_flight.pop_front() else { return };
        let mut results = results.into_iter();
        for flight in flights.drain(..) {
            let result = results.next().unwrap_or(SeqResult::Failed);
            let sequence = &mut self.sequences[flight.sequence];
            sequence.flights -= 1;
            sequence.computing -= flight.query_len;
            sequence.placeholders = 0;
            let Some(request) = sequence.request else {
                if planted(Fault::AbortInFlightLeaks) {
                    continue;
                }
                if planted(Fault::AbortRacesCompletion) {
                    let (request, sample) = (sequence.id, sequence.key.sample);
                    actions.finished.push(Finished { request, sample, reason: FinishReason::Stop });
                }
                if planted(Fault::FreedBetweenSteps) {
                    self.cache.release(&mut self.sequences[flight.sequence].table);
                }
                self.free_unless_in_flight(flight.sequence);
                continue;
            };
            match result {
                SeqResult::Prefilled if flight.num_samples == 0 => {
                    self.commit(flight);
                    // Only a request for hidden states has nothing left to compute here.
                    let sequence = &self.sequences[flight.sequence];
                    let last_chunk = planted(Fault::AheadOfLastChunk) && sequence.remaining() == 0;
                    if sequence.table.computed() == sequence.len() || last_chunk {
                        self.end_sample(flight.sequence, FinishReason::Stop, actions);
                    }
                }
                SeqResult::Tokens(tokens)
                    if flight.num_samples > 0 && tokens.len() == flight.num_samples as usize =>
                {
                    self.commit(flight);
                    self.grow(flight.sequence, request, tokens, actions);
                }
                _ => {
                    if planted(Fault::FailedStepCommitted) {
                        self.commit(flight);
                    }
                    self.end_request(request, FinishReason::Error, actions);
                    if planted(Fault::FailureSpreads) {
                        results.by_ref().for_each(drop);
                    }
                }
            }
        }
        self.spare.push(flights);
    }

    /// The rows of a flight are in the cache now.
    fn commit(&mut self, flight: Flight) {
        let sequence = &mut self.sequences[flight.sequence];
        let computed = sequence.table.computed() + flight.query_len;
        self.cache.commit(&mut sequence.table, &sequence.tokens, computed);
        if let Some(request) = sequence.request
            && flight.reports
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
            if !planted(Fault::LostTerminalEvent) {
                actions.finished.push(Finished { request: source.id, sample, reason });
            }
            return;
        }
        let mut tokens = Vec::with_capacity(source.tokens.len() + 16);
        tokens.extend_from_slice(&source.tokens);
        tokens.push(next.token);
        let (id, key) = (source.id, Key { sample, ..source.key });
        let split = Sequence::new(request, id, key, tokens, 1, self.cache.fork(&source.table));
        let index = self.sequences.insert(split);
        self.requests[request].sequences.push(index);
        if planted(Fault::OrderLostAtSplit) {
            self.sequences[index].running = true;
            self.running.push(index);
            return;
        }
        self.run(index);
    }
}

/// Whether a sample of `len` tokens ends with `last`. A stop condition outranks the length.
fn ends(last: NextToken, len: u32, max_len: u32) -> Option<FinishReason> {
    let max_len = max_len + u32::from(planted(Fault::LengthOffByOne));
    if last.stop && !(planted(Fault::StopOutrankedByLength) && len >= max_len) {
        Some(FinishReason::Stop)
    } else if len >= max_len {
        Some(FinishReason::Length)
    } else {
        None
    }
}
