"""Merging a PEFT adapter into the weights of its model, with numpy alone."""

from octavo.merge.folder import MergedFolder, merge_adapter

__all__ = ["MergedFolder", "merge_adapter"]
