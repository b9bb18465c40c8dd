"""What a study says, in sentences made from its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from curvfluence.report.parts.cautions import cautions
from curvfluence.report.parts.page import Verdict
from curvfluence.study.results import Results, RungResult
from curvfluence.study.words import counted, interval, listed, number, percent, short, times

CLOSE = 0.02  # LDS; rungs nearer than this and not resolved count as equally good


def verdict(study: Results) -> Verdict:
    """The rung to use, how far it can be trusted, what more would cost, and what to doubt."""
    rung = chosen(study)
    findings = (
        ("Trust", _trust(study, rung)),
        ("Size", _size(study, rung)),
        ("More accuracy", _dearer(study, rung)),
        ("Less time", _cheaper(study, rung)),
        ("Where it is lost", _lost(study)),
    )
    return Verdict(
        _headline(study, rung),
        _terms(study),
        tuple((about, text) for about, text in findings if text),
        cautions([study]),
    )


def chosen(study: Results) -> RungResult:
    """The cheapest rung that is not resolved from the most accurate and within .02 of it."""
    top = study.best
    equals = [rung for rung in study.rungs if rung is not top and _equal(study, top, rung)]
    return min([top, *equals], key=lambda rung: (_seconds(rung), -rung.lds))


def _equal(study: Results, top: RungResult, rung: RungResult) -> bool:
    gap = study.difference(top.name, rung.name)
    return gap is not None and not gap.interval.resolved and abs(gap.difference) <= CLOSE


def _seconds(rung: RungResult) -> float:
    return inf if rung.seconds is None else rung.seconds


def _ratio(dear: RungResult, cheap: RungResult) -> str:
    return times(_seconds(dear) / max(_seconds(cheap), 1e-9))


def _headline(study: Results, rung: RungResult) -> str:
    best, count = study.truth.best_lds.matched, len(study.rungs)
    reach = "" if best is None else f", where noise allows about {number(best, 2)}"
    agreed = (
        f"its predictions follow real retraining with a rank correlation of "
        f"{number(rung.lds, 2)}{reach}."
    )
    if count == 1:
        return f"{rung.full_name} was the only curvature approximation measured: {agreed}"
    return f"Of {count} curvature approximations, {rung.full_name} is the one to use here: {agreed}"


def _terms(study: Results) -> str:
    """What was done, with each word explained where it first stands."""
    truth = study.truth
    return (
        f"Influence functions predict how the {truth.measurement} of a query changes when training "
        "examples are left out. They need the curvature of the training loss; each rung of the "
        "ladder is one approximation of it, from the exact Hessian down to none at all (Identity), "
        "each at its best damping λ, a constant added to the curvature before it is inverted. The "
        f"truth is {counted(truth.retrainings, 'retraining')} on {truth.subsets} random subsets "
        f"that keep {percent(truth.alpha)} of the data. LDS is the rank correlation, over subsets, "
        "of the predicted and the true change, averaged over queries and models: 1 is perfect, 0 "
        "is chance."
    )


def _trust(study: Results, rung: RungResult) -> str:
    best = study.truth.best_lds
    text = (
        f"The LDS of {rung.full_name} is {number(rung.lds)} (95% interval "
        f"{interval(rung.interval)})"
    )
    if best.matched:
        text += f", {percent(rung.lds / best.matched)} of what the noise in the truth allows"
    if rung.lds_independent is not None:
        text += f"; for a model from other initial weights, {number(rung.lds_independent)}"
        if best.independent:
            text += f", {percent(rung.lds_independent / best.independent)} of what is allowed there"
    return text + "."


def _size(study: Results, rung: RungResult) -> str:
    line, alpha = rung.calibration, study.truth.alpha
    if line is None:
        return ""
    if not rung.has_units:
        return "Its values carry no units, so only their order means anything."
    ratio = line.slope * alpha
    fit = "less than" if ratio < 0.8 else "in line with what" if ratio < 2 else "more than"
    return (
        f"True changes are {short(line.slope)} times the predicted ones (r = {number(line.r, 2)}), "
        f"{fit} removing {percent(1 - alpha)} leads one to expect: about {short(1 / alpha)} or "
        "more. Read its values as an order first, as sizes second."
    )


@dataclass(frozen=True)
class _Gain:
    """What a dearer rung gains in LDS, and whether that is resolved."""

    text: str
    resolved: bool


def _dearer(study: Results, rung: RungResult) -> str:
    """What more accuracy would cost; nothing where no seconds were taken."""
    if len(study.rungs) == 1 or rung.seconds is None:
        return ""
    dearer = (other for other in study.rungs if _seconds(other) > _seconds(rung))
    offers = [gain for other in dearer if (gain := _gain(study, other, rung)) is not None]
    gains = [gain.text for gain in offers if gain.resolved]
    if gains:
        return f"More can be had: {'; '.join(gains)}."
    text = "More time buys no accuracy that this study could resolve"
    return f"{text}: {'; '.join(gain.text for gain in offers)}." if offers else f"{text}."


def _gain(study: Results, other: RungResult, rung: RungResult) -> _Gain | None:
    """None where the dearer rung is known to gain nothing."""
    gap = study.difference(other.name, rung.name)
    if gap is None or (gap.difference <= 0 and gap.interval.resolved):
        return None
    gained = f"{number(gap.difference, signed=True)} ({interval(gap.interval, signed=True)})"
    text = f"{other.full_name}, {_ratio(other, rung)} the time for {gained}"
    return _Gain(text, gap.interval.resolved)


def _cheaper(study: Results, rung: RungResult) -> str:
    """What the best of the cheaper rungs would save and lose."""
    cheaper = [other for other in study.rungs if _seconds(other) < _seconds(rung)]
    if not cheaper:
        return ""
    other = max(cheaper, key=lambda one: one.lds)
    gap = study.difference(rung.name, other.name)
    text = f"The best cheaper rung is {other.full_name}: {_ratio(rung, other)} faster"
    if gap is None:
        return text + "."
    state = "" if gap.interval.resolved else ", not resolved"
    return f"{text}, and {number(gap.difference)} of LDS lost ({interval(gap.interval)}{state})."


def _lost(study: Results) -> str:
    steps = study.steps
    if not steps:
        return ""
    most = max(steps, key=lambda step: step.lds_lost)
    text = (
        f"Down the ladder most is lost from {most.above} to {most.below}: "
        f"{number(most.lds_lost)} ({interval(most.interval)})"
    )
    if not most.resolved:
        return text + ", which is not resolved."
    gained = [step.name for step in steps if step.interval.high < 0]
    unresolved = [step.name for step in steps if not step.resolved]
    if gained:
        text += f"; {listed(gained)} {'gains' if len(gained) == 1 else 'gain'} instead of losing"
    if unresolved:
        text += f"; {listed(unresolved)} {'is' if len(unresolved) == 1 else 'are'} not resolved"
    return text + "."
