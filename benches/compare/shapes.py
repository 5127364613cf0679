"""The models that are compared: real shapes, random weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention, a gated MLP, and an output matrix tied to the embeddings.

    The names of the sizes are those of transformers' configurations.
    """

    label: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of all layers."""
        attention = (2 * self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
        return self.num_hidden_layers * self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def output_weights(self) -> int:
        """Weights of the matrix that makes logits."""
        return self.vocab_size * self.hidden_size

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @property
    def attention_operations(self) -> int:
        """Operations of all layers for one query and one key: scores, and the weighted sum of values."""
        return 4 * self.num_hidden_layers * self.num_attention_heads * self.head_dim


SHAPES = {
    "qwen2.5-0.5b": Shape("Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 64, 4864, 151936, 1e6),
    "llama-3.2-1b": Shape("Llama-3.2-1B", "llama", 2048, 16, 32, 8, 64, 8192, 128256, 5e5),
}
