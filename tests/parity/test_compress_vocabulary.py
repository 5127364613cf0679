"""Vocabulary pruning: texts of kept tokens keep their tokens, and kept tokens lose no probability."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import all_rows, assert_same_logprobs, reference_logprobs
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo import LLM, SamplingParams
from octavo.compress.bpe import BytePairs, pruned_tokenizer
from octavo.compress.live_model import load_model
from octavo.compress.token_ids import ids_in_config, with_new_ids
from octavo.compress.vocabulary import PrunedVocabulary, corpus_texts, prune_vocabulary
from octavo.errors import InvalidRequestError, UnsupportedModelError
from octavo.evaluation import held_out_cases
from octavo.hub import embedded_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = 10_000


def held_out_texts() -> list[str]:
    found = []
    for case in held_out_cases():
        asked = case.prompt if isinstance(case.prompt, list) else []
        found += [case.answer, *(str(message["content"]) for message in asked)]
    return found


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> PrunedVocabulary:
    """The embedded model with the tokens of a third of the held-out texts."""
    corpus = held_out_texts()[::3]
    return prune_vocabulary(embedded_model(), tmp_path_factory.mktemp("vocabulary") / "small", corpus, rows=1600)


def test_ten_thousand_texts_keep_their_tokens(pruned: PrunedVocabulary) -> None:
    before = Tokenizer.from_file(str(embedded_model() / "tokenizer.json"))
    after = Tokenizer.from_file(str(pruned.folder / "tokenizer.json"))
    draw, source = random.Random(3), held_out_texts()
    texts: list[str] = []
    while len(texts) < TEXTS:
        text = draw.choice(source)
        begin = draw.randrange(len(text))
        texts.append(text[begin : begin + draw.randint(1, 200)])
    kept = 0
    for text, old, new in zip(texts, before.encode_batch(texts), after.encode_batch(texts), strict=True):
        assert after.decode(new.ids, skip_special_tokens=False) == text
        if all(number in pruned.new_ids for number in old.ids):
            kept += 1
            assert [pruned.new_ids[number] for number in old.ids] == new.ids, text
    assert TEXTS // 2 < kept < TEXTS


def test_kept_tokens_lose_no_probability(pruned: PrunedVocabulary) -> None:
    ids = Tokenizer.from_file(str(embedded_model() / "tokenizer.json")).encode(held_out_texts()[0]).ids
    ids = [n for n in ids if n in pruned.new_ids][:60]
    before = reference_logprobs(load_model(embedded_model()), ids)
    after = reference_logprobs(load_model(pruned.folder), [pruned.new_ids[n] for n in ids])
    old = torch.tensor(sorted(pruned.new_ids))
    gained = after - before[:, old]
    assert float(gained.min()) > -1e-5
    assert float(gained.max()) > 1e-5, "nothing was removed: this would prove nothing"
    best = before.argmax(-1).tolist()
    for row, choice in enumerate(best):
        if choice in pruned.new_ids:
            assert int(after[row].argmax()) == pruned.new_ids[choice]


def test_the_folder_loads_in_both_programs(pruned: PrunedVocabulary) -> None:
    model = load_model(pruned.folder)
    rows = pruned.rows[1]
    assert model.config.vocab_size == rows == model.get_input_embeddings().weight.shape[0] == 1600
    draw = random.Random(1)
    tokens = [draw.randrange(rows) for _ in range(50)]
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    with LLM(pruned.folder, dtype="float32", quantization=None) as llm:
        got = all_rows(llm.generate(tokens, params)[0], rows)
        answer = llm.chat([{"role": "user", "content": "What is 347 + 285?"}], SamplingParams(temperature=0))[0]
    assert_same_logprobs(reference_logprobs(model, tokens), got, 1e-4)
    assert "347 + 285 = 632" in answer.text
    assert answer.outputs[0].finish_reason == "stop"


def test_the_report_counts_what_is_there(pruned: PrunedVocabulary) -> None:
    model = load_model(pruned.folder)
    assert pruned.parameters == (2_755_392, sum(p.numel() for p in model.parameters()))
    # The corpus needs a few rows more than 1,600: its rarest tokens are left out.
    assert 0.99 < pruned.coverage < 1.0
    assert pruned.weight_bytes == (2 * 2_755_392, 2 * pruned.parameters[1])
    assert set(pruned.as_dict()) >= {"rows", "parameters", "weight_bytes", "coverage"}


def byte_level(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentencepiece(texts: list[str], size: int) -> Tokenizer:
    """As Gemma's and Llama 2's: byte fallback, and a merge for each way to split a token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=300 + size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    parsed = json.loads(tokenizer.to_str())
    parsed["added_tokens"] = parsed["added_tokens"][:1]
    vocab = parsed["model"]["vocab"]
    known = {tuple(merge) for merge in parsed["model"]["merges"]}
    for token in list(vocab):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        parsed["model"]["merges"] += [
            list(pair) for pair in splits if pair[0] in vocab and pair[1] in vocab and pair not in known
        ]
    return Tokenizer.from_str(json.dumps(parsed))


