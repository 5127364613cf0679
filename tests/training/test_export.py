"""An exported folder: read by transformers it gives our logits, our token ids and our chat text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from training.document import TURN_END, prompt
from training.export import export, load_exported
from training.model import Decoder, ModelConfig, initialise

CONFIG = ModelConfig(
    vocab_size=1024, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A random tiny model, exported."""
    path = tmp_path_factory.mktemp("exported")
    tokenizer.save(str(path / "source.json"))
    model = Decoder(CONFIG)
    initialise(model, 4)
    # Norm weights away from one, so that a norm left out or misplaced shows.
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    export(model, path / "source.json", path / "model")
    return path / "model"


def test_transformers_gives_the_same_logits(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, _ = load_exported(folder)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 200), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        difference = (theirs(tokens).logits - ours(tokens)).abs().max().item()
    assert difference < 1e-4, f"largest difference of a logit: {difference}"


def test_transformers_reads_the_tokenizer_and_the_template(folder: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (prompt("What is 12 + 30?"), "The key of owl is 482.\n\n Hé! don't  \t12 \N{OWL}"):
        ids = tokenizer.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompt("Hi", "Be kind.")
    assert theirs.eos_token == TURN_END


def test_generation_stops_at_the_ids_of_the_end_marks(folder: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.GenerationConfig.from_pretrained(folder)
    assert settings.eos_token_id == [tokenizer.token_to_id(TURN_END), tokenizer.token_to_id("<|endoftext|>")]
