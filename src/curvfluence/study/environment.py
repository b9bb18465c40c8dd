"""What results came from: versions, machine, and the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from typing import Any

import torch

from curvfluence._version import __version__


def environment(hashes: dict[str, str]) -> dict[str, Any]:
    """Versions, machine, hashes, and the command where the command line was used."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    command = shlex.join(["curvfluence", *sys.argv[1:]]) if program == "curvfluence" else None
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    return {
        "curvfluence": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "hashes": hashes,
        "command": command,
    }
