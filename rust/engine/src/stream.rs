//! The way out: one bounded queue per request, from the engine thread to whoever reads.
//!
//! The engine never waits for a reader. While the queue is full, news is merged on the engine's side; the last delta always
//! has a place, so a slow reader loses nothing and delays nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

use crate::EngineError;
use crate::engine_loop::Command;
use crate::output::Delta;

/// Deltas that wait in the queue before news is merged.
const CAPACITY: usize = 32;

/// Ids of subscribed requests with news.
pub(crate) type ReadyQueue = (Sender<u64>, Receiver<u64>);

#[derive(Default)]
struct Subscription {
    wanted: AtomicBool,
    /// The reader wants the whole answer at once: nothing is sent before the last delta.
    only_end: AtomicBool,
    /// The id is in the ready queue and not yet read.
    announced: AtomicBool,
}

/// The engine's end.
pub(crate) struct Outbox {
    id: u64,
    queue: Sender<Delta>,
    ready: Sender<u64>,
    subscription: Arc<Subscription>,
    /// News that has not been sent.
    pub pending: Delta,
}

/// The reader's end. Dropping it cancels the request.
pub struct RequestStream {
    id: u64,
    prompt: Vec<u32>,
    queue: Receiver<Delta>,
    ready: Sender<u64>,
    subscription: Arc<Subscription>,
    commands: Sender<Command>,
    /// The last delta was taken.
    done: AtomicBool,
    cancelled: AtomicBool,
    /// The process that has the engine thread.
    process: u32,
}

/// Both ends of a request's queue.
pub(crate) fn channel(
    id: u64,
    prompt: Vec<u32>,
    commands: Sender<Command>,
    ready: &Sender<u64>,
) -> (Outbox, RequestStream) {
    let (to, from) = crossbeam_channel::bounded(CAPACITY + 1);
    let subscription = Arc::new(Subscription::default());
    let outbox = Outbox {
        id,
        queue: to,
        ready: ready.clone(),
        subscription: Arc::clone(&subscription),
        pending: Delta::default(),
    };
    let stream = RequestStream {
        id,
        prompt,
        queue: from,
        ready: ready.clone(),
        subscription,
        commands,
        done: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        process: std::process::id(),
    };
    (outbox, stream)
}

impl Outbox {
    /// Sends the pending news, unless the queue is full and the request goes on.
    pub fn flush(&mut self) {
        let waits = self.queue.len() >= CAPACITY || self.subscription.only_end.load(Ordering::Relaxed);
        if self.pending.is_empty() || (waits && !self.pending.finished) {
            return;
        }
        let last = self.pending.finished;
        // One place beyond CAPACITY is kept for the last delta, so this fails only if the reader is gone.
        if self.queue.try_send(std::mem::take(&mut self.pending)).is_ok() {
            announce(self.id, &self.subscription, &self.ready, last);
        }
    }
}

fn announce(id: u64, subscription: &Subscription, ready: &Sender<u64>, last: bool) {
    if !subscription.wanted.load(Ordering::SeqCst) {
        return;
    }
    let known = subscription.announced.swap(true, Ordering::SeqCst);
    // The end is told in any case: a reader that takes its time need not sit it out.
    if !known || last {
        // The other end lives as long as the engine; without it nobody waits.
        let _ = ready.send(id);
    }
}

