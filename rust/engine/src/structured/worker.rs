//! Threads that compute masks while the model's step runs.

use crossbeam_channel::{Receiver, Sender};
use llguidance::Matcher;

/// Threads for masks: a mask takes some tens of microseconds, a step of the model much longer.
const THREADS: usize = 2;

/// A bit per token: those that may come next.
pub(crate) type Mask = Vec<u32>;

/// A matcher on its way to a mask.
pub(super) struct Job {
    pub matcher: Box<Matcher>,
    pub done: Sender<Done>,
}

/// A matcher that comes back, with its mask or why there is none.
pub(super) struct Done {
    pub matcher: Box<Matcher>,
    pub mask: Result<Mask, String>,
}

/// Starts the threads; they end when every sender is gone.
pub(super) fn start() -> std::io::Result<Sender<Job>> {
    let (jobs, inbox): (Sender<Job>, Receiver<Job>) = crossbeam_channel::unbounded();
    for i in 0..THREADS {
        let inbox = inbox.clone();
        std::thread::Builder::new().name(format!("octavo-mask-{i}")).spawn(move || {
            for Job { mut matcher, done } in inbox {
                let mask = mask(&mut matcher);
                // The request may have ended meanwhile.
                let _ = done.send(Done { matcher, mask });
            }
        })?;
    }
    Ok(jobs)
}

/// The tokens that may come next; only those that end the output if nothing else may.
pub(super) fn mask(matcher: &mut Matcher) -> Result<Mask, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string().lines().next().unwrap_or_default().to_string();
    let mut found = matcher.compute_mask_or_eos().map_err(|e| text(&e))?;
    if found.is_zero() && matcher.is_stopped() {
        found = matcher.compute_mask_or_eos().map_err(|e| text(&e))?;
    }
    Ok(found.as_slice().to_vec())
}
