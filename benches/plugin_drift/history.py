"""Schema histories: a first release, and steps of drift that lead to the next ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from benches.plugin_drift.concepts import CONCEPTS, Concept, Value
from benches.plugin_drift.releases import Field, Release

Step = Callable[[random.Random, Release], Release | None]


def first_release(rng: random.Random) -> Release:
    """A release with two to five fields."""
    fields: list[Field] = []
    for concept in rng.sample(CONCEPTS, len(CONCEPTS)):
        if len(fields) == rng.randint(2, 5):
            break
        if (made := _field(rng, concept, {f.name for f in fields})) is not None:
            fields.append(made)
    if not any(f.required for f in fields):
        fields[0] = replace(fields[0], required=True, default=None)
    idempotent = rng.random() < 0.8
    return Release(
        major=1,
        minor=rng.randint(0, 3),
        operation=rng.choice(("find_offers", "get_forecast", "plan_trip")),
        fields=tuple(fields),
        consequential=rng.random() < 0.15,
        idempotent=idempotent,
    )


def _field(rng: random.Random, concept: Concept, taken: set[str], required: bool | None = None) -> Field | None:
    free = [name for name in concept.names if name not in taken]
    if not free:
        return None
    required = rng.random() < 0.5 if required is None else required
    default = None if required or rng.random() < 0.2 else concept.draw(rng)
    made = Field(concept.id, rng.choice(free), rng.randrange(2), required=required, default=default)
    if concept.kind == "count":
        numbers = [v for v in concept.values if isinstance(v, int)]
        made = replace(made, low=min(numbers), high=max(numbers))
    if concept.kind == "choice":
        made = replace(made, choices=tuple(str(v) for v in concept.values))
    return made


def _pick(rng: random.Random, release: Release, fits: Callable[[Field], bool] = lambda f: True) -> Field | None:
    found = [f for f in release.known() if fits(f)]
    return rng.choice(found) if found else None


def _new(rng: random.Random, release: Release, required: bool) -> Field | None:
    known = {f.concept_id for f in release.known()}
    # A name that aliases still claim is not free: it would mean two things.
    taken = {f.name for f in release.known()} | {a for f in release.known() for a in f.aliases}
    for concept in rng.sample(CONCEPTS, len(CONCEPTS)):
        if concept.id not in known and (made := _field(rng, concept, taken, required)) is not None:
            return made
    return None


def _grown(release: Release, field: Field | None) -> Release | None:
    return None if field is None else replace(release, fields=(*release.known(), field))


def add_optional(rng: random.Random, release: Release) -> Release | None:
    made = _new(rng, release, required=False)
    if made is None:
        return None
    return _grown(release, made if made.default is not None else replace(made, default=made.concept.draw(rng)))


def add_required_with_default(rng: random.Random, release: Release) -> Release | None:
    """The schema requires a field and names its default: the sender fills it."""
    made = _new(rng, release, required=True)
    return _grown(release, None if made is None else replace(made, default=made.concept.draw(rng)))


def add_required(rng: random.Random, release: Release) -> Release | None:
    return _grown(release, _new(rng, release, required=True))


def _renamed(rng: random.Random, release: Release, alias: bool) -> Release | None:
    taken = {f.name for f in release.known()} | {a for f in release.known() for a in f.aliases}
    field = _pick(rng, release, lambda f: any(n not in taken for n in f.concept.names))
    if field is None:
        return None
    name = rng.choice([n for n in field.concept.names if n not in taken])
    aliases = (*field.aliases, field.name) if alias else ()
    return release.with_field(replace(field, name=name, aliases=aliases))


def rename_with_alias(rng: random.Random, release: Release) -> Release | None:
    return _renamed(rng, release, alias=True)


def rename(rng: random.Random, release: Release) -> Release | None:
    return _renamed(rng, release, alias=False)


def replace_field(rng: random.Random, release: Release) -> Release | None:
    """A field goes and another of the same type comes: to a client that pairs by type, it looks like a rename."""
    old = _pick(rng, release)
    if old is None:
        return None
    smaller = replace(release, fields=tuple(f for f in release.known() if f is not old))
    taken, known = {f.name for f in release.known()}, {f.concept_id for f in release.known()}
    same = [c for c in CONCEPTS if c.kind == old.concept.kind and c.id not in known and set(c.names) - taken]
    if not same:
        return None
    made = _field(rng, rng.choice(same), taken, required=old.required)
    return _grown(smaller, made)


def remove(rng: random.Random, release: Release) -> Release | None:
    old = _pick(rng, release)
    if old is None or len(release.known()) < 2:
        return None
    return replace(release, fields=tuple(f for f in release.known() if f is not old))


def widen(rng: random.Random, release: Release) -> Release | None:
    field = _pick(rng, release, lambda f: f.concept.kind in ("count", "choice") and f.shape == "plain")
    if field is None:
        return None
    if field.choices is not None:
        return release.with_field(replace(field, choices=(*field.choices, f"extra{len(field.choices)}")))
    if rng.random() < 0.3:
        return release.with_field(replace(field, wide=True))
    return release.with_field(replace(field, low=0, high=(field.high or 50) * 2))


def narrow(rng: random.Random, release: Release) -> Release | None:
    field = _pick(rng, release, lambda f: f.high is not None and f.shape == "plain" and f.high > 2)
    if field is None or field.high is None:
        return None
    return _refit(release, replace(field, high=field.high // 2))


def remove_choice(rng: random.Random, release: Release) -> Release | None:
    field = _pick(rng, release, lambda f: f.choices is not None and len(f.choices) > 2)
    if field is None or field.choices is None:
        return None
    gone = rng.choice(field.choices)
    return _refit(release, replace(field, choices=tuple(c for c in field.choices if c != gone)))


def _refit(release: Release, field: Field) -> Release:
    """A default that the field no longer accepts goes to one that it does."""
    if field.default is not None and not field.accepts(field.default):
        default: Value = field.choices[0] if field.choices else (field.low or 0)
        field = replace(field, default=default)
    return release.with_field(field)


def change_default(rng: random.Random, release: Release) -> Release | None:
    field = _pick(rng, release, lambda f: f.default is not None and not f.required)
    if field is None:
        return None
    others = [v for v in field.concept.values if v != field.default and field.accepts(v)]
    return release.with_field(replace(field, default=rng.choice(others))) if others else None


def add_default(rng: random.Random, release: Release) -> Release | None:
    """An optional field without a default gets one: leaving it out means something else from now on."""
    field = _pick(rng, release, lambda f: f.default is None and not f.required)
    if field is None:
        return None
    fits = [v for v in field.concept.values if field.accepts(v)]
    return release.with_field(replace(field, default=rng.choice(fits))) if fits else None


def make_required(rng: random.Random, release: Release) -> Release | None:
    field = _pick(rng, release, lambda f: not f.required)
    return None if field is None else release.with_field(replace(field, required=True))


def change_type(rng: random.Random, release: Release) -> Release | None:
    """A count becomes a string of digits and back, a text an array of one: nothing is lost."""
    field = _pick(rng, release, lambda f: f.concept.kind in ("count", "text") and not f.wide)
    if field is None:
        return None
    other = "text" if field.concept.kind == "count" else "list"
    return release.with_field(replace(field, shape=other if field.shape == "plain" else "plain"))


def rebind(rng: random.Random, release: Release) -> Release | None:
    """Rename without alias, while the old name goes to a new field: the name means something else."""
    for field in rng.sample(release.known(), len(release.known())):
        taken = {f.name for f in release.known()}
        away = [n for n in field.concept.names if n not in taken]
        known = {f.concept_id for f in release.known()}
        takers = [c for c in CONCEPTS if c.id not in known and (field.name in c.names or c.kind != field.concept.kind)]
        if away and takers:
            moved = release.with_field(replace(field, name=rng.choice(away), aliases=()))
            taker = rng.choice(takers)
            made = Field(taker.id, field.name, required=field.required, default=None)
            return _grown(moved, made)
    return None


def reorder(rng: random.Random, release: Release) -> Release | None:
    return replace(release, fields=tuple(rng.sample(release.known(), len(release.known()))))


def reword(rng: random.Random, release: Release) -> Release | None:
    field = _pick(rng, release)
    if field is None:
        return None
    return replace(release.with_field(replace(field, phrase=1 - field.phrase)), summary="Gives the answer.")


def rename_result(rng: random.Random, release: Release) -> Release | None:
    return replace(release, result_name="found" if release.result_name == "answer" else "answer")


def remove_operation(rng: random.Random, release: Release) -> Release | None:
    return replace(release, fields=None)


def change_units(rng: random.Random, release: Release) -> Release | None:
    """Against the protocol: the same schema means something else. No host can see it."""
    return replace(release, factor=1000)


def nothing(rng: random.Random, release: Release) -> Release | None:
    return release


# Step -> how often it is drawn.
STEPS: dict[Step, float] = {
    nothing: 6,
    reorder: 4,
    reword: 6,
    add_optional: 12,
    add_required_with_default: 6,
    rename_with_alias: 12,
    widen: 8,
    change_default: 6,
    change_type: 6,
    rename_result: 4,
    add_required: 5,
    rename: 6,
    replace_field: 6,
    remove: 5,
    narrow: 6,
    remove_choice: 5,
    add_default: 3,
    make_required: 3,
    rebind: 4,
    remove_operation: 2,
    change_units: 1,
}


def next_release(rng: random.Random, release: Release) -> tuple[Release, list[str]]:
    """The release after one to three steps, and the steps' names. One in six raises the API major."""
    names: list[str] = []
    current = release
    for _ in range(rng.choices((1, 2, 3), (60, 30, 10))[0]):
        step = rng.choices(list(STEPS), list(STEPS.values()))[0]
        made = step(rng, current)
        if made is None or not _names_differ(made):
            continue
        current = made
        names.append(step.__name__)
        if made.fields is None:
            break
    if not names:
        names = ["nothing"]
    if rng.random() < 1 / 6 and current.fields is not None:
        return replace(current, major=release.major + 1, minor=0), [*names, "major"]
    return replace(current, minor=release.minor + 1), names


def _names_differ(release: Release) -> bool:
    """Names and aliases of a release are distinct, as the protocol demands."""
    labels = [label for f in release.known() for label in (f.name, *f.aliases)]
    return len(labels) == len(set(labels))
