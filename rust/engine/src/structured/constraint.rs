//! The constraint of one sample: which tokens may come next, and what the chosen one changes.

use crossbeam_channel::{Receiver, Sender};
use llguidance::Matcher;

use super::budget::{Budget, Spent, token_bytes};
use super::worker::{Done, Job, Mask};
use crate::EngineError;

/// How far an output has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More may come.
    Open,
    /// The output is complete: nothing may follow.
    Complete,
}

enum State {
    /// The mask is there.
    Ready(Box<Matcher>, Mask),
    /// A worker computes it.
    Away(Receiver<Done>),
    /// Nothing may follow.
    Complete,
    /// It cannot go on; said to the request when it asks.
    Failed(String),
}

/// What one sample is held to.
pub(crate) struct Constraint {
    state: State,
    jobs: Sender<Job>,
    /// The limit of the free text, and what follows it.
    limit: Option<(Budget, Box<Matcher>)>,
}

impl Constraint {
    /// A constraint at its beginning, with the mask of the first token.
    pub(super) fn new(matcher: Box<Matcher>, first: Mask, jobs: Sender<Job>) -> Self {
        Self { state: State::Ready(matcher, first), jobs, limit: None }
    }

    /// Ends free text at a limit; `answer` follows it.
    pub(super) fn limited(self, budget: Budget, answer: Box<Matcher>) -> Self {
        Self { limit: Some((budget, answer)), ..self }
    }

    /// One more sample with the same beginning. Only before the first token.
    pub fn fork(&self) -> Self {
        let state = match &self.state {
            State::Ready(matcher, mask) => State::Ready(Box::new(matcher.deep_clone()), mask.clone()),
            _ => State::Failed("forked after its beginning".into()),
        };
        let limit =
            self.limit.as_ref().map(|(budget, answer)| (budget.clone(), Box::new(answer.deep_clone())));
        Self { state, jobs: self.jobs.clone(), limit }
    }

    /// Waits for the worker if it is not done with the mask.
    pub fn wait(&mut self) {
        if let State::Away(done) = &self.state {
            self.state = match done.recv() {
                Ok(Done { matcher, mask: Ok(mask) }) => State::Ready(matcher, mask),
                Ok(Done { mask: Err(why), .. }) => State::Failed(why),
                Err(_) => State::Failed("its worker has ended".into()),
            };
        }
    }

    /// The tokens that may come next, a bit each, after `wait`.
    ///
    /// # Errors
    /// `InvalidRequest` if the grammar grew beyond its bounds.
    pub fn mask(&self) -> Result<&[u32], EngineError> {
        match &self.state {
            State::Ready(_, mask) => Ok(mask),
            State::Failed(why) => Err(failed(why)),
            State::Away(_) | State::Complete => Err(failed("it is complete")),
        }
    }

    /// Takes the chosen token in and sends for the next mask.
    ///
    /// # Errors
    /// `InvalidRequest` if the grammar grew beyond its bounds.
    pub fn push(&mut self, token: u32) -> Result<Progress, EngineError> {
        let state = std::mem::replace(&mut self.state, State::Complete);
        let State::Ready(mut matcher, _) = state else { return Err(failed("a token came out of turn")) };
        if let Err(e) = matcher.consume_token(token) {
            return Err(failed(e.to_string().lines().next().unwrap_or_default()));
        }
        if let Some((mut budget, answer)) = self.limit.take() {
            match budget.spend(&token_bytes(&matcher, token)) {
                Spent::Within => self.limit = Some((budget, answer)),
                Spent::Over => {}
                Spent::Exhausted => matcher = answer,
            }
        }
        if matcher.is_stopped() {
            return match matcher.stop_reason() {
                reason if reason.is_ok() => Ok(Progress::Complete),
                reason => Err(failed(&reason.to_string())),
            };
        }
        let (done, inbox) = crossbeam_channel::bounded(1);
        self.state = match self.jobs.send(Job { matcher, done }) {
            Ok(()) => State::Away(inbox),
            Err(_) => State::Failed("its worker has ended".into()),
        };
        Ok(Progress::Open)
    }
}

fn failed(why: &str) -> EngineError {
    EngineError::InvalidRequest(format!("structured: the grammar cannot go on: {why}. Simplify it"))
}
