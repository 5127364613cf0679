"""octavo as a model of lm-evaluation-harness (EleutherAI's `lm_eval`).

python -m octavo.lm_eval --model octavo --model_args pretrained=path/to/model --tasks arc_easy

runs the harness's command line with octavo registered. In Python: `lm_eval.simple_evaluate(model=OctavoLM(...))`.
The entry point `lm_eval.models` registers the class where the harness supports entry points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.errors import InvalidRequestError, MissingDependencyError
from octavo.llm import LLM
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from octavo.lm_eval_keys import generation_keys
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] == "octavo":
        raise
    raise MissingDependencyError(f"octavo.lm_eval needs {_error.name}: pip install lm_eval") from _error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["OctavoLM", "main"]

T = TypeVar("T")
# Requests per batch: enough to fill the engine; their results fit in memory.
_BATCH = 512
_SCORE = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, ignore_eos=True)


class OctavoLM(TemplateLM):  # type: ignore[misc]
    """A model that the harness can evaluate.

    Args:
        pretrained: folder or hub id; None: the embedded model.
        max_length: maximum context of a prediction in tokens; None: two tokens less than `max_model_len`.
        add_bos_token: None: as the tokenizer does.
        max_gen_toks: maximum output of tasks without a limit, in tokens.
        enable_thinking, chat_template_args: variables of the chat template.
        think_end_token: output up to this text, or up to the token of this id, is dropped.
        device: "cpu"; other values: octavo chooses.
        batch_size, max_batch_size: ignored: the engine batches continuously.
        options: arguments of `octavo.LLM`; `quantization="none"`: no quantisation.

    Raises:
        OctavoError: as `octavo.LLM`.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        max_gen_toks: int = 256,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("quantization") == "none":
            options["quantization"] = None
        # The harness passes a GPU as the default device: octavo chooses then.
        options["device"] = "cpu" if str(device).startswith("cpu") else "auto"
        self.llm = LLM(pretrained, **options)
        room = int(self.llm.info()["limits"]["max_model_len"]) - 2
        if max_length is not None and not 1 <= max_length <= room:
            raise InvalidRequestError(
                f"max_length is {max_length}: 1 to {room} is expected (two tokens less than max_model_len)"
            )
        self.max_length = max_length or room
        self.max_gen_toks = max_gen_toks
        self.batch_size = batch_size or "auto"
        self._add_bos = add_bos_token
        self._template = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._template["enable_thinking"] = enable_thinking
        by_id = isinstance(think_end_token, str) and think_end_token.isdigit()
        self._think_end = int(think_end_token) if by_id and think_end_token else think_end_token
        self._eos, self._bos = _special_ids(self.llm)

    # --- tokens -------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self._eos

    @property
    def prefix_token_id(self) -> int:
        return self._eos if self._bos is None else self._bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.llm.model).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids. A text that begins with the prefix token, as a chat template writes it, gets no second one."""
        special = add_special_tokens if add_special_tokens is not None else self._add_bos
        if add_special_tokens is None:
            prefix = self.llm.detokenize([self.prefix_token_id], skip_special_tokens=False)
            if prefix and string.startswith(prefix):
                special = False
        return self.llm.tokenize(string, add_special_tokens=special is not False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.llm.render_chat(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._template,
        )

    # --- the three kinds of requests ----------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_more: Any
    ) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = []
        for batch in _batches(requests, "loglikelihood", quiet=disable_tqdm):
            # The last token is only predicted.
            whole = [(context + answer)[-self.max_length - 1 :] for _, context, answer in batch]
            outputs = self.llm.generate(whole, _SCORE, use_tqdm=False)
            for (texts, _, answer), output in zip(batch, outputs, strict=True):
                result = _score(output, len(answer))
                results.append(result)
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the longest context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                context, answer = make_disjoint_window(pair)
                windows.append((None, context, answer))
                owners.append(index)
        sums = [0.0] * len(requests)
        for index, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[index] += nats
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated texts, up to the first stop text of each request."""
        eos = self.llm.detokenize([self._eos], skip_special_tokens=False)
        texts: list[str] = []
        for batch in _batches(requests, "generate_until", quiet=disable_tqdm):
            prompts: list[list[int]] = []
            params: list[SamplingParams] = []
            stops: list[list[str]] = []
            for request in batch:
                context, given = request.args
                wanted = generation_keys(given, self.max_gen_toks)
                until = [s for s in handle_stop_sequences(wanted.until, eos) if s]
                most = wanted.max_tokens
                if most > self.max_length:
                    raise InvalidRequestError(f"max_gen_toks is {most}: the context has {self.max_length} tokens")
                # The end-of-sequence token always ends an output. Reasoning may contain stop texts of the answer.
                stop = [s for s in until if s != eos] if self._think_end is None else []
                params.append(SamplingParams(max_tokens=most, stop=stop or None, **wanted.sampling))
                # An empty context is the beginning of a text.
                ids = self.tok_encode(context) or [self.prefix_token_id]
                prompts.append(ids[-max(1, self.max_length - most) :])
                stops.append(until)
            outputs = self.llm.generate(prompts, params, use_tqdm=False)
            for request, output, until in zip(batch, outputs, stops, strict=True):
                text = self._answer(_whole(output), until)
                texts.append(text)
                self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _answer(self, output: RequestOutput, until: list[str]) -> str:
        """The text behind the reasoning, up to the first of `until`."""
        end, ids = self._think_end, output.outputs[0].token_ids
        if isinstance(end, str) or end not in ids:
            return str(postprocess_generated_text(output.text, until, None if isinstance(end, int) else end))
        behind = self.llm.detokenize(ids[len(ids) - ids[::-1].index(end) :]).lstrip()
        return str(postprocess_generated_text(behind, until, None))

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's results."""
        return {f"model_{name}": value for name, value in self.llm.info()["model"].items()}


