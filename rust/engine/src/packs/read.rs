//! The files of a pack, read and checked.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavo_model::BlockLayout;
use serde_json::{Value, json};

use crate::EngineError;
use crate::packs::kv_file::KvFile;
use crate::packs::manifest::{MAX_MANIFEST_BYTES, Manifest};

/// Most threads that read and hash layers.
const MAX_THREADS: usize = 8;

pub(crate) const MANIFEST: &str = "pack.json";
pub(crate) const KV: &str = "kv.safetensors";

/// A file of the pack in `folder`, opened, and its size. Links and devices are refused.
fn open_regular(folder: &Path, name: &str) -> Result<(File, u64), EngineError> {
    let path = folder.join(name);
    let missing = |e: std::io::Error| {
        EngineError::ModelNotFound(format!(
            "{}: {e}. A pack is a folder with {MANIFEST} and {KV}, made by octavo pack",
            path.display()
        ))
    };
    // Not opened before this: a pipe would wait for a writer.
    let kind = std::fs::symlink_metadata(&path).map_err(missing)?.file_type();
    if !kind.is_file() {
        return Err(EngineError::CorruptModel(format!(
            "{}: a regular file is expected, no link and no device. Copy the file into the folder",
            path.display()
        )));
    }
    let file = File::open(&path).map_err(missing)?;
    let size = file.metadata().map_err(missing)?.len();
    Ok((file, size))
}

/// Reads pack.json of the pack in `folder`.
///
/// # Errors
/// `ModelNotFound`, `CorruptModel` with the file and the field.
pub(crate) fn read_manifest(folder: &Path) -> Result<Manifest, EngineError> {
    let (file, size) = open_regular(folder, MANIFEST)?;
    let path = folder.join(MANIFEST);
    if size > MAX_MANIFEST_BYTES {
        return Err(EngineError::CorruptModel(format!(
            "{}: {size} bytes, at most {MAX_MANIFEST_BYTES} are read",
            path.display()
        )));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // One byte more than the limit shows a file that grows meanwhile.
    let read = file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| EngineError::CorruptModel(format!("{}: {e}", path.display())))?;
    Manifest::parse(&path, &bytes)
}

/// What pack.json of the pack in `folder` says. Needs no model.
///
/// # Errors
/// `ModelNotFound`, `CorruptModel` with the file and the field.
pub fn describe_pack(folder: &Path) -> Result<Value, EngineError> {
    let manifest = read_manifest(folder)?;
    let (_, bytes) = open_regular(folder, KV)?;
    Ok(json!({
        "digest": manifest.digest, "form": manifest.form, "made_by": manifest.made_by, "tokens": manifest.tokens.len(),
        "blocks": manifest.blocks, "bytes": bytes, "layers": manifest.layers.len(), "sources": manifest.sources,
        "fingerprint": manifest.fingerprint, "text": manifest.text,
    }))
}

/// Bytes of one layer that are read, hashed and handed on at once: they stay in a cache meanwhile.
const CHUNK_BYTES: usize = 1 << 20;

/// The file with the blocks of a pack, after its size and its header are checked.
pub(crate) struct BlocksFile<'a> {
    path: PathBuf,
    manifest: &'a Manifest,
    layout: &'a BlockLayout,
    file: KvFile,
}

/// Some blocks of one layer.
pub(crate) struct BlocksChunk {
    pub layer: usize,
    pub blocks: Range<u32>,
    /// Their bytes, one block after the other.
    pub bytes: Vec<u8>,
}

/// Takes a chunk, and gives its memory back.
pub(crate) type Sink<'a> = &'a (dyn Fn(BlocksChunk) -> Result<Vec<u8>, EngineError> + Sync);

