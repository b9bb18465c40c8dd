"""What results came from: versions, machine, and the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version

import torch

from curvfluence._version import __version__
from curvfluence.study.results import Environment


def environment(hashes: dict[str, str]) -> Environment:
    """Versions, machine, hashes, and the command where the command line was used."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    command = shlex.join(["curvfluence", *sys.argv[1:]]) if program == "curvfluence" else None
    return Environment(
        curvfluence=__version__,
        python=platform.python_version(),
        torch=version("torch"),
        numpy=version("numpy"),
        scipy=version("scipy"),
        scikit_learn=version("scikit-learn"),
        system=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count(),
        threads=torch.get_num_threads(),
        hashes=hashes,
        command=None if command is None else _printable(command),
    )


def _printable(text: str) -> str:
    """Bytes of a path that are no UTF-8 have no place in JSON or on a page."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
