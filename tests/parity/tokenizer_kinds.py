"""Small tokenizers of every kind that models have, made with the tokenizers library, and a random model for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 448
WORDS = ["the", "an", "é", "ö", "你", "好", "e", "n", "s", "t", "h", "a", ".", ",", "ing", "1", "2", "!", "?"]


def _byte_tokens() -> list[str]:
    return [f"<0x{b:02X}>" for b in range(256)]


def _bpe(tokens: list[str], *, fallback: bool) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=fallback, unk_token="<unk>", fuse_unk=True))


def byte_level() -> Tokenizer:
    """As GPT-2's: characters stand for bytes."""
    tokenizer = _bpe(["<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())], fallback=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece() -> Tokenizer:
    return _bpe(["<unk>", *_byte_tokens(), "▁", *WORDS, *(f"▁{word}" for word in WORDS)], fallback=True)


def llama() -> Tokenizer:
    """As Llama 2's: byte fallback, and the first space is stripped."""
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def gemma() -> Tokenizer:
    """As Gemma's: byte fallback, no space is added."""
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def metaspace() -> Tokenizer:
    """As Mistral's newer ones: a Metaspace on both ways, behind byte fallback."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's: pieces with scores."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((word, -3.0) for word in WORDS), *((f"▁{word}", -2.5) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    """As BERT's."""
    words = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "llama": llama,
    "gemma": gemma,
    "metaspace": metaspace,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
# Those that can write every byte.
WITH_BYTES = ["byte-level", "llama", "gemma", "metaspace"]


def write_model(folder: Path, vocab: int = VOCAB, hidden: int = 32) -> None:
    """A random model of `vocab` rows without a tokenizer."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, config: dict[str, Any] | None = None) -> None:
    """Writes it with `<s>` and `</s>`."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
