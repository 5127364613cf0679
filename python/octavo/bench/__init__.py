"""Load for any OpenAI-compatible server, and what it measures: times to tokens, throughput, goodput.

The commands are `octavo bench serve`, `latency` and `throughput` (octavo.bench.commands).
"""

from octavo.bench.client import Target
from octavo.bench.load import Load, Outcome, run_load
from octavo.bench.report import Report, Spread, parse_goodput, summarise
from octavo.bench.workload import Job, Lengths, random_jobs, read_jobs

__all__ = [
    "Job",
    "Lengths",
    "Load",
    "Outcome",
    "Report",
    "Spread",
    "Target",
    "parse_goodput",
    "random_jobs",
    "read_jobs",
    "run_load",
    "summarise",
]
