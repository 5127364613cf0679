//! Packs that were made with an adapter: only requests with the same one begin with their blocks.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use octavo_scheduler::PackTerms;

use crate::EngineError;
use crate::PackedAdapter;
use crate::engine::{Engine, Prompt};
use crate::packs::manifest::Manifest;
use crate::packs::read::MANIFEST;
use crate::packs::registry::LoadedPack;
use crate::params::SamplingParams;

/// How often the adapter of a pack is brought into memory before the load is given up.
const MAX_RUNS: usize = 3;
/// How long one wait for the adapter takes.
const WAIT: Duration = Duration::from_millis(50);

/// A loaded adapter.
pub(crate) struct NamedAdapter {
    pub name: String,
    pub id: u32,
    pub digest: String,
}

impl Engine {
    /// The adapter of this name.
    pub(crate) fn named_adapter(&self, name: &str) -> Result<NamedAdapter, EngineError> {
        let (id, digest) = self.adapters.content(name)?;
        Ok(NamedAdapter { name: name.into(), id, digest })
    }

    /// The loaded adapter that a pack was made with; None: it was made without one.
    pub(crate) fn adapter_of_pack(
        &self,
        folder: &Path,
        manifest: &Manifest,
    ) -> Result<Option<NamedAdapter>, EngineError> {
        let digest = manifest.fingerprint.get("adapter").and_then(|value| value.as_str());
        let Some(digest) = digest.filter(|digest| *digest != "none") else { return Ok(None) };
        match self.adapters.name_of(digest) {
            Some(name) => self.named_adapter(&name).map(Some),
            None => Err(EngineError::PackMismatch(format!(
                "{}: adapter is {digest:?}, and no loaded adapter has this digest: load_adapter it before the pack",
                folder.join(MANIFEST).display()
            ))),
        }
    }

    /// How the keys and values of packs with this adapter are computed.
    pub(crate) fn pack_terms(&self, adapter: Option<&NamedAdapter>) -> PackTerms {
        let adapter = adapter.map_or(PackTerms::default().adapter, |adapter| adapter.id);
        PackTerms { adapter, attention: self.attention }
    }

    /// The adapter in memory: a request of one token brings it there.
    pub(crate) fn packed_adapter(
        &self,
        adapter: &NamedAdapter,
        tokens: &[u32],
    ) -> Result<PackedAdapter, EngineError> {
        let params = SamplingParams {
            max_tokens: Some(1),
            temperature: Some(0.0),
            lora: Some(adapter.name.clone()),
            ..SamplingParams::default()
        };
        for _ in 0..MAX_RUNS {
            let id = self.next_id.fetch_add(1, Ordering::SeqCst);
            let claim = self.adapters.claim(&adapter.name, params.priority, id)?;
            if let Some(packed) = claim.packed().filter(|_| claim.id == adapter.id) {
                return Ok(packed.clone());
            }
            drop(claim);
            let stream = self.submit(Prompt::Tokens(tokens[..1].to_vec()), &params)?;
            while !stream.is_done() {
                if let Some(error) = stream.next(WAIT).and_then(|delta| delta.error) {
                    return Err(error);
                }
            }
        }
        Err(EngineError::InvalidRequest(format!(
            "adapter {:?} of the pack does not stay in memory: raise max_lora_memory, or load the pack while fewer adapters run",
            adapter.name
        )))
    }

    /// Refuses an adapter other than the pack's.
    pub(crate) fn check_pack_adapter(
        &self,
        pack: &LoadedPack,
        lora: Option<&str>,
    ) -> Result<(), EngineError> {
        let found = lora.map(|name| self.named_adapter(name)).transpose()?;
        if found.as_ref().map(|adapter| &adapter.digest) == pack.adapter.as_ref() {
            return Ok(());
        }
        let made = match &pack.adapter {
            Some(digest) => format!("with the adapter {digest}"),
            None => "without an adapter".into(),
        };
        let asked = match &found {
            Some(adapter) => format!("lora is {:?} ({})", adapter.name, adapter.digest),
            None => "the request has no lora".into(),
        };
        Err(EngineError::InvalidRequest(format!(
            "pack {:?} was made {made}, and {asked}: keys and values differ. Use the adapter of the pack, or make a pack with \
             this one",
            pack.name
        )))
    }
}
