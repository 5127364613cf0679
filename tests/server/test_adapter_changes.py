"""Loads and unloads at run time: who may, from where, under which names, and while requests run."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.server import Limits, ServerConfig, create_app, create_wsgi_app
from octavo.server.fields.adapters import FIELDS
from peft_folders import write_adapter
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from werkzeug.test import Client as WsgiClient

ADMIN = {"Authorization": "Bearer admin"}
USER = {"Authorization": "Bearer user"}
PROMPT = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters, and things that are none."""
    top = tmp_path_factory.mktemp("served")
    folder = top / "root"
    for seed, name in enumerate(("a", "b")):
        write_adapter(folder / name, seed)
    write_adapter(top / "outside", 9)
    (folder / "link").symlink_to(top / "outside")
    (folder / "half").mkdir()
    (folder / "half" / "adapter_config.json").write_bytes((folder / "a" / "adapter_config.json").read_bytes())
    (folder / "half" / "adapter_model.safetensors").symlink_to(top / "outside" / "adapter_model.safetensors")
    (folder / "inner").symlink_to(folder / "b")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / "adapter_config.json")
    write_adapter(folder / "wrong", 3, modules_to_save=["lm_head"])
    return folder


@pytest.fixture(scope="module")
def llm(root: Path) -> Iterator[LLM]:
    with LLM(max_num_seqs=4) as made:
        yield made
        blocks = made.stats()["blocks"]
        assert blocks["live"] == 0
        assert blocks["free"] + blocks["cached"] == blocks["total"]


@pytest.fixture
def http(llm: LLM, root: Path) -> Iterator[TestClient]:
    config = ServerConfig(
        api_keys=("user",), admin_api_keys=("admin",), lora_root=root, served_model_names=("m",), metrics_compat="vllm"
    )
    with TestClient(create_app(llm, config)) as client:
        yield client
    for adapter in llm.adapters():
        llm.unload_adapter(adapter.name)


def load(http: TestClient, headers: dict[str, str] = ADMIN, **body: Any) -> Any:
    return http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "a", **body}, headers=headers)


def unload(http: TestClient, headers: dict[str, str] = ADMIN, **body: Any) -> Any:
    return http.post("/v1/unload_lora_adapter", json={"lora_name": "x", **body}, headers=headers)


def complete(http: TestClient, **body: Any) -> Any:
    return http.post("/v1/completions", json={**PROMPT, **body}, headers=USER)


# --- who ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        (USER, 403),
        ({"x-api-key": "user"}, 403),
        ({"x-api-key": "admin"}, 200),
        ({**USER, "x-api-key": "admin"}, 200),
    ],
)
def test_only_administrators_change_adapters(http: TestClient, headers: dict[str, str], status: int) -> None:
    assert load(http, headers).status_code == status
    assert unload(http, headers).status_code == status


def test_the_key_of_administrators_opens_nothing_else(http: TestClient) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/load_lora_adapter/", "//v1/load_lora_adapter"):
        assert http.get(path, headers=ADMIN).status_code == 401, path
    assert http.post("/v1/completions", json=PROMPT, headers=ADMIN).status_code == 401


def test_without_a_root_there_are_no_such_routes(llm: LLM) -> None:
    client = TestClient(create_app(llm, ServerConfig(api_keys=("user",))))
    for headers, status in ((ADMIN, 401), (USER, 404)):
        assert load(client, headers).status_code == status
    assert "--lora-root" in load(client, USER).json()["error"]["message"]
    assert not [p for p in client.get("/openapi.json", headers=USER).json()["paths"] if "lora" in p]


