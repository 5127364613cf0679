"""Held-out evaluation: perplexity and accuracy per skill, each with its 95 % confidence interval.

from octavo import LLM
from octavo.evaluation import evaluate

print(evaluate(LLM()).as_dict())           # the embedded model on the cases that ship with octavo
evaluate(LLM("path"), read_cases("own.jsonl"))
"""

from octavo.evaluation.cases import Case, first_of_each, held_out_cases, read_cases
from octavo.evaluation.evaluate import Report, Skill, evaluate
from octavo.evaluation.intervals import Estimate

__all__ = ["Case", "Estimate", "Report", "Skill", "evaluate", "first_of_each", "held_out_cases", "read_cases"]
