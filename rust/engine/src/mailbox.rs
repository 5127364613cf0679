//! The engine's end of a request: deltas go out through a mailbox that the reader empties.
//!
//! The engine never waits for a reader. Unread deltas are merged with later ones: a slow reader loses nothing and delays
//! no other request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use crossbeam_utils::atomic::AtomicCell;

use crate::output::Delta;

/// Shared by both ends.
#[derive(Default)]
pub(crate) struct Mailbox {
    /// Deltas that have not been read, merged. Each end swaps the whole value: neither end ever waits.
    pub unread: AtomicCell<Option<Box<Delta>>>,
    /// The reader subscribed: its id goes to the ready queue.
    pub wanted: AtomicBool,
    /// Nothing is sent before the last delta.
    pub only_end: AtomicBool,
    /// The id is in the ready queue and not yet read.
    pub announced: AtomicBool,
}

impl Mailbox {
    /// Puts the id into the ready queue, if the reader subscribed and the id is not there yet.
    pub fn announce(&self, id: u64, ready: &Sender<u64>, last: bool) {
        if !self.wanted.load(Ordering::SeqCst) {
            return;
        }
        let queued = self.announced.swap(true, Ordering::SeqCst);
        // The end is always announced: a reader that polls at intervals then stops waiting.
        if !queued || last {
            // The receiver lives as long as the engine; without it there is no reader.
            let _ = ready.send(id);
        }
    }
}

/// The engine's end of a request.
pub(crate) struct Outbox {
    id: u64,
    mailbox: Arc<Mailbox>,
    /// Wakes a reader that waits; closes with the outbox.
    bell: Sender<()>,
    ready: Sender<u64>,
    /// Deltas that have not been sent, merged.
    pub pending: Delta,
}

impl Outbox {
    /// The outbox of request `id`, its mailbox, and the reader's end of the bell.
    pub fn new(id: u64, ready: &Sender<u64>) -> (Self, Arc<Mailbox>, Receiver<()>) {
        let mailbox = Arc::new(Mailbox::default());
        let (bell, rings) = crossbeam_channel::bounded(1);
        let outbox =
            Self { id, mailbox: Arc::clone(&mailbox), bell, ready: ready.clone(), pending: Delta::default() };
        (outbox, mailbox, rings)
    }

    /// Sends the pending delta, unless the reader asked for the end only.
    pub fn flush(&mut self) {
        let waits = self.mailbox.only_end.load(Ordering::Relaxed);
        if self.pending.is_empty() || (waits && !self.pending.finished) {
            return;
        }
        let last = self.pending.finished;
        let delta = std::mem::take(&mut self.pending);
        let unread = match self.mailbox.unread.take() {
            Some(mut unread) => {
                unread.merge(delta);
                unread
            }
            None => Box::new(delta),
        };
        self.mailbox.unread.store(Some(unread));
        // A full channel has already woken the reader.
        let _ = self.bell.try_send(());
        self.mailbox.announce(self.id, &self.ready, last);
    }
}
