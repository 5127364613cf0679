//! Loading and unloading packs, and the packs of a request.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::Arc;

use crate::EngineError;
use crate::engine::Engine;
use crate::packs::fingerprint::compare;
use crate::packs::manifest::{Manifest, PackForm};
use crate::packs::read::{BlocksFile, KV, MANIFEST, read_manifest};
use crate::packs::registry::{LoadedPack, check_name};
use crate::packs::slices::Layers;
use crate::params::SamplingParams;

impl Engine {
    /// Loads the pack in `folder` under a name. A pack that has the name is replaced: requests that run with it go on.
    ///
    /// `check`: the block that is computed again and compared; None: one at random.
    ///
    /// # Errors
    /// `ModelNotFound`, `CorruptModel`, `PackMismatch`: the files. `InvalidRequest`: the name, or no room in the cache.
    /// Nothing has changed then.
    pub fn load_pack(
        &self,
        name: &str,
        folder: &Path,
        check: Option<u32>,
    ) -> Result<LoadedPack, EngineError> {
        self.check_process()?;
        self.status.check_open()?;
        check_name(name)?;
        let (facts, layout) = self.packs.device()?;
        let manifest = read_manifest(folder)?;
        self.check_manifest(folder, &manifest)?;
        let adapter = self.adapter_of_pack(folder, &manifest)?;
        let digest = adapter.as_ref().map(|adapter| adapter.digest.as_str());
        compare(folder, &manifest.fingerprint, &facts.fingerprint(manifest.form, &manifest.text, digest)?)?;
        let file = BlocksFile::open(folder, &manifest, layout)?;
        let terms = self.pack_terms(adapter.as_ref());
        let held = self.hold_blocks(manifest.tokens.clone())?;
        // Nothing reads the blocks before the pack is finished, and they are given back if a digest does not fit.
        file.read(&|chunk| self.import_blocks(held.id, chunk))?;
        let block_bytes = layout.block_bytes();
        let block = check.unwrap_or_else(|| pick(RandomState::new().hash_one(name), manifest.blocks));
        let block = block % manifest.blocks;
        let packed =
            adapter.as_ref().map(|adapter| self.packed_adapter(adapter, &manifest.tokens)).transpose()?;
        let (held_bytes, computed) =
            self.recompute_block(held.id, block, terms, packed, block_bytes.len())?;
        verify(folder, block, &held_bytes, &computed)?;
        self.finish_pack(held.id)?;
        let pack = Arc::new(LoadedPack {
            name: name.into(),
            digest: manifest.digest.clone(),
            form: manifest.form,
            tokens: manifest.tokens.len() as u32,
            bytes: u64::from(manifest.blocks) * block_bytes.iter().sum::<usize>() as u64,
            blocks: manifest.blocks,
            adapter: digest.map(Into::into),
            sources: manifest.sources,
            text: manifest.text,
            ids: manifest.tokens.into(),
            id: held.id,
        });
        held.keep();
        if let Some(before) = self.packs.insert(Arc::clone(&pack)) {
            self.release_pack(&before)?;
        }
        Ok(LoadedPack::clone(&pack))
    }

    /// Unloads a pack. Requests that run with it go on.
    ///
    /// # Errors
    /// `PackNotFound`.
    pub fn unload_pack(&self, name: &str) -> Result<(), EngineError> {
        self.check_process()?;
        let pack = self.packs.remove(name)?;
        self.release_pack(&pack)
    }

    /// The loaded packs, sorted by name.
    pub fn packs(&self) -> Vec<LoadedPack> {
        self.packs.all().iter().map(|pack| LoadedPack::clone(pack)).collect()
    }

    /// The form and the text of a loaded pack.
    ///
    /// # Errors
    /// `PackNotFound`.
    pub fn pack_text(&self, name: &str) -> Result<(PackForm, String), EngineError> {
        let pack = self.packs.get(name)?;
        Ok((pack.form, pack.text.clone()))
    }

    fn release_pack(&self, pack: &LoadedPack) -> Result<(), EngineError> {
        let id = pack.id;
        self.between_steps(move |between| {
            between.scheduler.release_pack(id);
            Ok(())
        })
    }

