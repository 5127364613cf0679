"""Loads a finished adapter into a running server, by POST /v1/load_lora_adapter."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from octavo.errors import InvalidRequestError, OctavoError

__all__ = ["check_address", "load_into_server"]

_TIMEOUT_SECONDS = 60


def check_address(url: str, name: str | None, method: str) -> None:
    """Refuses what cannot work before hours of training.

    Raises:
        InvalidRequestError: no address, no name, or a method without an adapter.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidRequestError(f"serve is {url!r}: http://HOST:PORT is expected")
    if not name:
        raise InvalidRequestError("serve needs the name of the adapter beside it: --name law")
    if method == "full":
        raise InvalidRequestError("serve loads adapters; method full makes a model: octavo serve --model OUT")


def load_into_server(url: str, name: str, folder: Path, api_key: str | None = None) -> str:
    """Loads the adapter in `folder` under `name`, in place of one that has it. The server needs `--lora-root`.

    Returns:
        What the server answers.

    Raises:
        OctavoError: the server cannot be reached, or refuses; the message has its reason.
    """
    fields = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
    headers = {"Content-Type": "application/json", "User-Agent": "octavo"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    address = url.rstrip("/").removesuffix("/v1") + "/v1/load_lora_adapter"
    request = urllib.request.Request(address, json.dumps(fields).encode(), headers)
    from octavo.cli.remote import NoRedirects

    opener = urllib.request.build_opener(NoRedirects())
    if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1"):
        opener = urllib.request.build_opener(NoRedirects(), urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read().decode("utf-8", "replace")).strip()
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")[:500]
        raise OctavoError(f"{address} refuses the adapter ({error.code}): {text}") from error
    except OSError as error:
        raise OctavoError(f"{address} cannot be reached: {error}; the adapter is in {folder}") from error
