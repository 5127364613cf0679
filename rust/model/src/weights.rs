//! The weights of a model in memory: packed for the kernels, nothing of the checkpoint kept.

use std::cell::RefCell;
use std::path::Path;

use octavo_kernels::{Kernels, Linear, Rows, WeightDtype};

use crate::ModelError;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::{Config, read_json};
use crate::damage::Damage;
use crate::families::{self, Family, TensorNames};
use crate::spec::{Dtype, LayerSpec, ModelSpec};

/// A projection with its optional bias.
pub(crate) struct Projection {
    pub weight: Linear,
    pub bias: Option<Vec<f32>>,
}

/// Weights of one decoder layer.
pub(crate) struct LayerWeights {
    pub attention_norm: Vec<f32>,
    /// q, k and v below each other: `[(heads + 2 kv_heads) * head_dim, hidden]`.
    pub qkv: Projection,
    /// Weights of the query and key head norms, `[head_dim]` each.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub o: Projection,
    pub mlp_norm: Vec<f32>,
    /// gate and up below each other: `[2 * intermediate, hidden]`.
    pub gate_up: Projection,
    pub down: Projection,
}

/// All weights of a model.
pub(crate) struct Weights {
    /// `[vocab, hidden]`; None: the head serves.
    pub embed: Option<Linear>,
    pub layers: Vec<LayerWeights>,
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`.
    pub head: Linear,
}

/// Reads config.json of a model folder.
///
/// # Errors
/// `NotFound` without the folder or config.json; else as `families::read`.
pub fn read_family(folder: &Path) -> Result<Family, ModelError> {
    let missing = |what: &str| ModelError::NotFound { path: folder.to_path_buf(), what: what.into() };
    if !folder.is_dir() {
        return Err(missing("there is no such folder"));
    }
    let config = folder.join("config.json");
    if !config.is_file() {
        return Err(missing("there is no config.json in it"));
    }
    families::read(&Config::new(&read_json(&config)?))
}

/// What `load` gives.
pub(crate) struct Loaded {
    pub weights: Weights,
    /// Element type of the checkpoint's embedding.
    pub stored: Dtype,
    /// What is odd about the files, but no reason to refuse them.
    pub warnings: Vec<String>,
}

/// Packs the weights of `folder` for `dtype`, layer by layer.
pub(crate) fn load(
    kernels: &Kernels,
    folder: &Path,
    family: &Family,
    dtype: WeightDtype,
) -> Result<Loaded, ModelError> {
    let Family { spec, names } = family;
    let checkpoint = Checkpoint::open(folder)?;
    let damage = RefCell::default();
    let loader = Loader { kernels, checkpoint: &checkpoint, names, dtype, damage: &damage };
    let stored = checkpoint.tensor(names.embed, &[spec.vocab, spec.hidden])?.dtype;
    let embed = loader.linear(&[names.embed], spec.vocab, spec.hidden)?;
    // Some checkpoints that declare a tied head still store one; the declaration rules, as in transformers.
    let (embed, head) = if spec.tied_embeddings {
        (None, embed)
    } else {
        (Some(embed), loader.linear(&[names.head], spec.vocab, spec.hidden)?)
    };
    let layers =
        spec.layers.iter().enumerate().map(|(i, l)| loader.layer(i, l, spec)).collect::<Result<_, _>>()?;
    let norm = loader.vector(names.norm, spec.hidden)?;
    let weights = Weights { embed, layers, norm, head };
    Ok(Loaded { weights, stored, warnings: damage.into_inner().warnings() })
}

struct Loader<'a> {
    kernels: &'a Kernels,
    checkpoint: &'a Checkpoint,
    names: &'a TensorNames,
    dtype: WeightDtype,
    damage: &'a RefCell<Damage>,
}

impl Loader<'_> {
    fn layer(&self, i: usize, layer: &LayerSpec, spec: &ModelSpec) -> Result<LayerWeights, ModelError> {
        let a = &layer.attention;
        let (hidden, inner) = (spec.hidden, layer.mlp.intermediate);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let n = self.names;
        let at = |name: &str| name.replace("{i}", &i.to_string());
        let qkv = [(at(n.q), q), (at(n.k), kv), (at(n.v), kv)];
        let gate_up = [(at(n.gate), inner), (at(n.up), inner)];
        let qk_norm = match a.qk_norm {
            true => Some((self.vector(&at(n.q_norm), a.head_dim)?, self.vector(&at(n.k_norm), a.head_dim)?)),
            false => None,
        };
        Ok(LayerWeights {
            attention_norm: self.vector(&at(n.attention_norm), hidden)?,
            qkv: self.projection(&qkv, hidden, a.qkv_bias)?,
            qk_norm,
            o: self.projection(&[(at(n.o), hidden)], q, a.out_bias)?,
            mlp_norm: self.vector(&at(n.mlp_norm), hidden)?,
            gate_up: self.projection(&gate_up, hidden, layer.mlp.bias)?,
            down: self.projection(&[(at(n.down), hidden)], inner, layer.mlp.bias)?,
        })
    }

    /// The tensor, with its values looked at.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        let tensor = self.checkpoint.tensor(name, shape)?;
        self.damage.borrow_mut().look(self.kernels.pool(), &tensor);
        Ok(tensor)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }

    fn linear(&self, names: &[&str], rows: usize, columns: usize) -> Result<Linear, ModelError> {
        let tensors = names.iter().map(|name| self.tensor(name, &[rows, columns]));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        Ok(self.pack(&tensors, columns))
    }

    /// Several projections `(name, rows)` of the same input, packed below each other.
    fn projection(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        bias: bool,
    ) -> Result<Projection, ModelError> {
        let weights = parts.iter().map(|(name, rows)| (format!("{name}.weight"), *rows)).collect::<Vec<_>>();
        let tensors = weights.iter().map(|(name, rows)| self.tensor(name, &[*rows, columns]));
        let weight = self.pack(&tensors.collect::<Result<Vec<_>, _>>()?, columns);
        let bias = match bias {
            true => {
                let all = parts.iter().map(|(name, rows)| self.vector(&format!("{name}.bias"), *rows));
                Some(all.collect::<Result<Vec<_>, _>>()?.concat())
            }
            false => None,
        };
        Ok(Projection { weight, bias })
    }

    fn pack(&self, tensors: &[Tensor<'_>], columns: usize) -> Linear {
        let rows = tensors.iter().map(|t| match t.dtype {
            Dtype::Float32 => Rows::F32Bytes(t.data),
            Dtype::Bfloat16 => Rows::Bf16Bytes(t.data),
            Dtype::Float16 => Rows::F16Bytes(t.data),
        });
        Linear::pack(self.kernels, &rows.collect::<Vec<_>>(), columns, self.dtype)
    }
}

impl Weights {
    /// Bytes of all packed weights.
    pub fn bytes(&self) -> usize {
        let bias = |p: &Projection| p.weight.bytes() + p.bias.as_ref().map_or(0, |b| 4 * b.len());
        let layer = |l: &LayerWeights| {
            let norms = l.attention_norm.len() + l.mlp_norm.len();
            let heads = l.qk_norm.as_ref().map_or(0, |(q, k)| q.len() + k.len());
            4 * (norms + heads) + bias(&l.qkv) + bias(&l.o) + bias(&l.gate_up) + bias(&l.down)
        };
        let embed = self.embed.as_ref().map_or(0, Linear::bytes);
        embed + self.head.bytes() + 4 * self.norm.len() + self.layers.iter().map(layer).sum::<usize>()
    }
}
