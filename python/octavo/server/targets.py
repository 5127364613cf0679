"""What the `model` of a request names: the model, or an adapter of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from octavo.adapters import Adapter
from octavo.llm import LLM
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.adapters import adapter_named
from octavo.server.fields.requests import Strict
from octavo.server.names import LONGEST_NAME

# Longer names of models name nothing.
_LONGEST_MODEL = 1024
# Names that a message lists.
_SHOWN = 8


class Target(NamedTuple):
    """What a request runs with.

    Attributes:
        name: the model's name in the response.
        adapter: an adapter, as "sql" or "sql@3"; None: the model alone.
    """

    name: str
    adapter: str | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that say the same."""
        return {} if self.adapter is None else {"lora": self.adapter}


class Targets:
    """Finds the target of a request.

    Args:
        llm: gives the model.
        names: gives the names of the model; responses use the first.
    """

    def __init__(self, llm: Callable[[], LLM], names: Callable[[], Sequence[str]]) -> None:
        self._llm = llm
        self._names = names

    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name. One that has a name of the model is out of reach, and left out."""
        names = self._names()
        return {adapter.name: adapter for adapter in self._llm().adapters() if adapter.name not in names}

    def of(self, request: Strict) -> Target:
        """The target of `request`: its field `model`, and other servers' fields for an adapter.

        Raises:
            ApiError: 404 for what does not exist, 400 for fields that contradict each other.
        """
        given = adapter_named(request)
        target = self.named(getattr(request, "model", None))
        return target if given is None else self._with_adapter(target, *given)

    def named(self, model: str | None) -> Target:
        """The target that the name of a model stands for: `M`, `sql`, `sql@3`, or `M:sql` (SGLang's form).

        Raises:
            ApiError: 404.
        """
        if not model or model in self._names():
            return Target(self._names()[0])
        adapters = self.adapters()
        found = self._found(model, adapters) if len(model) <= _LONGEST_MODEL else None
        if found is None:
            raise self._unknown(model, adapters)
        return found

    def _found(self, name: str, adapters: Mapping[str, Adapter]) -> Target | None:
        if name in self._names():
            return Target(self._names()[0])
        if _is_adapter(name, adapters):
            return Target(name, name)
        for own in self._names():
            adapter = name.removeprefix(f"{own}:")
            if adapter != name and _is_adapter(adapter, adapters):
                return Target(adapter, adapter)
        return None

    def _with_adapter(self, target: Target, field: str, name: str) -> Target:
        adapters = self.adapters()
        if not _is_adapter(name, adapters):
            known = f"known are {_listed(adapters)}" if adapters else "there are none"
            message = f"{field} is {name[:80]!r}, which is no adapter of this server: {known}"
            raise bad_request(f"{message}; the field model can name one, too", field)
        if target.adapter not in (None, name):
            raise bad_request(f"{field} is {name[:80]!r} and model names another adapter: give one of them", field)
        return Target(name, name)

    def _unknown(self, model: str, adapters: Mapping[str, Adapter]) -> ApiError:
        names = self._names()
        served = f"{', '.join(names)} is served"
        if adapters:
            served += f", with the adapters {_listed(adapters)}"
        hint = _nearest(model, [*names, *adapters])
        message = f"there is no model {model[:80]!r} here: {served}{hint}; --served-model-name adds names"
        name, at, _ = model.partition("@")
        if at and name in adapters:
            message = (
                f"there is no {model[:80]!r} here: the adapter {name!r} has generation {adapters[name].generation}"
            )
        return ApiError(404, message, param="model", code="model_not_found")


def _is_adapter(name: str, adapters: Mapping[str, Adapter]) -> bool:
    """Whether `name` is an adapter, or an adapter and its generation."""
    plain, at, generation = name.partition("@")
    return plain in adapters and (not at or generation == str(adapters[plain].generation))


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name[:LONGEST_NAME], list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
