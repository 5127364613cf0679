//! Safetensors checkpoints: one file or a sharded index, mapped read-only, every name and offset checked.
//!
//! The format is the one of the safetensors project: an 8-byte header length, a JSON header, the data. Beyond the
//! checks of its crate (overlaps, holes, oversize headers) duplicate names and unknown dtypes are refused here.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;
use octavo_kernels::{ArrayDtype, Region};
use safetensors::SafeTensors;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::ModelError;
use crate::file_words;
use crate::mmap::{give_back, map_file};
use crate::spec::Dtype;

/// Bytes after which pages that were read are given back.
const WINDOW_BYTES: usize = 1 << 20;

/// Header name of doubles, which are read as singles.
const DOUBLE: &str = "F64";

/// The mapped files of a checkpoint and where each tensor lies.
#[derive(Default)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Arc<Mmap>)>,
    /// What the headers say beside the tensors.
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, Stored>,
    /// What is odd about the files, though they load.
    warnings: Vec<String>,
}

/// Where a tensor lies.
struct Stored {
    /// Number of the file.
    file: usize,
    entry: TensorEntry,
    used: AtomicBool,
}

impl Stored {
    fn new(file: usize, entry: TensorEntry) -> Self {
        Self { file, entry, used: AtomicBool::new(false) }
    }
}

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Element type as stored; where weights cannot have it, its name (some checkpoints carry integer buffers).
    pub dtype: Result<Dtype, String>,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the file that it takes: inside the file, as many as shape and dtype ask for.
    pub range: std::ops::Range<usize>,
}

/// One tensor, borrowed from the map.
pub struct Tensor<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Element type as stored.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Little-endian elements, row-major. Stored doubles are singles here, and a copy.
    pub data: Cow<'a, [u8]>,
}

impl Checkpoint {
    /// Adds the tensors of a file. Returns the names that another file has given, too: the later one holds.
    pub(crate) fn add(&mut self, path: PathBuf) -> Result<Vec<String>, ModelError> {
        let map = map_file(&path)?;
        self.add_map(path, map)
    }

    /// As `add`, for the content of a file.
    pub(crate) fn add_map(&mut self, path: PathBuf, map: Arc<Mmap>) -> Result<Vec<String>, ModelError> {
        if let Some(what) = file_words::pointer(&map) {
            return Err(ModelError::NotFound { path, what });
        }
        let file = path.display().to_string();
        let (entries, metadata) =
            read_header(&map).map_err(|what| ModelError::corrupt(file.clone(), what))?;
        self.metadata.extend(metadata);
        let mut twice = Vec::new();
        for (name, entry) in entries {
            if self.tensors.insert(name.clone(), Stored::new(self.files.len(), entry)).is_some() {
                twice.push(name);
            }
        }
        self.files.push((path, map));
        Ok(twice)
    }

