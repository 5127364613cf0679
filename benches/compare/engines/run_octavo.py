"""octavo behind the comparison's protocol."""

from __future__ import annotations

import time
from typing import Any

from protocol import Setup, Timing, serve

# Sequences that start before the last one must still run when it has all its tokens.
_LEAD_TOKENS = 64


class Octavo:
    warms_by_shape = True

    def load(self, setup: Setup) -> None:
        from octavo import LLM, SamplingParams

        self._params = SamplingParams
        options: dict[str, Any] = dict(setup.settings)
        bytes_per_value = {"float32": 4, "bfloat16": 2, "int8": 1}[options.get("kv_cache_dtype", "bfloat16")]
        self._llm = LLM(
            setup.model,
            threads=setup.threads,
            max_model_len=setup.max_tokens,
            max_num_seqs=setup.sequences,
            kv_cache_memory=setup.kv_tokens * setup.kv_values_per_token * bytes_per_value,
            **options,
        )

    def generate(self, prompts: list[list[int]], new: int) -> Timing:
        lead = _LEAD_TOKENS if len(prompts) > 1 else 0
        params = self._params(max_tokens=new + lead, temperature=0, ignore_eos=True)
        begin = time.perf_counter()
        streams = [self._llm.stream(prompt, params) for prompt in prompts]
        # Requests are served in order: once the last one has a token, all run. The others' tokens wait unread.
        ids: list[int] = []
        first = 0.0
        counted = 0
        for delta in streams[-1]:
            ids += delta.outputs[0].token_ids
            if not first:
                first = time.perf_counter()
                counted = len(ids)
            if len(ids) >= new:
                break
        end = time.perf_counter()
        for stream in streams:
            stream.close()
        return Timing(first - begin, end - first, (len(ids) - counted) * len(prompts), ids)


if __name__ == "__main__":
    serve(Octavo())
