"""A budget of time, as somebody writes it."""

from __future__ import annotations

import re

from curvfluence import kinds
from curvfluence.errors import InputError

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds_of(budget: str | float) -> float:
    """Seconds, from a number of them or from 30s, 5m, 2h. Errors: `InputError`."""
    if not isinstance(budget, str):
        value = kinds.number(budget, "budget (seconds)")
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|m|h)?\s*", budget.lower())
        if found is None:
            raise InputError(f"a budget is a time such as 30s, 5m or 2h; seen {budget!r}")
        value = float(found[1]) * UNITS[found[2] or "s"]
    if value <= 0:
        raise InputError(f"a budget must be more than nothing; seen {budget!r}")
    return value
