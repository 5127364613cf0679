"""Decides what happens to every tensor of the model. All shapes are checked here, before a byte is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from octavo.errors import CorruptModelError, UnsupportedModelError
from octavo.merge.adapter import AdapterFolder, Group
from octavo.merge.checkpoint import EMBEDDING, HEAD, Checkpoint, Part, plain_name
from octavo.merge.edits import AddProduct, AddVector, Edit, Factor, Replace, ReplaceRows
from octavo.merge.tensor_file import Tensor

__all__ = ["Placed", "Plan", "Slot", "make_plan"]


@dataclass(frozen=True)
class Placed:
    """An edit of `rows` rows from `first` on."""

    first: int
    rows: int
    edit: Edit


@dataclass
class Slot:
    """A tensor of the result.

    Attributes:
        name: its name.
        source: the tensor of the model that it begins with.
        shape: as it is written; it differs from the source's where an adapter brings more or fewer rows.
        edits: in the order in which they are applied.
    """

    name: str
    source: Tensor
    shape: tuple[int, ...]
    edits: list[Placed] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]

    def all(self, edit: Edit) -> None:
        """Adds an edit of all rows."""
        self.edits.append(Placed(0, self.rows, edit))


@dataclass
class Plan:
    """What a merge writes.

    Attributes:
        slots: the tensors that change, by name.
        head: a tensor to add for an output head that was tied to the embedding and differs now; or None.
        untied: the head was tied and differs now.
        vocabulary: rows of the embedding, if their number changes.
        replaced: names of tensors that come from the adapter as a whole.
        warnings: what the user may not expect.
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    head: Slot | None = None
    untied: bool = False
    vocabulary: int | None = None
    replaced: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(model: Checkpoint, adapter: AdapterFolder) -> Plan:
    """Finds the tensors that the adapter changes.

    Raises:
        CorruptModelError: the adapter does not fit to the model.
        UnsupportedModelError: it does, and cannot be merged.
    """
    planner = _Planner(model, adapter)
    for name, tensor in adapter.whole.items():
        planner.replace(name, tensor)
    for group in adapter.groups.values():
        planner.product(group)
    for module, tensor in adapter.tokens.items():
        planner.rows(module, tensor)
    planner.check_targets()
    planner.settle_head()
    return planner.plan