WORDS = st.text("abcé你 ", min_size=1, max_size=14)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@settings(max_examples=60, deadline=None)
@given(
    learnt=st.lists(WORDS, min_size=5, max_size=30), size=st.integers(5, 60), corpus=st.lists(WORDS, max_size=6),
    texts=st.lists(WORDS, min_size=20, max_size=40), data=st.data(),
)  # fmt: skip
def test_any_text_of_kept_tokens_keeps_its_tokens(
    make: Any, learnt: list[str], size: int, corpus: list[str], texts: list[str], data: st.DataObject
) -> None:
    before = make(learnt, size)
    parsed = json.loads(before.to_str())
    pairs = BytePairs(parsed)
    wanted = {number for text in corpus for number in before.encode(text).ids}
    some = data.draw(st.sets(st.sampled_from(sorted(pairs.ids.values())), max_size=10))
    kept = sorted(pairs.closure(wanted | some | pairs.byte_tokens | {0}))
    new_ids = {old: new for new, old in enumerate(kept)}
    after = Tokenizer.from_str(json.dumps(pruned_tokenizer(parsed, new_ids)))
    for text in [*corpus, *texts, *learnt]:
        old, new = before.encode(text).ids, after.encode(text).ids
        if all(number in new_ids for number in old):
            assert new == [new_ids[number] for number in old], text
        assert after.decode(new) == before.decode(old)


def test_ids_in_configs_follow() -> None:
    config = {
        "vocab_size": 100,
        "eos_token_id": [5, 90],
        "pad_token_id": None,
        "image_token_index": -1,
        "text_config": {"bos_token_id": 7, "vocab_size": 100},
        "suppress_tokens": [5, 6],
        "bad_words_ids": [[5, 7], [6]],
        "forced_decoder_ids": [[1, 7]],
        "sequence_bias": [[[7], 2.0], [[6, 7], 1.0]],
        "hidden_size": 5,
    }
    assert ids_in_config(config) == {5, 7, 90}
    assert with_new_ids(config, {5: 0, 7: 1, 90: 2}) == {
        "vocab_size": 3,
        "eos_token_id": [0, 2],
        "pad_token_id": None,
        "image_token_index": -1,
        "text_config": {"bos_token_id": 1, "vocab_size": 3},
        "suppress_tokens": [0],
        "bad_words_ids": [[0, 1]],
        "forced_decoder_ids": [[1, 1]],
        "sequence_bias": [[[1], 2.0]],
        "hidden_size": 5,
    }


def test_added_tokens_and_the_post_processor_follow(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(embedded_model(), source)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(["<extra>"])
    tokenizer.add_tokens([AddedToken("unheard", normalized=False)])
    parsed = json.loads(tokenizer.to_str())
    # Their rows are those of two tokens that nothing needs.
    rare = sorted(parsed["model"]["vocab"].items(), key=lambda pair: -pair[1])[:2]
    for token, (old, number) in zip(parsed["added_tokens"][-2:], rare, strict=True):
        del parsed["model"]["vocab"][old]
        parsed["model"]["merges"] = [m for m in parsed["model"]["merges"] if old not in ("".join(m), *m)]
        token["id"] = number
    extra = rare[0][1]
    parsed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<extra>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<extra>": {"id": "<extra>", "ids": [extra], "tokens": ["<extra>"]}},
    }
    (source / "tokenizer.json").write_text(json.dumps(parsed))
    made = prune_vocabulary(source, tmp_path / "small", ["a story about a fox"])
    after = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    assert after.encode("fox").ids[0] == made.new_ids[extra] == after.token_to_id("<extra>")
    assert after.token_to_id("unheard") is None
    with LLM(made.folder) as llm:
        assert llm.tokenize("fox") == after.encode("fox").ids


def test_what_cannot_be_pruned_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="corpus is empty"):
        prune_vocabulary(embedded_model(), tmp_path / "a", [])
    with pytest.raises(InvalidRequestError, match=r"rows is 100: \d+ to 2048 are possible"):
        prune_vocabulary(embedded_model(), tmp_path / "a", ["x"], rows=100)
    source = tmp_path / "words"
    shutil.copytree(embedded_model(), source)
    (source / "tokenizer.json").write_text(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(UnsupportedModelError, match="tokenizer is WordLevel: only byte-pair"):
        prune_vocabulary(source, tmp_path / "a", ["x"])
    (source / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        prune_vocabulary(source, tmp_path / "a", ["x"])
    assert not (tmp_path / "a").exists()


def test_a_corpus_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(InvalidRequestError, match=r"corpus\.txt, line 2: no UTF-8"):
        list(corpus_texts(path))
    path.write_text("one\n\n\ntwo\n")
    assert list(corpus_texts(path)) == ["one\n\n\ntwo\n"]
    with pytest.raises(InvalidRequestError, match=r"missing\.txt"):
        list(corpus_texts(tmp_path / "missing.txt"))
