"""transformers on torch, in bfloat16, behind the comparison's protocol."""

from __future__ import annotations

import time
from typing import Any

from protocol import Setup, Timing, serve


class Transformers:
    warms_by_shape = True

    def load(self, setup: Setup) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        self._torch: Any = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.bfloat16).eval()

    def generate(self, prompts: list[list[int]], new: int) -> Timing:
        """A plain loop over the model's forward: `generate` does the same with more overhead a step."""
        begin = time.perf_counter()
        step = self._model(self._torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        tokens = step.logits[:, -1].argmax(-1, keepdim=True)
        ids = [int(tokens[0])]
        first = time.perf_counter()
        for _ in range(new - 1):
            step = self._model(tokens, past_key_values=step.past_key_values, use_cache=True)
            tokens = step.logits[:, -1].argmax(-1, keepdim=True)
            ids.append(int(tokens[0]))
        return Timing(first - begin, time.perf_counter() - first, (new - 1) * len(prompts), ids)


if __name__ == "__main__":
    serve(Transformers())
