"""The command line: `octavo generate | chat | info | doctor`. A file a command."""

from __future__ import annotations

import os
import sys

from octavo.errors import InvalidRequestError, OctavoError

__all__ = ["main"]


def main() -> None:
    """Runs the command line. Faults of the input end with 2, others with 1, one line on stderr each."""
    from octavo.cli.app import app

    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader left (as `head` does): say nothing, and keep Python from flushing into the broken pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidRequestError) else 1)
