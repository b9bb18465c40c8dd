"""Verdicts as signs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from curvfluence.study.claims.claim import FAILS, HOLDS, OPEN
from curvfluence.study.results import ClaimRow

SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?"}
MEANING = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())


def counts(rows: Iterable[ClaimRow]) -> str:
    """How many rows have each verdict: 3✓ 0✗ 1?."""
    seen = Counter(row.verdict for row in rows)
    return "\u00a0".join(f"{seen[verdict]}{sign}" for verdict, sign in SIGNS.items())
