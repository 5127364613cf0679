"""One block of a round: one engine with one setting on one shape, alone in a fresh process.

Run as a module it prints one JSON object, so that a round's blocks can be started through a command that keeps the
machine quiet meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from .measures import CASES, KV_TOKENS, MAX_TOKENS, SEQUENCES
from .places import Places, all_engines
from .shapes import SHAPES
from .worker import Worker

#: Thread pools of libraries that know the environment only.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SMALL_PROMPT = 512


def run_block(
    places: Places, engine: str, setting: str, shape: str, figures: set[str], threads: int, seed: int
) -> dict[str, Any]:
    """Samples of each figure (seconds, tokens a second, megabytes), and greedy tokens that show what was computed."""
    entry = all_engines()[engine]
    sizes = SHAPES[shape]
    model = places.loadable(shape, entry["model"])
    samples: dict[str, list[float]] = defaultdict(list)
    environment = {name: str(threads) for name in _THREADS} | {"HF_HUB_OFFLINE": "1"}
    warm_page_cache(model)
    log = places.cache / "log" / f"{engine}.log"
    with Worker(places.python(engine), entry["runner"], log, environment) as worker:
        loaded = worker.ask(
            "load",
            model=str(model),
            threads=threads,
            settings=entry["settings"][setting],
            vocabulary=sizes.vocab_size,
            kv_tokens=KV_TOKENS,
            max_tokens=MAX_TOKENS,
            sequences=SEQUENCES,
            kv_values_per_token=sizes.kv_values_per_token,
        )
        ids = worker.ask("generate", prompt=64, batch=1, new=8, seed=1)["ids"]
        samples["load"].append(loaded["load_seconds"])
        samples["start"].append(loaded["start_seconds"])
        cases = [case for case in CASES if case.figures & figures]
        if not loaded["warms_by_shape"]:
            worker.ask("generate", prompt=_SMALL_PROMPT, batch=1, new=2, seed=seed)
        for case in cases:
            if loaded["warms_by_shape"]:
                worker.ask("generate", prompt=case.prompt, batch=case.batch, new=min(case.new, 2), seed=seed)
                seed += 1
            for _ in range(case.repeats):
                timing = worker.ask("generate", prompt=case.prompt, batch=case.batch, new=case.new, seed=seed)
                seed += 1
                timing.pop("ids")
                for figure, value in case.read(**timing).items():
                    samples[figure].append(value)
        memory = worker.ask("memory")
        samples["peak_rss"].append(memory["peak_rss_bytes"] / 1e6)
    return {
        "samples": {name: values for name, values in samples.items() if name in figures},
        "model": model.parent.name if model.suffix else model.name,
        "ids": ids,
        **memory,
    }


def warm_page_cache(model: Path) -> None:
    """Reads the model's files once, so that a load measures the engine and not the disk."""
    for file in [model] if model.is_file() else model.iterdir():
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specification", help="a JSON object, as run.py writes it")
    spec = json.loads(parser.parse_args().specification)
    places = Places(Path(spec.pop("cache")), {name: Path(path) for name, path in spec.pop("pythons").items()})
    spec["figures"] = set(spec["figures"])
    print(json.dumps(run_block(places, **spec)), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