def test_the_document_names_the_key(http: TestClient) -> None:
    document = http.get("/openapi.json", headers=USER).json()
    assert document["paths"]["/v1/load_lora_adapter"]["post"]["security"] == [{"admin": []}]
    assert "admin" in document["components"]["securitySchemes"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lora_root": "."}, "admin_api_keys"),
        ({"admin_api_keys": ("a",)}, "lora_root"),
        ({"lora_root": ".", "admin_api_keys": ("a",), "api_keys": ("b", "a")}, "also in api_keys"),
        ({"lora_root": "/nowhere", "admin_api_keys": ("a",)}, "no folder"),
        ({"lora_root": ".", "admin_api_keys": (" ",)}, "empty"),
    ],
)
def test_configurations_that_cannot_be_right(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        ServerConfig(**config)


def test_wsgi(llm: LLM, root: Path) -> None:
    app = create_wsgi_app(llm, ServerConfig(admin_api_keys=("admin",), lora_root=root))
    client = WsgiClient(app)
    body = {"lora_name": "w", "lora_path": "a"}
    assert client.post("/v1/load_lora_adapter", json=body).status_code == 401
    assert client.post("/v1/load_lora_adapter", json=body, headers=ADMIN).status_code == 200
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "w"}, headers=ADMIN).status_code == 200


# --- from where -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../outside", 400),
        ("a/../../outside", 400),
        ("/etc", 400),
        ("/nowhere/at/all", 400),
        ("link", 400),
        ("link/.", 400),
        ("half", 400),
        ("..", 400),
        ("", 400),
        ("a\0", 400),
        ("a\nb", 400),
        ("~/a", 400),
        ("hf://org/name", 400),
        ("https://host/a", 400),
        ("..\\outside", 400),
        ("x" * 5000, 400),
        ("x" * 300, 400),
        ("org/name", 404),
        ("absent", 404),
        ("file", 404),
        ("empty", 400),
        ("pipe", 400),
        ("wrong", 400),
        ("a/", 200),
        ("./b", 200),
        ("inner", 200),
        ("b/../a", 200),
    ],
)
def test_only_folders_below_the_root(http: TestClient, root: Path, path: str, status: int) -> None:
    answer = load(http, lora_path=path)
    assert answer.status_code == status, answer.text
    assert str(root) not in answer.text
    if status != 200:
        assert answer.json()["error"]["param"] == "lora_path"
        assert http.get("/v1/models/x", headers=USER).status_code == 404
    assert load(http, lora_path=str(root / "a"), load_inplace=True).status_code == 200


def test_what_is_outside_is_not_shown(http: TestClient, root: Path) -> None:
    """The same answer for a folder outside that exists and for one that does not."""
    there, absent = (load(http, lora_path=f"../{name}").json()["error"]["message"] for name in ("outside", "outsidf"))
    assert there.replace("outside'", "") == absent.replace("outsidf'", "")


def test_a_folder_that_is_no_adapter_is_named(http: TestClient) -> None:
    assert "adapter_config.json" in load(http, lora_path="empty").json()["error"]["message"]
    answer = load(http, lora_path="wrong").json()["error"]
    assert "modules_to_save" in answer["message"]


# --- under which names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m", "", "a+b", "a@1", "a,b", "a b", "a\n", "x" * 257, 3, None])
def test_names_that_cannot_be_used(http: TestClient, name: Any) -> None:
    answer = load(http, lora_name=name)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name"), answer.text


@pytest.mark.parametrize("name", ["org/name", "sql:latest", "ä", "a.b-c_d", "x" * 256])
def test_names_that_can_be_used(http: TestClient, name: str) -> None:
    assert load(http, lora_name=name).status_code == 200
    assert complete(http, model=name).json()["model"] == name
    assert http.get(f"/v1/models/{name}", headers=USER).json()["id"] == name


@pytest.mark.parametrize("mark", ["+", ":", "@", "x+", "m:", "m+"])
def test_long_names_are_no_work(http: TestClient, mark: str) -> None:
    answer = complete(http, model="m" + mark * 1_000_000)
    assert (answer.status_code, len(answer.text) < 1000) == (404, True)


