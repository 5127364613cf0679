"""lm-evaluation-harness's own API models against a real server process: the numbers of the octavo model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from client_cases import MODEL, QUIET
from octavo.hub import embedded_model
from servers import KEY, Process

pytest.importorskip("lm_eval", reason="lm-evaluation-harness: pip install '.[test-clients]'")
pytest.importorskip("tenacity", reason="lm-evaluation-harness's API models: pip install '.[test-clients]'")
pytest.importorskip("aiohttp", reason="lm-evaluation-harness's API models: pip install '.[test-clients]'")

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from octavo.lm_eval import OctavoLM

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::FutureWarning")]
PAIRS = [("One day", " Sam packed"), ("The fox said", " naïve café 東京"), ("Once upon a time there was", " a")]
PROMPTS = ["One day", "The fox said", "Who are you?"]


@pytest.fixture(scope="module")
def ours() -> Iterator[OctavoLM]:
    made = OctavoLM()
    yield made
    made.llm.close()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def completions(server: Process, **more: Any) -> LocalCompletionsAPI:
    fields = {
        "model": MODEL,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": str(embedded_model()),
        "tokenizer_backend": "huggingface",
        "max_length": 500,
        "max_retries": 1,
        **more,
    }
    return LocalCompletionsAPI(**fields)


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("more", [{}, {"batch_size": 3}, {"tokenized_requests": False}, {"num_concurrent": 4}])
def test_loglikelihoods(server: Process, ours: OctavoLM, more: dict[str, Any]) -> None:
    """Through `echo` and `logprobs` of /v1/completions, as tokens and as texts."""
    found = completions(server, **more).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    want = ours.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    for (nats, greedy), (want_nats, want_greedy) in zip(found, want, strict=True):
        assert nats == pytest.approx(want_nats, abs=1e-2, rel=1e-3)
        assert greedy == want_greedy


@pytest.mark.usefixtures("key")
def test_rolling_loglikelihoods(server: Process, ours: OctavoLM) -> None:
    texts = [("One day Sam packed cheese.",), ("She saw a key. " * 30,)]
    made = completions(server, custom_prefix_token_id=ours.prefix_token_id)
    found = made.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    want = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(want, abs=1e-2, rel=1e-3)


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("given", [{}, {"do_sample": False}, {"temperature": 0}])
def test_texts(server: Process, ours: OctavoLM, given: dict[str, Any]) -> None:
    asks = [(prompt, {"until": [".", "\n"], "max_gen_toks": 16, **given}) for prompt in PROMPTS]
    found = completions(server).generate_until(requests("generate_until", asks), disable_tqdm=True)
    assert found == ours.generate_until(requests("generate_until", asks), disable_tqdm=True)


def chats(model: Any, prompts: list[list[dict[str, str]]], generation: bool = True) -> list[Any]:
    asks = []
    for turns in prompts:
        context = model.apply_chat_template(turns, add_generation_prompt=generation)
        asks.append((context, {"until": ["\n"], "max_gen_toks": 16}))
    return requests("generate_until", asks)


def chat_model(server: Process) -> LocalChatCompletion:
    return LocalChatCompletion(model=MODEL, base_url=f"{server.url}/v1/chat/completions", max_retries=1)


@pytest.mark.usefixtures("key")
def test_chat(server: Process, ours: OctavoLM) -> None:
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    made = chat_model(server)
    found = made.generate_until(chats(made, turns), disable_tqdm=True)
    assert found == ours.generate_until(chats(ours, turns), disable_tqdm=True)


@pytest.mark.usefixtures("key")
def test_a_wrong_key_is_an_error(server: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(Exception, match=r"401|Unauthorized"):
        completions(server).loglikelihood(requests("loglikelihood", PAIRS[:1]), disable_tqdm=True)


@pytest.mark.usefixtures("key")
def test_remote_tokenizer(server: Process, ours: OctavoLM) -> None:
    made = completions(server, tokenizer_backend="auto", tokenizer=None, auth_token=KEY)
    assert type(made.tokenizer).__name__ == "RemoteTokenizer"
    for text in ("One day", "naïve café 東京", "<|im_start|>user"):
        assert made.tok_encode(text) == ours.llm.tokenize(text, add_special_tokens=False)
    turns = [{"role": "user", "content": "Hi"}]
    assert made.tokenizer.apply_chat_template(turns) == ours.apply_chat_template(turns)
    found = made.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    want = ours.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([w[0] for w in want], abs=1e-2, rel=1e-3)


@pytest.mark.usefixtures("key")
def test_chat_goes_on_where_a_prefix_ends(server: Process, ours: OctavoLM) -> None:
    """`gen_prefix` of a task: the answer continues the last turn."""
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": "My name is"}] for prompt in PROMPTS
    ]
    made = LocalChatCompletion(model=MODEL, base_url=f"{server.url}/v1/chat/completions", max_retries=1)
    asks = [
        (r.args[0], {**r.args[1], "continue_final_message": True, "add_generation_prompt": False})
        for r in chats(made, turns, generation=False)
    ]
    found = made.generate_until(requests("generate_until", asks), disable_tqdm=True)
    assert found == ours.generate_until(chats(ours, turns, generation=False), disable_tqdm=True)
