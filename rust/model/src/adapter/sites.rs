//! The projections that adapters may change, and the modules that each of them holds.

use std::collections::BTreeMap;

use crate::families::TensorNames;
use crate::spec::{AttentionSpec, FeedForwardSpec, GqaSpec, MlaSpec, ModelSpec, MoeSpec};

/// A projection of a layer, as the forward pass computes it: several modules may lie in it below each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// Queries, keys and values.
    Qkv,
    /// Output of attention.
    O,
    /// To the latent of queries.
    QA,
    /// Queries of latent attention.
    Q,
    /// To the latent of keys and values.
    KvA,
    /// Gate and up.
    GateUp,
    /// Down.
    Down,
    /// Gate and up of the shared expert.
    SharedGateUp,
    /// Down of the shared expert.
    SharedDown,
    /// The gate on the shared expert's output.
    SharedGate,
}

impl Site {
    /// Number of sites of a layer.
    pub(crate) const COUNT: usize = Site::SharedGate as usize + 1;

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Site::Qkv => "qkv",
            Site::O => "o",
            Site::QA => "q_a",
            Site::Q => "q",
            Site::KvA => "kv_a",
            Site::GateUp => "gate_up",
            Site::Down => "down",
            Site::SharedGateUp => "shared_gate_up",
            Site::SharedDown => "shared_down",
            Site::SharedGate => "shared_gate",
        }
    }
}

/// Where a module lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub layer: usize,
    pub site: Site,
    /// Number of the module in its site.
    pub part: usize,
    /// First of its outputs in the site.
    pub column: usize,
    pub outputs: usize,
    pub inputs: usize,
}

/// All modules of a model that adapters may change, by the family's names.
pub(crate) struct Sites {
    places: BTreeMap<String, Place>,
}

impl Sites {
    pub fn of(spec: &ModelSpec, names: &TensorNames) -> Sites {
        let mut sites = Sites { places: BTreeMap::new() };
        for (i, layer) in spec.layers.iter().enumerate() {
            match &layer.attention {
                AttentionSpec::Gqa(a) => sites.heads(i, spec.hidden, a, names),
                AttentionSpec::Mla(a) => sites.latent(i, spec.hidden, a, names),
            }
            match &layer.mlp {
                FeedForwardSpec::Dense(m) => {
                    let inner = m.intermediate;
                    sites.add(i, Site::GateUp, names.gate_up, &[inner; 2], spec.hidden);
                    sites.add(i, Site::Down, &[names.down], &[spec.hidden], inner);
                }
                FeedForwardSpec::Experts(m) => sites.shared(i, spec.hidden, m, names),
            }
        }
        sites
    }

    /// The place of a module.
    pub fn get(&self, name: &str) -> Option<&Place> {
        self.places.get(name)
    }

    /// Names of all modules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    fn heads(&mut self, i: usize, hidden: usize, a: &GqaSpec, names: &TensorNames) {
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        self.add(i, Site::Qkv, names.qkv, &[q, kv, kv], hidden);
        self.add(i, Site::O, &[names.o], &[hidden], q);
    }

    fn latent(&mut self, i: usize, hidden: usize, a: &MlaSpec, names: &TensorNames) {
        let n = &names.mla;
        let q = a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
        match a.q_lora_rank {
            Some(rank) => {
                self.add(i, Site::QA, &[n.q_a], &[rank], hidden);
                self.add(i, Site::Q, &[n.q_b], &[q], rank);
            }
            None => self.add(i, Site::Q, &[n.q], &[q], hidden),
        }
        self.add(i, Site::KvA, &[n.kv_a], &[a.kv_lora_rank + a.qk_rope_head_dim], hidden);
        self.add(i, Site::O, &[names.o], &[hidden], a.heads * a.v_head_dim);
    }

    fn shared(&mut self, i: usize, hidden: usize, m: &MoeSpec, names: &TensorNames) {
        let (Some(shared), n) = (&m.shared, &names.experts) else { return };
        let inner = shared.intermediate;
        self.add(i, Site::SharedGateUp, n.shared_gate_up, &[inner; 2], hidden);
        self.add(i, Site::SharedDown, &[n.shared_down], &[hidden], inner);
        if shared.gated {
            self.add(i, Site::SharedGate, &[n.shared_gate], &[1], hidden);
        }
    }

    /// Modules below each other; a single name holds all outputs.
    fn add(&mut self, layer: usize, site: Site, names: &[&str], outputs: &[usize], inputs: usize) {
        let whole = [outputs.iter().sum()];
        let outputs = if names.len() == 1 { &whole } else { outputs };
        let mut column = 0;
        for (part, (name, &outputs)) in names.iter().zip(outputs).enumerate() {
            let place = Place { layer, site, part, column, outputs, inputs };
            self.places.insert(name.replace("{i}", &layer.to_string()), place);
            column += outputs;
        }
    }
}
