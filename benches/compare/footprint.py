"""What an engine brings along: versions, and bytes of its installation."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .places import Places, all_engines

# Runs in the engine's environment. The closure of the requirements is counted, not the folder, so that an environment
# which holds other things too gives the same number. Byte code, which pip writes or not, is left out.
_SCRIPT = """
import importlib.metadata as metadata, json, sys
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

todo, done, versions, size, whole = [(name, "") for name in sys.argv[1:]], set(), {}, 0, True
while todo:
    name, extra = todo.pop()
    key = name.lower().replace("_", "-").replace(".", "-")
    if (key, extra) in done:
        continue
    done.add((key, extra))
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    if key not in versions:
        versions[key] = found.version
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        whole &= not origin.get("dir_info", {}).get("editable", False)
        for file in found.files or []:
            path = found.locate_file(file)
            if file.suffix != ".pyc" and path.is_file():
                size += path.stat().st_size
    for text in found.requires or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            todo += [(need.name, part) for part in ("", *need.extras)]
print(json.dumps({"versions": versions, "installed_bytes": size if whole else None, "python": sys.version.split()[0]}))
"""


def environment_facts(places: Places, engine: str) -> dict[str, Any]:
    """Versions of the engine and all it needs, and their bytes (None for an editable installation)."""
    entry = all_engines()[engine]
    names = [entry["distribution"], *entry.get("extra_distributions", [])]
    command = [str(places.python(engine)), "-c", _SCRIPT, *names]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer
