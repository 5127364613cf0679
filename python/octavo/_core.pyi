"""The compiled engine: everything between a prompt and its output.

This module only converts: the logic lives in the Rust crates. Users reach it through `octavo.LLM`.
"""

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, final

__all__ = [
    "JSON_WHITESPACE",
    "AdapterFile",
    "Checkpoint",
    "Delta",
    "Engine",
    "Logprob",
    "Plan",
    "SampleDelta",
    "SamplingParams",
    "Stream",
    "__version__",
    "bench_attention",
    "bench_kernels",
    "build_info",
    "fit_schema",
    "floats_json",
    "parse_json",
    "quantize_weights",
    "read_model",
    "read_pack",
    "resolve",
    "sampling_schema",
]

__version__: str
JSON_WHITESPACE: str
"""Regular expression of the white space between the tokens of JSON."""

def bench_attention(
    on_row: Callable[[dict[str, Any]], object],
    contexts: Sequence[int],
    *,
    isa: str | None = None,
    threads: int | None = None,
    seconds: float = 1.0,
) -> None:
    """Measures dense and dynamic attention, and hands each row to `on_row`; what that raises ends the measurement.

    A row is one layer's attention for one new token: `heads`, `kv_heads`, `head_dim`, `context` (tokens), `looks`
    (where the heads look: "spans", "near", "everywhere"), `way`, `seconds_p20`, `seconds_p50`, `seconds_p80`, `bytes`
    of keys and values that were read, `relative_error` (largest norm of a head's difference from "int8 dense", relative
    to the exact output's), and of ways with a choice (else None) `max_omitted_mass`, `max_output_error` and
    `dense_head_fraction`.
    """

def bench_kernels(
    on_row: Callable[[dict[str, Any]], object],
    *,
    words: Sequence[str] = ...,
    isa: str | None = None,
    threads: int | None = None,
    seconds: float = 0.3,
) -> dict[str, Any] | None:
    """Measures the kernels and hands each row to `on_row`; what that raises ends the measurement.

    A row has `kernel`, `dtype`, `shape` (the model's), `sizes`, `seconds_p20`, `seconds_p50`, `seconds_p80`,
    `bytes_per_second`, `operations_per_second` (0: not counted), `share` (of the limit; None: unknown) and `bound`
    ("reading" or "computing"). Only rows that hold each of `words` in the first four are measured.

    Returns the machine's limits, or None where no row was measured:
    `isa`, `threads`, `read` (bytes a second) and `int8`, `bf16`, `f32` (each None, or
    `rate` in operations a second and `instruction`).
    """

def build_info() -> dict[str, Any]:
    """Facts of this build and machine.

    Keys: `version`, `profile` ("release" or "debug"), `isa` (the instruction set in use), `isa_available`
    (list, slowest
    first), `cpu` (model name), `threads` (the default number of threads), `memory_bytes` (RAM of the machine).
    """

def floats_json(values: bytes) -> bytes:
    """The float32 values (little-endian) of an embedding as a JSON array: the shortest digits that give each back."""

def fit_schema(text: str, *, closed: bool = True) -> tuple[str, list[tuple[str, str, str]], list[str]]:
    """The nearest JSON schema that a grammar holds: its text; (pointer, keyword, why) for each part where it is wider;
    and the names of formats that hold nothing. `closed`: objects that name their properties take no others.
    """

def parse_json(text: bytes, *, max_depth: int = 64, max_values: int = 1_000_000) -> Any:
    """Reads JSON of strangers: duplicate keys, numbers that are not finite, lone surrogates, nesting beyond
    `max_depth` and more than `max_values` values raise `InvalidRequestError`."""

def quantize_weights(
    model: str, output: str, source: str, *, quantization: str = "auto", threads: int | None = None
) -> dict[str, Any]:
    """Writes the weights of the folder `model` to the new file `output`, as kernels read them. `source` is what the
    file calls the model. Keys: `bytes`, `kept_in_bf16`, `warnings`, `origin`, `quantization_config` for
    config.json."""

def read_model(folder: str, *, context: int = 0, weights: bool = True) -> dict[str, Any]:
    """What the model of `folder` is, for executors in Python: `spec` (the decoder as data), `names` (of its
    tensors, with "{i}" for the layer and "{e}" for the expert), `ropes` (a list of {inverse_frequencies, amplitude}
    where no sequence is longer than `context` tokens), `longest_context`, `parameters`.
    Without `weights` config.json alone is read, and the spec is not fitted to what the checkpoint holds.

    Raises `ModelNotFoundError`, `UnsupportedModelError`, `CorruptModelError`.
    """

