"""Smaller models: fewer tokens, fewer experts, or less width with distillation."""

from octavo.compress.vocabulary import PrunedVocabulary, corpus_texts, prune_vocabulary

__all__ = ["PrunedVocabulary", "corpus_texts", "prune_vocabulary"]
