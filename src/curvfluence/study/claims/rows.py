"""The table of claims: what was measured, its interval, and the verdict that the interval makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

from curvfluence.study.claims.claim import MARGIN, OPEN, Claim, Rule, claims
from curvfluence.study.claims.estimate import TAIL, Drawn, Estimate, OverModels, Share, Smallest
from curvfluence.study.claims.plan import Plan, Setting
from curvfluence.study.results.claim import AXES, BASE, ClaimRow, OpenInterval, across
from curvfluence.study.spec import StudySpec
from curvfluence.study.study import Study
from curvfluence.study.words import interval, number


def rows(plan: Plan, study: Callable[[StudySpec], Study], axes: Sequence[str]) -> list[ClaimRow]:
    """Every claim of a plan: of the base study, then across each axis."""
    table: list[ClaimRow] = []
    for claim in claims(plan.protocol):
        base = claim.number(study(plan.base))
        table.append(_row(claim, plan.protocol, BASE, base, _explained(claim, base)))
        table += [_across(claim, plan, axis, study) for axis in axes]
    return table


def claim_row(claim: Claim, study: Study) -> ClaimRow:
    """A claim of one study by itself."""
    number = claim.number(study)
    return _row(claim, study.results.protocol, BASE, number, _explained(claim, number))


def _across(claim: Claim, plan: Plan, axis: str, study: Callable[[StudySpec], Study]) -> ClaimRow:
    """The smallest over the settings of the axis: "across" says "at every one of them"."""
    if axis in plan.missing:
        detail = f"not measured: {plan.missing[axis]}"
        return ClaimRow(
            claim.text + across(axis), plan.protocol, None, None, OPEN, detail, axis, claim.share
        )
    settings = plan.axes[axis]
    each = [claim.number(study(setting.spec)) for setting in settings]
    flat = [p for one in each for p in (one.parts if isinstance(one, Smallest) else (one,))]
    detail = f"smallest of {_name(axis)} {_listed(settings, each, signed=not claim.share)}"
    return _row(claim, plan.protocol, axis, Smallest(tuple(flat)), detail)


def _listed(settings: Sequence[Setting], each: Sequence[Estimate], *, signed: bool) -> str:
    return "; ".join(
        f"{setting.label}: {number(one.value, signed=signed)} "
        f"({interval(_interval(one), signed=signed)})"
        for setting, one in zip(settings, each, strict=True)
    )


def _name(axis: str) -> str:
    return "epochs" if axis == "epochs" else AXES[axis]


def _row(claim: Claim, protocol: str, scope: str, estimate: Estimate, detail: str) -> ClaimRow:
    return ClaimRow(
        claim=claim.text + across(scope),
        protocol=protocol,
        measured=estimate.value,
        interval=_interval(estimate),
        verdict=claim.verdict(estimate),
        detail=detail,
        scope=scope,
        share=claim.share,
    )


def _interval(estimate: Estimate) -> OpenInterval | None:
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
        return f"difference of LDS; holds where the interval is above −{MARGIN:g}, not all below 0"
    low, high = estimate.low(TAIL), estimate.high(TAIL)
    text = "difference of LDS"
    if low > MARGIN:
        text += f", more than {MARGIN:g}"
    elif low > -MARGIN and high < MARGIN:
        text += f", within {MARGIN:g} of none"
    return text
