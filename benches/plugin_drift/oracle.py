"""The oracle: it has the meaning of every field, judges what came of a call, and says what was possible at all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benches.plugin_drift.caller import Generated
from benches.plugin_drift.concepts import Meaning
from benches.plugin_drift.releases import Field, Release


class Verdict(StrEnum):
    """What came of a call. `UNTYPED`: an exception, or a failure without a code and a sentence."""

    RIGHT = "right"
    TYPED = "typed failure"
    WRONG = "silent wrong"
    UNTYPED = "untyped failure"


@dataclass(frozen=True)
class Execution:
    """What a plugin did with one request."""

    release: Release
    meaning: Meaning


def expected(release: Release, generated: Generated) -> Meaning:
    """What the release should do: what the arguments meant when they were written, and its defaults for new fields."""
    found: Meaning = {}
    for field in release.known():
        if field.concept_id in generated.meaning:
            found[field.concept_id] = generated.meaning[field.concept_id]
        elif field.default is not None:
            found[field.concept_id] = field.default
    return found


def serves(generated: Generated, done: Execution, factor: int) -> bool:
    """Whether an execution did what the arguments meant when they were written, no less and no more."""
    fields = {f.concept_id: f for f in done.release.known()}
    lost = generated.meaning.keys() - fields.keys()
    # A value that was the shown default may go: its behaviour stays. Any other must not be lost.
    if any(generated.seen[c] is None or generated.meaning[c] != generated.seen[c] for c in lost):
        return False
    # What was left unset on purpose must stay unset.
    unset = generated.seen.keys() - generated.meaning.keys()
    if unset & done.meaning.keys():
        return False
    return done.release.factor == factor and done.meaning == expected(done.release, generated)


def convertible(old: Release, new: Release, generated: Generated) -> bool:
    """Whether the new major's converter can do what arguments of the old major mean."""
    for concept_id, value in generated.meaning.items():
        before, after = old.field_of(concept_id), new.field_of(concept_id)
        if (after is None and (before is None or value != before.default)) or (after and not after.accepts(value)):
            return False
    return True


def compatible(old: Release, new: Release, generated: Generated, level: int) -> bool:
    """Whether a host can deliver the arguments unchanged in meaning, by what both releases declare.

    It does not depend on any client. Operations with consequences get no repair, thus their arguments must fit.
    """
    if new.fields is None:
        return False
    repairs = level > 0 and not old.consequential
    for concept_id, value in generated.meaning.items():
        before, after = old.field_of(concept_id), new.field_of(concept_id)
        if before is None:
            return False
        named = before.name in generated.arguments
        if after is None:
            if named and (value != before.default or old.consequential):
                return False
            continue
        if not named:
            # The default that was shown counts.
            if after.default != before.default and not (not old.consequential and after.accepts(value)):
                return False
            if after.required and old.consequential:
                return False
            continue
        if not after.accepts(value) or not _reachable(before, after, level, repairs):
            return False
    for field in new.known():
        if field.concept_id in generated.meaning:
            continue
        if field.required and (field.default is None or old.consequential):
            return False
        if old.field_of(field.concept_id) is not None and field.default is not None:
            return False
    return True


def _reachable(before: Field, after: Field, level: int, repairs: bool) -> bool:
    same_name = after.name == before.name
    alias = level > 1 and before.name in after.aliases and repairs
    if not same_name and not alias:
        return False
    return after.shape == before.shape or (repairs and (alias or after.phrase == before.phrase))


def undetectable(old: Release, new: Release, same_digest: bool, unchecked: bool) -> bool:
    """Whether no host can see the change: other units, names bound anew under one digest, or a false alias.

    `unchecked`: the plugin checks no digests, and what the host can fetch is out of date.
    """
    if new.factor != old.factor or unchecked:
        return True
    before = {f.name: f.concept_id for f in old.known()}
    if any(before.get(alias, f.concept_id) != f.concept_id for f in new.known() for alias in f.aliases):
        return True
    return same_digest and any(before.get(f.name) != f.concept_id for f in new.known())


def judge(
    generated: Generated, ok: bool, content: Any, done: list[Execution], idempotent: bool, factor: int
) -> Verdict:
    """The verdict on a call that a client reported as a success, or as a typed failure.

    Args:
        generated: the last arguments that were sent.
        done: what the plugin did during the call.
        factor: the units that the caller read.
    """
    if not idempotent and len(done) > 1:
        return Verdict.WRONG
    if not ok:
        return Verdict.TYPED
    if not done or not serves(generated, done[-1], factor):
        return Verdict.WRONG
    text = next(iter(done[-1].release.answer(done[-1].meaning).values()))
    got = next(iter(content.values()), None) if isinstance(content, dict) else None
    return Verdict.RIGHT if got == text else Verdict.WRONG
