"""`octavo quantize`: a folder that loads by mapping, gives the same bits, and says by name what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from octavo import LLM, SamplingParams
from octavo.cli import app
from octavo.errors import CorruptModelError, InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from octavo.hub import embedded_model
from octavo.quantize import quantize_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

DOCUMENT = Path(__file__).parents[2] / "docs" / "quantized-files.md"
PROMPTS = ["Once upon a time", "The fox said that it was"]
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3, prompt_logprobs=3)
GATE_UP = "model.layers.1.mlp.{gate_proj,up_proj}.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, quantised."""
    made = quantize_folder(embedded_model(), tmp_path_factory.mktemp("made") / "quantized")
    assert (made.kept_in_bf16, made.warnings) == ([], [])
    return made.folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def results(llm: LLM) -> list[Any]:
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs, o.prompt_logprobs) for o in outputs]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the header of the weight file; its size stays."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= size
    file.write_bytes(content[:8] + text.ljust(size) + content[8 + size :])


def test_the_bits_are_those_of_the_original(folder: Path, llm: LLM) -> None:
    for threads in (1, 2):
        with LLM(folder, threads=threads) as quantized:
            assert results(quantized) == results(llm)


def test_it_says_what_it_is(folder: Path) -> None:
    with LLM(folder, max_model_len=64) as quantized:
        info = quantized.info()
        assert info["model"]["quantization"] == "int8"
        assert "mapped" in info["memory"][0]["reason"]
        origin = info["model"]["quantized_file"]
    assert origin["source"] == embedded_model().name
    assert origin["made_by"].startswith("octavo ")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "octavo"
    original = json.loads((embedded_model() / "config.json").read_text())
    assert {k: v for k, v in config.items() if k != "quantization_config"} == original
    with safe_open(folder / "model.safetensors", "np") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"], metadata["group_size"]) == ("octavo", "2", "128")
    assert metadata["rotation"] == config["quantization_config"]["rotation"] == "hadamard"
    with LLM(max_model_len=64) as plain:
        assert plain.info()["model"]["quantized_file"] is None


def hadamard(groups: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """H S x / 128 in float32, with sums and differences in the order of the kernels: the same bits."""
    found = groups * signs.astype(np.float32)
    for distance in (16, 32, 64, 1, 2, 4, 8):
        pairs = found.reshape(*found.shape[:2], -1, 2, distance)
        found = np.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), axis=-2)
        found = found.reshape(groups.shape)
    return found / np.float32(128)


