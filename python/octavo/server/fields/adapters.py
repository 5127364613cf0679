"""Fields in which clients of other servers name an adapter: SGLang, LoRAX and TGI, llama.cpp, and vLLM's Python."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from octavo.server.errors import ApiError, bad_request

# Name of the field -> the server that has it.
FIELDS = {
    "adapter_id": "LoRAX and TGI",
    "lora": "llama.cpp",
    "lora_name": "vLLM",
    "lora_path": "SGLang",
    "lora_request": "vLLM",
}
# Keys of an object that names an adapter. The first one that is there counts.
_NAME_KEYS = ("lora_name", "adapter_id", "name", "id")
_REMEDY = 'name an adapter of GET /v1/models as the model, such as "model": "sql"'


def adapter_named(request: BaseModel) -> tuple[str, str] | None:
    """The adapter that a field of another server names: the field and the name. None: there is no such field.

    Raises:
        ApiError: 400 for a value that is no name, and for two fields that differ.
    """
    if not request.model_extra:
        return None
    found: tuple[str, str] | None = None
    for field in FIELDS:
        name = _name(request.model_extra.get(field), field)
        if name is None:
            continue
        if found is not None and found[1] != name:
            raise bad_request(f"{field} and {found[0]} name different adapters: give one of them", field)
        found = (field, name)
    return found


def _name(value: Any, field: str) -> str | None:
    if not value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        names = [name for item in value if (name := _name(item, field)) is not None]
        if len(names) > 1:
            raise bad_request(f"{field} names {len(names)} adapters: a request has one at most", field)
        return names[0] if names else None
    if isinstance(value, dict):
        return _of_object(value, field)
    raise _refused(field, f"is {str(value)[:80]}, and adapters have no numbers here")


def _of_object(value: dict[str, Any], field: str) -> str | None:
    scale = value.get("scale", 1)
    if scale == 0 and not isinstance(scale, bool):
        # llama.cpp's way to turn an adapter off.
        return None
    if scale != 1 or isinstance(scale, bool):
        raise bad_request(f"{field} has the scale {str(scale)[:40]}: only 1 and 0 are supported", field)
    key = next((key for key in _NAME_KEYS if key in value), None)
    other = next((k for k in value if k not in (key, "scale", "lora_int_id")), None)
    if other is not None:
        raise _refused(field, f"has the key {other[:80]!r}, which is not supported")
    name = None if key is None else value[key]
    if not isinstance(name, str) or not name:
        raise _refused(field, "names no adapter: adapters have names here, no numbers")
    return name


def _refused(field: str, fault: str) -> ApiError:
    return bad_request(f"{field} {fault}: {_REMEDY}", field)
