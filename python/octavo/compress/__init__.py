"""Smaller models: fewer tokens, fewer experts, or less width with distillation."""

from octavo.compress.vocabulary import PrunedVocabulary, corpus_lines, prune_vocabulary

__all__ = ["PrunedVocabulary", "corpus_lines", "prune_vocabulary"]
