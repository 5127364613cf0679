"""Smaller models: fewer tokens, fewer experts, or less width with distillation. docs/compression.md shows how.

from octavo.compress import compress

compress("google/gemma-3-270m-it", "gemma-english", vocab="corpus.txt", rows=32_768)
compress("path/to/model", "smaller", ratio=0.29, data="data.jsonl")
"""

from octavo.compress.compress_model import Compressed, compress
from octavo.compress.report import Report
from octavo.compress.vocabulary import PrunedVocabulary, corpus_texts, prune_vocabulary

__all__ = ["Compressed", "PrunedVocabulary", "Report", "compress", "corpus_texts", "prune_vocabulary"]
