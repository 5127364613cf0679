"""The built-in page: its files over HTTP, and the page itself in headless Chromium, by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from browser import CHROMIUM, Browser
from fastapi import FastAPI
from flask import Flask
from octavo import LLM
from octavo.server import ServerConfig, create_app, create_wsgi_app
from octavo.server.page import PATHS
from servers import KEY, Process, uvicorn_in_thread, wait_until, werkzeug_in_thread
from starlette.testclient import TestClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware

# --- files ------------------------------------------------------------------------------------------------------------


def test_files_need_no_key_and_hold_nothing(llm: LLM) -> None:
    with TestClient(create_app(llm, ServerConfig(api_keys=(KEY,), served_model_names=("secret-name",)))) as client:
        for path in PATHS:
            found = client.get(path)
            assert found.status_code == 200, path
            assert "secret-name" not in found.text
            assert found.headers["x-content-type-options"] == "nosniff"
            policy = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
            assert "unsafe" not in found.headers["content-security-policy"]
            assert client.head(path).content == b""
            assert client.post(path).status_code == 401
        assert client.get("/page/other.js").status_code == 401
        keyed = {"authorization": f"Bearer {KEY}"}
        assert client.get("/page/other.js", headers=keyed).status_code == 404
        assert client.get("/page/__init__.py", headers=keyed).status_code == 404
        assert client.post("/", headers=keyed).status_code == 405


def test_nothing_is_inline_and_nothing_from_elsewhere() -> None:
    folder = Path(__import__("octavo.server.page").server.page.__file__).parent
    html = (folder / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", html)
    for file in folder.glob("*.*"):
        if file.suffix in (".html", ".js", ".css", ".svg"):
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]{2,}|@import|url\(", text), file.name
            # Addresses are relative, so that a prefix makes no difference.
            assert not re.search(r'(src|href)="/', text), file.name
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'\$\("([\w-]+)"\)', (folder / "app.js").read_text())) <= set(ids)


@pytest.mark.parametrize("make", [create_app, create_wsgi_app])
def test_it_can_be_turned_off(llm: LLM, make: Any) -> None:
    config = ServerConfig(page=False)
    if make is create_app:
        client: Any = TestClient(create_app(llm, config))
    else:
        from werkzeug.test import Client

        client = Client(create_wsgi_app(llm, config))
    for path in PATHS:
        assert client.get(path).status_code == 404
    with TestClient(create_app(llm, ServerConfig(page=False, api_keys=(KEY,)))) as keyed:
        assert keyed.get("/").status_code == 401


# --- the page ---------------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    shared.complaints.clear()
    shared.requests.clear()
    shared.emulate(1100, 800)
    yield shared
    shared.open("about:blank")


@pytest.fixture(params=["alone", "fastapi", "flask"])
def place(request: pytest.FixtureRequest, llm: LLM) -> Iterator[str]:
    """The address of the page: at the root, or below another application."""
    if request.param == "alone":
        with uvicorn_in_thread(create_app(llm)) as url:
            yield f"{url}/"
    elif request.param == "fastapi":
        host = FastAPI()
        host.mount("/deep/llm", create_app(llm))
        with uvicorn_in_thread(host) as url:
            yield f"{url}/deep/llm"
    else:
        flask = Flask("host")
        flask.wsgi_app = DispatcherMiddleware(flask.wsgi_app, {"/deep/llm": create_wsgi_app(llm)})  # type: ignore[method-assign]
        with werkzeug_in_thread(flask) as url:
            yield f"{url}/deep/llm"


def say(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('prompt').focus()")
    browser.type(text)
    browser.key("Enter")


def shown(browser: Browser, what: str) -> list[str]:
    return list(browser.run(f"[...document.querySelectorAll('{what}')].map((e) => e.textContent)"))


def fill(browser: Browser, name: str, value: str) -> None:
    browser.run(f"void (document.getElementById('{name}').value = '{value}')")


@needs_browser
def test_a_conversation(place: str, browser: Browser, llm: LLM) -> None:
    browser.open(place)
    browser.wait("document.getElementById('state').textContent === 'ready'")
    assert browser.run("document.activeElement.id") == "prompt"
    assert "octavo-embedded" in browser.run("document.getElementById('model').textContent")
    fill(browser, "temperature", "0")
    fill(browser, "most", "20")
    say(browser, "Hello <b>you</b>")
    browser.wait("document.querySelectorAll('.facts').length === 1")
    say(browser, "Why?")
    browser.wait("document.querySelectorAll('.facts').length === 2")
    from octavo import SamplingParams

    params = SamplingParams(max_tokens=20, temperature=0)
    turns = [{"role": "user", "content": "Hello <b>you</b>"}]
    turns.append({"role": "assistant", "content": llm.chat(turns, params)[0].text})
    turns.append({"role": "user", "content": "Why?"})
    turns.append({"role": "assistant", "content": llm.chat(turns, params)[0].text})
    assert shown(browser, ".said") == [t["content"] for t in turns], "text is text, and history is sent"
    assert not browser.complaints
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(place))
    assert browser.requests
    assert all(url.startswith(origin) for url in browser.requests), browser.requests
    below = urlsplit(place).path.rstrip("/")
    assert all(urlsplit(url).path.startswith(below) for url in browser.requests), browser.requests

    # The live figures come from the server, and move.
    browser.wait("document.getElementById('running').value === '0'")
    browser.wait("document.getElementById('rate').value.match(/[0-9]/) !== null")
    browser.run("document.getElementById('reset').click()")
    assert shown(browser, ".said") == []


# An answer that goes on until it is stopped, whatever the model.
_ENDLESS = """void (() => {
  const real = window.fetch;
  window.fetch = (url, o) => real(url, o?.body ? { ...o, body: o.body.replace("{", '{"ignore_eos":true,') } : o);
})()"""


@needs_browser
def test_by_keyboard(browser: Browser, llm: LLM) -> None:
    """Mode, stop and faults without a mouse; a stopped answer ends the server's request."""
    with uvicorn_in_thread(create_app(llm)) as url:
        browser.open(url)
        browser.wait("document.getElementById('state').textContent === 'ready'")
        browser.key("Tab")
        assert browser.run("document.activeElement.value") == "chat"
        browser.key("ArrowRight")
        assert browser.run("document.querySelector('input[name=mode]:checked').value") == "text"
        assert browser.run("getComputedStyle(document.activeElement.nextElementSibling).outlineStyle") == "solid"
        fill(browser, "most", "2500")
        fill(browser, "temperature", "1")
        browser.run(_ENDLESS)
        aborted = llm.stats()["finished"]["abort"]
        say(browser, "Once upon a time")
        browser.wait("document.querySelector('.turn.model .said')?.textContent.length > 20")
        assert browser.run("document.getElementById('talk').ariaBusy") == "true"
        browser.key("Escape")
        browser.wait("document.querySelector('.facts')?.textContent.includes('stopped')")
        wait_until(lambda: llm.stats()["finished"]["abort"] > aborted, "the request ended")
        assert browser.run("document.activeElement.id") == "prompt"
        fill(browser, "temperature", "9")
        say(browser, "Again")
        browser.wait("!document.getElementById('fault').hidden")
        assert "temperature" in browser.run("document.getElementById('fault').textContent")
        assert browser.run("document.getElementById('prompt').value") == "Again", "a refused prompt is not lost"
        browser.key("Enter", shift=True)
        assert browser.run("document.getElementById('prompt').value") == "Again\n"
        # Chromium itself notes the answer of 400.
        assert all("400" in text for text in browser.complaints), browser.complaints


