"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them, for administrators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from octavo.adapters import Adapter
from octavo.errors import (
    AdapterConflictError,
    CorruptModelError,
    InvalidRequestError,
    ModelNotFoundError,
    OctavoError,
    UnsupportedModelError,
)
from octavo.server.adapter_folders import adapter_folder
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request, from_octavo
from octavo.server.fields.foreign import Refusal
from octavo.server.fields.requests import Strict
from octavo.server.http import Call, Reply, json_reply
from octavo.server.names import check_name
from octavo.server.routes import Route

_ETAG = re.compile(r'"(\d{1,10})"')


class AdapterRequest(Strict):
    """The name of an adapter, and the generation that it must have. 0: the name must be free."""

    refused: ClassVar[Mapping[str, Refusal]] = {
        "is_3d_lora_weight": Refusal("adapters of experts are merged with octavo merge"),
        "pinned": Refusal("adapters are resident while requests use them, and by --max-lora-memory"),
    }
    lora_name: str
    expected_generation: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None


class LoadAdapterRequest(AdapterRequest):
    """POST /v1/load_lora_adapter. `lora_path` is a folder below the root of adapters."""

    lora_path: str
    load_inplace: bool | None = None


class UnloadAdapterRequest(AdapterRequest):
    """POST /v1/unload_lora_adapter. `lora_int_id` has no effect."""

    lora_int_id: int | None = None


def load_adapter(context: Context, call: Call) -> Reply:
    """Loads an adapter under a free name, or other content under a name that is taken."""
    request = context.read(LoadAdapterRequest, call)
    name, root = request.lora_name, context.config.lora_root
    assert root is not None
    folder = adapter_folder(root, request.lora_path, "lora_path")
    try:
        check_name(name, context.names, "lora_name")
    except InvalidRequestError as error:
        raise bad_request(str(error), "lora_name") from error
    with context.adapter_changes.one():
        there = context.targets.view().adapters.get(name)
        expected = _expected(call, request, there)
        if expected is None and not request.load_inplace:
            if there is not None:
                raise bad_request(
                    f"the adapter {name!r} is loaded: load_inplace replaces it", "lora_name", "adapter_exists"
                )
            expected = 0
        try:
            made = context.llm.load_adapter(name, folder, expected_generation=expected)
        except OctavoError as error:
            raise _refusal(error, call, Path(root).resolve()) from error
        context.targets.view()
    return _reply(made, f"Success: LoRA adapter '{name}' added successfully.")


def unload_adapter(context: Context, call: Call) -> Reply:
    """Unloads an adapter. Requests that run with it go on."""
    request = context.read(UnloadAdapterRequest, call)
    name = request.lora_name
    with context.adapter_changes.one():
        there = context.targets.view().adapters.get(name)
        expected = _expected(call, request, there)
        if there is None:
            raise ApiError(404, f"there is no adapter {name[:80]!r} here", param="lora_name", code="adapter_not_found")
        if expected is not None and expected != there.generation:
            raise _changed(f"the adapter {name!r} has generation {there.generation}, not {expected}", call)
        context.llm.unload_adapter(name)
        context.targets.view()
    return _reply(there, f"Success: LoRA adapter '{name}' removed successfully.")


def _expected(call: Call, request: AdapterRequest, there: Adapter | None) -> int | None:
    """The generation that the caller expects, of its header If-Match or its field; None: any."""
    header = call.headers.get("if-match")
    if header is None:
        return request.expected_generation
    generation = 0 if there is None else there.generation
    if header.strip() == "*":
        wanted = [generation] if there is not None else []
    else:
        tags = [_ETAG.fullmatch(tag.strip()) for tag in header.split(",")]
        if not all(tags):
            raise bad_request(f'the header If-Match is {header[:80]!r}: a generation such as "3", or * is expected')
        wanted = [int(tag[1]) for tag in tags if tag is not None]
    if generation not in wanted or request.expected_generation not in (None, generation):
        state = "does not exist" if there is None else f"has generation {generation}"
        raise _changed(f"the adapter {request.lora_name[:80]!r} {state}, and If-Match expects another", call)
    return generation


def _changed(message: str, call: Call) -> ApiError:
    """The refusal of a change that is based on an old state: 412 for the header, 409 for the field."""
    if "if-match" in call.headers:
        return ApiError(412, message, code="generation_mismatch")
    return ApiError(409, message, param="expected_generation", code="generation_mismatch")


def _refusal(error: OctavoError, call: Call, root: Path) -> ApiError:
    """The response for a load that failed. Paths in it are relative to the root."""
    text = str(error).replace(f"{root}/", "").replace(str(root), ".")
    if isinstance(error, AdapterConflictError):
        return _changed(text, call)
    codes = {
        ModelNotFoundError: "adapter_not_found",
        CorruptModelError: "adapter_corrupt",
        UnsupportedModelError: "adapter_unsupported",
    }
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), None)
    if code is not None:
        return bad_request(text, "lora_path", code)
    found = from_octavo(error, {"name": "lora_name", "path": "lora_path"})
    found.message = text
    return found


def _reply(adapter: Adapter, message: str) -> Reply:
    facts = {"generation": adapter.generation, "digest": adapter.digest, "rank": adapter.rank, "bytes": adapter.bytes}
    body = {"object": "adapter", "lora_name": adapter.name, **facts, "message": message}
    return json_reply(body, headers={"etag": f'"{adapter.generation}"'})


ROUTES = [
    Route("POST", "/v1/load_lora_adapter", load_adapter, "Load an adapter", LoadAdapterRequest, admin=True),
    Route("POST", "/v1/unload_lora_adapter", unload_adapter, "Unload an adapter", UnloadAdapterRequest, admin=True),
]
