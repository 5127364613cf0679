"""CTranslate2 behind the comparison's protocol."""

from __future__ import annotations

import os
import time
from typing import Any

from protocol import Setup, Timing, serve


class CTranslate2:
    warms_by_shape = True

    def load(self, setup: Setup) -> None:
        os.environ.update(setup.settings)  # Read when the library is loaded.
        import ctranslate2

        self._generator = ctranslate2.Generator(
            setup.model, device="cpu", compute_type="int8", inter_threads=1, intra_threads=setup.threads
        )

    def generate(self, prompts: list[list[int]], new: int) -> Timing:
        # The converted vocabulary names token 17 "t17".
        tokens = [[f"t{token}" for token in prompt] for prompt in prompts]
        steps: list[float] = []
        ids: list[int] = []

        def on_token(result: Any) -> bool:
            if result.batch_id == len(prompts) - 1:
                steps.append(time.perf_counter())
                ids.append(result.token_id)
            return False

        begin = time.perf_counter()
        self._generator.generate_batch(
            tokens,
            max_length=new,
            min_length=new,
            include_prompt_in_result=False,
            callback=on_token,
        )
        if len(steps) != new:
            raise RuntimeError(f"{len(steps)} steps instead of {new}")
        return Timing(steps[0] - begin, steps[-1] - steps[0], (new - 1) * len(prompts), ids)


if __name__ == "__main__":
    serve(CTranslate2())