impl RequestStream {
    /// The request's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Token ids of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The next delta; None after `timeout`, or if the last one was taken.
    pub fn next(&self, timeout: Duration) -> Option<Delta> {
        if self.done.load(Ordering::SeqCst) {
            return None;
        }
        if std::process::id() != self.process {
            // A fork has no engine thread that could ever send.
            return Some(self.orphaned());
        }
        self.subscription.announced.store(false, Ordering::SeqCst);
        match self.queue.recv_deadline(Instant::now() + timeout) {
            Ok(delta) => Some(self.taken(delta)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(self.orphaned()),
        }
    }

    /// All that has come, as one delta. News is announced once, and not again before a `poll` that finds nothing: who
    /// looks again by himself is not woken, but for the end.
    pub fn poll(&self) -> Option<Delta> {
        if self.done.load(Ordering::SeqCst) {
            return None;
        }
        let found = self.drain();
        if found.is_some() {
            return found;
        }
        self.subscription.announced.store(false, Ordering::SeqCst);
        // What came before the line above was not announced; what comes after it is.
        self.drain()
    }

    fn drain(&self) -> Option<Delta> {
        let mut found: Option<Delta> = None;
        loop {
            match (self.queue.try_recv(), &mut found) {
                (Ok(delta), Some(found)) => found.merge(delta),
                (Ok(delta), None) => found = Some(delta),
                (Err(TryRecvError::Empty), _) => break,
                (Err(TryRecvError::Disconnected), Some(_)) => break,
                (Err(TryRecvError::Disconnected), None) => return Some(self.orphaned()),
            }
        }
        found.map(|delta| self.taken(delta))
    }

    /// True once the last delta was taken.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// From now on the engine's ready queue names this request when it has news (see `poll`); with `only_end`, all later news comes
    /// as one delta, the last.
    pub fn subscribe(&self, only_end: bool) {
        self.subscription.only_end.store(only_end, Ordering::Relaxed);
        self.subscription.wanted.store(true, Ordering::SeqCst);
        if !self.queue.is_empty() || self.done.load(Ordering::SeqCst) {
            announce(self.id, &self.subscription, &self.ready, false);
        }
    }

    /// Ends the request; its last delta says so.
    pub fn cancel(&self) {
        if !self.done.load(Ordering::SeqCst) && !self.cancelled.swap(true, Ordering::SeqCst) {
            // A closed engine has ended the request already.
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }

    fn taken(&self, delta: Delta) -> Delta {
        if delta.finished {
            self.done.store(true, Ordering::SeqCst);
        }
        delta
    }

    /// The engine thread is gone without a last word.
    fn orphaned(&self) -> Delta {
        self.done.store(true, Ordering::SeqCst);
        let error =
            EngineError::EngineDead("the engine stopped while the request ran. Make a new LLM".into());
        Delta { finished: true, error: Some(error), ..Delta::default() }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::SampleDelta;

    fn word(text: &str) -> SampleDelta {
        SampleDelta { text: text.into(), ..SampleDelta::default() }
    }

    #[test]
    fn a_slow_reader_loses_nothing_and_the_last_delta_always_fits() {
        let (commands, _keep) = crossbeam_channel::unbounded();
        let (ready, announced) = crossbeam_channel::unbounded();
        let (mut outbox, stream) = channel(7, vec![1], commands, &ready);
        stream.subscribe(false);
        for _ in 0..500 {
            outbox.pending.add(word("x"));
            outbox.flush();
        }
        outbox.pending.add(word("!"));
        outbox.pending.finished = true;
        outbox.flush();
        assert!(outbox.pending.is_empty());
        assert_eq!(announced.try_iter().collect::<Vec<_>>(), [7, 7], "the first news, and the end");
        let mut text = String::new();
        while let Some(delta) = stream.poll() {
            text.extend(delta.outputs.into_iter().map(|o| o.text));
        }
        assert_eq!(text, format!("{}!", "x".repeat(500)));
        assert!(stream.is_done() && stream.poll().is_none());
    }

    #[test]
    fn a_reader_of_the_end_gets_one_delta() {
        let (commands, _keep) = crossbeam_channel::unbounded();
        let (ready, announced) = crossbeam_channel::unbounded();
        let (mut outbox, stream) = channel(3, vec![1], commands, &ready);
        stream.subscribe(true);
        for _ in 0..5 {
            outbox.pending.add(word("x"));
            outbox.flush();
        }
        assert!(stream.poll().is_none() && announced.is_empty());
        outbox.pending.finished = true;
        outbox.flush();
        assert_eq!(announced.try_iter().collect::<Vec<_>>(), [3]);
        assert_eq!(stream.poll().expect("the whole").outputs[0].text, "xxxxx");
        assert!(stream.is_done());
    }

    #[test]
    fn who_looks_again_by_himself_is_not_woken_before_he_found_nothing() {
        let (commands, _keep) = crossbeam_channel::unbounded();
        let (ready, announced) = crossbeam_channel::unbounded();
        let (mut outbox, stream) = channel(5, vec![1], commands, &ready);
        stream.subscribe(false);
        let mut send = |text| {
            outbox.pending.add(word(text));
            outbox.flush();
        };
        send("a");
        assert_eq!(announced.try_iter().count(), 1);
        send("b");
        assert_eq!(stream.poll().expect("news").outputs[0].text, "ab", "what waits comes as one");
        send("c");
        assert_eq!(announced.try_iter().count(), 0, "the reader looks again anyway");
        assert_eq!(stream.poll().expect("news").outputs[0].text, "c");
        assert!(stream.poll().is_none());
        send("d");
        assert_eq!(announced.try_iter().count(), 1, "now he waits to be told");
    }

    #[test]
    fn a_dead_engine_ends_the_stream_with_a_typed_error() {
        let (commands, _keep) = crossbeam_channel::unbounded();
        let (ready, _announced) = crossbeam_channel::unbounded();
        let (outbox, stream) = channel(1, vec![1], commands, &ready);
        drop(outbox);
        let last = stream.next(Duration::from_secs(1)).expect("a last delta");
        assert!(last.finished);
        assert_eq!(last.error.expect("error").class_name(), "EngineDeadError");
        assert!(stream.next(Duration::ZERO).is_none());
    }
}
