"""`truncate_prompt_tokens`: the last tokens of a prompt, behind its special tokens."""

from __future__ import annotations

from octavo.llm import LLM
from octavo.server.errors import bad_request


def truncated(
    llm: LLM,
    prompt: str | list[int],
    count: int,
    *,
    special: bool,
    context: int,
    reserved: int = 0,
) -> str | list[int]:
    """`prompt`, or its last tokens if it has more than `count`.

    Args:
        count: -1: as many tokens as the context has room for.
        special: special tokens are added to a text. They are kept, and count.
        context: length of the context in tokens.
        reserved: tokens of the context that -1 leaves to the answer.

    Raises:
        ApiError: 400 for a number that is 0 or above the context.
    """
    if count == 0 or count > context:
        expected = f"-1, or a number from 1 to {context}, the length of the context, is expected"
        raise bad_request(f"truncate_prompt_tokens is {count}: {expected}", "truncate_prompt_tokens")
    most = max(context - reserved, 1) if count == -1 else count
    if not isinstance(prompt, str):
        return prompt[-most:]
    ids = llm.tokenize(prompt, add_special_tokens=special)
    if len(ids) <= most:
        return ids
    plain = llm.tokenize(prompt, add_special_tokens=False) if special else ids
    begin = next((i for i in range(len(ids) - len(plain) + 1) if ids[i : i + len(plain)] == plain), None)
    kept = most - (len(ids) - len(plain))
    if begin is None or kept < 1:
        return ids[-most:]
    return ids[:begin] + plain[-kept:] + ids[begin + len(plain) :]
