//! The weight files of a folder: which of them are read where several are there, in the order of transformers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::read_json;
use crate::file_words::named;
use crate::other_forms;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Checkpoint {
    /// Opens the safetensors files of `folder`: `model.safetensors`, else the shards of the index. Files that contradict each
    /// other are named in [`Checkpoint::warnings`].
    ///
    /// # Errors
    /// `NotFound` without weights or with a missing shard, `Corrupt` for a damaged file or index.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self::default();
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let read = if single.is_file() {
            checkpoint.add(single)?;
            if index.is_file() {
                checkpoint.warn_of_index(&index);
            }
            BTreeSet::from([SINGLE.to_string()])
        } else if index.is_file() {
            checkpoint.add_shards(folder, &index)?
        } else {
            let what = other_forms::weights(folder).unwrap_or_else(|| {
                format!("there is no {SINGLE} and no {INDEX} (other weight formats are not read)")
            });
            return Err(ModelError::NotFound { path: folder.to_path_buf(), what });
        };
        let others = other_forms::shards(folder).into_iter().filter(|name| !read.contains(name));
        let others = others.collect::<Vec<_>>();
        if !others.is_empty() && !index.is_file() | (read.len() > 1) {
            let from = if read.len() > 1 { "the shards that the index names" } else { SINGLE };
            checkpoint.warn(format!(
                "weights are read from {from}, and {} is there, too, which is not read. Delete the files of the save that \
                 you do not mean",
                named(&others)
            ));
        }
        Ok(checkpoint)
    }

    /// An index beside `model.safetensors` is not used; a warning where it means other files.
    fn warn_of_index(&mut self, index: &Path) {
        let others = match read_index(index) {
            Ok(map) => map.into_values().collect::<BTreeSet<_>>(),
            Err(error) => return self.warn(format!("{SINGLE} is read; beside it {error}")),
        };
        let others = others.into_iter().filter(|file| file != SINGLE).collect::<Vec<_>>();
        if !others.is_empty() {
            self.warn(format!(
                "weights are read from {SINGLE}, and {INDEX} beside it names other files ({}), which are not read. Delete \
                 the files of the save that you do not mean",
                named(&others)
            ));
        }
    }

    /// Adds the shards of an index in the order of their names.
    fn add_shards(&mut self, folder: &Path, index: &Path) -> Result<BTreeSet<String>, ModelError> {
        let map = read_index(index)?;
        let shards = map.values().cloned().collect::<BTreeSet<_>>();
        for shard in &shards {
            let path = folder.join(shard);
            if !path.is_file() {
                return Err(ModelError::NotFound {
                    path,
                    what: "a shard named by the index is missing".into(),
                });
            }
            let twice = self.add(path)?;
            if !twice.is_empty() {
                self.warn(format!(
                    "{} is in {shard} and in another shard: the one of {shard} is used, as in transformers",
                    named(&twice)
                ));
            }
        }
        let absent = map.keys().filter(|name| !self.has(name)).cloned().collect::<Vec<_>>();
        if !absent.is_empty() {
            self.warn(format!("{INDEX} names {}, and no shard holds it", named(&absent)));
        }
        Ok(shards)
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    shards_of(&read_json(path)?).map_err(|what| ModelError::corrupt(path.display().to_string(), what))
}

/// The `weight_map` of a sharded checkpoint's index: tensor name to file name inside the folder.
///
/// # Errors
/// There is no such map, or it names what is not a plain file name.
pub fn shards_of(index: &Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    let map = index.get("weight_map").and_then(|m| m.as_object()).ok_or("no weight_map")?;
    map.iter()
        .map(|(name, file)| match file.as_str() {
            // A shard is a plain file name: an index must not reach outside its folder.
            Some(f) if PathBuf::from(f).file_name() == Some(f.as_ref()) => Ok((name.clone(), f.to_string())),
            _ => Err(format!("weight_map gives {file} for {name}; a file name is expected")),
        })
        .collect()
}