impl<'a> BlocksFile<'a> {
    /// Opens the file of the pack in `folder`, and checks size and header.
    ///
    /// # Errors
    /// `ModelNotFound`, `CorruptModel` with the file and the field.
    pub fn open(folder: &Path, manifest: &'a Manifest, layout: &'a BlockLayout) -> Result<Self, EngineError> {
        let path = folder.join(KV);
        let corrupt = |what: String| EngineError::CorruptModel(format!("{}: {what}", path.display()));
        let block_bytes = layout.block_bytes();
        if manifest.layers.len() != block_bytes.len() {
            let (found, expected) = (manifest.layers.len(), block_bytes.len());
            let what = format!("{}: layers: {found} digests, the model has {expected} layers", MANIFEST);
            return Err(EngineError::CorruptModel(format!("{}: {what}", folder.display())));
        }
        let expected = KvFile::new(manifest.blocks, &block_bytes);
        let expected = expected.ok_or_else(|| corrupt(format!("{} blocks: too many", manifest.blocks)))?;
        let (mut file, size) = open_regular(folder, KV)?;
        if size != expected.bytes {
            return Err(corrupt(format!(
                "size: {size} bytes, {} blocks take {}",
                manifest.blocks, expected.bytes
            )));
        }
        let mut header = vec![0; expected.header.len()];
        file.read_exact(&mut header).map_err(|e| corrupt(format!("header: {e}")))?;
        if header != expected.header {
            return Err(corrupt("header: not that of a pack of this size for this model".into()));
        }
        Ok(Self { path, manifest, layout, file: expected })
    }

    /// Reads all layers on several threads, checks digests and numbers, and hands the blocks to `sink` as it goes. They may
    /// be used only after this has returned: a digest is that of a whole layer.
    ///
    /// # Errors
    /// `CorruptModel` with the file and the field: that of the first layer with a fault. Those of `sink`.
    pub fn read(&self, sink: Sink<'_>) -> Result<(), EngineError> {
        let count = self.file.starts.len();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(count);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None::<(usize, EngineError)>));
        let work = || {
            let mut memory = Vec::new();
            loop {
                let layer = next.fetch_add(1, Ordering::Relaxed);
                if layer >= count {
                    return;
                }
                if let Err(error) = self.read_layer(layer, &mut memory, sink) {
                    // Layers before this one are being read: theirs is the error if they have one.
                    next.store(count, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(|e| e.into_inner());
                    if failed.as_ref().is_none_or(|(before, _)| layer < *before) {
                        *failed = Some((layer, error));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// `memory` is reused from chunk to chunk.
    fn read_layer(&self, layer: usize, memory: &mut Vec<u8>, sink: Sink<'_>) -> Result<(), EngineError> {
        let corrupt = |what: String| {
            EngineError::CorruptModel(format!("{}: layers.{layer}: {what}", self.path.display()))
        };
        let (each, blocks) = (self.file.block_bytes[layer], self.manifest.blocks);
        let at_once = (CHUNK_BYTES / each.max(1)).max(1) as u32;
        let mut file = File::open(&self.path).map_err(|e| corrupt(e.to_string()))?;
        file.seek(SeekFrom::Start(self.file.starts[layer])).map_err(|e| corrupt(e.to_string()))?;
        let (mut hasher, mut bad) = (blake3::Hasher::new(), None);
        for start in (0..blocks).step_by(at_once as usize) {
            let range = start..blocks.min(start + at_once);
            let mut bytes = std::mem::take(memory);
            bytes.resize(range.len() * each, 0);
            file.read_exact(&mut bytes).map_err(|e| corrupt(e.to_string()))?;
            hasher.update(&bytes);
            let whole = bytes.chunks_exact(each.max(1));
            if bad.is_none() {
                let at = whole.into_iter().position(|block| !self.layout.holds(layer, block));
                bad = at.map(|at| start as usize + at);
            }
            *memory = sink(BlocksChunk { layer, blocks: range, bytes })?;
        }
        let (found, digest) = (hasher.finalize().to_hex(), &self.manifest.layers[layer]);
        if found.as_str() != digest {
            return Err(corrupt(format!(
                "digest: {found}, {MANIFEST} has {digest:?}. The file is damaged: make the pack again"
            )));
        }
        if let Some(block) = bad {
            return Err(corrupt(format!(
                "block {block}: values that are not finite numbers. Make the pack again"
            )));
        }
        Ok(())
    }
}
