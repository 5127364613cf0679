"""Keys that config.json leaves out: the spec is that of the values which transformers' config class has for them."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from octavo import _core
from octavo.errors import CorruptModelError, UnsupportedModelError
from random_models import CASES
from transformers import AutoConfig

FAMILIES = sorted({case.model_type for case in CASES})
# Sizes that fit each other, whatever default another key has.
SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 64,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
PATTERNS = {"num_hidden_layers", "sliding_window", "use_sliding_window", "max_window_layers", "no_rope_layer_interval"}
NOT_OF_THE_MODEL = {"architectures", "transformers_version", "model_type"}


def spec_of(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(config))
    spec: dict[str, Any] = _core.read_model(str(folder), weights=False)["spec"]
    return spec


def full(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a config, written out."""
    options = copy.deepcopy(config)
    made = AutoConfig.for_model(options.pop("model_type"), **options).to_dict()
    return {**made, "architectures": config["architectures"]}


def base(model_type: str, **changes: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = AutoConfig.for_model(model_type, **{**SIZES, **changes})
    return {**made.to_dict(), "architectures": [f"{architecture(model_type)}ForCausalLM"]}


def architecture(model_type: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type].removesuffix("ForCausalLM")


# Windows are on, and in use, so that a default of theirs shows.
VARIANTS = {"plain": {}, "windows": {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 2}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_have_the_values_of_transformers(model_type: str, variant: str, tmp_path: Path) -> None:
    whole = base(model_type, **VARIANTS[variant])
    if model_type == "deepseek_v2":
        whole["num_experts_per_tok"] = 3
    wrong = {}
    for key in whole.keys() - NOT_OF_THE_MODEL:
        # These say the same thing, and one for each layer.
        also = ("layer_types", "no_rope_layers") if key in PATTERNS else ()
        dropped = {k: v for k, v in whole.items() if k != key and k not in also}
        if key == "num_key_value_heads" and model_type.startswith("deepseek"):
            continue  # latent attention has none
        try:
            want = spec_of(tmp_path, full(dropped))
        except (CorruptModelError, UnsupportedModelError):
            # The default does not fit the other sizes: both refuse it.
            with pytest.raises((CorruptModelError, UnsupportedModelError)):
                spec_of(tmp_path, dropped)
            continue
        try:
            got = spec_of(tmp_path, dropped)
        except (CorruptModelError, UnsupportedModelError) as error:
            wrong[key] = str(error)
            continue
        if got != want:
            wrong[key] = str([(k, got[k], want[k]) for k in want if got[k] != want[k]])[:300]
    assert not wrong


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_config_of_its_type_alone_is_the_default_one(model_type: str, tmp_path: Path) -> None:
    bare = {"model_type": model_type, "architectures": [f"{architecture(model_type)}ForCausalLM"]}
    if model_type == "deepseek_v2":
        bare["num_experts_per_tok"] = 6  # transformers has none by default
    assert spec_of(tmp_path, bare) == spec_of(tmp_path, full(bare))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "phi3", "smollm3"])
@pytest.mark.parametrize("key", ["rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"])
def test_absent_rope_keys_of_the_older_spelling(model_type: str, key: str, tmp_path: Path) -> None:
    old = {k: v for k, v in base(model_type).items() if k != "rope_parameters"}
    old |= {"rope_theta": 12345.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    if model_type == "gemma3_text":
        old["rope_local_base_freq"] = 777.0
    if model_type == "phi3":
        old["rope_scaling"] = None
    dropped = {k: v for k, v in old.items() if k != key}
    assert spec_of(tmp_path, dropped)["ropes"] == spec_of(tmp_path, full(dropped))["ropes"]


def test_null_is_not_absent(tmp_path: Path) -> None:
    for value, window in [(None, None), (0, None), (9, 9)]:
        spec = spec_of(tmp_path, base("mistral") | {"sliding_window": value})
        assert {layer["attention"]["window"] for layer in spec["layers"]} == {window}
