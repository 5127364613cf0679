"""octavo: LLM inference that installs with one command.

from octavo import LLM, SamplingParams

llm = LLM()                                  # the small model that ships with octavo
print(llm.generate("Once upon a time")[0].text)
"""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo import errors, outputs
    from octavo._core import __version__, build_info
    from octavo.adapters import Adapter
    from octavo.attention import DynamicAttention
    from octavo.config import EngineConfig
    from octavo.llm import LLM
    from octavo.outputs import CompletionOutput, EmbeddingOutput, EmbeddingRequestOutput, RequestOutput
    from octavo.packs import Pack
    from octavo.params import SamplingParams
    from octavo.structured import Grammar, JsonSchema, Regex

__all__ = [
    "LLM",
    "Adapter",
    "CompletionOutput",
    "DynamicAttention",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "Grammar",
    "JsonSchema",
    "Pack",
    "Regex",
    "RequestOutput",
    "SamplingParams",
    "__version__",
    "build_info",
    "errors",
    "outputs",
]

# Name -> the module that defines it. A plugin needs no engine: `import octavo.plugins` loads none of these.
_DEFINED_IN = {
    "LLM": "octavo.llm",
    "Adapter": "octavo.adapters",
    "CompletionOutput": "octavo.outputs",
    "DynamicAttention": "octavo.attention",
    "EmbeddingOutput": "octavo.outputs",
    "EmbeddingRequestOutput": "octavo.outputs",
    "EngineConfig": "octavo.config",
    "Grammar": "octavo.structured",
    "JsonSchema": "octavo.structured",
    "Pack": "octavo.packs",
    "Regex": "octavo.structured",
    "RequestOutput": "octavo.outputs",
    "SamplingParams": "octavo.params",
    "__version__": "octavo._core",
    "build_info": "octavo._core",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports a name, or a module of the package, when it is first used (PEP 562)."""
        if name in _DEFINED_IN:
            globals()[name] = value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
            return value
        if (name == "_core" or not name.startswith("_")) and find_spec(f"octavo.{name}") is not None:
            return importlib.import_module(f"octavo.{name}")
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
