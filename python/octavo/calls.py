"""Calls with an argument that the function does not have: a typed error that names the nearest one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from octavo.errors import UnknownArgumentError

__all__ = ["check_template_variables", "names_arguments"]

C = TypeVar("C", bound=type)
_KINDS = inspect.Parameter
# A variable of a template this close to an argument is a misspelt argument.
_MISSPELT = 0.85
# Names of other libraries, with what to use here.
_INSTEAD = {
    "best_of": "give n, and choose by cumulative_logprob",
    "chat_template": "give it to LLM(chat_template=...)",
    "detokenize": "read token_ids of the output",
    "do_sample": "give temperature=0 for greedy output",
    "enable_lora": "leave it out: LLM.load_adapter loads adapters at any time",
    "enforce_eager": "leave it out",
    "gpu_memory_utilization": "give kv_cache_memory, such as 0.9",
    "guided_decoding": "give structured=JsonSchema(...), Regex(...) or Grammar(...)",
    "length_penalty": "octavo has no beam search",
    "logits_processors": "use logit_bias, bad_words or structured",
    "lora_request": "give adapter=, the name of an adapter that LLM.load_adapter loaded",
    "max_cpu_loras": "give max_lora_memory",
    "max_length": "give max_tokens: it counts the output alone",
    "max_new_tokens": "give max_tokens",
    "mm_processor_kwargs": "octavo reads text only",
    "num_beams": "octavo has no beam search",
    "num_return_sequences": "give n",
    "compose": "leave it out: the texts of packs are sent one behind the other",
    "pack": "give SamplingParams(pack=...) to generate or chat; an embedding takes none",
    "packs": "give pack: one name, or a list of names",
    "padding": "leave it out: prompts are not padded",
    "return_dict": "render_chat returns text, and LLM.tokenize token ids",
    "return_tensors": "render_chat returns text, and LLM.tokenize token ids",
    "stop_strings": "give stop",
    "structured_outputs": "give structured=JsonSchema(...), Regex(...) or Grammar(...)",
    "tensor_parallel_size": "octavo runs on one device",
    "tokenize": "render_chat returns text, and LLM.tokenize token ids",
    "truncate_prompt_tokens": "cut the token ids of the prompt",
    "truncation": "cut the token ids of the prompt",
    "trust_remote_code": "leave it out: octavo runs no code of a model",
    "use_beam_search": "octavo has no beam search",
}


def names_arguments(sampling: Sequence[str] = (), owner: str | None = None) -> Callable[[C], C]:
    """Makes the public methods of a class, and its constructor, raise UnknownArgumentError for a keyword that they do
    not have. A function that takes any keyword checks them itself.

    Args:
        sampling: fields of SamplingParams, which belong into the argument `sampling_params`.
        owner: the class that users know, if it is another one.
    """

    def decorate(cls: C) -> C:
        for name, member in list(vars(cls).items()):
            if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
                parameters = inspect.signature(member).parameters.values()
                if not any(p.kind is _KINDS.VAR_KEYWORD for p in parameters):
                    shown = owner or cls.__name__
                    label = shown if name == "__init__" else f"{shown}.{name}"
                    setattr(cls, name, _checked(member, label, [p.name for p in parameters][1:], sampling))
        return cls

    return decorate


def _checked(function: Callable[..., Any], label: str, known: list[str], sampling: Sequence[str]) -> Callable[..., Any]:
    # `params` is an old name of `sampling_params`.
    takes_sampling = "sampling_params" in known
    names = frozenset([*known, "params"] if takes_sampling else known)

    def refuse(kwargs: dict[str, Any]) -> UnknownArgumentError:
        name = next(n for n in kwargs if n not in names)
        if takes_sampling and name in sampling:
            return _for_sampling(f"{label} has no argument {name!r}", name)
        return unknown_argument(label, name, known)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys() <= names:
                raise refuse(kwargs)
            return await function(*args, **kwargs)

        return acall

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= names:
            raise refuse(kwargs)
        return function(*args, **kwargs)

    return call


def unknown_argument(label: str, name: str, known: list[str]) -> UnknownArgumentError:
    """The error for the argument `name` of `label`, which takes `known`."""
    near = difflib.get_close_matches(name, known, n=1)
    if name in _INSTEAD:
        hint = f"Remedy: {_INSTEAD[name]}"
    elif near:
        hint = f"Did you mean {near[0]}?"
    else:
        hint = f"Known are: {', '.join(known)}" if known else "It takes none"
    return UnknownArgumentError(f"{label} has no argument {name!r}. {hint}")


def check_template_variables(variables: Mapping[str, Any], known: list[str], sampling: Sequence[str]) -> None:
    """Refuses variables of a chat template that are arguments in the wrong place: no template reads them.

    Args:
        known: arguments of the methods for chats.
        sampling: fields of SamplingParams.

    Raises:
        UnknownArgumentError: with the remedy.
    """
    for name in variables:
        if name in sampling:
            raise _for_sampling(f"{name!r} is no variable of a chat template", name)
        if name in _INSTEAD or difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT):
            raise unknown_argument("a chat", name, [k for k in known if k != name])


def _for_sampling(fault: str, name: str) -> UnknownArgumentError:
    return UnknownArgumentError(f"{fault}: give sampling_params=SamplingParams({name}=...)")
