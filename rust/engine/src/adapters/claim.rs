//! A request's part in an adapter.

use std::sync::Arc;

use crossbeam_channel::Sender;
use octavo_scheduler::PoolKey;

use crate::adapters::backend::{AdapterInfo, PackedAdapter};
use crate::adapters::loader_command::LoaderCommand;
use crate::adapters::usage::Counted;

/// What a request that is not served yet needs.
#[derive(Clone, Debug)]
pub(crate) struct AdapterJob {
    pub key: PoolKey,
    pub id: u32,
    pub name: String,
    pub info: Arc<AdapterInfo>,
}

/// The adapter of a request, resolved once at its submission. Dropped with the request: its pin ends, or its wait.
pub(crate) struct AdapterClaim {
    /// Names the content.
    pub id: u32,
    /// None: the request is held until the loader thread sends it.
    packed: Option<PackedAdapter>,
    job: AdapterJob,
    counted: Counted,
    loader: Sender<LoaderCommand>,
}

impl AdapterClaim {
    pub(super) fn new(
        job: AdapterJob,
        packed: Option<PackedAdapter>,
        counted: Counted,
        loader: Sender<LoaderCommand>,
    ) -> Self {
        Self { id: job.id, packed, job, counted, loader }
    }

    /// Whether the adapter is still to be packed.
    pub fn is_held(&self) -> bool {
        self.packed.is_none()
    }

    /// What the loader thread is to do for the request, if it is held.
    pub fn job(&self) -> Option<AdapterJob> {
        self.is_held().then(|| self.job.clone())
    }

    /// The adapter has come.
    pub fn take(&mut self, packed: PackedAdapter) {
        self.packed = Some(packed);
    }

    /// The request runs from now on.
    pub fn start(&mut self) {
        self.counted.start();
    }

    /// The adapter in memory; None while the request is held.
    pub fn packed(&self) -> Option<&PackedAdapter> {
        self.packed.as_ref()
    }
}

impl Drop for AdapterClaim {
    fn drop(&mut self) {
        if self.is_held() {
            // An error means that the loader thread has ended, and with it the queue.
            let _ = self.loader.send(LoaderCommand::Forget(self.job.key));
        }
    }
}
