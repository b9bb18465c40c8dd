"""Hashes of settings, numbers and code: what results are keyed by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor


def hash_json(value: Mapping[str, Any]) -> str:
    """Of settings, whatever their order."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_tensors(*tensors: Tensor) -> str:
    """Of the numbers themselves, in order, with their dtypes and shapes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def hash_code(*only: str, reports: bool = False) -> str:
    """Of this package's source files, less the report's: results are only reused by the code that
    made them. With `only`, of these files and folders; with `reports`, of all of the report's files
    too, whatever they are."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*" if reports else "*.py")):
        place = file.relative_to(root)
        if not file.is_file() or "__pycache__" in place.parts:
            continue
        if "report" in place.parts and not reports:
            continue
        if only and not any(map(place.is_relative_to, only)):
            continue
        digest.update(str(place).encode() + file.read_bytes())
    return digest.hexdigest()[:16]
