"""The files of a new plugin project, as templates: $$name, $$module, $$command, $$url and $$packages are filled in."""

PLUGIN = '''"""The plugin $name: typed functions that a model can call."""

from typing import Annotated

from octavo.plugins import Plugin
from pydantic import BaseModel, Field

plugin = Plugin("$name", version="1.0.0", description="Counts words, and keeps notes.")


class Counts(BaseModel):
    words: int
    characters: int


@plugin.operation(since="1.0")
def count(text: Annotated[str, Field(max_length=10_000)]) -> Counts:
    """Counts the words and characters of a text."""
    return Counts(words=len(text.split()), characters=len(text))


NOTES: list[str] = []


# It changes something: hosts ask a person before they call it.
@plugin.operation(since="1.0", consequential=True)
def add_note(text: Annotated[str, Field(min_length=1, max_length=1000)]) -> int:
    """Keeps a note. Returns how many there are."""
    NOTES.append(text)
    return len(NOTES)


# Version 1.1.0 renames `text` to `passage`? Keep the former name as an alias:
#     @plugin.operation(since="1.0", aliases={"passage": ["text"]})
#
# Version 2.0.0 changes what an argument means? Convert the calls of major 1:
#     @plugin.convert(major=1, name="count")
#     def count_1(text: str) -> dict:
#         return {"passage": text, "language": "en"}
'''

FASTAPI_APP = '''"""Serves the plugin in FastAPI: $command"""

from fastapi import FastAPI

from $module import plugin

app = FastAPI()
app.mount("/$name", plugin.asgi_app)
'''

FLASK_APP = '''"""Serves the plugin in Flask: $command"""

from flask import Flask

from $module import plugin

app = Flask(__name__)
app.register_blueprint(plugin.blueprint(), url_prefix="/$name")
'''

PLAIN_APP = '''"""Serves the plugin without a framework: $command"""

from $module import plugin

app = plugin.asgi_app
'''

TESTS = '''"""Tests of the plugin. They need no server."""

import json

import pytest
from octavo.plugins import Request

from $module import plugin


def call(operation: str, arguments: dict, major: int = 1):
    body = json.dumps({"arguments": arguments}).encode()
    return plugin.handle(Request("POST", f"v{major}/invoke/{operation}", {"Octavo-Protocol": "1"}, body))


def test_count():
    response = call("count", {"text": "one two"})
    assert response.status == 200
    assert response.json() == {"result": {"words": 2, "characters": 7}, "warnings": []}


@pytest.mark.parametrize("arguments", [{}, {"text": 3}, {"text": "a", "more": 1}, {"text": "x" * 10_001}])
def test_wrong_arguments_are_refused(arguments):
    response = call("count", arguments)
    assert response.status == 422
    assert response.json()["errors"]


def test_the_manifest_names_what_must_not_change():
    """A released operation keeps its name, and what its arguments mean, in its major."""
    served = {(entry["major"], entry["id"]): entry["consequential"] for entry in plugin.manifest()["operations"]}
    assert served == {(1, "count"): False, (1, "add_note"): True}
'''

FASTAPI_TEST = """

def test_the_application_serves_it():
    from app import app
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        assert client.get("/$name/.well-known/octavo-plugin.json").json() == plugin.manifest()
        sent = {"arguments": {"text": "one"}}
        assert client.post("/$name/v1/invoke/count", json=sent).json()["result"]["words"] == 1
"""

FLASK_TEST = """

def test_the_application_serves_it():
    from app import app

    with app.test_client() as client:
        assert client.get("/$name/.well-known/octavo-plugin.json").json == plugin.manifest()
        sent = {"arguments": {"text": "one"}}
        assert client.post("/$name/v1/invoke/count", json=sent).json["result"]["words"] == 1
"""

README = """# $name

A plugin: operations that a language model calls.

```sh
pip install -e '.[test]'
pytest
$command
```

`$module.py` has the operations, `app.py` serves them. In another terminal:

```sh
octavo plugin check $url                  # does it keep the protocol?
octavo plugin list $url
octavo plugin call $url count '{"text": "one two"}'
octavo chat --plugin $name=$url           # or octavo serve --plugin ...
```
"""

PROJECT = """[project]
name = "$name"
version = "1.0.0"
requires-python = ">=3.11"
dependencies = [$packages]

[project.optional-dependencies]
test = ["httpx", "pytest"]

[tool.setuptools]
py-modules = ["$module", "app"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""
