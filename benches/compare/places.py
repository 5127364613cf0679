"""Where things are: the repository, the results, and the cache of environments and models outside the repository."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULT = ROOT / "benches" / "results" / "compare.json"
PLOTS = ROOT / "benches" / "results" / "plots"
DEFAULT_CACHE = Path("~/.cache/octavo-compare").expanduser()
TOOLS = "tools"


def all_engines() -> dict[str, dict[str, Any]]:
    """engines.toml without the tools."""
    table = tomllib.loads((HERE / "engines.toml").read_text())
    return {name: entry for name, entry in table.items() if name != TOOLS}


@dataclass
class Places:
    """The cache folder, and interpreters that replace its environments.

    Attributes:
        cache: folder of environments and models.
        pythons: engine name to the interpreter of an environment that exists already.
    """

    cache: Path
    pythons: dict[str, Path]

    def environment(self, engine: str) -> Path:
        """Folder of the engine's virtual environment."""
        return self.cache / "env" / engine

    def python(self, engine: str) -> Path:
        """The engine's interpreter."""
        return self.pythons.get(engine, self.environment(engine) / "bin" / "python")

    def model(self, shape: str, form: str) -> Path:
        """A shape's model in the form ("checkpoint", "octavo", "gguf", ...) that an engine loads."""
        name = "model.gguf" if form == "gguf" else ""
        return self.cache / "models" / shape / form / name

    def loadable(self, shape: str, form: str) -> Path:
        """The same, or the checkpoint where that form was not made (octavo loads both)."""
        path = self.model(shape, form)
        return path if path.exists() or form != "octavo" else self.model(shape, "checkpoint")

    @property
    def limits(self) -> Path:
        """The compiled probe of the machine's limits."""
        return self.cache / "bin" / "limits"
