"""Fits arguments that were made under an older schema to the current one, without a change of their meaning.

The rule over all others: a silent wrong call is worse than a failure. What cannot be shown to keep the meaning is not
repaired: the model generates the arguments anew. Order: rename by alias, drop, keep an old default, coerce, wrap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.plugins.host.outcome import Repair
from octavo.plugins.schema import canonical, canonical_json
from octavo.plugins.validation import Fault, faults, matches

_MISSING = object()
# Keywords by which a schema has members beside `properties`.
_BRANCHES = ("anyOf", "oneOf", "allOf", "if", "then", "else", "$ref", "patternProperties", "dependentSchemas", "not")
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)


@dataclass
class Repaired:
    """Arguments under the current schema.

    Attributes:
        arguments: to send.
        repairs: what was changed, in order.
        faults: why they do not fit; empty if they do. Then nothing may be sent.
    """

    arguments: dict[str, Any]
    repairs: list[Repair] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def check(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Fault]:
    """Why the arguments do not fit; an argument that the schema does not name is a fault, unless it permits others."""
    found = faults(schema, arguments)
    if "additionalProperties" not in schema and not any(key in schema for key in _BRANCHES):
        names = schema.get("properties", {})
        unknown = [name for name in arguments if name not in names]
        found += [
            Fault(f"/{name}", "the operation has no argument of this name", "additionalProperties") for name in unknown
        ]
    return found


def repair(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    arguments: Mapping[str, Any],
    aliases: Mapping[str, tuple[str, ...]],
    *,
    frozen: bool = False,
    coerce: bool = True,
) -> Repaired:
    """The arguments under the new schema.

    Args:
        old: the schema under which they were made.
        new: the current schema, of the same API major.
        aliases: current name -> former names, as the plugin's author states them.
        frozen: nothing may change: the operation has consequences, or a person approved these arguments.
        coerce: whether values may change their type without loss.
    """
    work = _Work(old, new, aliases, coerce and not frozen)
    result = Repaired(dict(arguments))
    if any(key in schema for schema in (old, new) for key in _BRANCHES):
        # Which members belong together is not plain here: the arguments pass only if nothing of them changed.
        if canonical(old) != canonical(new):
            result.faults.append(Fault("", "the schema changed, and is too complex to compare argument by argument"))
        return _checked(new, result)
    for step in (work.rename, work.drop, work.replaced, work.defaults, work.values):
        step(result)
    if frozen and result.repairs:
        result = Repaired(dict(arguments), [], [_frozen(result.repairs[0]), *result.faults])
    return _checked(new, result)


def _frozen(first: Repair) -> Fault:
    return Fault(first.pointer, f"the argument needs a repair ({first.kind}), which calls with consequences never get")


def _checked(new: Mapping[str, Any], result: Repaired) -> Repaired:
    known = {fault.pointer for fault in result.faults}
    result.faults += [fault for fault in check(new, result.arguments) if fault.pointer not in known]
    return result


class _Work:
    def __init__(
        self, old: Mapping[str, Any], new: Mapping[str, Any], aliases: Mapping[str, tuple[str, ...]], coerce: bool
    ) -> None:
        self._old: dict[str, Any] = dict(old.get("properties", {}))
        self._new: dict[str, Any] = dict(new.get("properties", {}))
        # An argument that was required before, and is missing, is the caller's own mistake.
        self._required = set(new.get("required", ())) - set(old.get("required", ()))
        self._aliases = aliases
        self._coerce = coerce
        # New name -> the name under which the model was shown it.
        self._former: dict[str, str] = {}

    def rename(self, result: Repaired) -> None:
        """Former names become current ones, where the author's alias says so, or the description proves it."""
        for former in [name for name in result.arguments if name not in self._new]:
            named = [name for name, others in self._aliases.items() if former in others and name in self._new]
            why = "the plugin states it as the former name"
            if not named:
                named = self._twins(former)
                why = "it has the same type and description, and is the only candidate"
            if len(named) != 1 or named[0] in result.arguments:
                continue
            value = result.arguments.pop(former)
            result.arguments[named[0]] = value
            self._former[named[0]] = former
            detail = f"{former!r} is now {named[0]!r}: {why}"
            result.repairs.append(Repair("rename", f"/{former}", detail, value, value))

    def _twins(self, former: str) -> list[str]:
        """The new property that is the former one under another name; two candidates on either side are none."""
        if former not in self._old or not _description(self._old[former]):
            return []
        shape = _shape(self._old[former])
        gone = [n for n in self._old if n not in self._new and _shape(self._old[n]) == shape]
        come = [n for n in self._new if n not in self._old and _shape(self._new[n]) == shape]
        return come if len(gone) == 1 and len(come) == 1 else []

    def drop(self, result: Repaired) -> None:
        """Removes an argument that the operation does not have any more, if it had its default's value."""
        for name in [name for name in result.arguments if name not in self._new]:
            value = result.arguments[name]
            shown = self._old.get(name)
            default = _default(shown)
            if default is not _MISSING and _same(value, default):
                del result.arguments[name]
                detail = f"the operation has no {name!r} any more, and the value was its default"
                result.repairs.append(Repair("drop", f"/{name}", detail, value, None))
            else:
                detail = "the operation has no argument of this name any more, and its value was no default"
                result.faults.append(Fault(f"/{name}", detail, "additionalProperties"))

    def replaced(self, result: Repaired) -> None:
        """An argument that is gone may live on under a new name, with another default: then it must not be left out.

        Its old name may be in use again, for something else.
        """
        named = {self._shown(name) for name in self._new if not self._rebound(name)} | set(self._former.values())
        gone = [name for name in self._old if name not in named]
        come = [n for n in self._new if n not in self._old and n not in result.arguments and self._shown(n) == n]
        for old in gone:
            for new in come:
                if not _same_default(self._old[old], self._new[new]):
                    state = "changed" if old in self._new else "is gone"
                    detail = f"{old!r} {state}, and this is new with another default: it may be the same argument"
                    result.faults.append(Fault(f"/{new}", detail, "default"))
                    return

    def _rebound(self, name: str) -> bool:
        """Whether a name that both schemas have may mean something else now: other words, or no type in common."""
        if name not in self._old or name not in self._new:
            return False
        old, new = self._old[name], self._new[name]
        types = _accepts(old), _accepts(new)
        return _description(old) != _description(new) or (all(types) and not types[0] & types[1])

    def defaults(self, result: Repaired) -> None:
        """A call without the argument accepted the default that was shown: another default is another call."""
        for name, schema in self._new.items():
            if name in result.arguments or name in self._former:
                continue
            now = _default(schema)
            shown = self._old.get(self._shown(name), _MISSING)
            if shown is _MISSING:
                if name in self._required and now is not _MISSING:
                    self._fill(result, name, now, "the operation requires it now, and states this default")
                continue
            before = _default(shown)
            if before is _MISSING and now is _MISSING:
                continue
            if before is _MISSING:
                detail = f"it was left out when it had no default, and now has the default {now!r:.80}"
                result.faults.append(Fault(f"/{name}", detail, "default"))
            elif now is _MISSING or not _same(before, now) or name in self._required:
                self._fill(result, name, before, "the default that was shown, which the operation has not any more")

    def _shown(self, name: str) -> str:
        """The name under which the model was shown an argument that it left out."""
        if name in self._old:
            return name
        former = [n for n in self._aliases.get(name, ()) if n in self._old and n not in self._new]
        former = former or [n for n in self._old if n not in self._new and self._twins(n) == [name]]
        return former[0] if len(former) == 1 else name

    def _fill(self, result: Repaired, name: str, value: Any, why: str) -> None:
        result.arguments[name] = value
        result.repairs.append(Repair("default", f"/{name}", f"{name!r} is {value!r:.80}: {why}", None, value))

    def values(self, result: Repaired) -> None:
        """Checks each argument against its schema, and changes its type where nothing is lost."""
        for name, value in list(result.arguments.items()):
            if name not in self._new or (name not in self._old and name not in self._former):
                continue
            old, new = self._old.get(self._former.get(name, name), True), self._new[name]
            by_alias = name in self._former and _description(old) != _description(new)
            if canonical(old) == canonical(new) and (by_alias or _description(old) == _description(new)):
                continue
            if not by_alias and _description(old) != _description(new):
                # The schema changed, and the words too: the name may have been used again for something else.
                detail = "its schema's description changed together with the operation's schema"
                result.faults.append(Fault(f"/{name}", detail, "description"))
            elif (lost := _lost(old, new, value)) is not None:
                result.faults.append(Fault(f"/{name}{lost}", "the current schema has no such member", "properties"))
            elif not matches(new, value):
                self._change(result, name, value, old, new)

    def _change(self, result: Repaired, name: str, value: Any, old: Any, new: Any) -> None:
        # The same words in both are evidence of the same meaning; no words are none.
        if not self._coerce or name in self._former or not _description(old):
            return
        changed = _coerced(new, value)
        kind: Any = "coerce"
        if changed is _MISSING:
            changed, kind = _wrapped(old, new, value), "wrap"
        if changed is not _MISSING:
            result.arguments[name] = changed
            detail = f"{name!r} is now {_types(new)}: the value is the same"
            result.repairs.append(Repair(kind, f"/{name}", detail, value, changed))


