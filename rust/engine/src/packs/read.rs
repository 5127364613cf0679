//! The files of a pack, read and checked.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavo_model::BlockLayout;
use serde_json::{Value, json};

use crate::EngineError;
use crate::packs::kv_file::KvFile;
use crate::packs::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::packs::slices::Layers;

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

/// Reads the blocks of a pack, and checks size, header, digests and numbers.
///
/// # Errors
/// `ModelNotFound`, `CorruptModel` with the file and the field.
pub(crate) fn read_blocks(
    folder: &Path,
    manifest: &Manifest,
    layout: &BlockLayout,
) -> Result<Layers, EngineError> {
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
    read_layers(&path, manifest, layout, &expected)
}

/// Reads all layers, on several threads.
fn read_layers(
    path: &Path,
    manifest: &Manifest,
    layout: &BlockLayout,
    file: &KvFile,
) -> Result<Layers, EngineError> {
    let count = file.starts.len();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(count);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(vec![None; count]));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            let layer = read_layer(path, i, &manifest.layers[i], layout, file, manifest.blocks);
            results.lock().unwrap_or_else(|e| e.into_inner())[i] = Some(layer);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    let unread = || Err(EngineError::CorruptModel(format!("{}: a layer was not read", path.display())));
    results.into_iter().map(|layer| layer.unwrap_or_else(unread)).collect()
}

fn read_layer(
    path: &Path,
    i: usize,
    digest: &str,
    layout: &BlockLayout,
    file: &KvFile,
    blocks: u32,
) -> Result<Vec<u8>, EngineError> {
    let corrupt = |what: String| EngineError::CorruptModel(format!("{}: layers.{i}: {what}", path.display()));
    let each = file.block_bytes[i];
    let mut bytes = vec![0; blocks as usize * each];
    let read = File::open(path).and_then(|mut opened| {
        opened.seek(SeekFrom::Start(file.starts[i]))?;
        opened.read_exact(&mut bytes)
    });
    read.map_err(|e| corrupt(e.to_string()))?;
    let found = blake3::hash(&bytes).to_hex();
    if found.as_str() != digest {
        return Err(corrupt(format!(
            "digest: {found}, {MANIFEST} has {digest:?}. The file is damaged: make the pack again"
        )));
    }
    if let Some(block) = bytes.chunks_exact(each.max(1)).position(|block| !layout.holds(i, block)) {
        return Err(corrupt(format!(
            "block {block}: values that are not finite numbers. Make the pack again"
        )));
    }
    Ok(bytes)
}
