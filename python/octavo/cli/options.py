"""Options that several commands share, under the names of `LLM` and `SamplingParams`."""

from __future__ import annotations

from typing import Annotated

import typer

_MODEL = "The model"
_SAMPLING = "Sampling (default: the model's own)"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Local folder or hub id; default: the model that ships with octavo.",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.", rich_help_panel=_MODEL)]
Quantization = Annotated[str, typer.Option(help="auto, int8 or none.", rich_help_panel=_MODEL)]
KvCacheMemory = Annotated[
    str | None,
    typer.Option(help="Size of the KV cache: bytes, 4GiB, or a fraction such as 0.5.", rich_help_panel=_MODEL),
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Longest sequence, prompt and output together, in tokens.", rich_help_panel=_MODEL)
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per core.", rich_help_panel=_MODEL)]

MaxTokens = Annotated[int, typer.Option(help="Most tokens to generate.", rich_help_panel=_SAMPLING)]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.", rich_help_panel=_SAMPLING)]
TopP = Annotated[float | None, typer.Option(help="Nucleus mass, in (0, 1].", rich_help_panel=_SAMPLING)]
TopK = Annotated[int | None, typer.Option(help="Number of candidates; 0: all.", rich_help_panel=_SAMPLING)]
MinP = Annotated[float | None, typer.Option(help="Least share of the best candidate.", rich_help_panel=_SAMPLING)]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: tokens seen before become less likely.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[int | None, typer.Option(help="Equal seeds give equal outputs.", rich_help_panel=_SAMPLING)]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the output before this text; may be repeated.", rich_help_panel=_SAMPLING)
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]


def kv_cache_memory(text: str | None) -> str | float | None:
    """The option's text as `LLM` takes it: a fraction becomes a number."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return text
    return value if 0 < value < 1 else text
