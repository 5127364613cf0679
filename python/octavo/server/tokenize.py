"""POST /tokenize and /detokenize"""

from __future__ import annotations

from octavo.server.calls.toolbox import Toolbox
from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.fields.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from octavo.server.http import Call, Reply, json_reply
from octavo.server.messages import prompt_of
from octavo.server.routes import Route


def tokenize(context: Context, call: Call) -> Reply:
    request, target = context.read_with_target(TokenizeRequest, call)
    llm, packs = context.llm, target.packs
    if (request.prompt is None) == (request.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    text: str | list[int]
    if request.messages is not None:
        # The same steps as for an answer, and so the same prompt.
        chat = ChatRequest.model_construct(
            messages=request.messages,
            tools=request.tools,
            tool_choice=request.tool_choice,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
        )
        text = prompt_of(context, chat, Toolbox(context, chat), packs)
        special = bool(request.add_special_tokens)
    else:
        special = request.add_special_tokens is not False
        text = context.with_packs(request.prompt or "", packs, special=special)
    ids = llm.tokenize(text, add_special_tokens=special) if isinstance(text, str) else text
    strings = [llm.detokenize([i], skip_special_tokens=False) for i in ids] if request.return_token_strs else None
    return json_reply({"count": len(ids), "max_model_len": context.max_model_len, "tokens": ids, "token_strs": strings})


def detokenize(context: Context, call: Call) -> Reply:
    request = context.read(DetokenizeRequest, call)
    return json_reply({"prompt": context.llm.detokenize(request.tokens, skip_special_tokens=False)})


ROUTES = [
    Route("POST", "/tokenize", tokenize, "Text to token ids", TokenizeRequest),
    Route("POST", "/detokenize", detokenize, "Token ids to text", DetokenizeRequest),
]
