//! Making packs: the text runs as a prompt, and its blocks are written to files.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use octavo_scheduler::PackTerms;
use serde_json::{Value, json};

use crate::EngineError;
use crate::engine::{Engine, Prompt};
use crate::packs::kv_file::KvFile;
use crate::packs::manifest::{Manifest, PackForm, Source};
use crate::packs::read::{KV, MANIFEST};
use crate::packs::slices::{HeldBlocks, slices};
use crate::params::SamplingParams;

/// How often the text runs again because its blocks left the cache.
const MAX_RUNS: usize = 3;
/// How long a wait for the prompt takes before `go_on` is asked.
const WAIT: Duration = Duration::from_millis(50);

/// What a pack is made of.
pub struct NewPack {
    /// Where the text stands in a prompt.
    pub form: PackForm,
    /// The text.
    pub text: String,
    /// The documents in it.
    pub sources: Vec<Source>,
    /// The tokens that every prompt with the text begins with. Only whole blocks of them are kept.
    pub tokens: Vec<u32>,
    /// The adapter that the text runs with.
    pub lora: Option<String>,
    /// Whether a pack that is in the folder is replaced.
    pub replace: bool,
}

impl Engine {
    /// Writes a pack to the new folder `folder`. It is complete or absent. `go_on`: false gives it up.
    ///
    /// # Errors
    /// `InvalidRequest`: the text has no whole block, or the folder cannot be written. Those of a request with the text.
    pub fn make_pack(
        &self,
        folder: &Path,
        new: NewPack,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Value, EngineError> {
        let (facts, layout) = self.packs.device()?;
        if !self.limits.enable_prefix_caching {
            return Err(EngineError::InvalidRequest(
                "enable_prefix_caching is False: a pack is made from cached blocks. Leave the option out"
                    .into(),
            ));
        }
        let size = self.limits.block_size as usize;
        let mut tokens = new.tokens;
        tokens.truncate(tokens.len() / size * size);
        if tokens.is_empty() {
            return Err(EngineError::InvalidRequest(format!(
                "the text has fewer than {size} tokens: a pack holds whole KV blocks of {size}. Send so short a text as it is"
            )));
        }
        check_target(folder, new.replace)?;
        let adapter = new.lora.as_deref().map(|name| self.named_adapter(name)).transpose()?;
        let digest = adapter.as_ref().map(|adapter| adapter.digest.clone());
        let fingerprint = facts.fingerprint(new.form, &new.text, digest.as_deref())?;
        let held = self.run_text(&tokens, self.pack_terms(adapter.as_ref()), new.lora, go_on)?;
        let mut manifest = Manifest::new(new.form, fingerprint, size as u32, tokens, new.text, new.sources);
        let unwritten = |e: std::io::Error| {
            EngineError::InvalidRequest(format!("cannot write the pack {}: {e}", folder.display()))
        };
        let partial = Partial::new(folder).map_err(unwritten)?;
        let block_bytes = layout.block_bytes();
        let kv = KvFile::new(manifest.blocks, &block_bytes).ok_or_else(|| {
            EngineError::InvalidRequest(format!(
                "a pack of {} blocks is too large for a file",
                manifest.blocks
            ))
        })?;
        let mut file = File::create(partial.path.join(KV)).map_err(unwritten)?;
        let begin = file.write_all(&kv.header).and_then(|()| file.set_len(kv.bytes));
        begin.map_err(unwritten)?;
        let mut hashers = vec![blake3::Hasher::new(); block_bytes.len()];
        for range in slices(manifest.blocks, &block_bytes) {
            if !go_on() {
                return Err(EngineError::closed());
            }
            let layers = self.export_blocks(held.id, range.clone(), block_bytes.len())?;
            for (i, bytes) in layers.iter().enumerate() {
                let whole = bytes.chunks_exact(block_bytes[i].max(1));
                if let Some(at) = whole.into_iter().position(|block| !layout.holds(i, block)) {
                    let block = range.start as usize + at;
                    return Err(EngineError::Execution(format!(
                        "the model computes keys and values that are not finite (layer {i}, block {block}). Its weights may be \
                         damaged, or a value overflowed: try dtype=\"float32\""
                    )));
                }
                hashers[i].update(bytes);
                let at = kv.starts[i] + u64::from(range.start) * block_bytes[i] as u64;
                let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes));
                written.map_err(unwritten)?;
            }
        }
        drop(held);
        file.sync_all().map_err(unwritten)?;
        manifest.layers = hashers.iter().map(|h| h.finalize().to_hex().to_string()).collect();
        manifest.digest = manifest.content_digest();
        let json = serde_json::to_vec(&manifest).map_err(|e| unwritten(e.into()))?;
        std::fs::write(partial.path.join(MANIFEST), json).map_err(unwritten)?;
        partial.rename(folder).map_err(unwritten)?;
        Ok(
            json!({"digest": manifest.digest, "form": manifest.form, "tokens": manifest.tokens.len(), "blocks": manifest.blocks,
                  "bytes": kv.bytes, "sources": manifest.sources, "adapter": digest}),
        )
    }

    /// Runs `tokens` as a prompt, and holds the blocks.
    fn run_text(
        &self,
        tokens: &[u32],
        terms: PackTerms,
        lora: Option<String>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<HeldBlocks<'_>, EngineError> {
        let params =
            SamplingParams { max_tokens: Some(1), temperature: Some(0.0), lora, ..SamplingParams::default() };
        for _ in 0..MAX_RUNS {
            let stream = self.submit(Prompt::Tokens(tokens.to_vec()), &params)?;
            while !stream.is_done() {
                if let Some(delta) = stream.next(WAIT)
                    && let Some(error) = delta.error
                {
                    return Err(error);
                }
                if !go_on() {
                    return Err(EngineError::closed());
                }
            }
            if let Some(held) = self.hold_cached(tokens.to_vec(), terms)? {
                return Ok(held);
            }
        }
        Err(EngineError::InvalidRequest(
            "the blocks of the text left the cache before they were written: give the cache more memory, or make the pack \
             while nothing else runs"
                .into(),
        ))
    }
}

/// Refuses a folder that is not to be replaced.
fn check_target(folder: &Path, replace: bool) -> Result<(), EngineError> {
    let refuse =
        |what: &str| Err(EngineError::InvalidRequest(format!("output {}: {what}", folder.display())));
    match (folder.symlink_metadata().is_ok(), replace) {
        (true, false) => {
            refuse("it exists already. Give another name, or replace it with octavo pack --refresh")
        }
        (true, true) if !folder.join(MANIFEST).is_file() => refuse("it is no pack, and is not replaced"),
        _ if folder.file_name().is_none() => refuse("a path that ends with the name of a folder is expected"),
        _ => Ok(()),
    }
}

/// A folder beside the one to be written; removed unless it is renamed.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn new(folder: &Path) -> std::io::Result<Self> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent)?;
        let path = parent.join(format!(".{name}.{}.partial", std::process::id()));
        // What an interrupted process of the same id left.
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Puts the files in place of what is there.
    fn rename(self, folder: &Path) -> std::io::Result<()> {
        let before = self.path.with_extension("before");
        let replaces = folder.symlink_metadata().is_ok();
        if replaces {
            std::fs::rename(folder, &before)?;
        }
        std::fs::rename(&self.path, folder)?;
        if replaces {
            std::fs::remove_dir_all(&before)?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
