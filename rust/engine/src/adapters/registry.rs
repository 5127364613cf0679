//! `Adapters`: what callers of the engine do with adapters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use octavo_scheduler::{AdapterNames, AdapterPool, NameError};
use serde::Serialize;

use crate::EngineError;
use crate::adapters::backend::{AdapterBackend, AdapterInfo, PackedAdapter};
use crate::adapters::claim::{AdapterClaim, AdapterJob};
use crate::adapters::loader::AdapterLoader;
use crate::adapters::loader_command::LoaderCommand;
use crate::adapters::state::{AdapterState, SharedState, lock};
use crate::adapters::usage::{AdapterStats, Usages};
use crate::command::Command;

/// Limits of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdapterLimits {
    /// Bytes of packed adapters.
    pub max_memory: u64,
    /// Largest rank.
    pub max_rank: u32,
    /// Distinct adapters that run at once.
    pub max_adapters: u32,
}

/// An adapter that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoadedAdapter {
    /// Its name.
    pub name: String,
    /// Counts the contents that the name has had, from 1 on.
    pub generation: u64,
    /// SHA-256 of its content.
    pub digest: String,
    /// The largest rank of its projections.
    pub rank: usize,
    /// Memory that it takes while requests use it.
    pub bytes: u64,
    /// The projections that it changes.
    pub modules: Vec<String>,
    /// Sentences about its files.
    pub warnings: Vec<String>,
}

/// Adapters of one engine.
pub(crate) struct Adapters {
    /// None: the device takes no adapters.
    backend: Option<Arc<dyn AdapterBackend>>,
    limits: AdapterLimits,
    state: SharedState,
    loader: Sender<LoaderCommand>,
    /// The inbox of the loader thread, before the first adapter is loaded; then the thread.
    thread: Mutex<LoaderThread>,
    engine: Sender<Command>,
}

enum LoaderThread {
    NotStarted(Receiver<LoaderCommand>),
    Running(JoinHandle<()>),
    Ended,
}

impl Adapters {
    pub fn new(
        backend: Option<Arc<dyn AdapterBackend>>,
        limits: AdapterLimits,
        engine: Sender<Command>,
    ) -> Self {
        let (loader, inbox) = crossbeam_channel::unbounded();
        let state = AdapterState {
            names: AdapterNames::default(),
            infos: BTreeMap::new(),
            usages: Usages::default(),
            pool: AdapterPool::new(limits.max_memory),
            packed: BTreeMap::new(),
            jobs: BTreeMap::new(),
        };
        Self {
            backend,
            limits,
            state: Arc::new(Mutex::new(state)),
            loader,
            thread: Mutex::new(LoaderThread::NotStarted(inbox)),
            engine,
        }
    }

    /// Gives the adapter of `folder` the name. Its files are checked here, without any lock.
    ///
    /// # Errors
    /// Those of the backend, `InvalidRequest` for a name or a limit, `AdapterConflict` for another generation.
    pub fn load(
        &self,
        name: &str,
        folder: &Path,
        expected: Option<u64>,
    ) -> Result<LoadedAdapter, EngineError> {
        AdapterNames::check(name).map_err(refused)?;
        let backend = self.backend.as_ref().ok_or_else(no_adapters)?;
        let info = Arc::new(backend.open(folder)?);
        self.check_limits(&info)?;
        self.start_loader(backend)?;
        let mut state = lock(&self.state);
        let loaded = state.names.load(name, &info.digest, expected).map_err(refused)?;
        state.infos.insert(name.into(), Arc::clone(&info));
        let dropped = loaded.replaced.and_then(|old| state.drop_nameless(old));
        drop(state);
        drop(dropped);
        Ok(described(name, loaded.generation, &info))
    }

    /// Removes a name. Requests with it go on; its memory goes with the last one.
    ///
    /// # Errors
    /// `AdapterNotFound`.
    pub fn unload(&self, name: &str) -> Result<(), EngineError> {
        let mut state = lock(&self.state);
        let id = state.names.unload(name).map_err(refused)?;
        state.infos.remove(name);
        let dropped = state.drop_nameless(id);
        drop(state);
        drop(dropped);
        Ok(())
    }

    /// All adapters that have a name, in the order of their names.
    pub fn list(&self) -> Vec<LoadedAdapter> {
        let state = lock(&self.state);
        let of = |n: octavo_scheduler::AdapterName| {
            Some(described(&n.name, n.generation, state.infos.get(&n.name)?))
        };
        state.names.iter().filter_map(of).collect()
    }

    /// Checks that `name` is loaded.
    ///
    /// # Errors
    /// `AdapterNotFound`, `InvalidRequest`.
    pub fn check(&self, name: &str) -> Result<(), EngineError> {
        if self.backend.is_none() {
            return Err(no_adapters());
        }
        lock(&self.state).names.resolve(name).map(drop).map_err(refused)
    }

    /// Id and digest of the adapter of this name.
    ///
    /// # Errors
    /// As `check`.
    pub fn content(&self, name: &str) -> Result<(u32, String), EngineError> {
        self.check(name)?;
        let state = lock(&self.state);
        let found = state.names.resolve(name).map_err(refused)?;
        let info = state.infos.get(&found.name).ok_or_else(no_adapters)?;
        Ok((found.id, info.digest.clone()))
    }

