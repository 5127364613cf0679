//! Requests every weight of a model from a `WeightSource`, layer by layer.

use std::cell::Cell;

use octavo_kernels::Linear;

use crate::ModelError;
use crate::families::{Family, TensorNames};
use crate::source::WeightSource;
use crate::spec::{
    AttentionSpec, FeedForwardSpec, GqaSpec, LayerSpec, MlaSpec, MlpSpec, ModelSpec, MoeSpec, NormPlacement,
    QkNorm,
};
use crate::weights::{
    AttentionWeights, FeedForwardWeights, GqaWeights, LayerWeights, MlaWeights, MlpWeights, ModelWeights,
    MoeWeights, Projection,
};

/// Requests every weight of the model from `source`, in the order in which a step reads them.
pub(crate) fn walk(source: &dyn WeightSource, family: &Family) -> Result<ModelWeights, ModelError> {
    let Family { spec, names, .. } = family;
    let loader = Loader { source, spec, names, bytes: Cell::default() };
    let norm = loader.vector(names.norm, spec.hidden)?;
    let inputs = loader.magnitudes(&norm);
    let embed = loader.matrix(
        &[(names.embed.into(), spec.vocab)],
        spec.hidden,
        spec.tied_embeddings.then_some(&*inputs),
    )?;
    // A base model has no head: nothing asks for its logits.
    let (embed, head) = if spec.tied_embeddings || !spec.has_head {
        (None, embed)
    } else {
        (Some(embed), loader.matrix(&[(names.head.into(), spec.vocab)], spec.hidden, Some(&inputs))?)
    };
    let layers = spec.layers.iter().enumerate().map(|(i, l)| loader.layer(i, l)).collect::<Result<_, _>>()?;
    Ok(ModelWeights { embed, layers, norm, head, bytes: loader.bytes.get() })
}

struct Loader<'a> {
    source: &'a dyn WeightSource,
    spec: &'a ModelSpec,
    names: &'a TensorNames,
    /// Bytes loaded so far.
    bytes: Cell<usize>,
}

