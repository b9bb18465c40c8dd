"""One stage of a forecast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of a fit or of scores. `bytes` is what it adds to what is held before it."""

    name: str
    operations: float
    bytes: float
    seconds: float