    /// Adds a sentence about the files.
    pub(crate) fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    /// Sentences about files that contradict each other or config.json, though the model loads.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Names of the tensors that nothing has asked for so far.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().filter(|(_, t)| !t.used.load(Ordering::Relaxed)).map(|(name, _)| name.as_str())
    }

    /// Gives every tensor the name that `to` has for it. Returns a name that two of them would have.
    pub(crate) fn rename(&mut self, to: &dyn Fn(&str) -> String) -> Option<String> {
        let mut tensors = BTreeMap::new();
        let mut twice = None;
        for (name, stored) in std::mem::take(&mut self.tensors) {
            let name = to(&name);
            if tensors.insert(name.clone(), stored).is_some() {
                twice = Some(name);
            }
        }
        self.tensors = tensors;
        twice
    }

    /// Gives the tensor `name`, if there is one, the name `other`.
    pub(crate) fn move_to(&mut self, name: &str, other: &str) {
        if let Some(stored) = self.tensors.remove(name) {
            self.tensors.insert(other.to_string(), stored);
        }
    }

    /// True if two tensors have the same values. Pages that were compared do not stay in memory.
    pub(crate) fn same(&self, one: &str, other: &str) -> bool {
        let (Some(one), Some(other)) = (self.tensors.get(one), self.tensors.get(other)) else { return false };
        let (a, b) = (&one.entry, &other.entry);
        let bytes = |t: &Stored| &self.files[t.file].1[t.entry.range.clone()];
        let mut windows = bytes(one).chunks(WINDOW_BYTES).zip(bytes(other).chunks(WINDOW_BYTES));
        let equal = |(one, other): (&[u8], &[u8])| {
            let equal = one == other;
            self.give_back(one);
            self.give_back(other);
            equal
        };
        a.dtype == b.dtype && a.shape == b.shape && windows.all(equal)
    }

    /// Replaces the tensor `name`, whose shape must be `[n, rows, columns]`, by views of its parts. Each of the n matrices
    /// has `parts` of equal rows, under the names that `part_name(matrix, part)` gives.
    ///
    /// # Errors
    /// `Corrupt` for another shape.
    pub(crate) fn take_apart(
        &mut self,
        name: &str,
        shape: [usize; 3],
        parts: usize,
        part_name: &dyn Fn(usize, usize) -> String,
    ) -> Result<(), ModelError> {
        self.find(name, &shape)?;
        let Some(Stored { file, entry, .. }) = self.tensors.remove(name) else { return Ok(()) };
        let [count, rows, columns] = shape;
        let bytes = entry.range.len() / (count * parts).max(1);
        for i in 0..count * parts {
            let start = entry.range.start + i * bytes;
            let view = TensorEntry {
                dtype: entry.dtype.clone(),
                shape: vec![rows / parts, columns],
                range: start..start + bytes,
            };
            self.tensors.insert(part_name(i / parts, i % parts), Stored::new(file, view));
        }
        Ok(())
    }

    /// True if the checkpoint holds `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The headers' `__metadata__`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Says that `bytes`, a part of a tensor, are not needed in memory for now.
    pub fn give_back(&self, bytes: &[u8]) {
        self.files.iter().for_each(|(_, map)| give_back(map, bytes, 0));
    }

    /// As `give_back`, for a reader that comes along in small steps: only where it enters a new window is it worth a call,
    /// which then takes all around.
    pub fn passed(&self, bytes: &[u8]) {
        let start = bytes.as_ptr().addr();
        if start / WINDOW_BYTES != (start + bytes.len()) / WINDOW_BYTES {
            self.files.iter().for_each(|(_, map)| give_back(map, bytes, WINDOW_BYTES));
        }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|t| t.entry.range.len()).sum()
    }

    /// The tensor `name`, whose shape must be `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        let (name, path, entry, data) = self.find(name, shape)?;
        let narrowed = |bytes: &[u8; 8]| (f64::from_le_bytes(*bytes) as f32).to_le_bytes();
        let (stored, data) = match &entry.dtype {
            Err(other) if other == DOUBLE => {
                (Ok(Dtype::Float32), data.as_chunks().0.iter().flat_map(narrowed).collect())
            }
            stored => (stored.clone(), Cow::Borrowed(data)),
        };
        let dtype = stored.map_err(|other| {
            let what = format!("tensor {name} is stored as {other}: F32, BF16, F16 or F64 is expected");
            ModelError::corrupt(path.display().to_string(), what)
        })?;
        Ok(Tensor { name, dtype, shape: &entry.shape, data })
    }

    /// The bytes of `name` as stored; None: it is missing or has another shape.
    pub fn bytes_of(&self, name: &str, shape: &[usize]) -> Option<&[u8]> {
        self.find(name, shape).ok().map(|(_, _, _, data)| data)
    }

    /// The bytes of `name` if it is stored in doubles; its shape must be `shape`.
    ///
    /// # Errors
    /// `Corrupt` for a missing tensor or another shape.
    pub fn doubles(&self, name: &str, shape: &[usize]) -> Result<Option<&[u8]>, ModelError> {
        let (_, _, entry, data) = self.find(name, shape)?;
        Ok((entry.dtype.as_ref().err().map(String::as_str) == Some(DOUBLE)).then_some(data))
    }

    /// The codes of `name` if it is stored as int8; its shape must be `shape`.
    pub fn int8(&self, name: &str, shape: &[usize]) -> Result<Option<&[u8]>, ModelError> {
        let (_, _, entry, data) = self.find(name, shape)?;
        Ok((entry.dtype.as_ref().err().map(String::as_str) == Some("I8")).then_some(data))
    }

    /// The bytes of `name` where they are mapped; it must have this element type and shape.
    pub fn region(&self, name: &str, element: ArrayDtype, shape: &[usize]) -> Result<Region, ModelError> {
        let (name, path, entry, _) = self.find(name, shape)?;
        let stored = match &entry.dtype {
            Ok(Dtype::Float32) => "F32",
            Ok(Dtype::Bfloat16) => "BF16",
            Ok(Dtype::Float16) => "F16",
            Err(other) => other,
        };
        let corrupt = |what: String| ModelError::corrupt(path.display().to_string(), what);
        if stored != element.to_string() {
            return Err(corrupt(format!("tensor {name} is stored as {stored}: {element} is expected")));
        }
        let map = self.files.iter().find(|(file, _)| file == path).map(|(_, map)| map);
        let region = map.and_then(|map| Region::new(map, entry.range.clone()));
        region.ok_or_else(|| corrupt(format!("tensor {name} is not inside the file")))
    }

    /// All bytes of the only file.
    pub(crate) fn whole(&self) -> &[u8] {
        self.files.first().map_or(&[], |(_, map)| map)
    }

    /// The files' names, for messages.
    pub fn files(&self) -> String {
        match self.files.as_slice() {
            [(path, _)] => path.display().to_string(),
            files => format!("{} safetensors files", files.len()),
        }
    }

    /// The sizes of `name`, if there is such a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.entry.shape.as_slice())
    }

    /// Its name, file, header entry and bytes.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&str, &Path, &TensorEntry, &[u8]), ModelError> {
        let Some((name, Stored { file, entry, used })) = self.tensors.get_key_value(name) else {
            return Err(ModelError::corrupt(self.files(), format!("tensor {name} is missing")));
        };
        used.store(true, Ordering::Relaxed);
        let (path, map) = &self.files[*file];
        if entry.shape != shape {
            let what = format!("tensor {name} has shape {:?}, config.json asks for {shape:?}", entry.shape);
            return Err(ModelError::corrupt(path.display().to_string(), what));
        }
        Ok((name, path, entry, &map[entry.range.clone()]))
    }
}