@needs_browser
def test_it_asks_for_the_key(server: Process, browser: Browser) -> None:
    browser.open(server.url)
    browser.wait("document.getElementById('ask').open")
    assert browser.run("document.activeElement.id") == "key"
    browser.type("wrong")
    browser.key("Enter")
    browser.wait(
        "document.getElementById('state').textContent === 'needs a key' || document.getElementById('ask').open"
    )
    browser.wait("document.getElementById('ask').open && document.getElementById('key').value === ''")
    browser.type(KEY)
    browser.key("Enter")
    browser.wait("document.getElementById('state').textContent === 'ready'")
    fill(browser, "most", "5")
    say(browser, "Hello")
    browser.wait("document.querySelectorAll('.facts').length === 1")
    assert all("401" in text for text in browser.complaints), browser.complaints
    assert not [url for url in browser.requests if KEY in url]
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    browser.run("sessionStorage.clear()")


@needs_browser
def test_the_policy_holds(browser: Browser, llm: LLM) -> None:
    """What an injected text could try is refused by the browser."""
    with uvicorn_in_thread(create_app(llm)) as url:
        browser.open(url)
        browser.wait("document.getElementById('state').textContent === 'ready'")
        browser.run(
            "void document.body.append("
            "Object.assign(document.createElement('script'), {textContent: 'window.bad = 1'}))"
        )
        refused = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
        assert browser.run(refused) == "refused"
        assert browser.run("window.bad") is None
        assert sum("Content Security Policy" in text for text in browser.complaints) >= 2, browser.complaints


# Of all visible texts: the contrast with what is behind them, and its size in pixels.
_CONTRAST = """(() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const one = (v) => v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map(one);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3] !== 0) return c.slice(0, 3); } };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [rgb(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light);
    found.push([e.textContent.trim().slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
})()"""


@needs_browser
def test_it_can_be_read(browser: Browser, llm: LLM) -> None:
    """WCAG's contrast in both schemes, a name for every control, no sideways scrolling on a telephone."""
    with uvicorn_in_thread(create_app(llm)) as url:
        backs = []
        for scheme, width in (("light", 1100), ("dark", 1100), ("light", 360)):
            browser.emulate(width, 800, scheme)
            browser.open(url)
            browser.wait("document.getElementById('state').textContent === 'ready'")
            fill(browser, "most", "5")
            say(browser, "Hello")
            browser.wait("document.querySelectorAll('.facts').length === 1")
            backs.append(browser.run("getComputedStyle(document.body).backgroundColor"))
            rows = browser.run(_CONTRAST)
            assert len(rows) > 15
            assert not [row for row in rows if row[1] < 4.5], scheme
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert backs[0] != backs[1], "the dark scheme is another one"
        browser.run("void (document.querySelector('details').open = true)")
        controls = ("button", "textbox", "radio", "spinbutton", "meter", "log", "status")
        nodes = [n for n in browser.tree() if n["role"] in controls]
        assert len(nodes) >= 14
        unnamed = [n for n in nodes if not n["name"] and n["role"] != "status"]
        assert not unnamed
