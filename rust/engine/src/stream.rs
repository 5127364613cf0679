//! The reader's end of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

use crate::EngineError;
use crate::command::Command;
use crate::mailbox::{Mailbox, Outbox};
use crate::output::Delta;

/// Ids of subscribed requests with unread deltas.
pub(crate) type ReadyQueue = (Sender<u64>, Receiver<u64>);

/// The reader's end. Dropping it cancels the request.
pub struct RequestStream {
    id: u64,
    prompt: Vec<u32>,
    mailbox: Arc<Mailbox>,
    bell: Receiver<()>,
    ready: Sender<u64>,
    commands: Sender<Command>,
    /// The last delta was taken.
    done: AtomicBool,
    cancelled: AtomicBool,
    /// The process that has the engine thread.
    process: u32,
}

/// Both ends of a request.
pub(crate) fn channel(
    id: u64,
    prompt: Vec<u32>,
    commands: Sender<Command>,
    ready: &Sender<u64>,
) -> (Outbox, RequestStream) {
    let (outbox, mailbox, bell) = Outbox::new(id, ready);
    let stream = RequestStream {
        id,
        prompt,
        mailbox,
        bell,
        ready: ready.clone(),
        commands,
        done: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        process: std::process::id(),
    };
    (outbox, stream)
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

    /// Waits for output, and returns all of it as one delta. None after `timeout`, or if the last delta was taken.
    pub fn next(&self, timeout: Duration) -> Option<Delta> {
        if self.done.load(Ordering::SeqCst) {
            return None;
        }
        if std::process::id() != self.process {
            // A fork has no engine thread that could ever send.
            return Some(self.orphaned());
        }
        self.mailbox.announced.store(false, Ordering::SeqCst);
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(delta) = self.take() {
                return Some(delta);
            }
            match self.bell.recv_deadline(deadline) {
                // It may ring for a delta that was already read.
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return self.take(),
                Err(RecvTimeoutError::Disconnected) => return self.take().or_else(|| Some(self.orphaned())),
            }
        }
    }

    /// All unread output as one delta. Output is announced once, and not again before a `poll` that finds none. The end
    /// is always announced.
    pub fn poll(&self) -> Option<Delta> {
        if self.done.load(Ordering::SeqCst) {
            return None;
        }
        if let Some(delta) = self.take() {
            return Some(delta);
        }
        self.mailbox.announced.store(false, Ordering::SeqCst);
        let closed = matches!(self.bell.try_recv(), Err(TryRecvError::Disconnected));
        // Output from before the lines above was not announced; later output is.
        self.take().or_else(|| closed.then(|| self.orphaned()))
    }

    fn take(&self) -> Option<Delta> {
        let delta = *self.mailbox.unread.take()?;
        if delta.finished {
            self.done.store(true, Ordering::SeqCst);
        }
        Some(delta)
    }

    /// True once the last delta was taken.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Puts the request's id into the engine's ready queue whenever it has an unread delta (see `poll`). With `only_end`,
    /// all later output comes as one delta, the last.
    pub fn subscribe(&self, only_end: bool) {
        self.mailbox.only_end.store(only_end, Ordering::Relaxed);
        self.mailbox.wanted.store(true, Ordering::SeqCst);
        if !self.bell.is_empty() || self.done.load(Ordering::SeqCst) {
            self.mailbox.announce(self.id, &self.ready, false);
        }
    }

    /// Cancels the request; its last delta has the finish reason `Abort`.
    pub fn cancel(&self) {
        if !self.done.load(Ordering::SeqCst) && !self.cancelled.swap(true, Ordering::SeqCst) {
            // A closed engine has ended the request already.
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }

    /// Last delta of a request whose engine thread ended without one.
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
    use crossbeam_utils::atomic::AtomicCell;

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
        assert_eq!(announced.try_iter().collect::<Vec<_>>(), [7, 7], "the first delta, and the end");
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
    fn a_reader_that_polls_is_not_woken_before_it_found_nothing() {
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
        assert_eq!(announced.try_iter().count(), 1, "now the reader waits");
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

    #[test]
    fn two_threads_that_take_and_put_lose_nothing() {
        let (commands, _keep) = crossbeam_channel::unbounded();
        let (ready, _announced) = crossbeam_channel::unbounded();
        let (mut outbox, stream) = channel(2, vec![1], commands, &ready);
        let writer = std::thread::spawn(move || {
            for i in 0..20_000 {
                outbox.pending.add(SampleDelta { token_ids: vec![i], ..word("x") });
                outbox.pending.finished = i == 19_999;
                outbox.flush();
            }
        });
        let mut tokens: Vec<u32> = Vec::new();
        while !stream.is_done() {
            // Both ways to read, in turns.
            let found = if tokens.len().is_multiple_of(2) { stream.poll() } else { None };
            let found = found.or_else(|| stream.next(Duration::from_secs(120))).expect("news");
            assert_eq!(found.outputs[0].text.len(), found.outputs[0].token_ids.len());
            tokens.extend(&found.outputs[0].token_ids);
        }
        writer.join().expect("writer");
        assert_eq!(tokens, (0..20_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_delta_takes_one_word_of_memory_to_hand_over() {
        assert!(AtomicCell::<Option<Box<Delta>>>::is_lock_free());
    }
}
