"""Distillation: the loss, the batches, and a run that is interrupted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.compress import cuts
from octavo.compress.data_file import read_examples
from octavo.compress.distil import _micro_batches, distil, kl_loss, newest_checkpoint
from octavo.compress.documents import Encoder
from octavo.compress.importance import measure_importance
from octavo.compress.kept import most_important
from octavo.compress.live_model import layout_of, load_model, smaller_model
from octavo.compress.rows import Batch, Document, batch_tokens_of, batches_of
from octavo.compress.sizes import Sizes, choose_sizes
from octavo.errors import DeviceMemoryError, InvalidRequestError
from octavo.hub import embedded_model

STEPS = 24


def test_the_loss_is_the_divergence_of_each_token() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(2, 3, 7, generator=generator) for _ in range(2))
    weights = torch.tensor([[1.0, 0.0, 0.5], [0.1, 1.0, 0.0]])
    total = 0.0
    for row in range(2):
        for place in range(3):
            p, q = teacher[row, place].softmax(0), student[row, place].softmax(0)
            total += float(weights[row, place]) * float((p * (p / q).log()).sum())
    assert float(kl_loss(teacher, student, weights)) == pytest.approx(total / float(weights.sum()), rel=1e-5)
    assert float(kl_loss(teacher, teacher, weights)) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=60), passes=st.integers(1, 2), seed=st.integers(0, 9))
def test_every_token_is_in_as_many_batches_as_passes(lengths: list[int], passes: int, seed: int) -> None:
    first, documents = 1, []
    for length in lengths:
        documents.append(Document(list(range(first, first + length)), [0.5] * length))
        first += length
    batches = batches_of(documents, 1024, 1000, passes, seed)
    again = batches_of(documents, 1024, 1000, passes, seed)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(batches, again, strict=True))
    assert {batch.ids.size for batch in batches} == {1024}
    assert all(np.array_equal(batch.weights > 0, batch.ids > 0) for batch in batches)
    counts = np.bincount(np.concatenate([batch.ids.ravel() for batch in batches]), minlength=first)
    assert set(counts[1:].tolist()) == {passes}


def test_a_batch_grows_with_the_data() -> None:
    assert batch_tokens_of(10) == 2048
    assert batch_tokens_of(10_000_000) == 4096
    assert batch_tokens_of(10**12) == 1 << 18


def test_answers_count_fully_and_the_rest_a_tenth() -> None:
    encoder = Encoder(embedded_model(), 0)
    chat = [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "2 + 3 = 5."},
        {"role": "user", "content": "And 4 + 4?"},
        {"role": "assistant", "content": "4 + 4 = 8."},
    ]
    document = encoder.document({"messages": chat})
    counted = encoder.tokenizer.decode([i for i, w in zip(document.ids, document.weights, strict=True) if w == 1.0])
    assert counted == "2 + 3 = 5.<|im_end|>\n4 + 4 = 8.<|im_end|>\n<|endoftext|>"
    assert set(document.weights) == {0.1, 1.0}
    plain = encoder.document({"prompt": "One ", "completion": "two"})
    assert encoder.tokenizer.decode(plain.ids) == "One two<|endoftext|>"
    assert encoder.document({"text": "One day"}).weights == [1.0] * len(encoder.document({"text": "One day"}).ids)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "a JSON object is expected"),
        ("{", "line 2"),
        ('{"question": "x"}', "one of messages, prompt, instruction, text is expected; the fields are question"),
        ('{"prompt": "x"}', "completion is missing beside prompt"),
        ('{"text": "x", "txt": "y"}', "unknown field 'txt' beside text"),
        ('{"text": ""}', "text is ''"),
        ('{"messages": []}', "a list of"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no answer"),
        ('{"messages": [{"role": "assistant", "content": 3}]}', "content is 3"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(InvalidRequestError, match=r"data\.jsonl, line 2") as raised:
        read_examples(path)
    assert message in str(raised.value)


def test_good_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n\n{"instruction": "Add.", "input": "1 + 1", "output": "2"}\n')
    assert read_examples(path) == [
        {"text": "a"},
        {"messages": [{"role": "user", "content": "Add.\n\n1 + 1"}, {"role": "assistant", "content": "2"}]},
    ]
    path.write_text("\n")
    with pytest.raises(InvalidRequestError, match="no example"):
        read_examples(path)


def batches() -> list[Batch]:
    draw = random.Random(4)
    documents = [Document([draw.randrange(3, 2000) for _ in range(100)], [1.0] * 100) for _ in range(STEPS)]
    return batches_of(documents, 256, 512, 3, 0)[:STEPS]


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_model(embedded_model())


def student(teacher: Any) -> Any:
    layout = layout_of(teacher)
    importance = measure_importance(teacher, layout, [torch.arange(3, 500)[None]])
    return smaller_model(teacher, layout, most_important(importance, choose_sizes(layout, 0.4)))


class Stops(torch.nn.Module):
    """A teacher that fails after some calls, as a machine does."""

    def __init__(self, teacher: Any, calls: int) -> None:
        super().__init__()
        self.inner, self.calls, self.config = teacher, calls, teacher.config

    def forward(self, **inputs: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.inner(**inputs)


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_run_ends_bit_for_bit_like_an_unbroken_one(teacher: Any, tmp_path: Path) -> None:
    whole = student(teacher)
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    done = distil(teacher, whole, batches(), tmp_path / "whole")
    assert done.steps == STEPS
    assert done.losses[-1][1] < done.losses[0][1]
    broken = student(teacher)
    assert all(torch.equal(tensor, start[name]) for name, tensor in broken.state_dict().items())
    with pytest.raises(KeyboardInterrupt):
        distil(Stops(teacher, 15), broken, batches(), tmp_path / "broken")
    # A checkpoint that was not finished is no checkpoint.
    (tmp_path / "broken" / "checkpoint-99").mkdir()
    assert newest_checkpoint(tmp_path / "broken") == str(tmp_path / "broken" / "checkpoint-10")
    again = student(teacher)
    distil(teacher, again, batches(), tmp_path / "broken")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


class Full(torch.nn.Module):
    """A teacher for which the memory holds so many tokens."""

    def __init__(self, teacher: Any, tokens: int) -> None:
        super().__init__()
        self.inner, self.tokens, self.config = teacher, tokens, teacher.config

    def forward(self, **inputs: Any) -> Any:
        if inputs["input_ids"].numel() > self.tokens:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(**inputs)


@pytest.mark.filterwarnings("ignore")
def test_without_enough_memory_a_batch_is_computed_in_parts(
    teacher: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = layout_of(teacher)
    sizes = choose_sizes(layout, 0.4)
    few = batches()[:3]
    with pytest.raises(DeviceMemoryError, match="256 tokens at once"):
        distil(Full(teacher, 128), student(teacher), few, tmp_path / "alone")
    trained, done = cuts._trained(teacher, Full(teacher, 128), tmp_path / "cut", sizes, few, few, 0)
    assert done.steps == 3
    assert "in 2 parts" in caplog.text
    whole, _ = cuts._trained(teacher, teacher, tmp_path / "whole", sizes, few, few, 0)
    # Sums in another order, and few steps of an optimizer that magnifies rounding: the same loss, not the same bits.
    ids = torch.from_numpy(few[0].ids).long()
    with torch.no_grad():
        wanted = teacher(input_ids=ids).logits
        losses = [float(kl_loss(wanted, m(input_ids=ids).logits, torch.ones(ids.shape))) for m in (whole, trained)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    with pytest.raises(DeviceMemoryError):
        cuts._trained(teacher, Full(teacher, 1), tmp_path / "never", sizes, few, few, 0)


def test_parts_of_a_batch_weigh_what_they_hold() -> None:
    batch = Batch(np.arange(24, dtype=np.int32).reshape(4, 6), np.ones((4, 6), np.float32))
    batch.weights[:2] = 0.1
    pieces = _micro_batches([batch], 2)
    assert [piece["factor"] for piece in pieces] == pytest.approx([2 / 11, 20 / 11])
    assert [piece["factor"] for piece in _micro_batches([batch], 1)] == [1.0]
    assert np.array_equal(np.concatenate([piece["input_ids"] for piece in pieces]), batch.ids)
    # More parts than rows: rows are cut.
    assert {piece["input_ids"].shape for piece in _micro_batches([batch], 8)} == {(1, 3)}


def test_sizes_that_no_pruning_reaches_are_refused(teacher: Any) -> None:
    layout = layout_of(teacher)
    assert choose_sizes(layout, 0.9, "depth") == Sizes(hidden=192, mlp=512, kv_heads=2, layers=5)
    with pytest.raises(InvalidRequestError, match="pruning by depth reaches"):
        choose_sizes(layout, 0.5, "depth")
    with pytest.raises(InvalidRequestError, match="ratio is 2"):
        choose_sizes(layout, 2)
    with pytest.raises(InvalidRequestError, match="method is 'both'"):
        choose_sizes(layout, 0.5, "both")
