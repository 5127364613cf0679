"""The command line: python -m benches.compare setup | run | poisson | report (in the repository's root)."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from .environments import setup
from .measures import FIGURES
from .places import DEFAULT_CACHE, RESULT, Places, all_engines
from .rounds import Plan, blocks_of, run
from .shapes import SHAPES


def names(known: list[str]) -> Callable[[str], list[str]]:
    """An argument type: some of the known names, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return parse


def interpreter(text: str) -> tuple[str, Path]:
    """ENGINE=PATH of an interpreter."""
    engine, _, path = text.partition("=")
    if not path or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{text!r}: ENGINE=PATH of an interpreter that exists is expected")
    return engine, Path(path).absolute()


def parser() -> argparse.ArgumentParser:
    engines, shapes, figures = list(all_engines()), list(SHAPES), list(FIGURES)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments and models (%(default)s)")
    common.add_argument("--engines", type=names(engines), default=engines, help="some of: " + ",".join(engines))
    common.add_argument("--shapes", type=names(shapes), default=shapes, help="some of: " + ",".join(shapes))
    common.add_argument(
        "--python",
        type=interpreter,
        action="append",
        default=[],
        metavar="ENGINE=PATH",
        help="use this interpreter's environment for an engine",
    )
    common.add_argument("--output", type=Path, default=RESULT, help="result file (%(default)s)")
    common.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each engine (all cores)")
    common.add_argument("--prefix", type=shlex.split, default=[], help="command that keeps the machine quiet")
    main = argparse.ArgumentParser(prog="python -m benches.compare", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", parents=[common], help="make environments, models and the probe of the limits")
    measure = commands.add_parser("run", parents=[common], help="measure in interleaved rounds")
    measure.add_argument("--measures", type=names(figures), default=figures, help="some of: " + ",".join(figures))
    measure.add_argument("--rounds", type=int, default=3)
    measure.add_argument("--keep", action="store_true", help="add to the rounds of the last run (in the cache folder)")
    load = commands.add_parser("poisson", parents=[common], help="octavo: continuous against static batching")
    load.add_argument("--rounds", type=int, default=3)
    load.add_argument("--requests", type=int, default=96)
    load.add_argument("--load", type=float, default=0.8, help="share of the measured capacity (%(default)s)")
    commands.add_parser("report", parents=[common], help="print tables and draw plots of the result file")
    return main


def main() -> None:
    arguments = parser().parse_args()
    places = Places(arguments.cache.expanduser().absolute(), dict(arguments.python))
    if arguments.command == "setup":
        setup(places, arguments.engines, arguments.shapes)
    elif arguments.command == "run":
        plan = Plan(
            blocks_of(arguments.engines),
            arguments.shapes,
            set(arguments.measures),
            arguments.rounds,
            arguments.threads,
            arguments.prefix,
        )
        run(places, plan, arguments.output, keep=arguments.keep, command=command_line())
    elif arguments.command == "poisson":
        from .poisson import poisson

        poisson(places, arguments)
    else:
        from .report import report

        report(places, arguments.output)


def command_line() -> str:
    """The command without what only names places of this machine."""
    private = ("--cache", "--python", "--prefix", "--output")
    words = iter(sys.argv[1:])
    shown = ["python", "-m", "benches.compare"]
    for word in words:
        if word in private:
            next(words, None)
        elif not word.startswith(tuple(f"{name}=" for name in private)):
            shown.append(word)
    return " ".join(shown)


if __name__ == "__main__":
    main()
