//! Packs a checked adapter for the kernels.

use octavo_kernels::{Kernels, Linear, LoraModule, LoraStack, WeightRows};

use super::dora;
use super::file::{AdapterFile, AdapterModule, by_site};
use super::keys::AdapterTensor;
use super::sites::Site;
use crate::ModelError;
use crate::checkpoint::Tensor;
use crate::spec::Dtype;
use crate::weights::{AttentionWeights, FeedForwardWeights, LayerWeights};

/// A LoRA adapter in memory, for one model. It does not change.
pub struct Adapter {
    digest: String,
    rank: usize,
    bytes: usize,
    /// For each layer the matrices of its sites.
    layers: Vec<[Option<LoraStack>; Site::COUNT]>,
}

impl Adapter {
    /// As [`AdapterFile::digest`].
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The largest rank of its modules.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Memory of the packed matrices, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its matrices for a projection.
    pub(crate) fn stack(&self, layer: usize, site: Site) -> Option<&LoraStack> {
        self.layers.get(layer)?[site as usize].as_ref()
    }
}

/// Packs an adapter for a model of these weights.
///
/// # Errors
/// `ForeignAdapter` for an adapter that was opened for another model.
pub(crate) fn pack(
    kernels: &Kernels,
    file: &AdapterFile,
    weights: &[LayerWeights],
) -> Result<Adapter, ModelError> {
    let mut layers: Vec<[Option<LoraStack>; Site::COUNT]> = Vec::new();
    layers.resize_with(weights.len(), Default::default);
    for site in by_site(file.modules()) {
        let (layer, name) = (site[0].layer, site[0].site);
        let fits = |weight: &&Linear| {
            let last = site.last().map_or(0, |m| m.column + m.outputs);
            weight.in_features() == site[0].inputs && last <= weight.out_features()
        };
        let Some(base) = weights.get(layer).and_then(|layer| base(layer, name)).filter(fits) else {
            let what = format!("module {} is not in this model", site[0].name);
            return Err(ModelError::ForeignAdapter { file: file.file().into(), what });
        };
        layers[layer][name as usize] = Some(stack(kernels, file, site, base)?);
    }
    let bytes = layers.iter().flatten().flatten().map(LoraStack::bytes).sum();
    Ok(Adapter { digest: file.digest().to_string(), rank: file.rank(), bytes, layers })
}

/// The matrices of one site.
fn stack(
    kernels: &Kernels,
    file: &AdapterFile,
    site: &[AdapterModule],
    base: &Linear,
) -> Result<LoraStack, ModelError> {
    let need = |m: &AdapterModule, tensor| {
        let missing = || ModelError::corrupt_adapter(file.file(), format!("module {} is incomplete", m.name));
        file.tensor(m, tensor)?.ok_or_else(missing)
    };
    let scaled =
        |m: &AdapterModule, t: &Tensor<'_>| t.to_f32().iter().map(|v| v * m.scale).collect::<Vec<_>>();
    let a = site.iter().map(|m| need(m, AdapterTensor::A)).collect::<Result<Vec<_>, _>>()?;
    let mut b = Vec::with_capacity(site.len());
    let mut biases = Vec::with_capacity(site.len());
    let mut gains = Vec::with_capacity(site.len());
    for (m, a) in site.iter().zip(&a) {
        let scaled_b = scaled(m, &need(m, AdapterTensor::B)?);
        biases.push(file.tensor(m, AdapterTensor::Bias)?.map(|t| scaled(m, &t)));
        gains.push(match file.tensor(m, AdapterTensor::Magnitude)? {
            Some(magnitude) => {
                let gain = dora::gain(kernels, base, m.column, &a.to_f32(), &scaled_b, &magnitude.to_f32());
                Some(gain.ok_or_else(|| {
                    let what = format!("module {}: its weights with the adapter have rows of zeros", m.name);
                    ModelError::corrupt_adapter(file.file(), what)
                })?)
            }
            None => None,
        });
        b.push(scaled_b);
    }
    let rows = a.iter().map(rows_of).collect::<Vec<_>>();
    let down = Linear::pack(kernels, &rows, site[0].inputs, base.dtype());
    let modules = site.iter().enumerate().map(|(i, m)| LoraModule {
        b: &b[i],
        rank: m.rank,
        column: m.column,
        bias: biases[i].as_deref(),
        gain: gains[i].as_deref(),
    });
    Ok(LoraStack::new(down, &modules.collect::<Vec<_>>()))
}

fn rows_of<'a>(tensor: &'a Tensor<'_>) -> WeightRows<'a> {
    match tensor.dtype {
        Dtype::Float32 => WeightRows::F32Bytes(&tensor.data),
        Dtype::Bfloat16 => WeightRows::Bf16Bytes(&tensor.data),
        Dtype::Float16 => WeightRows::F16Bytes(&tensor.data),
    }
}

/// The base weights of a site.
pub(crate) fn base(layer: &LayerWeights, site: Site) -> Option<&Linear> {
    let shared = match &layer.mlp {
        FeedForwardWeights::Experts(moe) => moe.shared.as_ref(),
        FeedForwardWeights::Dense(_) => None,
    };
    let projection = match (site, &layer.attention, &layer.mlp) {
        (Site::Qkv, AttentionWeights::Gqa(a), _) => &a.qkv,
        (Site::O, AttentionWeights::Gqa(a), _) => &a.o,
        (Site::O, AttentionWeights::Mla(a), _) => &a.o,
        (Site::QA, AttentionWeights::Mla(a), _) => &a.q_a.as_ref()?.0,
        (Site::Q, AttentionWeights::Mla(a), _) => &a.q,
        (Site::KvA, AttentionWeights::Mla(a), _) => &a.kv_a,
        (Site::GateUp, _, FeedForwardWeights::Dense(m)) => &m.gate_up,
        (Site::Down, _, FeedForwardWeights::Dense(m)) => &m.down,
        (Site::SharedGateUp, ..) => &shared?.0.gate_up,
        (Site::SharedDown, ..) => &shared?.0.down,
        (Site::SharedGate, ..) => return shared?.1.as_ref(),
        _ => return None,
    };
    Some(&projection.weight)
}