def test_the_document_tells_how_to_read_it(folder: Path) -> None:
    """Codes and scales, taken from the file by the document's own words, are those of the definition."""
    scope: dict[str, Any] = {}
    exec("".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)), scope)
    original = load_file(embedded_model() / "model.safetensors")
    packed = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "np") as file:
        matrices = json.loads(file.metadata()["matrices"])
    tensors = 0
    for name, entry in matrices.items():
        assert entry["dtype"] == "int8"
        codes, scales = packed.pop(f"{name}.codes").numpy(), packed.pop(f"{name}.scales").view(torch.uint16).numpy()
        codes, scales = scope["plain"](codes, scales, sum(entry["rows"]))
        inner = re.search(r"\{(.*)\}", name)
        names = [name.replace(inner[0], part) for part in inner[1].split(",")] if inner else [name]
        assert len(names) == len(entry["rows"])
        tensors += len(names)
        want = torch.cat([original.pop(n) for n in names]).float().numpy()
        groups = -(-want.shape[1] // 128)
        padded = np.zeros((want.shape[0], groups * 128), np.float32)
        padded[:, : want.shape[1]] = want
        rotated = hadamard(padded.reshape(-1, groups, 128), scope["signs"]())
        largest = np.abs(rotated).max(axis=2) / np.float32(127)
        # Rounded up to bfloat16.
        want_scales = ((largest.view(np.uint32) + 0xFFFF) & 0xFFFF0000).view(np.float32)
        assert np.array_equal(scales, want_scales), name
        codes = codes.reshape(-1, groups, 128)
        assert np.array_equal(codes, np.rint(rotated / scales[..., None]).astype(np.int8)), name
        back = scope["rotate_back"](codes * scales[..., None]).reshape(len(want), -1)
        error = np.linalg.norm(back - padded) / np.linalg.norm(padded)
        assert error < 0.01, f"{name}: {error}"
    assert tensors > 10
    # What is left are vectors, the same in both.
    assert {n: t.tolist() for n, t in packed.items()} == {n: t.float().tolist() for n, t in original.items()}


def test_what_was_spared_is_remembered(tmp_path: Path) -> None:
    model = Path(shutil.copytree(embedded_model(), tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.post_attention_layernorm.weight"][5] /= 1024
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.2.mlp.{name}.weight"][:, 5] *= 1024
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    made = quantize_folder(model, tmp_path / "auto")
    with LLM(model, max_model_len=64) as plain, LLM(made.folder, max_model_len=64) as quantized:
        assert len(made.kept_in_bf16) == 2
        assert quantized.info()["model"]["kept_in_bf16"] == plain.info()["model"]["kept_in_bf16"] == made.kept_in_bf16
        assert results(quantized) == results(plain)
    with pytest.raises(InvalidRequestError, match="2 tensors of this quantised model are held in bfloat16"):
        LLM(made.folder, quantization="int8")
    forced = quantize_folder(model, tmp_path / "int8", quantization="int8")
    assert forced.kept_in_bf16 == []
    options = {"max_model_len": 64, "quantization": "int8"}
    with LLM(model, **options) as plain, LLM(forced.folder, **options) as quantized:  # type: ignore[arg-type]
        assert results(quantized) == results(plain)


def test_options_that_contradict_it_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="quantization is None, and this model is already quantised"):
        LLM(folder, quantization=None)
    with pytest.raises(InvalidRequestError, match="quantised already"):
        quantize_folder(folder, tmp_path / "twice")
    with pytest.raises(InvalidRequestError, match="'auto' or 'int8'"):
        quantize_folder(embedded_model(), tmp_path / "other", quantization="int4")
    assert list(tmp_path.iterdir()) == [], "a refused call left something behind"


def test_the_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        quantize_folder(tmp_path, tmp_path / "out")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(InvalidRequestError, match="exists already"):
        quantize_folder(embedded_model(), full)
    with pytest.raises(InvalidRequestError, match="cannot write"):
        quantize_folder(embedded_model(), full / "file" / "below")
    broken = Path(shutil.copytree(embedded_model(), tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2])
    with pytest.raises(CorruptModelError):
        quantize_folder(broken, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "full"]


def test_no_code_is_copied(tmp_path: Path) -> None:
    model = Path(shutil.copytree(embedded_model(), tmp_path / "model"))
    for name in ("modeling.py", "pytorch_model.bin", "model.safetensors.index.json.bak", "LICENSE", "vocab.json"):
        (model / name).write_text("{}")
    made = quantize_folder(model, tmp_path / "out")
    assert {"LICENSE", "vocab.json", "tokenizer.json", "generation_config.json"} <= set(made.files)
    assert {p.name for p in made.folder.iterdir()} == {*made.files, "config.json", "model.safetensors"}
    assert not {"modeling.py", "pytorch_model.bin", "model.safetensors.index.json.bak"} & set(made.files)


def _rename(header: dict[str, Any]) -> None:
    header["model.nOrm.weight"] = header.pop("model.norm.weight")


def _resize(header: dict[str, Any]) -> None:
    metadata = header["__metadata__"]
    metadata["matrices"] = re.sub(r'"columns":\d', '"columns":7', metadata["matrices"])


CORRUPT = {
    "missing": (_rename, r"model\.safetensors.*tensor model\.norm\.weight is missing"),
    "sizes": (_resize, r"model\.safetensors.*config\.json asks for"),
    "no metadata": (lambda h: h["__metadata__"].pop("matrices"), r"model\.safetensors.*no matrices"),
    "ordinary": (lambda h: h.pop("__metadata__"), r"config\.json says that it comes from `octavo quantize`"),
    "shape": (lambda h: h[f"{GATE_UP}.codes"]["shape"].reverse(), r"gate_proj,up_proj\}\.weight\.codes has shape"),
}


@pytest.mark.parametrize(("change", "message"), CORRUPT.values(), ids=CORRUPT)
def test_corrupt_headers(copy: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit(copy, change)
    with pytest.raises(CorruptModelError, match=message):
        LLM(copy)


def test_corrupt_data(copy: Path) -> None:
    file = copy / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    start = 8 + size + header[f"{GATE_UP}.codes"]["data_offsets"][0]
    # What a hole in a file reads as.
    file.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
    with pytest.raises(CorruptModelError, match=r"gate_proj,up_proj\}\.weight\.codes has 64 bytes that are no codes"):
        LLM(copy)
    scales = 8 + size + header[f"{GATE_UP}.scales"]["data_offsets"][0]
    file.write_bytes(content[:scales] + b"\xc0\x7f" + content[scales + 2 :])
    with pytest.warns(RuntimeWarning, match=r"weight\.scales has 1 values"):
        LLM(copy).close()
    for cut in (4, 100, size, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(CorruptModelError, match=r"model\.safetensors"):
            LLM(copy)


@pytest.mark.parametrize(("key", "value"), [("version", "3"), ("layout", "panels-of-1")])
def test_other_versions_are_refused_with_the_remedy(copy: Path, key: str, value: str) -> None:
    edit(copy, lambda header: header["__metadata__"].update({key: value}))
    with pytest.raises(UnsupportedModelError, match=f"{value}.*again with `octavo quantize`"):
        LLM(copy)


def test_an_unknown_rotation_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for given, shown in (("spiral", "spiral"), (None, "rotation is missing")):
        config["quantization_config"]["rotation"] = given
        if given is None:
            del config["quantization_config"]["rotation"]
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match=shown):
            LLM(copy)


def test_replacing_a_folder_leaves_those_who_use_it_alone(copy: Path, llm: LLM) -> None:
    with LLM(copy) as quantized:
        copy.rename(copy.with_name("moved"))
        shutil.rmtree(copy.with_name("moved"))
        assert results(quantized) == results(llm)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def test_command(tmp_path: Path, llm: LLM) -> None:
    out = tmp_path / "out"
    done = run("quantize", str(embedded_model()), str(out), "--threads", "1")
    assert done.exit_code == 0, done.stderr
    assert str(out) in done.stdout
    assert "tokenizer.json" in done.stdout
    want = llm.generate("Once upon a time", SamplingParams(max_tokens=12, temperature=0))[0].text
    assert run("generate", "Once upon a time", "-n", "12", "-t", "0", "-m", str(out)).stdout == want + "\n"
    shown = " ".join(run("info", str(out)).stdout.split())
    assert f"quantized_file mapped; made from {embedded_model().name} by octavo" in shown
    again = run("quantize", str(embedded_model()), str(out))
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    other = json.loads(run("quantize", str(embedded_model()), str(tmp_path / "other"), "--json").stdout)
    assert other["weight_bytes"] == (out / "model.safetensors").stat().st_size
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()
    refused = run("generate", "x", "-m", str(out), "--quantization", "none")
    assert refused.exit_code == 2
    assert "already quantised" in refused.stderr
