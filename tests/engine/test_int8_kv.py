"""`kv_cache_dtype="int8"`: what it saves, what it leaves as it is, and who cannot have it."""

from __future__ import annotations

from octavo import LLM, SamplingParams

GREEDY = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
# Prompts that end before, at and behind the end of a block of 32 tokens.
PROMPTS = [list(range(40, 40 + n)) for n in (1, 31, 32, 33, 95)]


def block_bytes(llm: LLM) -> float:
    """Bytes of one block of 32 tokens."""
    info = llm.info()
    part = next(part for part in info["memory"] if part["name"] == "kv_cache")
    return part["bytes"] / info["limits"]["num_blocks"]


def test_a_block_takes_little_more_than_half() -> None:
    with LLM() as bf16, LLM(kv_cache_dtype="int8") as int8:
        assert int8.info()["model"]["kv_cache_dtype"] == "int8"
        assert block_bytes(int8) < 0.56 * block_bytes(bf16)
        assert any(part["name"] == "kv_open_blocks" for part in int8.info()["memory"])


def test_texts_stay_as_they_are_under_float_weights() -> None:
    """The margins of a trained model's answers are far above the error of int8 keys and values."""
    with LLM(quantization=None) as exact, LLM(quantization=None, kv_cache_dtype="int8") as int8:
        story = "Once upon a time, there was a"
        want = exact.generate(story, GREEDY)[0].outputs[0].token_ids
        assert int8.generate(story, GREEDY)[0].outputs[0].token_ids == want


def test_samples_share_a_prompt_and_write_their_own_continuations() -> None:
    """n > 1: the half full block of the prompt is copied, floats and all."""
    params = SamplingParams(n=4, max_tokens=40, temperature=1.0, seed=5, ignore_eos=True)
    with LLM(kv_cache_dtype="int8") as llm:
        together = llm.generate(PROMPTS, params)
        assert llm.stats()["blocks"]["total"] == llm.info()["limits"]["num_blocks"]
    with LLM(kv_cache_dtype="int8", enable_prefix_caching=False, max_num_seqs=4, max_num_batched_tokens=37) as llm:
        for prompt, output in zip(PROMPTS, together, strict=True):
            alone = llm.generate(prompt, params)[0]
            assert [o.token_ids for o in alone.outputs] == [o.token_ids for o in output.outputs]


def test_cancelled_requests_leave_nothing_behind_that_others_read() -> None:
    """Blocks are given up half full and handed out again."""
    with LLM(kv_cache_dtype="int8", enable_prefix_caching=False) as llm:
        want = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)]
        for prompt in PROMPTS:
            stream = llm.stream(list(reversed(prompt)), SamplingParams(max_tokens=500, ignore_eos=True))
            for _, _delta in zip(range(3), stream, strict=False):
                pass
            stream.close()
        assert [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)] == want
