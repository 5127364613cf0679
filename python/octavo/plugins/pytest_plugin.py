"""The pytest plugin for authors of plugins: the fixtures `check_plugin` and `check_plugin_schemas`.

pytest loads it where octavo is installed. It imports nothing of octavo until a fixture is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from octavo.plugins.conformance import Report
    from octavo.plugins.plugin import Plugin

_OPTION = "--update-plugin-schemas"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("octavo plugins")
    group.addoption(_OPTION, action="store_true", help="write the files of check_plugin_schemas anew")


@pytest.fixture
def check_plugin() -> Callable[..., Report]:
    """`check_plugin(plugin)`, or `check_plugin(url)`: fails the test if a rule of docs/plugin-protocol.md is broken.

    Keyword arguments are those of `octavo.plugins.conformance.check`, and `headers` of each request.
    """
    from octavo.plugins.conformance import PluginTarget, UrlTarget, check

    def run(plugin: Plugin | str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Report:
        target = UrlTarget(plugin, headers) if isinstance(plugin, str) else PluginTarget(plugin, headers)
        report = check(target, **options)
        if not report.ok:
            pytest.fail(report.text(), pytrace=False)
        return report

    return run


@pytest.fixture
def check_plugin_schemas(request: pytest.FixtureRequest) -> Callable[[Plugin, str | Path], None]:
    """`check_plugin_schemas(plugin, file)`: fails the test if released schemas changed in a way that breaks callers.

    The file has the version, the schemas and the flags of the last release; a relative path begins at pytest's root.
    Commit it, and write it anew at each release with `pytest --update-plugin-schemas`. An operation of the file may not
    be gone in a major that is still served. Within a major its arguments, their types, aliases and results stay. Every
    other change of a schema needs a higher minor. A changed meaning is not seen.
    """
    from octavo.errors import InvalidRequestError
    from octavo.plugins.conformance import released

    def run(plugin: Plugin, file: str | Path) -> None:
        path = request.config.rootpath / file
        current = released.release(plugin)
        if request.config.getoption(_OPTION):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(current, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            except OSError as error:
                pytest.fail(f"{path} cannot be written: {error}", pytrace=False)
            return
        if not path.exists():
            pytest.fail(f"{path} does not exist: pytest {_OPTION} writes it", pytrace=False)
        try:
            found = released.changes(released.read(path), current)
        except InvalidRequestError as error:
            pytest.fail(f"{error}: pytest {_OPTION} writes it anew", pytrace=False)
        if found:
            pytest.fail("\n".join([*found, f"If this is a new release, pytest {_OPTION} records it."]), pytrace=False)

    return run
