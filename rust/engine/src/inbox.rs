//! Input of the engine loop: commands become events of the scheduler.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use octavo_scheduler::{Event, NO_ADAPTER, NewRequest, Output};

use crate::adapters::AdapterClaim;
use crate::command::Command;
use crate::packs::Job;
use crate::request::EngineRequest;
use crate::requests::RequestTable;

/// The engine loop must end: it was closed, or the executor is dead.
pub(crate) struct Stopped;

/// How long to wait for a command.
pub(crate) enum Wait {
    /// Not at all: there is work.
    No,
    /// A moment: requests wait but none can run; only time or a command changes that.
    Briefly,
    /// Until one comes: there are no requests.
    Forever,
}

/// Commands in, events out.
pub(crate) struct Inbox {
    commands: Receiver<Command>,
    /// Events that the scheduler has not seen.
    pub events: Vec<Event>,
    /// Work between two steps, in the order of its coming.
    pub jobs: Vec<Job>,
    /// The loop ends when nothing runs.
    draining: bool,
    /// Zero of the scheduler's clock.
    epoch: Instant,
}

impl Inbox {
    pub fn new(commands: Receiver<Command>) -> Self {
        Self { commands, events: Vec::new(), jobs: Vec::new(), draining: false, epoch: Instant::now() }
    }

    /// Time on the scheduler's clock, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    /// Takes all commands that have come, after `wait`.
    pub fn receive(&mut self, wait: Wait, requests: &mut RequestTable) -> Result<(), Stopped> {
        match wait {
            Wait::No => {}
            Wait::Forever if self.draining => return Err(Stopped),
            Wait::Forever => {
                // An error means that every handle of the engine is gone.
                let command = self.commands.recv().map_err(|_| Stopped)?;
                self.apply(command, requests)?;
            }
            Wait::Briefly => match self.commands.recv_timeout(Duration::from_millis(1)) {
                Ok(command) => self.apply(command, requests)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            },
        }
        while let Ok(command) = self.commands.try_recv() {
            self.apply(command, requests)?;
        }
        Ok(())
    }

    /// Takes the requests that have come; all other commands are dropped. For the end of the loop.
    pub fn receive_last(&mut self, requests: &mut RequestTable) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit(request) = command {
                requests.insert(*request);
            }
        }
    }

    fn apply(&mut self, command: Command, requests: &mut RequestTable) -> Result<(), Stopped> {
        match command {
            Command::Submit(request) => {
                self.events.push(Event::Submit(self.new_request(&request)));
                requests.insert(*request);
            }
            Command::AdapterReady { request, adapter } => {
                if requests.take_adapter(request, adapter) {
                    self.events.push(Event::Release { request });
                }
            }
            Command::AdapterFailed { request, error } => {
                if requests.refuse(request, error) {
                    self.events.push(Event::Fail { request });
                }
            }
            Command::Job(job) => self.jobs.push(job),
            Command::Cancel(request) if requests.contains(request) => {
                self.events.push(Event::Cancel { request });
            }
            Command::Cancel(_) => {}
            Command::Drain => {
                self.events.push(Event::Drain);
                self.draining = true;
            }
            Command::Close => return Err(Stopped),
        }
        Ok(())
    }

    /// The scheduler's part of a request.
    fn new_request(&self, request: &EngineRequest) -> NewRequest {
        let micros = |t: Instant| t.saturating_duration_since(self.epoch).as_micros() as u64;
        NewRequest {
            id: request.id,
            prompt: request.prompt.to_vec(),
            n: request.n,
            max_tokens: request.max_tokens,
            priority: request.priority,
            deadline_us: request.deadline.map(micros),
            salt: request.salt.clone(),
            adapter: request.adapter.as_ref().map_or(NO_ADAPTER, |adapter| adapter.id),
            held: request.adapter.as_ref().is_some_and(AdapterClaim::is_held),
            attention: request.attention,
            pack: request.pack,
            prompt_logits: match &request.pooler {
                Some(pooler) => pooler.needs_all(),
                None => request.prompt_logprobs.is_some(),
            },
            output: if request.pooler.is_some() { Output::Hidden } else { Output::Tokens },
        }
    }
}
