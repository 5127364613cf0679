//! The loader thread: packs adapters that requests wait for, and drops those that none needs.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use octavo_scheduler::Grant;

use crate::EngineError;
use crate::adapters::backend::{AdapterBackend, AdapterInfo, PackedAdapter};
use crate::adapters::claim::AdapterJob;
use crate::adapters::loader_command::LoaderCommand;
use crate::adapters::state::{SharedState, lock};
use crate::command::Command;
use crate::error::panic_text;

/// What the loader thread owns.
pub(super) struct AdapterLoader {
    pub backend: Arc<dyn AdapterBackend>,
    pub state: SharedState,
    pub inbox: Receiver<LoaderCommand>,
    /// Its own inbox, for pins.
    pub loader: Sender<LoaderCommand>,
    pub engine: Sender<Command>,
}

impl AdapterLoader {
    /// Runs until the engine is closed.
    pub fn run(self) {
        while let Ok(command) = self.inbox.recv() {
            if !self.apply(command) || !self.inbox.try_iter().all(|command| self.apply(command)) {
                return;
            }
            while self.work() {}
        }
    }

    /// `false`: the thread ends.
    fn apply(&self, command: LoaderCommand) -> bool {
        match command {
            LoaderCommand::Look => {}
            LoaderCommand::Unpin(id) => {
                let mut state = lock(&self.state);
                state.pool.unpin(id);
                let dropped = state.drop_nameless(id);
                drop(state);
                drop(dropped);
            }
            LoaderCommand::Forget(key) => {
                let mut state = lock(&self.state);
                state.pool.forget(key);
                let job = state.jobs.remove(&key);
                let dropped = job.and_then(|job| state.drop_nameless(job.id));
                drop(state);
                drop(dropped);
            }
            LoaderCommand::Close => return false,
        }
        true
    }

    /// Does the next thing that the pool allows. `false`: there is none.
    fn work(&self) -> bool {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        match state.pool.next_grant() {
            None => false,
            Some(Grant::Ready { request, key, id }) => {
                state.jobs.remove(&key);
                let packed = state.packed.get(&id).map(Arc::clone);
                drop(guard);
                if let Some(packed) = packed {
                    let adapter = PackedAdapter::new(id, packed, self.loader.clone());
                    // An error means that the engine thread has ended: the pin ends with the command.
                    let _ = self.engine.send(Command::AdapterReady { request, adapter });
                }
                true
            }
            Some(Grant::Pack { id, key, evict }) => {
                let evicted: Vec<_> = evict.iter().map(|id| state.packed.remove(id)).collect();
                let jobs = state.jobs.values().filter(|job| job.id == id);
                let mut jobs: Vec<AdapterJob> = jobs.cloned().collect();
                drop(guard);
                drop(evicted);
                jobs.sort_by_key(|job| job.key != key);
                let made = self.pack_one_of(&jobs);
                self.finish(id, made);
                true
            }
        }
    }

    /// Packs from the files of the first job whose files can be read: names of one content may have folders of their own.
    fn pack_one_of(&self, jobs: &[AdapterJob]) -> Result<Arc<dyn Any + Send + Sync>, EngineError> {
        let mut tried: Vec<&AdapterInfo> = Vec::new();
        let mut made = Err(EngineError::Execution("the requests of the adapter are gone".into()));
        for job in jobs {
            if made.is_err() && !tried.contains(&&*job.info) {
                let next = self.pack(&job.name, &job.info);
                // The first error is that of the oldest request.
                made = if tried.is_empty() { next } else { next.or(made) };
                tried.push(&job.info);
            }
        }
        made
    }

    /// The backend's work; a panic there is an error of the adapter.
    fn pack(&self, name: &str, info: &AdapterInfo) -> Result<Arc<dyn Any + Send + Sync>, EngineError> {
        catch_unwind(AssertUnwindSafe(|| self.backend.pack(info))).unwrap_or_else(|panic| {
            Err(EngineError::Execution(format!("adapter {name:?}: internal fault: {}", panic_text(panic))))
        })
    }

    /// Enters a packed adapter, or fails the requests that wait for it.
    fn finish(&self, id: u32, made: Result<Arc<dyn Any + Send + Sync>, EngineError>) {
        let mut state = lock(&self.state);
        match made {
            Ok(packed) => {
                state.packed.insert(id, packed);
                state.pool.packed(id);
            }
            Err(error) => {
                let failed = state.pool.failed(id);
                failed.iter().for_each(|key| drop(state.jobs.remove(key)));
                drop(state);
                for (_, request) in failed {
                    let _ = self.engine.send(Command::AdapterFailed { request, error: error.clone() });
                }
                return;
            }
        }
        // All requests may have ended meanwhile, and the name may be gone.
        let dropped = state.drop_nameless(id);
        drop(state);
        drop(dropped);
    }
}