def _description(schema: Any) -> str:
    text = schema.get("description") if isinstance(schema, dict) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def _default(schema: Any) -> Any:
    return schema.get("default", _MISSING) if isinstance(schema, dict) else _MISSING


def _same_default(one: Any, other: Any) -> bool:
    before, now = _default(one), _default(other)
    if before is _MISSING or now is _MISSING:
        return before is now
    return _same(before, now)


def _shape(schema: Any) -> str:
    """The canonical schema with its description: what two names must share to be the same argument."""
    return canonical_json([canonical(schema), _description(schema)])


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; `true` is not 1."""
    return canonical_json(one) == canonical_json(other)


def _types(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind or "of another type")


def _accepts(schema: Any) -> set[str]:
    """The types that a schema names, also by `anyOf`."""
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    found = set(kind) if isinstance(kind, list) else {kind} if isinstance(kind, str) else set()
    for key in ("anyOf", "oneOf"):
        for branch in schema.get(key, ()):
            found |= _accepts(branch)
    return found


def _coerced(schema: Any, value: Any) -> Any:
    """The value in a type of the schema, without loss; `_MISSING` if there is none, or more than one."""
    types = _accepts(schema)
    candidates: list[Any] = []
    if isinstance(value, str):
        if types & {"integer", "number"} and _INTEGER.fullmatch(value) and value != "-0":
            candidates.append(int(value))
        if "boolean" in types and value in ("true", "false"):
            candidates.append(value == "true")
    elif isinstance(value, bool):
        if "string" in types:
            candidates.append("true" if value else "false")
    elif isinstance(value, int) and "string" in types:
        candidates.append(str(value))
    fitting = [item for item in candidates if matches(schema, item)]
    return fitting[0] if len(fitting) == 1 else _MISSING


def _wrapped(old: Any, new: Any, value: Any) -> Any:
    """A list of the one value, where the schema was of one item and is now of a list of such items."""
    if _accepts(new) - {"null"} != {"array"} or "array" in _accepts(old) or value is None or isinstance(value, list):
        return _MISSING
    items = new.get("items") if isinstance(new, dict) else None
    if not isinstance(items, dict) or _accepts(items) != _accepts(old) - {"null"}:
        return _MISSING
    return [value] if matches(new, [value]) else _MISSING


def _lost(old: Any, new: Any, value: Any) -> str | None:
    """The pointer of a member below a value that the old schema has and the new one would ignore; None: nothing."""
    if canonical(old) == canonical(new):
        return None
    if isinstance(value, dict):
        before, after = _members(old), _members(new)
        for name, item in value.items():
            if name in before and name not in after:
                return f"/{name}"
            inner = _lost(before.get(name, True), after.get(name, True), item)
            if inner is not None:
                return f"/{name}{inner}"
        return _changed_defaults(before, after, value)
    if isinstance(value, list):
        for at, item in enumerate(value):
            inner = _lost(_items(old), _items(new), item)
            if inner is not None:
                return f"/{at}{inner}"
    return None


def _changed_defaults(before: Mapping[str, Any], after: Mapping[str, Any], value: Mapping[str, Any]) -> str | None:
    """A member that was left out under one default, and has another now."""
    for name in before.keys() & after.keys() - value.keys():
        defaults = [
            s.get("default", _MISSING) if isinstance(s, dict) else _MISSING for s in (before[name], after[name])
        ]
        if (defaults[0] is _MISSING) != (defaults[1] is _MISSING):
            return f"/{name}"
        if defaults[0] is not _MISSING and not _same(*defaults):
            return f"/{name}"
    return None


def _members(schema: Any) -> dict[str, Any]:
    """The members that a schema names, in any of its branches."""
    if not isinstance(schema, dict):
        return {}
    found: dict[str, Any] = {}
    for key in ("allOf", "anyOf", "oneOf"):
        for branch in schema.get(key, ()):
            found |= _members(branch)
    return found | dict(schema.get("properties", {}))


def _items(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return True
    for key in ("anyOf", "oneOf"):
        for branch in schema.get(key, ()):
            if isinstance(branch, dict) and "items" in branch:
                return branch["items"]
    return schema.get("items", True)
