"""Writes the files of a new plugin project."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

from octavo.errors import InvalidRequestError
from octavo.plugins.protocol import is_plugin_name
from octavo.plugins.scaffold import templates

# Framework -> (the application, the command that serves it, its packages, how a test reaches it).
FRAMEWORKS = {
    "fastapi": (templates.FASTAPI_APP, "uvicorn app:app --port 9000", ["fastapi", "uvicorn"], templates.FASTAPI_TEST),
    "flask": (templates.FLASK_APP, "flask --app app run --port 9000", ["flask"], templates.FLASK_TEST),
    "none": (templates.PLAIN_APP, "uvicorn app:app --port 9000", ["uvicorn"], ""),
}


def new_project(name: str, folder: Path, framework: str = "fastapi") -> list[Path]:
    """Writes the project into a new or empty folder.

    Args:
        name: the plugin's name.
        framework: one of `FRAMEWORKS`.

    Returns:
        The files, in the order in which to read them.

    Raises:
        InvalidRequestError: a name that no plugin can have, an unknown framework, a folder with files, or a place that
            cannot be written.
    """
    module = name.replace("-", "_").lower() + "_plugin"
    if not is_plugin_name(name) or keyword.iskeyword(module):
        raise InvalidRequestError(
            f"name is {name!r}: a letter, then at most 63 letters, digits, _ and - are expected, without __"
            " and with no _ at its end"
        )
    if framework not in FRAMEWORKS:
        raise InvalidRequestError(f"framework is {framework!r}: use one of {', '.join(FRAMEWORKS)}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidRequestError(f"{folder} exists and is not empty: choose another folder, nothing was written")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(
            f"{folder} cannot be made: {error.strerror or error}: choose another folder"
        ) from None
    app, command, packages, test = FRAMEWORKS[framework]
    values = {
        "name": name,
        "module": module,
        "command": command,
        "url": "http://127.0.0.1:9000" + ("" if framework == "none" else f"/{name}"),
        "packages": ", ".join(f'"{package}"' for package in ["octavo[plugins]", *packages]),
    }
    files = {
        f"{module}.py": templates.PLUGIN,
        "app.py": app,
        "tests/test_plugin.py": templates.TESTS + test,
        "README.md": templates.README,
        "pyproject.toml": templates.PROJECT,
    }
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(text).substitute(values), encoding="utf-8")
    return [folder / path for path in files]