def main() -> None:
    """The harness's own command line, with `--model octavo`."""
    from lm_eval.__main__ import cli_evaluate

    _register()
    cli_evaluate()


def _register() -> None:
    if "octavo" not in model_registry:
        model_registry.register("octavo")(OctavoLM)


def _whole(output: RequestOutput) -> RequestOutput:
    if output.error is not None:
        raise output.error
    return output


def _score(output: RequestOutput, answer: int) -> tuple[float, bool]:
    """The log-probability of the last `answer` tokens of a prompt, and whether each was the likeliest."""
    rows = _whole(output).prompt_logprobs
    assert rows is not None
    found = [next(iter(row.values())) for row in rows[len(rows) - answer :] if row is not None]
    return sum(c.logprob for c in found), all(c.rank == 1 for c in found)


def _batches(requests: list[T], name: str, *, quiet: bool) -> Iterator[list[T]]:
    from tqdm.auto import tqdm

    with tqdm(total=len(requests), desc=f"octavo: {name}", disable=quiet) as bar:
        for at in range(0, len(requests), _BATCH):
            batch = requests[at : at + _BATCH]
            yield batch
            bar.update(len(batch))


def _special_ids(llm: LLM) -> tuple[int, int | None]:
    """End and beginning of a sequence, by the tokenizer's own names; the model's end where it names none."""
    try:
        config = json.loads((Path(llm.model) / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    eos, bos = (_token_id(llm, config.get(name)) for name in ("eos_token", "bos_token"))
    ends: Iterable[int] = llm.info()["defaults"]["eos"]
    if eos is None:
        eos = next(iter(ends), None)
    if eos is None:
        raise InvalidRequestError("the model names no end-of-sequence token: the harness needs one as a prefix")
    return eos, bos


def _token_id(llm: LLM, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    ids = llm.tokenize(text, add_special_tokens=False) if isinstance(text, str) and text else []
    return ids[0] if len(ids) == 1 else None


_register()

if __name__ == "__main__":
    main()