impl Tensor<'_> {
    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let pairs = || self.data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self.dtype {
            Dtype::Float32 => {
                self.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::Bfloat16 => pairs().map(|u| half::bf16::from_bits(u).to_f32()).collect(),
            Dtype::Float16 => pairs().map(|u| half::f16::from_bits(u).to_f32()).collect(),
        }
    }
}

/// Reads the header of a safetensors file given whole. Every range lies inside `file`.
///
/// # Errors
/// What is wrong with the file: cut off, oversize header, overlaps, holes, bytes left over, a name twice.
pub fn read_entries(file: &[u8]) -> Result<Vec<(String, TensorEntry)>, String> {
    read_header(file).map(|(entries, _)| entries)
}

/// Tensors by name, and the `__metadata__`.
type Header = (Vec<(String, TensorEntry)>, HashMap<String, String>);

/// As `read_entries`, with all that the header says.
fn read_header(file: &[u8]) -> Result<Header, String> {
    let (header, metadata) =
        SafeTensors::read_metadata(file).map_err(|e| format!("not a sound safetensors file: {e}"))?;
    check_names(&file[8..8 + header])?;
    let start = 8 + header;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = dtype_of(info.dtype).ok_or_else(|| format!("{:?}", info.dtype));
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        entries.push((name, TensorEntry { dtype, shape: info.shape.clone(), range }));
    }
    Ok((entries, metadata.metadata().clone().unwrap_or_default()))
}

fn dtype_of(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::Float32),
        safetensors::Dtype::BF16 => Some(Dtype::Bfloat16),
        safetensors::Dtype::F16 => Some(Dtype::Float16),
        _ => None,
    }
}

/// Refuses a header that names a tensor twice: readers differ in which one they take.
fn check_names(header: &[u8]) -> Result<(), String> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut seen = std::collections::HashSet::new();
            let mut twice = None;
            while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                if !seen.insert(name.clone()) {
                    twice = Some(name);
                }
            }
            Ok(twice)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(header);
    match reader.deserialize_map(Names) {
        Ok(None) => Ok(()),
        Ok(Some(name)) => Err(format!("tensor {name} is named twice in the header")),
        Err(e) => Err(format!("bad header: {e}")),
    }
}
