"""/tokenizer_info, and lm-eval's remote tokenizer, which is made from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from octavo import LLM
from octavo.server import create_app
from servers import KEY, Process
from starlette.testclient import TestClient

TURNS: Any = [{"role": "user", "content": "Hi"}]
CHATML = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def info(llm: LLM) -> dict[str, Any]:
    found: dict[str, Any] = TestClient(create_app(llm)).get("/tokenizer_info").json()
    return found


def test_special_tokens_and_template(llm: LLM) -> None:
    found = info(llm)
    assert found["eos_token"] == "<|im_end|>"
    assert found["bos_token"] is None
    assert found["add_bos_token"] is False
    assert found["model_max_length"] == 2560
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    jinja2 = pytest.importorskip("jinja2")
    rendered = jinja2.Template(found["chat_template"]).render(messages=TURNS, add_generation_prompt=True)
    assert rendered == llm.render_chat(TURNS)


def test_the_template_of_the_command_line() -> None:
    with LLM(max_num_seqs=1, max_model_len=64, chat_template=CHATML) as llm:
        assert info(llm)["chat_template"] == CHATML


@pytest.fixture
def folder(tmp_path: Path, llm: LLM) -> Path:
    """The embedded model's files, to be changed."""
    return Path(shutil.copytree(llm.info()["model"]["path"], tmp_path / "model"))


@pytest.mark.parametrize("form", ["file", "list", "none"])
def test_the_places_of_a_template(folder: Path, form: str) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["eos_token"] = {"content": "<|im_end|>", "lstrip": False}
    if form == "file":
        (folder / "chat_template.jinja").write_text(CHATML)
    elif form == "list":
        config["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    else:
        del config["chat_template"]
    path.write_text(json.dumps(config))
    with LLM(folder, max_num_seqs=1, max_model_len=64) as llm:
        found = info(llm)
        assert found["chat_template"] == (None if form == "none" else CHATML)
        assert found["eos_token"] == "<|im_end|>"


def test_a_model_without_the_file(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with LLM(folder, max_num_seqs=1, max_model_len=64) as llm:
        found = info(llm)
        assert found["eos_token"] == llm.detokenize(llm.info()["defaults"]["eos"][:1], skip_special_tokens=False)
        assert found["chat_template"] is None


def test_lm_eval(server: Process, llm: LLM) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval: pip install '.[test-clients]'")
    url = f"{server.url}/v1/completions"
    assert utils.check_remote_tokenizer_support(url, auth_token=KEY)
    tokenizer = utils.RemoteTokenizer(url, auth_token=KEY)
    text = "Once <|im_end|> upon"
    assert tokenizer.encode(text) == llm.tokenize(text, add_special_tokens=False)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == llm.tokenize("<|im_end|>", add_special_tokens=False)[0]
    assert tokenizer.bos_token_id is None
    assert tokenizer.apply_chat_template(TURNS) == llm.render_chat(TURNS)


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_evaluates_with_it(server: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("lm_eval.models.openai_completions", reason="lm-eval: pip install '.[test-clients]'")
    from lm_eval.api.instance import Instance

    # The key for requests, and the one for the tokenizer
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = f"{server.url}/v1/completions"
    model = models.LocalCompletionsAPI(
        model="octavo-embedded", base_url=url, tokenizer_backend="remote", max_length=256, auth_token=KEY
    )
    asked = Instance("loglikelihood", {}, ("My name is", " Octavo"), 0)
    ((logprob, greedy),) = model.loglikelihood([asked])
    assert logprob < 0
    assert isinstance(greedy, bool)
    assert model.tok_encode("Hi", add_special_tokens=False) == model.tokenizer.encode("Hi")
