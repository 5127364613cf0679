"""llama.cpp's Q8_0 by the same ruler, on the same weights: the packages `xllamacpp` and `gguf`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .ruler import CANDIDATES, Row


def write_gguf(source: Path, target: Path, form: str) -> None:
    """Writes the GGUF file `source` with its matrices in `form`: "F32" or "Q8_0".

    Values are rounded to bfloat16 first, as the model folder of the bench has them.
    """
    import gguf

    reader = gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    quantised = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        values = _bfloat16(gguf.dequantize(tensor.data, tensor.tensor_type))
        if form == "Q8_0" and len(tensor.shape) == 2:
            writer.add_tensor(tensor.name, gguf.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def serve(model: Path) -> Iterator[Any]:
    """llama.cpp with the model, in this process. Its cache of keys and values is in float32."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.n_predict = 1024, 1, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = -1
    yield xllamacpp.Server(params)


def rows_of(server: Any, ids: Sequence[int]) -> list[Row]:
    """Log-probabilities of the likeliest tokens after each of `ids` but the last, one request for each prefix.

    A row is empty where the end of the text is the best token: the server then gives none.
    """
    rows = []
    for end in range(1, len(ids)):
        body = {
            "prompt": list(ids[:end]),
            "n_predict": 1,
            "n_probs": CANDIDATES,
            "temperature": 0,
            "cache_prompt": True,
        }
        answer = server.handle_completions(body)
        found = answer["choices"][0]["logprobs"]
        first = found["content"][0]["top_logprobs"] if found and found["content"] else []
        rows.append({one["id"]: one["logprob"] for one in first})
    return rows


def _bfloat16(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)
