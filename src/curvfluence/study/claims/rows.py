"""The table of claims: what was measured, its interval, and the verdict that the interval makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from curvfluence.study.claims.claim import MARGIN, OPEN, Claim, Rule, claims
from curvfluence.study.claims.estimate import TAIL, Drawn, Estimate, OverModels, Share, Smallest
from curvfluence.study.claims.plan import AXES, Plan, Setting
from curvfluence.study.finished import Finished
from curvfluence.study.spec import StudySpec
from curvfluence.study.words import bounds, number

BASE = "base"


@dataclass(frozen=True)
class Row:
    """One claim under one protocol, for the problem as it is (`scope` base) or across an axis.

    `interval` has None for an end at infinity, and is None where neither end is finite. `share`
    marks a number that is no difference: it has no sign.
    """

    claim: str
    protocol: str
    scope: str
    measured: float | None
    interval: tuple[float | None, float | None] | None
    verdict: str
    detail: str
    share: bool

    def as_json(self) -> dict[str, Any]:
        across = "" if self.scope == BASE else f", across {AXES[self.scope]}"
        return {
            "claim": self.claim + across,
            "protocol": self.protocol,
            "measured": self.measured,
            "interval": None if self.interval is None else list(self.interval),
            "verdict": self.verdict,
            "detail": self.detail,
            "scope": self.scope,
        }


def rows(plan: Plan, study: Callable[[StudySpec], Finished], axes: Sequence[str]) -> list[Row]:
    """Every claim of a plan: of the base study, then across each axis."""
    found: list[Row] = []
    for claim in claims(plan.protocol):
        base = claim.number(study(plan.base))
        found.append(_row(claim, plan.protocol, BASE, base, _explained(claim, base)))
        for axis in axes:
            if axis in plan.missing:
                detail = f"not measured: {plan.missing[axis]}"
                found.append(Row(claim.text, plan.protocol, axis, None, None, OPEN, detail, False))
                continue
            found.append(_across(claim, plan, axis, study))
    return found


def _across(claim: Claim, plan: Plan, axis: str, study: Callable[[StudySpec], Finished]) -> Row:
    """The smallest over the settings of the axis: "across" says "at every one of them"."""
    settings = plan.axes[axis]
    each = [claim.number(study(setting.spec)) for setting in settings]
    flat = [p for one in each for p in (one.parts if isinstance(one, Smallest) else (one,))]
    share = claim.rule is Rule.MAJORITY
    detail = f"smallest of {_name(axis)} {_listed(settings, each, signed=not share)}"
    return _row(claim, plan.protocol, axis, Smallest(tuple(flat)), detail)


def _listed(settings: Sequence[Setting], each: Sequence[Estimate], *, signed: bool) -> str:
    return "; ".join(
        f"{setting.label}: {number(one.value, signed=signed)} "
        f"({bounds(_interval(one), signed=signed)})"
        for setting, one in zip(settings, each, strict=True)
    )


def _name(axis: str) -> str:
    return {"epochs": "epochs"}.get(axis, AXES[axis])


def _row(claim: Claim, protocol: str, scope: str, estimate: Estimate, detail: str) -> Row:
    return Row(
        claim=claim.text,
        protocol=protocol,
        scope=scope,
        measured=estimate.value,
        interval=_interval(estimate),
        verdict=claim.verdict(estimate),
        detail=detail,
        share=claim.rule is Rule.MAJORITY,
    )


def _interval(estimate: Estimate) -> tuple[float | None, float | None] | None:
    low, high = (x if isfinite(x) else None for x in (estimate.low(TAIL), estimate.high(TAIL)))
    return None if low is None and high is None else (low, high)


def _explained(claim: Claim, estimate: Estimate) -> str:
    """What kind of number it is, and how large a difference of LDS is next to the margin."""
    if isinstance(estimate, Share):
        lost, whole = estimate.part, estimate.whole
        text = f"LDS lost {number(lost.value, signed=True)} of {number(whole.value, signed=True)}"
        if whole.low(TAIL) <= 0:
            text += "; no loss from GGN to K-FAC is resolved, so there is nothing to share"
        return text
    if isinstance(estimate, OverModels):
        return f"mean of {len(estimate.values)} models"
    if isinstance(estimate, Smallest):
        return f"smallest of {', '.join(number(p.value, signed=True) for p in estimate.parts)}"
    assert isinstance(estimate, Drawn)
    if claim.rule is Rule.NOT_LESS:
        return f"difference of LDS; holds where the interval lies above −{MARGIN:g}"
    low, high = estimate.low(TAIL), estimate.high(TAIL)
    text = "difference of LDS"
    if low > MARGIN:
        text += f", more than {MARGIN:g}"
    elif low > -MARGIN and high < MARGIN:
        text += f", within {MARGIN:g} of none"
    return text
