"""Adapters on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.cli import app
from octavo.cli.attached import Module, lora_modules, spread
from octavo.errors import InvalidRequestError
from peft_folders import write_adapter
from typer.testing import CliRunner, Result

TEXT = "Once upon a time"
LORA = SamplingParams(max_tokens=8, temperature=0, lora="adapter")
SHORT = ("-n", "8", "-t", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "sql", 1, rank=5)


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Any:
    with LLM() as made:
        made.load_adapter("adapter", folder)
        yield made


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments], input=stdin)


def test_generate_is_the_api(adapted: LLM, folder: Path) -> None:
    want = adapted.generate(TEXT, LORA)[0].text
    assert want != adapted.generate(TEXT, SamplingParams(max_tokens=8, temperature=0))[0].text
    result = run("generate", TEXT, *SHORT, "--lora", str(folder))
    assert (result.exit_code, result.stdout) == (0, want + "\n"), result.stderr
    rows = f'"{TEXT}"\n' + json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    result = run("generate", "--prompts-file", "-", *SHORT, "--lora", str(folder), stdin=rows)
    chat = adapted.chat([{"role": "user", "content": "Hi"}], LORA)[0].text
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == [want, chat]


def test_chat_is_the_api(adapted: LLM, folder: Path) -> None:
    want = adapted.chat([{"role": "user", "content": "Hello"}], LORA)[0].text
    assert run("chat", *SHORT, "--lora", str(folder), stdin="Hello\n").stdout == want + "\n"
    refused = run("chat", "--url", "http://127.0.0.1:1", "--lora", str(folder), stdin="Hello\n")
    assert (refused.exit_code, "--model" in refused.stderr) == (2, True)


def test_eval_uses_the_adapter(folder: Path) -> None:
    base, adapted = (
        json.loads(run("eval", "--limit", "1", "--json", *o).stdout) for o in ((), ("--lora", str(folder)))
    )
    assert base["skills"] != adapted["skills"]
    assert adapted["model"]["adapter"]["rank"] == 5
    assert "adapter" not in base["model"]


def test_info_shows_the_adapter(folder: Path, tmp_path: Path) -> None:
    result = run("info", "--lora", str(folder), "--json")
    found = json.loads(result.stdout)["adapter"]
    assert (result.exit_code, found["fits"], found["rank"]) == (0, True, 5)
    assert (found["base_model"], len(found["digest"])) == ("octavo-embedded", 64)
    assert found["modules"] == sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    assert found["digest"] in run("info", "--lora", str(folder)).stdout
    wrong = write_adapter(tmp_path / "wrong", 1, modules_to_save=["lm_head"])
    result = run("info", "--lora", str(wrong), "--json")
    found = json.loads(result.stdout)["adapter"]
    assert (result.exit_code, found["fits"]) == (1, False)
    assert "modules_to_save" in found["problem"]


@pytest.mark.parametrize("command", ["generate x", "chat", "eval"])
def test_no_adapter(command: str, tmp_path: Path) -> None:
    result = run(*command.split(), "--lora", str(tmp_path), stdin="Hi\n")
    assert result.exit_code == 1
    assert (result.stderr.count("\n"), "adapter_config.json" in result.stderr) == (1, True)


# --- octavo serve ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--lora-modules a=x b=y c=z", "--lora-modules a=x --lora-modules b=y --lora-modules c=z"),
        ("--lora-modules a=x MODEL", "--lora-modules a=x MODEL"),
        ("MODEL --lora-modules a=x b=y --port 3", "MODEL --lora-modules a=x --lora-modules b=y --port 3"),
        ("--lora-modules=a=x b=y", "--lora-modules=a=x --lora-modules b=y"),
        ("--lora-modules wrong a=x", "--lora-modules wrong --lora-modules a=x"),
        ("--lora-modules a=x b=y --page c=z", "--lora-modules a=x --lora-modules b=y --page c=z"),
        ("--lora-modules {} {}", "--lora-modules {} --lora-modules {}"),
        ("--lora-modules", "--lora-modules"),
        ("--lora-modules a=x MODEL b=y", "--lora-modules a=x MODEL b=y"),
        ("", ""),
    ],
)
def test_options_with_several_values(given: str, wanted: str) -> None:
    assert spread(given.split()) == wanted.split()


def test_the_forms_of_vllm() -> None:
    given = ["sql=/a/b=c", '{"name": "law", "path": "p"}', '{"name": "x", "path": "p", "base_model_name": "M"}']
    wanted = [Module("sql", "/a/b=c"), Module("law", "p"), Module("x", "p", "M")]
    assert lora_modules(given) == wanted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("sql", "NAME=PATH"),
        ("=p", "NAME=PATH"),
        ("sql=", "NAME=PATH"),
        ("{", "no JSON"),
        ('{"name": "a"}', '"path"'),
        ('{"name": "a", "path": 3}', "texts"),
        ('{"name": "a", "path": "p", "base_model_name": 3}', "base_model_name"),
        ('{"name": "a", "path": "p", "local_path": "p"}', "local_path"),
    ],
)
def test_other_forms_are_named(value: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        lora_modules([value])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--lora-modules", "sql"], 2, "NAME=PATH"),
        (["--lora-modules", "octavo-embedded=FOLDER"], 2, "name of the model"),
        (["--lora-modules", "a=FOLDER", "a=FOLDER"], 2, "twice"),
        (["--lora-modules", "a+b=FOLDER"], 2, "'+'"),
        (["--lora-modules", '{"name": "a", "path": "FOLDER", "base_model_name": "M"}'], 2, "--served-model-name"),
        (["--lora-modules", "a=/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--max-cpu-loras", "3"], 2, "--max-lora-memory"),
        (["--max-loras-per-batch=3"], 2, "--max-loras"),
        (["--lora-root", "."], 2, "admin_api_keys"),
        (["--admin-api-key", "k"], 2, "lora_root"),
        (["--lora-root", ".", "--admin-api-key", "k", "--api-key", "k"], 2, "also in api_keys"),
    ],
)
def test_servers_that_cannot_start(arguments: list[str], status: int, words: str, folder: Path) -> None:
    result = run("serve", "--port", "0", *(a.replace("FOLDER", str(folder)) for a in arguments))
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1), result.stderr
    assert words in result.stderr


def test_modules_of_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("lora-modules: [{name: a, path: /nowhere/at/all}]\n")
    result = run("serve", "--port", "0", "--config", str(file))
    assert (result.exit_code, "/nowhere/at/all" in result.stderr) == (1, True), result.stderr
