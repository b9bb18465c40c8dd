"""Figures of several commands in one file of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def merged(path: Path, figures: dict[str, Any]) -> None:
    """Put the figures into the file, beside those of others that it has."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**held, **figures}, indent=2) + "\n")
