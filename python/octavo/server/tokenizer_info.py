"""GET /tokenizer_info: what clients need to tokenise and to render conversations as this server does."""

from __future__ import annotations

from octavo.llm import LLM
from octavo.server.context import Context
from octavo.server.http import Call, Reply, json_reply
from octavo.server.routes import Route
from octavo.tokenizer_files import chat_template, tokenizer_config


def tokenizer_info(context: Context, _call: Call) -> Reply:
    """Names as in tokenizer_config.json. lm-eval and vLLM's clients read them."""
    llm = context.llm
    files = tokenizer_config(llm.model, llm.config)
    with_beginning, without = (llm.tokenize("a", add_special_tokens=special)[:1] for special in (True, False))
    adds_beginning = with_beginning != without
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens = {name: _token(files.get(name)) for name in names}
    if tokens["bos_token"] is None and adds_beginning:
        tokens["bos_token"] = _text(llm, with_beginning)
    if tokens["eos_token"] is None:
        tokens["eos_token"] = _text(llm, llm.info()["defaults"]["eos"][:1])
    return json_reply(
        {
            "tokenizer_class": files.get("tokenizer_class") or "PreTrainedTokenizerFast",
            **tokens,
            "add_bos_token": adds_beginning,
            "model_max_length": context.max_model_len,
            "chat_template": chat_template(llm.model, llm.config),
        }
    )


def _token(value: object) -> str | None:
    """A special token, in both of its spellings in tokenizer_config.json."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _text(llm: LLM, ids: list[int]) -> str | None:
    return llm.detokenize(ids, skip_special_tokens=False) if ids else None


ROUTES = [Route("GET", "/tokenizer_info", tokenizer_info, "The tokenizer's special tokens, and the chat template")]