def read_pack(path: str) -> dict[str, Any]:
    """What pack.json of the folder `path` says; needs no model. Keys: `digest`, `form`, `made_by`, `tokens`, `blocks`,
    `bytes`, `layers`, `sources`, `fingerprint`, `text`. Raises `ModelNotFoundError`, `CorruptModelError`."""

def resolve(model: str, config: Mapping[str, Any], memory: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The configuration of an engine on a GPU: `dtype`, `quantization`, `kv_cache_dtype`, `limits`, `max_open_blocks`
    and `memory` (the plan, a list of {name, bytes, reason}).

    `memory` holds bytes: `total_bytes` and `free_bytes` of the device (free: without weights and the largest step),
    `block_bytes` of a KV block, `open_block_bytes`, `score_bytes` for each block, `weight_bytes`, `step_bytes`.
    Without it the number of blocks is 0 and the plan is empty.

    Raises `ModelNotFoundError`, `UnsupportedModelError`, `CorruptModelError`, `InvalidRequestError`,
    `DeviceMemoryError`.
    """

def sampling_schema() -> dict[str, Any]:
    """Ranges of the numeric fields of `SamplingParams`, as a JSON schema."""

@final
class Checkpoint:
    """The safetensors files of a model folder, mapped; every name and offset is checked."""

    def __new__(cls, folder: str) -> Checkpoint:
        """Raises `ModelNotFoundError`, `UnsupportedModelError`, `CorruptModelError`."""
    @property
    def bytes(self) -> int:
        """Of all tensors."""
    def shape(self, name: str) -> list[int] | None:
        """The sizes of a tensor; None: there is no such tensor."""
    def warnings(self) -> list[str]:
        """Sentences about the files, and about tensors that were not asked for until now."""
    def tensor(self, name: str, shape: Sequence[int]) -> tuple[str, memoryview]:
        """(element type, little-endian elements) of the tensor `name`: "float64", "float32", "bfloat16", "float16" or
        "int8".
        Raises `CorruptModelError` if it is missing, has another shape, or another element type."""

@final
class AdapterFile:
    """An opened adapter; every name, shape and value is checked. Executors get it in `pack_adapter`."""

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
    def modules(self) -> list[dict[str, Any]]:
        """One for each module: `name`, `rank`, `scale`, and (element type, shape, bytes) of `a`, `b`, `magnitude` and
        `bias`, or None. Raises `CorruptModelError`."""

@final
class SamplingParams:
    """A checked set of sampling parameters, for any number of requests."""

    def __new__(cls, fields: Mapping[str, Any]) -> SamplingParams:
        """Keys are the fields of `octavo.SamplingParams`; one that is missing or None takes the default. Raises
        `InvalidRequestError`, naming the parameter, its value and the expected values."""

@final
class Plan:
    """One step, for an executor in Python: all new tokens of all its sequences. The views are of the engine's own
    memory, read-only, and valid as long as they are held: arrays of u32, and of the records of `octavo.gpu.plan` in
    `seqs` and `samples`."""

    @property
    def step(self) -> int:
        """Counted from 1."""
    @property
    def adapters(self) -> list[tuple[int, Any]]:
        """(adapter id, what the executor's `pack_adapter` returned) of each adapter of the step."""
    @property
    def tokens(self) -> memoryview:
        """`[T]`, the sequences one after the other; 0 in the rows that `placeholders` names."""
    @property
    def placeholders(self) -> memoryview:
        """`[A, 2]`: (row of `tokens`, sequence of the step before that samples its token)."""
    @property
    def positions(self) -> memoryview:
        """`[T]`."""
    @property
    def slots(self) -> memoryview:
        """`[T]`: block * 32 + offset, where a token's key and value go."""
    @property
    def seqs(self) -> memoryview:
        """`[S]` records."""
    @property
    def block_tables(self) -> memoryview:
        """Block ids, concatenated."""
    @property
    def copies(self) -> memoryview:
        """`[C, 2]`: (source, destination) of the block copies to make first."""
    @property
    def open_blocks(self) -> memoryview:
        """Open blocks of an int8 cache, concatenated: of each sequence one for every block that gets a new token."""
    @property
    def open_slots(self) -> memoryview:
        """`[T]`: open block * 32 + offset; empty unless the cache is int8."""
    @property
    def sealed(self) -> memoryview:
        """`[F, 2]`: (block, open block) of the blocks that the step fills."""
    @property
    def open_copies(self) -> memoryview:
        """`[C, 2]`: (source, destination) of the copies of open blocks to make together with `copies`."""
    @property
    def samples(self) -> memoryview:
        """`[D]` records: sequences whose token the executor samples."""

class _Executor(Protocol):
    """What `Engine.over` calls from its thread. An exception fails the step's requests; one with a true attribute
    `fatal` ends the engine."""

    max_in_flight: int
    """Steps that may be submitted before the oldest one is waited for: 1 or 2."""
    open_blocks: bool
    """Whether plans name open blocks: for an int8 cache."""

    def submit(self, plan: Plan, /) -> None:
        """Starts a step. The step before samples the tokens of its `placeholders`."""
    def wait(self) -> tuple[Any, Sequence[Any] | None, Mapping[str, Any] | None]:
        """Waits for the oldest step. For its samples in order: tokens (array of u32 `[D]`, 2^32 - 1: the logits were
        not numbers), None or (ids u32, log-probabilities f32, ranks u32), each `[D, columns]`, the token's own entry
        first. Then None or named numbers, f64 `[S]` each: `max_*` merge by maximum, the others by addition."""
    def read_rows(self, first: int, count: int, /) -> Any:
        """Logits f32 `[count, vocab]` of rows of the step last waited for: in plan order, without the sampled rows."""

@final
class Engine:
    """One model, its KV cache and the thread that runs it. Safe to use from many threads."""

    def __new__(cls, model: str, config: Mapping[str, Any]) -> Engine:
        """Loads `model` (a folder with config.json and safetensors) on the CPU and starts the engine thread. `config`
        is what `octavo.EngineConfig.for_engine` returns. Missing keys and None take the default.

        Raises `ModelNotFoundError`, `UnsupportedModelError`, `CorruptModelError`, `InvalidRequestError`.
        """

    @staticmethod
    def over(model: str, config: Mapping[str, Any], executor: _Executor, facts: Mapping[str, Any]) -> Engine:
        """Starts the engine thread over an executor in Python for the model of the folder `model`. `facts` about the
        executor: `memory` (as for `resolve`), `quantization`, `checkpoint_dtype`, `warnings`, `kernels`,
        `load_seconds`. Raises as the constructor does for what else the folder holds."""

    def submit(self, prompt: str | Sequence[int], params: SamplingParams, *, add_special_tokens: bool = True) -> Stream:
        """Queues one request and returns at once. Tokenises in the calling thread with the GIL released.
        Raises `InvalidRequestError`, `ContextLengthError`, `QueueFullError`, `EngineDeadError`.
        """

    def submit_many(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        add_special_tokens: bool = True,
        on_full: Callable[[list[Stream]], object] | None = None,
    ) -> list[Stream]:
        """Checks all requests, then queues each as soon as the queue has room. While the queue is full, `on_full` gets
        the streams since its last call, and waits. Returns the streams that `on_full` did not get. An error, such as
        one that `on_full` raises, cancels these. Raises as `submit`, but `QueueFullError`."""

    def embed(
        self, prompt: str | Sequence[int], params: Mapping[str, Any], *, add_special_tokens: bool = True
    ) -> Stream:
        """Queues a request for the embedding of `prompt`; its one piece carries it. Keys of `params` are the
        keyword arguments of `octavo.LLM.embed`. Raises as `submit`, and `UnsupportedModelError` on a device that
        computes none."""

    def embed_many(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: Mapping[str, Any],
        *,
        on_full: Callable[[list[Stream]], object] | None = None,
    ) -> list[Stream]:
        """`submit_many` for embeddings."""

    def check_embed(self, prompt_token_ids: Sequence[int], params: Mapping[str, Any]) -> None:
        """Checks a request as `embed` does, without queueing it."""

    def load_adapter(self, name: str, path: str, expected_generation: int | None = None) -> dict[str, Any]:
        """Checks the adapter of the folder `path` and gives it the name. Keys: `name`, `generation`, `digest`, `rank`,
        `bytes`, `warnings`. Raises `ModelNotFoundError`, `UnsupportedModelError`, `CorruptModelError`,
        `InvalidRequestError`, `AdapterConflictError`, `EngineDeadError`."""

    def unload_adapter(self, name: str) -> None:
        """Removes the name. Raises `AdapterNotFoundError`."""

    def adapters(self) -> list[dict[str, Any]]:
        """What `load_adapter` returned, for each name there is."""

    def pack(self, fields: Mapping[str, Any]) -> Any:
        """An operation on packs. `operation` is "make" (fields `path`, `form`, `text`, `sources`, `tokens`, `lora`,
        `replace`), "load" (`name`, `path`, `check_block`), "unload" (`name`), "list", or "text" (`name`).

        "load" and "list" give `name`, `digest`, `form`, `tokens`, `bytes`, `blocks`, `adapter`, `sources`. Raises
        `ModelNotFoundError`, `CorruptModelError`, `PackNotFoundError`, `PackMismatchError`, `InvalidRequestError`,
        `EngineDeadError`."""

    def wait_ready(self, timeout: float) -> list[int]:
        """Waits up to `timeout` seconds for news of subscribed streams; their request ids (empty: none, or
        closed)."""

    def render_chat(self, request: str) -> str:
        """Renders the chat template. `request` is JSON: {"messages": [...], "tools": [...] | null,
        "add_generation_prompt": bool, ...}; further keys reach the template as variables.
        Raises `InvalidRequestError` (no template, or the template refuses the messages).
        """

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...
    def stats(self) -> dict[str, Any]:
        """Counters since the start: `requests` {running, waiting, finished}, `blocks` {total, free, cached, live,
        pinned},
        `finished` {stop, length, abort, error} (samples),
        `steps`, `max_batch` (most sequences in one step), `mixed_steps` (steps with prefill and decode together),
        `prompt_tokens`, `generated_tokens`, `cached_prompt_tokens`, `preemptions`, `step_seconds`,
        `adapters` {running, waiting (names), max, resident_bytes}, ...
        """

    def histograms(self) -> dict[str, Any]:
        """Distributions since the start: name (with its unit) to `bounds`, `counts` (cumulative, one more than
        bounds) and `sum`."""

    def health(self, limit_seconds: float) -> tuple[Literal["ready", "stalled", "dead"], str]:
        """Whether the engine makes progress, with the cause if not. A step longer than the limit is a stall."""

    def info(self) -> dict[str, Any]:
        """`model` (architecture, sizes, dtype, quantization, parameters), `spec` (the full model spec),
        `memory` (a list of
        {name, bytes, reason}), `machine` (as `build_info`), `kernels` {op: kernel in use}, `limits` (max_model_len,
        max_num_seqs, max_num_batched_tokens, block_size, num_blocks, max_queue), `defaults` (resolved sampling
        defaults).
        """

    def close(self) -> None:
        """Aborts what runs, joins the engine thread and frees the memory. Idempotent. Later calls raise
        EngineDeadError."""

@final
class Stream:
    """The outputs of one request, in order. The engine never waits for a slow reader: what is not read yet is
    merged."""

    @property
    def request_id(self) -> int: ...
    @property
    def prompt_token_ids(self) -> list[int]: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    def next(self, timeout: float | None = None) -> Delta | None:
        """The next piece. Waits with the GIL released and answers Ctrl-C; None when `timeout` seconds passed,
        or when the
        piece with `finished` was already taken."""

    def poll(self) -> Delta | None:
        """All that has come, as one piece, if anything has. A subscribed stream with news is reported once, and not
        again before a `poll` that finds nothing, but for its end."""

    def subscribe(self, *, only_end: bool = False) -> None:
        """From now on `Engine.wait_ready` reports this request whenever it has news (at once if it has some now).
        With `only_end` all later news comes as one piece, the last."""

    def cancel(self) -> None:
        """Ends the request; its blocks are freed at the next step. The last piece then says "abort". Idempotent."""

@final
class Delta:
    """What came since the last piece."""

    @property
    def outputs(self) -> list[SampleDelta]: ...
    @property
    def num_tokens(self) -> int:
        """New tokens of all samples."""
    @property
    def finished(self) -> bool:
        """True in the last piece of the request (every sample has ended)."""
    @property
    def prompt_logprobs(self) -> list[list[Logprob] | None] | None:
        """In the first piece, if asked for: per prompt token the candidates (the token itself first); None for
        the first."""
    @property
    def embedding(self) -> bytes | None:
        """In the last piece of an `embed` request: float32 values, little-endian."""
    @property
    def metrics(self) -> dict[str, Any] | None:
        """In the last piece: `queue_seconds`, `ttft_seconds`, `tpot_seconds`, `total_seconds`, `prompt_tokens`,
        `cached_prompt_tokens`, `generated_tokens`, and `attention`, a dictionary or None."""
    @property
    def error(self) -> tuple[str, str] | None:
        """(class name in octavo.errors, message) if the request failed."""

@final
class SampleDelta:
    """News of one of the `n` samples of a request."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def logprobs(self) -> list[list[Logprob]] | None:
        """Per token of `token_ids`: the chosen token first, then the top candidates by rank."""
    @property
    def cumulative_logprob(self) -> float | None: ...
    @property
    def finish_reason(self) -> Literal["stop", "length", "abort", "error"] | None: ...
    @property
    def stop_reason(self) -> int | str | None:
        """The stop token id or stop string that ended the sample; None for end-of-sequence."""

@final
class Logprob:
    @property
    def token_id(self) -> int: ...
    @property
    def logprob(self) -> float: ...
    @property
    def rank(self) -> int:
        """1 is the most likely token."""
    @property
    def token(self) -> str: ...
    @property
    def bytes(self) -> builtins.bytes:
        """The bytes that the token adds to a text."""