def test_fields_of_loads(http: TestClient) -> None:
    for field in ("pinned", "is_3d_lora_weight"):
        assert load(http, **{field: True}).json()["error"]["param"] == field
    assert load(http, expected_generation=-1).json()["error"]["param"] == "expected_generation"
    assert load(http, load_inplace="yes").json()["error"]["param"] == "load_inplace"


def test_compare_and_set(http: TestClient) -> None:
    first = load(http)
    number = first.json()["generation"]
    assert first.headers["etag"] == f'"{number}"' == http.get("/v1/models/x", headers=USER).headers["etag"]
    assert load(http, expected_generation=0).status_code == 409
    assert load(http, expected_generation=number, lora_path="b").json()["generation"] == number + 1
    late = load(http, expected_generation=number)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "generation_mismatch")
    assert load(http, {**ADMIN, "If-Match": f'"{number}"'}).status_code == 412
    assert load(http, {**ADMIN, "If-Match": f'"{number}", "{number + 1}"'}).json()["generation"] == number + 2
    # The same content is no new generation.
    assert load(http, {**ADMIN, "If-Match": "*"}).json()["generation"] == number + 2
    assert load(http, {**ADMIN, "If-Match": "*"}, lora_name="y").status_code == 412
    assert load(http, {**ADMIN, "If-Match": "three"}).status_code == 400
    assert unload(http, expected_generation=number).status_code == 409
    assert unload(http, {**ADMIN, "If-Match": '"999"'}).status_code == 412
    assert unload(http, expected_generation=number + 2).status_code == 200


# --- while requests run ---------------------------------------------------------------------------------------------


def test_unloaded_while_it_runs(http: TestClient, llm: LLM) -> None:
    load(http)
    whole = complete(http, model="x", max_tokens=200, ignore_eos=True).json()["choices"][0]["text"]
    text = ""
    body = {**PROMPT, "model": "x", "max_tokens": 200, "ignore_eos": True, "stream": True, "return_token_ids": False}
    with http.stream("POST", "/v1/completions", json=body, headers=USER) as answer:
        for i, line in enumerate(answer.iter_lines()):
            if i == 0:
                assert unload(http).status_code == 200
                assert complete(http, model="x").status_code == 404
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    assert text == whole


def test_changed_by_the_application(http: TestClient, llm: LLM, root: Path) -> None:
    """Not through the server: what it knows of adapters is old."""
    load(http)
    assert complete(http, model="x").status_code == 200
    llm.unload_adapter("x")
    for body in ({"model": "x"}, {"lora_path": "x"}):
        gone = complete(http, **body)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found"), gone.text
    number = llm.load_adapter("x", root / "b").generation
    assert complete(http, model=f"x@{number}").status_code == 200
    llm.load_adapter("x", root / "a")
    assert complete(http, model=f"x@{number}").status_code == 404
    llm.load_adapter("fresh", root / "a")
    assert complete(http, model="fresh").status_code == 200


def test_reloads_under_load(http: TestClient, llm: LLM) -> None:
    """Every answer is the one of a content that the name has had, and the last one is the newest's."""
    texts = {}
    for path in ("a", "b"):
        load(http, lora_path=path, load_inplace=True)
        texts[path] = complete(http, model="x").json()["choices"][0]["text"]
    assert texts["a"] != texts["b"]
    stop = threading.Event()
    seen: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            seen.append(complete(http, model="x").json()["choices"][0]["text"])

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask) for _ in range(4)]
        for i in range(12):
            path = "ab"[i % 2]
            assert load(http, lora_path=path, load_inplace=True).status_code == 200
            assert complete(http, model="x").json()["choices"][0]["text"] == texts[path]
        stop.set()
        for done in running:
            done.result()
    assert set(seen) <= set(texts.values())


def test_a_hundred_loads_at_once(llm: LLM, root: Path) -> None:
    limits = Limits(adapter_changes=4)
    client = TestClient(create_app(llm, ServerConfig(admin_api_keys=("admin",), lora_root=root, limits=limits)))
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda i: load(client, lora_name=f"n{i % 10}", lora_path="ab"[i % 2]), range(100)))
        assert client.get("/health").status_code == 200
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) <= {200, 400, 429}
    names = {adapter.name for adapter in llm.adapters()}
    # A name is loaded once; the others of that name come too late.
    assert counts[200] == len(names & {f"n{i}" for i in range(10)}) >= 1
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"]
    for name in names:
        llm.unload_adapter(name)