    /// Checks what needs the engine's limits.
    fn check_manifest(&self, folder: &Path, manifest: &Manifest) -> Result<(), EngineError> {
        let path = folder.join(MANIFEST);
        let (size, vocab) = (self.limits.block_size, self.vocab);
        if manifest.block_size != size {
            return Err(EngineError::PackMismatch(format!(
                "{}: block_size is {}, this engine has {size}. Make it again: octavo pack --refresh",
                path.display(),
                manifest.block_size
            )));
        }
        if let Some(id) = manifest.tokens.iter().find(|id| **id as usize >= vocab) {
            return Err(EngineError::PackMismatch(format!(
                "{}: tokens: {id}, the model has ids below {vocab}. Make it again: octavo pack --refresh",
                path.display()
            )));
        }
        if manifest.tokens.len() as u32 >= self.limits.max_model_len {
            return Err(EngineError::ContextLength(format!(
                "{}: {} tokens, and max_model_len is {}: raise it, or make a shorter pack",
                path.display(),
                manifest.tokens.len(),
                self.limits.max_model_len
            )));
        }
        Ok(())
    }

    /// Checks the packs of a request; the id of the one whose blocks it begins with.
    pub(crate) fn check_packs(
        &self,
        prompt: &[u32],
        params: &SamplingParams,
    ) -> Result<Option<u32>, EngineError> {
        let packs = params.pack.iter().map(|name| self.packs.get(name)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = packs.first() else { return Ok(None) };
        let name = &first.name;
        if let Some(other) = packs.iter().find(|pack| pack.form != first.form) {
            return Err(EngineError::InvalidRequest(format!(
                "pack {name:?} has the form {} and {:?} the form {}: packs of one request have one form",
                first.form.name(),
                other.name,
                other.form.name()
            )));
        }
        params.check_pack_attention(self.attention, name)?;
        self.check_pack_adapter(first, params.lora.as_deref())?;
        if !prompt.starts_with(&first.ids) {
            let same = prompt.iter().zip(&*first.ids).take_while(|(a, b)| a == b).count();
            let remedy = match first.form {
                PackForm::Chat => {
                    "It was made for chats: use chat, and let the template put nothing else in front of the system message \
                     (a date, tools). Or make it with form \"text\" for plain prompts"
                }
                PackForm::Text => {
                    "It was made for plain prompts: use generate. Or make it with form \"chat\" for chats"
                }
            };
            return Err(EngineError::InvalidRequest(format!(
                "the prompt does not begin with the text of pack {name:?}: token {same} of {} differs. {remedy}",
                first.ids.len()
            )));
        }
        Ok(Some(first.id))
    }
}

/// A block to compute again: any of them, the early ones more often. The time that a block takes grows with those before it.
fn pick(random: u64, blocks: u32) -> u32 {
    // Uniform in 0 .. 1, then uniform in the logarithm of the position.
    let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
    (f64::from(blocks + 1).powf(uniform) as u32 - 1).min(blocks - 1)
}

/// Compares a block that was computed again with that of the files, bit for bit.
fn verify(folder: &Path, block: u32, held: &Layers, computed: &Layers) -> Result<(), EngineError> {
    match held.iter().zip(computed).position(|(held, computed)| held != computed) {
        Some(layer) => Err(EngineError::PackMismatch(format!(
            "{}: layers.{layer}: block {block} has other keys and values than this engine computes for the same tokens. Make \
             the pack again: octavo pack --refresh",
            folder.join(KV).display()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_can_be_picked() {
        for blocks in [1, 2, 7, 300] {
            let steps = 1_u64 << 14;
            let mut counts = vec![0_u32; blocks as usize];
            for step in 0..steps {
                counts[pick(step * (u64::MAX / steps), blocks) as usize] += 1;
            }
            assert!(counts.iter().all(|&count| count > 0), "{blocks}: {counts:?}");
            assert!(counts.is_sorted_by(|a, b| *a + 1 >= *b), "{blocks}: {counts:?}");
            assert_eq!(pick(u64::MAX, blocks), blocks - 1);
        }
    }
}
