//! The models whose shapes are measured.

/// Sizes of a decoder with grouped-query attention and a gated MLP.
pub(super) struct ModelShape {
    pub name: &'static str,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
}

pub(super) const MODEL_SHAPES: [ModelShape; 2] = [
    ModelShape {
        name: "qwen2.5-0.5b",
        hidden: 896,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        intermediate: 4864,
        vocab: 151_936,
    },
    ModelShape {
        name: "llama-3.2-1b",
        hidden: 2048,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        intermediate: 8192,
        vocab: 128_256,
    },
];

impl ModelShape {
    /// Name, outputs and inputs of each matrix, as they are packed.
    pub fn matrices(&self) -> [(&'static str, usize, usize); 5] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("qkv", q + 2 * kv, self.hidden),
            ("o", self.hidden, q),
            ("gate_up", 2 * self.intermediate, self.hidden),
            ("down", self.hidden, self.intermediate),
            ("head", self.vocab, self.hidden),
        ]
    }
}