# --- other servers' fields, metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"lora_path": "x"}, "x"),
        ({"adapter_id": "x", "model": "m"}, "x"),
        ({"lora": "x"}, "x"),
        ({"lora": [{"id": "x", "scale": 1.0}]}, "x"),
        ({"lora": [{"id": "x", "scale": 0}]}, "m"),
        ({"lora": []}, "m"),
        ({"lora_path": None}, "m"),
        ({"lora_request": {"lora_name": "x", "lora_int_id": 1}}, "x"),
        ({"lora_path": ["x"]}, "x"),
        ({"lora_path": "x", "adapter_id": "x", "model": "x"}, "x"),
        ({"adapter_id": "x", "adapter_source": "local"}, "x"),
        ({"model": "m:x"}, "x"),
    ],
)
def test_other_servers_fields_for_adapters(http: TestClient, body: dict[str, Any], model: str) -> None:
    load(http)
    wanted = complete(http, model=model).json()["choices"][0]["text"]
    answer = complete(http, **body)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["choices"][0]["text"]) == (model, wanted)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        *(({field: "absent"}, field) for field in FIELDS),
        ({"lora": [{"id": 0, "scale": 1.0}]}, "lora"),
        ({"lora": [{"id": "x", "scale": 0.5}]}, "lora"),
        ({"lora": [{"id": "x"}, {"id": "y"}]}, "lora"),
        ({"lora_request": {"lora_name": "x", "lora_path": "/etc"}}, "lora_request"),
        ({"lora_path": 3}, "lora_path"),
        ({"lora_path": "x", "adapter_id": "y"}, "lora_path"),
        ({"lora_path": "y", "model": "x"}, "lora_path"),
        ({"merged_adapters": {"ids": ["x"]}}, "merged_adapters"),
        ({"adapter_id": "x", "adapter_source": "hub"}, "adapter_source"),
    ],
)
@pytest.mark.parametrize("path", ["completions", "embeddings"])
def test_fields_that_name_no_adapter(http: TestClient, body: dict[str, Any], param: str, path: str) -> None:
    load(http)
    load(http, lora_name="y")
    start = PROMPT if path == "completions" else {"input": "Hi"}
    answer = http.post(f"/v1/{path}", json={**start, **body}, headers=USER)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_every_endpoint_says_what_ran(http: TestClient) -> None:
    load(http)
    bodies: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        "responses": {"input": "Hi", "max_output_tokens": 2},
        "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        "embeddings": {"input": "Hi"},
        "rerank": {"query": "Hi", "documents": ["a", "b"]},
        "score": {"text_1": "Hi", "text_2": "a"},
    }
    for path, body in bodies.items():
        answer = http.post(f"/v1/{path}", json={**body, "model": "x"}, headers=USER)
        assert (answer.status_code, answer.json()["model"]) == (200, "x"), answer.text


def test_the_metric_for_routers(http: TestClient, llm: LLM) -> None:
    load(http)

    def labels() -> dict[str, str]:
        families = text_string_to_metric_families(http.get("/metrics", headers=USER).text)
        (sample,) = (s for f in families for s in f.samples if s.name == "vllm:lora_requests_info")
        assert sample.value > 1e9
        return dict(sample.labels)

    most = str(llm.stats()["adapters"]["max"])
    idle = {"max_lora": most, "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert labels() == idle
    handle = llm.submit("Once", SamplingParams(max_tokens=2000, ignore_eos=True, lora="x"))
    outputs = iter(handle)
    try:
        next(outputs)
        assert labels() == {**idle, "running_lora_adapters": "x"}
    finally:
        handle.cancel()
