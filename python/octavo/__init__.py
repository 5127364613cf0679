"""octavo: LLM inference that installs with one command.

from octavo import LLM, SamplingParams

llm = LLM()                                  # the small model that ships with octavo
print(llm.generate("Once upon a time")[0].text)
"""

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
