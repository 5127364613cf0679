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

    The file has the version and the schemas of the last release. Commit it, and write it anew at each release with
    `pytest --update-plugin-schemas`. An operation of the file may not be gone, and its schema may change only together
    with the version.
    """

    def run(plugin: Plugin, file: str | Path) -> None:
        path = Path(file)
        current = _schemas(plugin.manifest())
        if request.config.getoption(_OPTION):
            path.write_text(json.dumps(current, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path} does not exist: pytest {_OPTION} writes it", pytrace=False)
        found = changes(json.loads(path.read_text(encoding="utf-8")), current)
        if found:
            pytest.fail("\n".join([*found, f"If this is a new release, pytest {_OPTION} records it."]), pytrace=False)

    return run


def _schemas(manifest: Mapping[str, Any]) -> dict[str, Any]:
    digests = {f"v{entry['major']}/{entry['id']}": entry["digest"] for entry in manifest["operations"]}
    return {"version": manifest["version"], "digests": digests}


def changes(released: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What a release may not do, one sentence each.

    Args:
        released, current: `{"version": "1.0.0", "digests": {"v1/get_forecast": "sha256:.."}}`.
    """
    same_version = released["version"] == current["version"]
    found = []
    oldest = int(str(current["version"]).partition(".")[0]) - 2
    for path, digest in released["digests"].items():
        major = int(path.partition("/")[0][1:])
        if path not in current["digests"] and major >= oldest:
            found.append(f"{path} is gone: callers of version {released['version']} need it; add a converter")
        elif path in current["digests"] and current["digests"][path] != digest and same_version:
            found.append(f"the schema of {path} changed, and the version is still {released['version']}: raise it")
    return found
