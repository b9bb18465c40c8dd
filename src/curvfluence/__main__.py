"""`python -m curvfluence`: the command line in this very process."""

from __future__ import annotations

import sys

from curvfluence.runtime import child


def _run() -> None:
    child.begin()
    sys.argv[0] = "curvfluence"  # what it is called in usage and results
    from curvfluence.cli import main

    try:
        main()
    finally:  # an error of our own has its traceback, and nobody else ended the process
        child.finished()


if __name__ == "__main__":
    _run()
