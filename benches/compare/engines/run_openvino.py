"""OpenVINO GenAI's continuous batching behind the comparison's protocol."""

from __future__ import annotations

import time
from typing import Any

from protocol import Setup, Timing, serve

# Tokens of a KV block on the CPU.
_BLOCK = 32
# Sequences that start before the last one must still run when it has all its tokens.
_LEAD_TOKENS = 64


class OpenVino:
    warms_by_shape = True

    def load(self, setup: Setup) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy: Any = numpy
        self._openvino: Any = openvino
        self._genai: Any = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        settings = dict(setup.settings)
        scheduler.num_kv_blocks = setup.kv_tokens // _BLOCK
        scheduler.max_num_seqs = setup.sequences
        scheduler.max_num_batched_tokens = int(settings.pop("max_num_batched_tokens", "512"))
        properties = {"INFERENCE_NUM_THREADS": str(setup.threads), **settings}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(setup.model, scheduler, "CPU", properties)
        self._requests = 0

    def generate(self, prompts: list[list[int]], new: int) -> Timing:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = new + (_LEAD_TOKENS if len(prompts) > 1 else 0)
        config.ignore_eos = True
        config.do_sample = False
        begin = time.perf_counter()
        handles = []
        for prompt in prompts:
            ids = self._openvino.Tensor(self._numpy.array([prompt], dtype=self._numpy.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, config))
            self._requests += 1
        made: list[list[int]] = [[] for _ in prompts]
        while not all(made):
            self._step(handles, made)
        first = time.perf_counter()
        before = sum(map(len, made))
        while len(made[-1]) < new:
            self._step(handles, made)
        timing = Timing(first - begin, time.perf_counter() - first, sum(map(len, made)) - before, made[-1][:new])
        for handle in handles:
            handle.stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return timing

    def _step(self, handles: list[Any], made: list[list[int]]) -> None:
        self._pipeline.step()
        for handle, ids in zip(handles, made, strict=True):
            if handle.can_read():
                for output in handle.read().values():
                    ids.extend(output.generated_ids)


if __name__ == "__main__":
    serve(OpenVino())
