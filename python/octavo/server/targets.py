"""What the `model` of a request names: the model, an adapter of it, and knowledge packs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from octavo.adapters import Adapter
from octavo.llm import LLM
from octavo.packs import Pack
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
        packs: knowledge packs, in order.
    """

    name: str
    adapter: str | None = None
    packs: tuple[str, ...] = ()

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that say the same."""
        found: dict[str, Any] = {} if self.adapter is None else {"lora": self.adapter}
        return {**found, "pack": list(self.packs)} if self.packs else found


class View(NamedTuple):
    """Adapters and packs by name, at one moment, without adapters that a name of the model hides."""

    adapters: Mapping[str, Adapter]
    packs: Mapping[str, Pack]


class Targets:
    """Finds the target of a request.

    Args:
        llm: gives the model.
        names: gives the names of the model; responses use the first.
    """

    def __init__(self, llm: Callable[[], LLM], names: Callable[[], Sequence[str]]) -> None:
        self._llm = llm
        self._names = names
        # The list of many adapters takes time. What is gone from an old view is refused by the engine.
        self._last = View({}, {})

    def view(self) -> View:
        """What there is now."""
        llm, names = self._llm(), self._names()
        adapters = {adapter.name: adapter for adapter in llm.adapters() if adapter.name not in names}
        self._last = View(adapters, {pack.name: pack for pack in llm.packs()})
        return self._last

    def pack_models(self, view: View) -> list[tuple[str, Pack]]:
        """Each pack after a name that takes it: of the model, or of the adapter that the pack was made with."""
        digests = {adapter.digest: name for name, adapter in view.adapters.items()}
        packs = view.packs.values()
        bases = ((self._names()[0] if pack.adapter is None else digests.get(pack.adapter), pack) for pack in packs)
        return [(base, pack) for base, pack in bases if base is not None]

    def of(self, request: Strict) -> Target:
        """The target of `request`: its fields `model` and `pack`, and other servers' fields for an adapter.

        Raises:
            ApiError: 404 for what does not exist, 400 for fields that contradict each other.
        """
        given = adapter_named(request)
        pack, model = getattr(request, "pack", None), getattr(request, "model", None)
        if given is None and not pack and (not model or model in self._names()):
            return Target(self._names()[0])
        packs = [pack] if isinstance(pack, str) else pack or []
        try:
            target = self._of(self._last, model, given, packs)
        except ApiError:
            target = self._of(self.view(), model, given, packs)
        if target.packs and getattr(request, "truncate_prompt_tokens", None) is not None:
            raise bad_request("truncate_prompt_tokens would cut the pack off: leave one of the two out", "pack")
        return target

    def _of(self, view: View, model: str | None, given: tuple[str, str] | None, packs: Sequence[str]) -> Target:
        target = self.named(model, view)
        if given is not None:
            target = self._with_adapter(target, *given, view.adapters)
        return self._with_packs(target, packs, "pack", view.packs) if packs else target

    def named(self, model: str | None, view: View) -> Target:
        """The target that the name of a model stands for: `M`, `sql`, `sql@3`, `M:sql` (SGLang's form), or one of
        these before the names of packs, as `M+law`.

        Raises:
            ApiError: 404.
        """
        if not model or model in self._names():
            return Target(self._names()[0])
        adapters = view.adapters
        # A name may itself contain a plus sign: the longest one that exists counts.
        places = [len(model), *(i for i in range(len(model) - 1, 0, -1) if model[i] == "+")]
        for at in places if len(model) <= _LONGEST_MODEL else []:
            found = self._without_packs(model[:at], adapters)
            if found is not None:
                packs = model[at + 1 :].split("+") if at < len(model) else []
                return self._with_packs(found, packs, "model", view.packs) if packs else found
        raise self._unknown(model, adapters)

    def _without_packs(self, name: str, adapters: Mapping[str, Adapter]) -> Target | None:
        if name in self._names():
            return Target(self._names()[0])
        if _is_adapter(name, adapters):
            return Target(name, name)
        for own in self._names():
            adapter = name.removeprefix(f"{own}:")
            if adapter != name and _is_adapter(adapter, adapters):
                return Target(adapter, adapter)
        return None

    @staticmethod
    def _with_adapter(target: Target, field: str, name: str, adapters: Mapping[str, Adapter]) -> Target:
        if not _is_adapter(name, adapters):
            known = f"known are {_listed(adapters)}" if adapters else "there are none"
            message = f"{field} is {name[:80]!r}, which is no adapter of this server: {known}"
            raise bad_request(f"{message}; the field model can name one, too", field)
        if target.adapter not in (None, name):
            raise bad_request(f"{field} is {name[:80]!r} and model names another adapter: give one of them", field)
        return target._replace(name=name + "".join(f"+{pack}" for pack in target.packs), adapter=name)

    @staticmethod
    def _with_packs(target: Target, packs: Sequence[str], field: str, known: Mapping[str, Pack]) -> Target:
        unknown = next((name for name in packs if name not in known), None)
        if unknown is not None:
            there = f"{_listed(known)} can be used" if known else "start the server with --pack NAME=PATH"
            message = f"there is no pack {unknown[:80]!r} here: {there}{_nearest(unknown, known)}"
            raise ApiError(404, message, param=field, code="pack_not_found")
        twice = next((name for i, name in enumerate(packs) if name in packs[:i]), None)
        if twice is not None:
            raise bad_request(f"{field} names the pack {twice!r} twice: name each once", field)
        if target.packs and list(target.packs) != list(packs):
            raise bad_request("pack and model name different packs: give one of them", "pack")
        name = target.name if target.packs else target.name + "".join(f"+{pack}" for pack in packs)
        return target._replace(name=name, packs=tuple(packs))

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
