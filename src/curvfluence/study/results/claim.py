"""One row of a table of claims."""

from __future__ import annotations

from typing import Literal

from curvfluence.store.records import Record

BASE = "base"  # the scope of a claim on a problem as it is
AXES = {"width": "width", "depth": "depth", "epochs": "training length"}
OpenInterval = tuple[float | None, float | None]  # None: an end at infinity


class ClaimRow(Record, frozen=True):
    """One claim under one protocol, for the problem as it is (`scope` base) or across an axis.

    `interval` is None where neither end is finite. `share` marks a number that is no difference:
    it has no sign.
    """

    claim: str
    protocol: str
    measured: float | None
    interval: OpenInterval | None
    verdict: Literal["holds", "does not hold", "not resolved"]
    detail: str
    scope: str = BASE
    share: bool = False

    @property
    def statement(self) -> str:
        """The claim without what it is said across."""
        return self.claim if self.scope == BASE else self.claim.removesuffix(across(self.scope))

    @property
    def place(self) -> str:
        """What it is said across, or that it is said of the problem as it is."""
        return "as it is" if self.scope == BASE else AXES.get(self.scope, self.scope)


def across(scope: str) -> str:
    """What follows a claim that speaks of every setting of an axis."""
    return "" if scope == BASE else f", across {AXES.get(scope, scope)}"
