"""Adapters through a real server and real clients: an adapter is a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from octavo import LLM, SamplingParams
from peft_folders import write_adapter
from servers import KEY, Process, served

ADMIN = "key-for-administrators"
TEXT = "Once upon a time"
TURN: Any = [{"role": "user", "content": "Who are you?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
LORA = SamplingParams(temperature=0, max_tokens=12, lora="sql")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("sql", "law", "other")):
        write_adapter(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def own(root: Path) -> Iterator[LLM]:
    """The reference: the Python API."""
    with LLM() as made:
        made.load_adapter("sql", root / "sql")
        yield made


@pytest.fixture(scope="module")
def process(root: Path) -> Iterator[Process]:
    modules = [f"sql={root / 'sql'}", json.dumps({"name": "law", "path": str(root / "law"), "base_model_name": "m"})]
    names = ["--served-model-name", "m", "--served-model-name", "alias"]
    keys = ["--api-key", KEY, "--admin-api-key", ADMIN, "--lora-root", str(root)]
    with served("--enable-lora", "--lora-modules", *modules, *names, *keys, "--metrics-compat", "vllm") as made:
        yield made


@pytest.fixture(scope="module")
def client(process: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def test_the_list_of_models(client: openai.OpenAI, root: Path) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert list(models) == ["m", "alias", "law", "sql"]
    assert models["sql"]["parent"] == models["law"]["parent"] == "m"
    assert models["sql"]["root"] == "sql"
    assert "parent" not in models["m"]
    assert str(root) not in json.dumps(models)
    assert client.models.retrieve("law").id == "law"
    assert client.models.retrieve("law@1").model_dump()["adapter"]["generation"] == 1


def test_chats_and_completions(client: openai.OpenAI, own: LLM) -> None:
    base, wanted = own.chat(TURN, GREEDY)[0].text, own.chat(TURN, LORA)[0].text
    assert wanted != base
    for model, text in (("sql", wanted), ("sql@1", wanted), ("m", base), ("alias", base), ("m:sql", wanted)):
        answer = client.chat.completions.create(model=model, messages=TURN, temperature=0, max_tokens=12)
        assert answer.choices[0].message.content == text, model
        assert answer.model == {"alias": "m", "m:sql": "sql"}.get(model, model)
    done = client.completions.create(model="sql", prompt=TEXT, temperature=0, max_tokens=12)
    assert done.choices[0].text == own.generate(TEXT, LORA)[0].text
    assert done.model == "sql"
    pieces = client.chat.completions.create(model="sql", messages=TURN, temperature=0, max_tokens=12, stream=True)
    chunks = list(pieces)
    assert {chunk.model for chunk in chunks} == {"sql"}
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted


def test_the_prefix_cache_keeps_adapters_apart(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "a b c d " * 60}]
    seen = []
    for model in ("law", "m", "sql", "law"):
        answer = client.chat.completions.create(model=model, messages=long, max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        seen.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert seen[:3] == [0, 0, 0]
    assert seen[3]


def test_responses_and_embeddings(client: openai.OpenAI, own: LLM) -> None:
    answer = client.responses.create(model="sql", input="Who are you?", temperature=0, max_output_tokens=12)
    assert (answer.model, answer.output_text) == ("sql", own.chat(TURN, LORA)[0].text)
    found = client.embeddings.create(model="sql", input=TEXT, encoding_format="float")
    assert found.model == "sql"
    assert found.data[0].embedding == pytest.approx(own.embed(TEXT, lora="sql")[0].embedding, abs=1e-6)
    assert found.data[0].embedding != pytest.approx(own.embed(TEXT)[0].embedding, abs=1e-3)


def test_anthropics_client(process: Process, own: LLM) -> None:
    anthropic = pytest.importorskip("anthropic", reason="Anthropic's client: pip install '.[test-clients]'")
    with anthropic.Anthropic(base_url=process.url, api_key=KEY, max_retries=0) as client:
        answer = client.messages.create(model="sql", messages=TURN, max_tokens=12, extra_body={"temperature": 0})
        assert (answer.model, answer.content[0].text) == ("sql", own.chat(TURN, LORA)[0].text)
        assert [model.id for model in client.models.list()] == ["m", "alias", "law", "sql"]
        with pytest.raises(anthropic.NotFoundError, match="did you mean sql"):
            client.messages.create(model="sqll", messages=TURN, max_tokens=12)


def test_an_unknown_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"m, alias is served.*law, sql.*did you mean law\?") as caught:
        client.chat.completions.create(model="lav", messages=TURN)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError, match="generation 1"):
        client.chat.completions.create(model="sql@7", messages=TURN)


def test_the_calls_of_vllm(process: Process, client: openai.OpenAI, root: Path) -> None:
    admin = httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {ADMIN}"})
    made = admin.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "other"})
    assert made.status_code == 200, made.text
    assert "added successfully" in made.text
    assert str(root) not in made.text
    assert client.completions.create(model="new", prompt=TEXT, max_tokens=2).model == "new"
    again = admin.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "law"})
    assert (again.status_code, again.json()["error"]["code"]) == (400, "adapter_exists")
    body = {"lora_name": "new", "lora_path": str(root / "law"), "load_inplace": True}
    assert admin.post("/v1/load_lora_adapter", json=body).json()["generation"] == 2
    assert admin.post("/v1/unload_lora_adapter", json={"lora_name": "new"}).status_code == 200
    gone = admin.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "adapter_not_found")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="new", prompt=TEXT)
    # The name comes back with a later generation: no reader of the list takes it for the old one.
    assert admin.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "other"}).json()["generation"] > 2
    admin.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    admin.close()


def test_the_example(process: Process, own: LLM) -> None:
    program = Path(__file__).parents[2] / "examples" / "adapters_client.py"
    keys = {**os.environ, "OCTAVO_API_KEY": KEY, "OCTAVO_ADMIN_API_KEY": ADMIN}
    command = [sys.executable, str(program), process.url, "law", "other"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=keys)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 + 1 + 4
    assert lines[2].startswith("law (generation 1, rank 4): ")
    assert lines[7].startswith("law (generation 2, rank 4): ")
    assert lines[2] != lines[7]
    assert lines[3] == lines[8]


def test_the_log_holds_no_key(process: Process) -> None:
    text = "\n".join(map(repr, process.log))
    assert ADMIN not in text
    assert KEY not in text