impl Loader<'_> {
    fn layer(&self, i: usize, layer: &LayerSpec) -> Result<LayerWeights, ModelError> {
        let placement = self.spec.norm_placement;
        let n = self.names;
        let norm =
            |there: bool, name: &str| there.then(|| self.vector(&at(name, i), self.spec.hidden)).transpose();
        let before = matches!(placement, NormPlacement::Pre | NormPlacement::Sandwich);
        let after = matches!(placement, NormPlacement::Post | NormPlacement::Sandwich);
        let parallel = placement == NormPlacement::Parallel;
        let attention_norm = norm(before || parallel, n.attention_norm)?;
        let mlp_norm = norm(before, n.mlp_norm)?;
        // Blocks side by side read the same norm.
        let mlp_inputs = if parallel { &attention_norm } else { &mlp_norm };
        let mlp_inputs = mlp_inputs.as_ref().map(|norm| self.magnitudes(norm));
        let inputs = attention_norm.as_ref().map(|norm| self.magnitudes(norm));
        let (inputs, mlp_inputs) = (inputs.as_deref(), mlp_inputs.as_deref());
        Ok(LayerWeights {
            index: i,
            attention: match &layer.attention {
                AttentionSpec::Gqa(a) => AttentionWeights::Gqa(Box::new(self.heads(i, a, inputs)?)),
                AttentionSpec::Mla(a) => AttentionWeights::Mla(Box::new(self.latent(i, a, inputs)?)),
            },
            attention_norm,
            attention_post_norm: norm(after, n.attention_post_norm)?,
            mlp: match &layer.mlp {
                FeedForwardSpec::Dense(m) => FeedForwardWeights::Dense(Box::new(self.mlp(i, m, mlp_inputs)?)),
                FeedForwardSpec::Experts(m) => {
                    FeedForwardWeights::Experts(Box::new(self.experts(i, m, mlp_inputs)?))
                }
            },
            mlp_norm,
            mlp_post_norm: norm(after, n.mlp_post_norm)?,
        })
    }

    /// The typical magnitude of each channel after a norm of these weights.
    fn magnitudes(&self, norm: &[f32]) -> Vec<f32> {
        norm.iter().map(|weight| (weight + self.spec.norm.offset).abs()).collect()
    }

    fn heads(&self, i: usize, a: &GqaSpec, inputs: Option<&[f32]>) -> Result<GqaWeights, ModelError> {
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let (hidden, n) = (self.spec.hidden, self.names);
        let norms = match a.qk_norm {
            QkNorm::Off => None,
            QkNorm::Heads => Some((a.head_dim, a.head_dim)),
            QkNorm::Whole => Some((q, kv)),
        };
        let qk_norm = match norms {
            Some((q, k)) => Some((self.vector(&at(n.q_norm, i), q)?, self.vector(&at(n.k_norm, i), k)?)),
            None => None,
        };
        Ok(GqaWeights {
            qkv: self.projection(&stacked(n.qkv, &[q, kv, kv], i), hidden, a.qkv_bias, inputs)?,
            qk_norm,
            o: self.projection(&[(at(n.o, i), hidden)], q, a.out_bias, None)?,
        })
    }

    fn latent(&self, i: usize, a: &MlaSpec, inputs: Option<&[f32]>) -> Result<MlaWeights, ModelError> {
        let (hidden, n) = (self.spec.hidden, &self.names.mla);
        let q_rows = a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
        let (q_a, q) = match a.q_lora_rank {
            Some(rank) => {
                let down = self.projection(&[(at(n.q_a, i), rank)], hidden, a.bias, inputs)?;
                let norm = self.vector(&at(n.q_a_norm, i), rank)?;
                let up =
                    self.projection(&[(at(n.q_b, i), q_rows)], rank, false, Some(&self.magnitudes(&norm)))?;
                (Some((down, norm)), up)
            }
            None => (None, self.projection(&[(at(n.q, i), q_rows)], hidden, false, inputs)?),
        };
        let absorbed = self.source.absorbed(&format!("{}.weight", at(n.kv_b, i)), a)?;
        absorbed.to_latent.iter().chain(&absorbed.to_value).for_each(|linear| self.count(linear.bytes()));
        Ok(MlaWeights {
            q_a,
            q,
            kv_a: self.projection(
                &[(at(n.kv_a, i), a.kv_lora_rank + a.qk_rope_head_dim)],
                hidden,
                a.bias,
                inputs,
            )?,
            kv_a_norm: self.vector(&at(n.kv_a_norm, i), a.kv_lora_rank)?,
            to_latent: absorbed.to_latent,
            to_value: absorbed.to_value,
            o: self.projection(&[(at(self.names.o, i), hidden)], a.heads * a.v_head_dim, a.bias, None)?,
        })
    }

    fn mlp(&self, i: usize, m: &MlpSpec, inputs: Option<&[f32]>) -> Result<MlpWeights, ModelError> {
        let gate_up = stacked(self.names.gate_up, &[m.intermediate; 2], i);
        self.gated(&gate_up, at(self.names.down, i), m.intermediate, m.bias, inputs)
    }

    fn gated(
        &self,
        gate_up: &[(String, usize)],
        down: String,
        inner: usize,
        bias: bool,
        inputs: Option<&[f32]>,
    ) -> Result<MlpWeights, ModelError> {
        let hidden = self.spec.hidden;
        Ok(MlpWeights {
            gate_up: self.projection(gate_up, hidden, bias, inputs)?,
            down: self.projection(&[(down, hidden)], inner, bias, None)?,
        })
    }

    fn experts(&self, i: usize, m: &MoeSpec, inputs: Option<&[f32]>) -> Result<MoeWeights, ModelError> {
        let (hidden, n) = (self.spec.hidden, &self.names.experts);
        let expert = |e: usize| {
            let of = |name: &str| name.replace("{e}", &e.to_string());
            let gate_up = stacked(n.gate_up, &[m.intermediate; 2], i);
            let gate_up = gate_up.iter().map(|(name, rows)| (of(name), *rows)).collect::<Vec<_>>();
            self.gated(&gate_up, of(&at(n.down, i)), m.intermediate, false, inputs)
        };
        let router = format!("{}.weight", at(n.router, i));
        let shared = match &m.shared {
            Some(s) => {
                let gate_up = stacked(n.shared_gate_up, &[s.intermediate; 2], i);
                let block = self.gated(&gate_up, at(n.shared_down, i), s.intermediate, false, inputs)?;
                let gate = format!("{}.weight", at(n.shared_gate, i));
                let gate = s.gated.then(|| self.exact(&gate, 1, hidden)).transpose()?;
                Some((block, gate))
            }
            None => None,
        };
        let bias = m
            .e_score_correction_bias
            .then(|| self.vector(&at(n.e_score_correction_bias, i), m.experts))
            .transpose()?;
        Ok(MoeWeights {
            router: self.exact(&router, m.experts, hidden)?,
            e_score_correction_bias: bias,
            experts: (0..m.experts).map(expert).collect::<Result<_, _>>()?,
            shared,
        })
    }

    fn count(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.count(4 * len);
        self.source.vector(name, len)
    }

    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError> {
        let linear = self.source.exact(name, rows, columns)?;
        self.count(linear.bytes());
        Ok(linear)
    }

    fn matrix(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        inputs: Option<&[f32]>,
    ) -> Result<Linear, ModelError> {
        let linear = self.source.matrix(parts, columns, inputs)?;
        self.count(linear.bytes());
        Ok(linear)
    }

    /// Several projections `(name, rows)` of the same input, packed below each other. `inputs`: the typical magnitude of
    /// each column's input, if a norm precedes.
    fn projection(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        bias: bool,
        inputs: Option<&[f32]>,
    ) -> Result<Projection, ModelError> {
        let names = parts.iter().map(|(name, rows)| (format!("{name}.weight"), *rows)).collect::<Vec<_>>();
        let weight = self.matrix(&names, columns, inputs)?;
        let bias = match bias {
            true => {
                let all = parts.iter().map(|(name, rows)| self.vector(&format!("{name}.bias"), *rows));
                Some(all.collect::<Result<Vec<_>, _>>()?.concat())
            }
            false => None,
        };
        Ok(Projection { weight, bias })
    }
}

/// The name of layer `i`.
fn at(name: &str, i: usize) -> String {
    name.replace("{i}", &i.to_string())
}

/// Names with their rows; a single name holds all of them.
fn stacked(names: &[&str], rows: &[usize], i: usize) -> Vec<(String, usize)> {
    match names {
        [one] => vec![(at(one, i), rows.iter().sum())],
        _ => names.iter().zip(rows).map(|(name, rows)| (at(name, i), *rows)).collect(),
    }
}