    /// A name of the adapter with this digest, if one is loaded.
    pub fn name_of(&self, digest: &str) -> Option<String> {
        self.list().into_iter().find(|adapter| adapter.digest == digest).map(|adapter| adapter.name)
    }

    /// The adapter of a new request, pinned if it is in memory. If it is not, `enqueue` is to be called once the engine
    /// thread has the request.
    ///
    /// # Errors
    /// As `check`.
    pub fn claim(&self, name: &str, priority: i32, request: u64) -> Result<AdapterClaim, EngineError> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let found = state.names.resolve(name).map_err(refused)?;
        let info = state.infos.get(&found.name).cloned().ok_or_else(no_adapters)?;
        let key = (priority, request);
        let counted = state.usages.count(&found.name);
        let packed = match state.packed.get(&found.id) {
            Some(packed) if state.pool.try_pin(key, found.id) => {
                Some(PackedAdapter::new(found.id, Arc::clone(packed), self.loader.clone()))
            }
            _ => None,
        };
        let job = AdapterJob { key, id: found.id, name: found.name, info };
        Ok(AdapterClaim::new(job, packed, counted, self.loader.clone()))
    }

    /// Puts a held request into the queue of the loader thread: `AdapterClaim::job`.
    pub fn enqueue(&self, job: AdapterJob) {
        let mut state = lock(&self.state);
        state.pool.wait(job.key, job.id, job.info.packed_bytes);
        state.jobs.insert(job.key, job);
        drop(state);
        let _ = self.loader.send(LoaderCommand::Look);
    }

    /// Names in use, and memory.
    pub fn stats(&self) -> AdapterStats {
        let state = lock(&self.state);
        let (running, waiting) = state.usages.names();
        AdapterStats {
            running,
            waiting,
            max: self.limits.max_adapters,
            registered: state.names.iter().count(),
            resident: state.packed.len(),
            resident_bytes: state.pool.bytes(),
        }
    }

    /// Ends the loader thread and frees the packed adapters. Called once the engine thread has ended.
    pub fn close(&self) {
        let thread = std::mem::replace(&mut *self.thread(), LoaderThread::Ended);
        if let LoaderThread::Running(thread) = thread {
            let _ = self.loader.send(LoaderCommand::Close);
            let _ = thread.join();
        }
        let packed = std::mem::take(&mut lock(&self.state).packed);
        drop(packed);
    }

    /// Forgets the loader thread: it is another process's.
    pub fn forget_thread(&self) {
        std::mem::forget(std::mem::replace(&mut *self.thread(), LoaderThread::Ended));
    }

    fn thread(&self) -> MutexGuard<'_, LoaderThread> {
        self.thread.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn start_loader(&self, backend: &Arc<dyn AdapterBackend>) -> Result<(), EngineError> {
        let mut thread = self.thread();
        match std::mem::replace(&mut *thread, LoaderThread::Ended) {
            LoaderThread::NotStarted(inbox) => {
                let loader = AdapterLoader {
                    backend: Arc::clone(backend),
                    state: Arc::clone(&self.state),
                    inbox: inbox.clone(),
                    loader: self.loader.clone(),
                    engine: self.engine.clone(),
                };
                let started = std::thread::Builder::new().name("octavo-adapters".into());
                match started.spawn(move || loader.run()) {
                    Ok(handle) => *thread = LoaderThread::Running(handle),
                    Err(e) => {
                        *thread = LoaderThread::NotStarted(inbox);
                        return Err(EngineError::Execution(format!("the loader thread did not start: {e}")));
                    }
                }
                Ok(())
            }
            LoaderThread::Ended => Err(EngineError::closed()),
            running => {
                *thread = running;
                Ok(())
            }
        }
    }

    fn check_limits(&self, info: &AdapterInfo) -> Result<(), EngineError> {
        let (limits, folder) = (self.limits, info.folder.display());
        if info.rank > limits.max_rank as usize {
            return Err(EngineError::InvalidRequest(format!(
                "the adapter in {folder} has rank {} and max_lora_rank is {}: raise max_lora_rank",
                info.rank, limits.max_rank
            )));
        }
        if info.packed_bytes > limits.max_memory {
            return Err(EngineError::InvalidRequest(format!(
                "the adapter in {folder} takes {} bytes and max_lora_memory is {}: raise max_lora_memory",
                info.packed_bytes, limits.max_memory
            )));
        }
        Ok(())
    }
}

fn described(name: &str, generation: u64, info: &AdapterInfo) -> LoadedAdapter {
    LoadedAdapter {
        name: name.into(),
        generation,
        digest: info.digest.clone(),
        rank: info.rank,
        bytes: info.packed_bytes,
        modules: info.modules.clone(),
        warnings: info.warnings.clone(),
    }
}

fn no_adapters() -> EngineError {
    EngineError::UnsupportedModel(
        "this device takes no adapters: use device=\"cpu\", or merge the adapter into the model (octavo merge)".into(),
    )
}

fn refused(error: NameError) -> EngineError {
    let text = error.to_string();
    match error {
        NameError::Bad { .. } => EngineError::InvalidRequest(text),
        NameError::NotFound { .. } | NameError::OtherGeneration { .. } => EngineError::AdapterNotFound(text),
        NameError::Conflict { .. } => EngineError::AdapterConflict(text),
    }
}
