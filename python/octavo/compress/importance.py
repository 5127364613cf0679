"""Importance of channels, heads and layers, by the activations of a calibration run.

- hidden: mean absolute output of every norm over the residual stream (Minitron, arXiv 2407.14679);
- MLP: root mean square of the input of `down_proj`, times the norm of its column (Wanda, arXiv 2306.11695);
- heads: the same over the columns of `o_proj`, summed over a group;
- layers: block influence, 1 - cos(input, output) (ShortGPT, arXiv 2403.03853).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.compress.sizes import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["Importance", "measure_importance"]


@dataclass(frozen=True)
class Importance:
    """Larger is more important. All float64, on the CPU.

    Attributes:
        hidden: [hidden].
        mlp: [mlp] of each layer with a dense feed-forward layer.
        groups: [kv heads] of each layer.
        layers: [layers].
    """

    hidden: torch.Tensor
    mlp: dict[int, torch.Tensor]
    groups: dict[int, torch.Tensor]
    layers: torch.Tensor


def measure_importance(model: Any, layout: Layout, rows: Iterable[torch.Tensor]) -> Importance:
    """Runs `model`, a live causal transformers model, over `rows` of token ids [rows, length]."""
    import torch

    sums = _Sums(model, layout)
    with torch.no_grad(), sums.hooked():
        for ids in rows:
            model(input_ids=ids, use_cache=False)
    return sums.importance()


class _Sums:
    def __init__(self, model: Any, layout: Layout) -> None:
        import torch

        self.model, self.layout, self.torch = model, layout, torch
        self.layers = model.model.layers
        self.hidden = torch.zeros(layout.sizes.hidden, dtype=torch.float64)
        self.squares: dict[tuple[str, int], torch.Tensor] = {}
        self.influence = torch.zeros(len(self.layers), dtype=torch.float64)
        self.tokens = 0

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        for module in self.model.modules():
            weight = getattr(module, "weight", None)
            if "Norm" in type(module).__name__ and weight is not None and weight.shape == self.hidden.shape:
                handles.append(module.register_forward_hook(self._norm))
        for number, layer in enumerate(self.layers):
            handles.append(layer.register_forward_hook(self._layer(number)))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(self._input("o_proj", number)))
            if hasattr(layer.mlp, "down_proj"):
                handles.append(layer.mlp.down_proj.register_forward_pre_hook(self._input("down_proj", number)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _norm(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        self.hidden += output.detach().abs().double().flatten(0, -2).sum(0).cpu()

    def _input(self, kind: str, number: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].detach().double().square().flatten(0, -2)
            self.squares[kind, number] = self.squares.get((kind, number), 0.0) + squares.sum(0).cpu()
            if (kind, number) == ("o_proj", 0):
                self.tokens += squares.shape[0]

        return hook

    def _layer(self, number: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = self.torch.nn.functional.cosine_similarity(inputs[0].double(), after.double(), dim=-1)
            self.influence[number] += (1 - cosine).sum().cpu()

        return hook

    def importance(self) -> Importance:
        def columns(kind: str, number: int, weight: torch.Tensor) -> torch.Tensor:
            norms = self.torch.linalg.vector_norm(weight.detach().double(), dim=0).cpu()
            mean: torch.Tensor = self.squares[kind, number] / max(1, self.tokens)
            scores: torch.Tensor = mean.sqrt() * norms
            return scores

        mlp, groups = {}, {}
        for number, layer in enumerate(self.layers):
            heads = columns("o_proj", number, layer.self_attn.o_proj.weight)
            groups[number] = heads.square().view(self.layout.sizes.kv_heads, -1).sum(1).sqrt()
            if hasattr(layer.mlp, "down_proj"):
                mlp[number] = columns("down_proj", number, layer.mlp.down_proj.weight)
        count = max(1, self.tokens)
        return Importance(self.hidden / count, mlp, groups, self.influence / count)
