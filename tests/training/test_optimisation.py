"""The schedule, Muon, and a run that learns, stops and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import corpus
from training.export import export, load_exported
from training.model import Decoder, ModelConfig, initialise
from training.muon import Muon, orthogonalise
from training.schedule import Schedule
from training.tokenizer import train_tokenizer
from training.train import CONTINUED, TrainConfig, is_long, mix, optimizers, save, train

TINY_MODEL = ModelConfig(
    vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
)  # fmt: skip
TINY_RUN = TrainConfig(
    steps=12, warmup=2, decay=4, rows=2, length=128, long_length=256, long_every=5, long_every_in_decay=3,
    tokenizer_documents=60,
)  # fmt: skip


def test_schedule_rises_stays_and_falls() -> None:
    schedule = Schedule(steps=100, warmup=10, decay=30)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:71] == [1.0] * 62
    assert factors[70:] == sorted(factors[70:], reverse=True)
    assert factors[-1] == pytest.approx(1 / 30)
    assert [schedule.is_decaying(step) for step in (69, 70)] == [False, True]


def test_the_stable_phase_does_not_depend_on_the_length_of_the_run() -> None:
    short, long = Schedule(100, 10, 30), Schedule(500, 10, 30)
    assert [short.factor(step) for step in range(70)] == [long.factor(step) for step in range(70)]


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must fit into 10 steps"):
        Schedule(steps=10, warmup=6, decay=5)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 48), (2, 48, 16)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.linalg.svdvals(matrices)
    after = torch.linalg.svdvals(orthogonalise(matrices))
    assert before.max() / before.min() > 2, "the test matrices are too easy"
    assert after.min() > 0.4
    assert after.max() < 1.3
    # The directions stay: U^T X V of the input's own singular vectors is near diagonal.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ orthogonalise(matrices) @ vh.mT
    off = inside - torch.diag_embed(torch.diagonal(inside, dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-3


def test_muon_stacks_do_not_mix_matrices() -> None:
    def step(count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.nn.Parameter(torch.randn(8, 12, generator=generator)) for _ in range(count)]
        generator.manual_seed(4)
        for weight in weights:
            weight.grad = torch.randn(8, 12, generator=generator)
        Muon(weights, lr=0.1).step()
        return weights[0].detach()

    assert torch.allclose(step(1), step(3), atol=1e-5)


def test_muon_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(4))], lr=0.1)


def test_every_parameter_has_one_optimizer() -> None:
    model = Decoder(TINY_MODEL)
    held = [p for o in optimizers(model, TINY_RUN) for group in o.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


def test_both_optimizers_learn_a_small_sequence() -> None:
    model = Decoder(TINY_MODEL)
    initialise(model, 0)
    tokens = torch.arange(24).repeat(2, 2)
    both = optimizers(model, TINY_RUN)
    losses = []
    for _ in range(30):
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_a_run_that_was_stopped_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    def weights(folder: str) -> dict[str, torch.Tensor]:
        state = torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)
        assert state["step"] == TINY_RUN.steps
        found: dict[str, torch.Tensor] = state["model"]
        return found

    train(TINY_RUN, TINY_MODEL, tmp_path / "whole", 1e9, fused=False)
    # Stopped in the stable phase of a longer run, then finished with the shorter plan.
    longer = replace(TINY_RUN, steps=20)
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.save", _save_and_stop_at(6))
        with pytest.raises(KeyboardInterrupt):
            train(longer, TINY_MODEL, stopped, 0.0, fused=False)
    train(TINY_RUN, TINY_MODEL, stopped, 1e9, fused=False)
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("stopped")[name]), f"{name} differs after a resume"


def test_a_continued_run_begins_with_the_weights_of_a_folder(tmp_path: Path) -> None:
    train(TINY_RUN, TINY_MODEL, tmp_path / "first", 1e9, fused=False)
    state = torch.load(tmp_path / "first" / "checkpoint.pt", weights_only=True)
    model = Decoder(TINY_MODEL)
    model.load_state_dict(state["model"])
    export(model, tmp_path / "first" / "tokenizer.json", tmp_path / "folder")
    short = replace(CONTINUED, steps=2, warmup=0, decay=0, rows=4, length=256, long_length=512)
    still = replace(short, matrix_lr=0.0, other_lr=0.0)
    # The sizes come from the folder, not from the argument.
    train(still, ModelConfig(), tmp_path / "second", 1e9, fused=False, origin=tmp_path / "folder")
    after = torch.load(tmp_path / "second" / "checkpoint.pt", weights_only=True)
    assert after["step"] == 2
    for name, value in state["model"].items():
        assert torch.equal(value.to(torch.bfloat16).float(), after["model"][name]), name
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["model"]["hidden_size"] == TINY_MODEL.hidden_size
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (tmp_path / "first" / "tokenizer.json").read_bytes()


def test_a_quantised_folder_is_refused_as_a_beginning(tmp_path: Path) -> None:
    model = Decoder(TINY_MODEL)
    initialise(model, 0)
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(["a b c"], TINY_MODEL.vocab_size).save(str(tokenizer))
    export(model, tokenizer, tmp_path / "folder")
    weights = tmp_path / "folder" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is torch\.int8"):
        load_exported(tmp_path / "folder")


def test_a_continued_run_reads_from_its_first_step() -> None:
    schedule = Schedule(CONTINUED.steps, CONTINUED.warmup, CONTINUED.decay)
    assert mix(CONTINUED, schedule, 0) is corpus.READING_MIX
    assert mix(CONTINUED, schedule, CONTINUED.steps - 1) is corpus.LAST_READING_MIX
    assert mix(TINY_RUN, Schedule(12, 2, 4), 0) is corpus.FIRST_MIX
    assert is_long(CONTINUED, schedule, 0)
    assert not is_long(CONTINUED, schedule, 1)


def _save_and_stop_at(step: int) -> Callable[[Path, dict[str, object]], None]:
    def stop(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        if state["step"] == step:
            raise KeyboardInterrupt

    return stop