class _Planner:
    def __init__(self, model: Checkpoint, adapter: AdapterFolder) -> None:
        self.model = model
        self.adapter = adapter
        self.config = adapter.config
        self.plan = Plan()
        self.embedding = model.find(EMBEDDING)
        self.tied = self.embedding is not None and self._head_is_tied(self.embedding)
        # Without a head of its own, the model's head begins with the embedding.
        self.head = Slot(HEAD, self.embedding, self.embedding.shape) if self.tied and self.embedding else None

    def _head_is_tied(self, embedding: Tensor) -> bool:
        head = self.model.find(HEAD)
        if head is None:
            return True
        if self.model.config.get("tie_word_embeddings") is False or head.shape != embedding.shape:
            return False
        return head.dtype == embedding.dtype and np.array_equal(head.raw(), embedding.raw())

    def slot(self, tensor: Tensor) -> Slot:
        return self.plan.slots.setdefault(tensor.name, Slot(tensor.name, tensor, tensor.shape))

    def slot_of(self, plain: str) -> Slot | None:
        if plain == HEAD and self.head is not None:
            return self.head
        tensor = self.model.find(plain)
        return None if tensor is None else self.slot(tensor)

    def unfit(self, what: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self.adapter.folder}: {what}. The adapter was trained on {self.config.base_model}; "
            f"is {self.model.folder} that model?"
        )

    def replace(self, name: str, tensor: Tensor) -> None:
        """A tensor as a whole: modules_to_save, biases, embeddings with other rows, and copies of the base model's."""
        plain = plain_name(name)
        parts = self.model.parts(plain.removesuffix(".weight")) if plain.endswith(".weight") else []
        slot = self.slot_of(plain) or (self.slot(parts[0].tensor) if parts else None)
        if slot is None:
            return self._replace_experts(plain, tensor)
        if parts and parts[0].rows != parts[0].tensor.rows:
            raise UnsupportedModelError(
                f"{self.adapter.folder}: {name} is a whole matrix of one expert, which is not merged"
            )
        if tensor.shape != slot.shape:
            vocabulary = plain in (EMBEDDING, HEAD) and len(tensor.shape) == 2 and tensor.shape[1] == slot.shape[1]
            if not vocabulary:
                raise self.unfit(
                    f"{tensor.name} has the shape {list(tensor.shape)}, and {slot.name} has {list(slot.shape)}"
                )
            slot.shape = tensor.shape
        copy = ".base_layer." in tensor.name
        if copy and tensor.shape == slot.source.shape and _same_values(tensor, slot.source):
            return None
        if copy and plain.endswith(".weight"):
            self.plan.warnings.append(
                f"{tensor.name} differs from the model's {slot.name}; the adapter's is used, as PEFT uses it"
            )
        slot.all(Replace(tensor))
        self.plan.replaced.append(slot.name)
        return None

    def _replace_experts(self, plain: str, tensor: Tensor) -> None:
        block, _, parameter = plain.rpartition(".experts.")
        experts = self.model.experts(block, parameter) if parameter in ("gate_up_proj", "down_proj") else []
        if not experts:
            raise self.unfit(f"the model has no tensor for {tensor.name}")
        rows = sum(p.rows for p in experts[0])
        if tensor.shape != (len(experts), rows, experts[0][0].tensor.columns):
            raise self.unfit(
                f"{tensor.name} has the shape {list(tensor.shape)}, and the model has {len(experts)} experts"
            )
        first = 0
        for part in (p for parts in experts for p in parts):
            self.slot(part.tensor).edits.append(Placed(part.first, part.rows, Replace(tensor, first)))
            first += part.rows
        self.plan.replaced.append(plain)

    def product(self, group: Group) -> None:
        live = group.module
        while live.endswith(".base_layer"):
            live = live.removesuffix(".base_layer")
        plain = plain_name(live)
        if plain.endswith(".experts"):
            return self._experts(plain, live, group)
        slot = self.slot_of(f"{plain}.weight")
        parts = [] if slot is not None else self.model.parts(plain)
        if slot is None and not parts:
            raise self.unfit(f"the model has no module {live}")
        part = Part(slot.source, 0, slot.rows) if slot is not None else parts[0]
        slot = slot or self.slot(part.tensor)
        if len(slot.shape) not in (2, 3) or (len(slot.shape) == 3 and part.rows == slot.rows):
            raise self.unfit(f"{live} is no matrix in the model: {slot.name} has the shape {list(slot.shape)}")
        assert group.first is not None
        assert group.second is not None
        first, second = (group.second, group.first) if group.embedding else (group.first, group.second)
        rank = group.first.shape[0]
        rows, columns = (second.shape[1], first.shape[0]) if group.embedding else (second.shape[0], first.shape[1])
        if (rows, columns) != (part.rows, slot.shape[-1]):
            raise self.unfit(
                f"{live} is {rows} x {columns} by the adapter, and {part.rows} x {slot.shape[-1]} in {slot.name}"
            )
        if group.lengths is not None and group.lengths.shape != (columns if group.embedding else rows,):
            raise self.unfit(f"{group.lengths.name} has the shape {list(group.lengths.shape)}")
        scale = self.config.scale_of(self._pattern_name(live), rank)
        if group.embedding:
            edit = AddProduct(
                Factor(second, transposed=True), Factor(first, transposed=True), scale, group.lengths, True
            )
        else:
            edit = AddProduct(Factor(second), Factor(first), scale, group.lengths)
        slot.edits.append(Placed(part.first, part.rows, edit))
        return self._bias(live, plain, group, scale)

    def _pattern_name(self, live: str) -> str:
        """The name that patterns see: a targeted parameter's has its own at the end."""
        parameter = f"{live}.weight"
        if any(parameter == target or parameter.endswith(f".{target}") for target in self.config.parameters):
            return parameter
        return live

    def _bias(self, live: str, plain: str, group: Group, scale: float) -> None:
        if group.bias is None:
            return
        slot = self.slot_of(f"{plain}.bias")
        if slot is None:
            raise UnsupportedModelError(
                f"{self.adapter.folder}: {group.bias.name} is a bias, and the model has none in {live}, "
                "so it has no place in a merged model. Use the adapter unmerged (--lora)"
            )
        if group.bias.shape != slot.shape:
            raise self.unfit(
                f"{group.bias.name} has the shape {list(group.bias.shape)}, {slot.name} {list(slot.shape)}"
            )
        slot.all(AddVector(group.bias, scale))

    def _experts(self, plain: str, live: str, group: Group) -> None:
        """Factors of a stacked parameter: the shapes show which one it is."""
        assert group.first is not None
        assert group.second is not None
        block = plain.removesuffix(".experts")
        size = (group.second.shape[0], group.first.shape[1])
        for parameter in ("gate_up_proj", "down_proj"):
            experts = self.model.experts(block, parameter)
            if experts and size == (sum(p.rows for p in experts[0]), experts[0][0].tensor.columns):
                break
        else:
            raise self.unfit(f"the model has no experts of {size[0]} x {size[1]} in {live}")
        count = len(experts)
        rank, rest = divmod(group.first.shape[0], count)
        if rest:
            raise self.unfit(f"{group.first.name} has {group.first.shape[0]} rows, no multiple of {count} experts")
        scale = self.config.scale_of(f"{live}.{parameter}", rank)
        for expert, parts in enumerate(experts):
            first = 0
            for part in parts:
                second = Factor(group.second, count, expert, rows=slice(first, first + part.rows))
                edit = AddProduct(second, Factor(group.first, count, expert, stacked=True), scale)
                self.slot(part.tensor).edits.append(Placed(part.first, part.rows, edit))
                first += part.rows

    def rows(self, module: str, tensor: Tensor) -> None:
        plain = plain_name(module)
        slot = self.slot_of(f"{plain}.weight")
        if slot is None:
            raise self.unfit(f"the model has no module {module}")
        stated = self.config.token_indices
        leaf = plain.rpartition(".")[2]
        found = next(
            (v for k, v in stated.items() if k and (k == module or k.rpartition(".")[2] == leaf)), stated.get("")
        )
        if found is None or tensor.shape != (len(found), slot.shape[1]):
            raise self.unfit(
                f"{tensor.name} has the shape {list(tensor.shape)}, and trainable_token_indices names "
                f"{len(found or [])} rows of {slot.shape[1]} values"
            )
        if found and max(found) >= slot.rows:
            raise self.unfit(
                f"trainable_token_indices names the token {max(found)}, and {slot.name} has {slot.rows} rows"
            )
        slot.all(ReplaceRows(tensor, found))

    def check_targets(self) -> None:
        """A module that the config names and the file does not hold is unchanged; that may be a mistake."""
        modules = [group.module for group in self.adapter.groups.values()]
        for target in sorted(set(self.config.targets)):
            if not any(m == target or m.endswith(f".{target}") for m in modules):
                self.plan.warnings.append(f"target_modules names {target}, and the adapter has no tensors for it")

    def settle_head(self) -> None:
        """Decides whether a tied head stays so, and the number of rows of both."""
        if self.embedding is None:
            return
        embedding = self.plan.slots.get(self.embedding.name)
        own = self.model.find(HEAD)
        if self.head is None:
            head = None if own is None else self.plan.slots.get(own.name)
            rows = {(embedding or self.embedding).shape[0], (head or own or self.embedding).shape[0]}
        else:
            self._settle_tied(embedding, own)
            rows = {(embedding or self.embedding).shape[0]} | ({self.head.shape[0]} if self.plan.untied else set())
        if len(rows) > 1:
            raise self.unfit(
                f"the embedding and the output head would have {' and '.join(map(str, sorted(rows)))} rows"
            )
        if rows != {self.embedding.shape[0]}:
            self.plan.vocabulary = rows.pop()

    def _settle_tied(self, embedding: Slot | None, own: Tensor | None) -> None:
        assert self.head is not None
        edits = [] if embedding is None else embedding.edits
        stays = _same_edits(edits, self.head.edits)
        if not self.head.edits and edits:
            # PEFT gives trained rows to both; and a head cannot have another number of rows.
            rows_only = all(isinstance(p.edit, ReplaceRows) for p in edits)
            stays = rows_only or (embedding is not None and embedding.shape != embedding.source.shape)
        if not stays:
            self.plan.untied = True
            self.plan.warnings.append("the output head was tied to the embedding; it is a tensor of its own now")
        head = embedding if stays else self.head
        if own is not None and head is not None and head.edits:
            self.plan.slots[own.name] = Slot(own.name, head.source, head.shape, head.edits)
        elif own is None and not stays:
            self.plan.head = head


def _same_values(a: Tensor, b: Tensor) -> bool:
    if a.dtype == b.dtype:
        return np.array_equal(a.raw(), b.raw())
    return all(np.array_equal(x, b.floats(b.raw()[i : i + len(x)])) for i, x in a.blocks())


def _same_edits(a: list[Placed], b: list[Placed]) -> bool:
    """Whether both do the same, as far as that can be seen."""
    return len(a) == len(b) and all(_same_edit(x.edit, y.edit) for x, y in zip(a, b, strict=True))


def _same_edit(a: Edit, b: Edit) -> bool:
    if isinstance(a, Replace) and isinstance(b, Replace):
        return a.tensor.shape == b.tensor.shape and _same_values(a.tensor, b.tensor)
    if isinstance(a, ReplaceRows) and isinstance(b, ReplaceRows):
        return list(a.rows) == list(b.rows) and np.array_equal(a.tensor.floats(), b.tensor.floats())
    if isinstance(a, AddProduct) and isinstance(b, AddProduct):
        plain = a.lengths is None and b.lengths is None and a.scale == b.scale
        return plain and all(
            np.array_equal(x.floats(), y.floats()) for x, y in ((a.first, b.first), (a.second, b.second))
        )
    return False
