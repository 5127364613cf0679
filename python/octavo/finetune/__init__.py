"""Fine-tuning that configures itself: from a file of JSON lines to an adapter that octavo serves.

from octavo.finetune import finetune

report = finetune("facts.jsonl", "path/to/model", "facts-adapter")

Needs the extra `train`: pip install 'octavo[train]'.
"""

from octavo.finetune.data import Example, read_examples
from octavo.finetune.finetune import finetune, plan_run
from octavo.finetune.plan import Plan
from octavo.finetune.prepare import Options

__all__ = ["Example", "Options", "Plan", "finetune", "plan_run", "read_examples"]
