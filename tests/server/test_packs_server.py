"""Knowledge packs through a real server and real clients: the output of the full text, without its computation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from octavo import LLM, SamplingParams
from octavo.cli import app
from peft_folders import write_adapter
from servers import KEY, Process, served
from typer.testing import CliRunner

DOCUMENTS = {
    "keys.md": "\n".join(
        f"The key of {name} is {3 * i + 11}." for i, name in enumerate(("amber", "birch", "cedar") * 9)
    ),
    "more.md": "The key of dune is 47.",
}
NEWS = {"news.md": "\n".join(f"On day {i} the river rose by {i + 2} feet." for i in range(30))}
TALE = {"tale.md": "Once upon a time there was a small owl who lived in the old mill by the river. " * 6}
TURN: Any = [{"role": "user", "content": "What is the key of dune?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SHORT: Any = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "sql", 1)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packs")
    with LLM() as llm:
        llm.load_adapter("any", adapter)
        llm.make_pack(NEWS, folder / "adapted.pack", adapter="any")
        llm.make_pack(DOCUMENTS, folder / "law.pack", system="Answer from these.")
        llm.make_pack(NEWS, folder / "news.pack")
        llm.make_pack(TALE, folder / "tale.pack", form="text")
    return {name: folder / f"{name}.pack" for name in ("law", "news", "tale", "adapted")}


@pytest.fixture(scope="module")
def own(packs: dict[str, Path], adapter: Path) -> Iterator[LLM]:
    """The reference: requests with the full texts."""
    with LLM() as made:
        made.load_adapter("sql", adapter)
        for name, path in packs.items():
            made.load_pack(name, path)
        yield made


@pytest.fixture(scope="module")
def process(packs: dict[str, Path], adapter: Path) -> Iterator[Process]:
    given = [f"{name}={path}" for name, path in packs.items()]
    with served(
        "--served-model-name", "m", "--lora-modules", f"sql={adapter}", "--pack", *given, "--api-key", KEY
    ) as it:
        yield it


@pytest.fixture(scope="module")
def client(process: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def http(process: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as made:
        yield made


def text_of(documents: dict[str, str], system: str = "") -> str:
    return "\n\n".join([*([system] if system else []), *documents.values()]).strip()


LAW = text_of(DOCUMENTS, "Answer from these.")


def full(*texts: str) -> list[dict[str, Any]]:
    """The conversation with the texts in it."""
    return [{"role": "system", "content": "\n\n".join(texts)}, *TURN]


def test_the_output_is_that_of_the_full_text(client: openai.OpenAI, own: LLM) -> None:
    wanted = own.chat(full(LAW), GREEDY)[0]
    assert wanted.text != own.chat(TURN, GREEDY)[0].text
    held = next(pack.tokens for pack in own.packs() if pack.name == "law")
    for salt, (model, more) in enumerate((("m", {"pack": "law"}), ("m+law", {}), ("m", {"pack": ["law"]}))):
        body = {**more, "cache_salt": f"a{salt}"}
        answer = client.chat.completions.create(model=model, messages=TURN, **SHORT, extra_body=body)
        assert answer.choices[0].message.content == wanted.text
        assert answer.model == "m+law"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(wanted.prompt_token_ids)
        # Nothing else of this salt is in the cache.
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == held


def test_system_messages_streams_and_samples(client: openai.OpenAI, own: LLM) -> None:
    system: Any = [{"role": "system", "content": "Be brief."}, *TURN]
    wanted = own.chat(full(LAW, "Be brief."), GREEDY)[0].text
    body = {"pack": "law"}
    stream = client.chat.completions.create(model="m", messages=system, stream=True, **SHORT, extra_body=body)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted
    both = client.chat.completions.create(model="m", messages=system, n=2, **SHORT, extra_body=body)
    assert [choice.message.content for choice in both.choices] == [wanted] * 2


def test_several_packs(client: openai.OpenAI, own: LLM) -> None:
    wanted = own.chat(full(LAW, text_of(NEWS)), GREEDY)[0].text
    for model, more in (
        ("m", {"pack": ["law", "news"]}),
        ("m+law+news", {}),
        ("m+law+news", {"pack": ["law", "news"]}),
    ):
        answer = client.chat.completions.create(model=model, messages=TURN, **SHORT, extra_body=more)
        assert (answer.model, answer.choices[0].message.content) == ("m+law+news", wanted)


def test_a_pack_that_was_made_with_an_adapter(client: openai.OpenAI, own: LLM) -> None:
    adapted = SamplingParams(temperature=0, max_tokens=12, lora="sql")
    wanted = own.chat(full(text_of(NEWS)), adapted)[0].text
    answer = client.chat.completions.create(model="sql+adapted", messages=TURN, **SHORT)
    assert (answer.model, answer.choices[0].message.content) == ("sql+adapted", wanted)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens
    assert client.models.retrieve("sql+adapted").model_dump()["parent"] == "sql"


def test_completions(client: openai.OpenAI, own: LLM) -> None:
    prompt = "Then the owl"
    wanted = own.generate(f"{text_of(TALE)}\n\n{prompt}", GREEDY)[0].text
    ids = own.tokenize(prompt)
    for given in (prompt, ids):
        done = client.completions.create(model="m+tale", prompt=given, **SHORT)
        assert (done.model, done.choices[0].text) == ("m+tale", wanted)
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        assert done.usage.prompt_tokens_details.cached_tokens


def test_other_apis(client: openai.OpenAI, process: Process, own: LLM) -> None:
    wanted = own.chat(full(LAW), GREEDY)[0]
    text = TURN[0]["content"]
    answer = client.responses.create(
        model="m", input=text, temperature=0, max_output_tokens=12, extra_body={"pack": "law"}
    )
    assert (answer.model, answer.output_text) == ("m+law", wanted.text)
    count = client.post("/responses/input_tokens", body={"model": "m+law", "input": text}, cast_to=dict[str, Any])
    assert count["input_tokens"] == len(wanted.prompt_token_ids)
    anthropic = pytest.importorskip("anthropic", reason="Anthropic's client: pip install '.[test-clients]'")
    with anthropic.Anthropic(base_url=process.url, api_key=KEY, max_retries=0) as other:
        ask: Any = {"model": "m+law", "messages": TURN}
        said = other.messages.create(**ask, max_tokens=12, extra_body={"temperature": 0})
        assert (said.model, said.content[0].text) == ("m+law", wanted.text)
        assert said.usage.cache_read_input_tokens
        assert other.messages.count_tokens(**ask).input_tokens == len(wanted.prompt_token_ids)


def test_tokenize_counts_the_pack(http: httpx.Client, own: LLM) -> None:
    found = http.post("/tokenize", json={"messages": TURN, "pack": "law"}).json()["tokens"]
    assert found == own.chat(full(LAW), GREEDY)[0].prompt_token_ids
    found = http.post("/tokenize", json={"prompt": "Then", "model": "m+tale"}).json()["tokens"]
    assert found == own.tokenize(f"{text_of(TALE)}\n\nThen")


def test_the_list_of_models(client: openai.OpenAI, own: LLM, packs: dict[str, Path]) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert list(models) == ["m", "sql", "sql+adapted", "m+law", "m+news", "m+tale"]
    law = models["m+law"]
    assert (law["parent"], law["root"]) == ("m", "m+law")
    digest = next(pack.digest for pack in own.packs() if pack.name == "law")
    assert (law["packs"][0]["name"], law["packs"][0]["digest"]) == ("law", digest)
    assert str(packs["law"].parent) not in json.dumps(models)
    assert client.models.retrieve("m+law").id == "m+law"
    assert len(client.models.retrieve("m+law+news").model_dump()["packs"]) == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("chat/completions", {"pack": "lau"}, 404, "pack", "did you mean law?"),
        ("chat/completions", {"model": "m+lau"}, 404, "model", "adapted, law, news, tale can be used"),
        ("chat/completions", {"model": "x+law"}, 404, "model", "there is no model 'x+law'"),
        ("chat/completions", {"pack": ["law", "law"]}, 400, "pack", "twice"),
        ("chat/completions", {"model": "m+law", "pack": "news"}, 400, "pack", "different packs"),
        ("chat/completions", {"pack": "tale"}, 400, "pack", "form"),
        ("chat/completions", {"pack": 3}, 400, "pack", "a string"),
        ("chat/completions", {"pack": ""}, 400, "pack", "1 character"),
        ("chat/completions", {"pack": "law", "truncate_prompt_tokens": 5}, 400, "pack", "cut"),
        ("completions", {"pack": "law"}, 400, "pack", "form"),
        ("embeddings", {"pack": "law"}, 400, "pack", "input"),
        ("embeddings", {"model": "m+law"}, 400, "model", "input"),
        ("messages", {"pack": "lau"}, 404, None, "did you mean law?"),
        ("responses", {"pack": "lau"}, 404, "pack", "did you mean law?"),
        ("chat/completions", {"model": "sql+law"}, 400, "pack", "adapter"),
        ("chat/completions", {"pack": "law", "lora_path": "sql"}, 400, "pack", "adapter"),
        ("chat/completions", {"model": "m+adapted"}, 400, "pack", "adapter"),
    ],
)
def test_packs_that_cannot_be_used(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    start: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": TURN, **SHORT},
        "completions": {"prompt": "Once", **SHORT},
        "embeddings": {"input": "Once"},
        "messages": {"messages": TURN, **SHORT},
        "responses": {"input": "Once"},
    }
    answer = http.post(f"/v1/{path}", json={**start[path], **body})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"].get("param") == param


def test_on_the_command_line(packs: dict[str, Path], own: LLM) -> None:
    def run(*arguments: str, stdin: str | None = None) -> Any:
        return CliRunner().invoke(app, [*arguments, "-n", "12", "-t", "0"], input=stdin)

    wanted = own.generate(f"{text_of(TALE)}\n\nThen", GREEDY)[0].text
    result = run("generate", "Then", "--pack", str(packs["tale"]))
    assert (result.exit_code, result.stdout) == (0, wanted + "\n"), result.stderr
    wanted = own.chat(full(LAW), GREEDY)[0].text
    question = TURN[0]["content"]
    assert run("chat", "--pack", str(packs["law"]), stdin=f"{question}\n").stdout == wanted + "\n"
    rows = json.dumps({"messages": TURN})
    result = run("generate", "--prompts-file", "-", "--pack", str(packs["law"]), stdin=rows)
    assert json.loads(result.stdout)["text"] == wanted
    mixed = run("generate", "--prompts-file", "-", "--pack", str(packs["law"]), stdin=f'"Then"\n{rows}')
    assert (mixed.exit_code, "conversations" in mixed.stderr) == (2, True)
    refused = run("generate", "Then", "--pack", str(packs["law"]))
    assert (refused.exit_code, "form" in refused.stderr) == (2, True)
