"""llama.cpp, through llama-cpp-python's low-level bindings, behind the comparison's protocol."""

from __future__ import annotations

import ctypes
import time
from typing import Any

from protocol import Setup, Timing, serve

# llama.cpp's own defaults: tokens of a call, and of one pass over the weights.
_BATCH = 2048
_MICROBATCH = 512


class LlamaCpp:
    warms_by_shape = False  # Nothing is compiled, and the KV cache is cleared when a context is made.

    def load(self, setup: Setup) -> None:
        import llama_cpp
        import numpy

        self._api: Any = llama_cpp
        self._numpy: Any = numpy
        self._setup = setup
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(setup.model.encode(), params)
        if not self._model:
            raise RuntimeError(f"{setup.model} was not loaded")
        self._context: Any = None
        self._open(1)

    def _open(self, sequences: int) -> None:
        """A context of `sequences` equal parts, as the KV cache of several sequences is the fastest."""
        if self._context:
            self._api.llama_free(self._context)
        params = self._api.llama_context_default_params()
        params.n_ctx = self._setup.kv_tokens if sequences > 1 else self._setup.max_tokens
        params.n_batch, params.n_ubatch = _BATCH, _MICROBATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._setup.threads
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"no context for {sequences} sequences")
        self._sequences = sequences
        self._batch = self._api.llama_batch_init(_BATCH, 0, 1)

    def generate(self, prompts: list[list[int]], new: int) -> Timing:
        if len(prompts) != self._sequences:
            self._open(len(prompts))
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        length = len(prompts[0])
        begin = time.perf_counter()
        # (token, position, sequence, whether its logits are wanted), cut into calls of at most _BATCH.
        work = [(t, i, s, i == length - 1) for s, prompt in enumerate(prompts) for i, t in enumerate(prompt)]
        last = [0] * len(prompts)
        for start in range(0, len(work), _BATCH):
            self._decode(work[start : start + _BATCH], last)
        first = time.perf_counter()
        ids = [last[0]]
        for step in range(new - 1):
            self._decode([(token, length + step, s, True) for s, token in enumerate(last)], last)
            ids.append(last[0])
        return Timing(first - begin, time.perf_counter() - first, (new - 1) * len(prompts), ids)

    def _decode(self, work: list[tuple[int, int, int, bool]], last: list[int]) -> None:
        """One call of llama_decode; writes the greedy tokens of the rows with logits to `last`."""
        batch = self._batch
        batch.n_tokens = len(work)
        for row, (token, position, sequence, logits) in enumerate(work):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = logits
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        for row, (_, _, sequence, logits) in enumerate(work):
            if logits:
                pointer = self._api.llama_get_logits_ith(self._context, row)
                values = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self._setup.vocabulary)).contents
                last[sequence] = int(self._numpy.frombuffer(values, dtype=self._numpy.float32).argmax())


if __name__ == "__main__":
    serve(LlamaCpp())
