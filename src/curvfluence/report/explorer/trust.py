"""How far an answer can be believed, in numbers and words: the same on a page and in a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, isfinite, isnan

import torch

from curvfluence.explore import Answers
from curvfluence.study.words import NONE, listed, number, short

EXPLAINED = (
    "The residual is that of an inverse, relative, against the exact GGN: 0 is exact, 1 no better "
    "than nothing."
)
EXACT = "GGN"


@dataclass(frozen=True)
class Measure:
    """`share`, from 0 to 1, is larger where more speaks for the answer; `words` say what the value
    means."""

    name: str
    value: str
    share: float
    words: str


def measures(found: Answers, k: int) -> tuple[Measure, ...]:
    """Everything that speaks for or against the answer to one query, the k-th that was asked."""
    residuals = (
        _of_inverse(_name(found, r), residual)
        for r in range(len(found.answers))
        if (residual := _residual(found, r, k)) is not None
    )
    bounds = (measure for r in range(len(found.answers)) if (measure := _of_bounds(found, r, k)))
    told = found.agreement
    if told is None:
        return (*residuals, *bounds)
    both = f"{_name(found, 0)} and {_name(found, 1)}"
    return (
        *residuals,
        *bounds,
        _of_ranks(both, float(told.correlation[k])),
        _of_lists("helpful", both, int(told.top[k]), told.k),
        _of_lists("harmful", both, int(told.bottom[k]), told.k),
    )


def verdict(found: Answers, r: int, k: int) -> str:
    """Why the lists of one rung are doubtful for one query, and which rung to ask for;
    nothing where nothing speaks against them.

    An inverse of relative residual 1 or more is a reason; and a second rung that names fewer than
    half of the list, unless that rung's own inverse is the worse one.
    """
    reasons: list[str] = []
    residual, name = _residual(found, r, k), _name(found, r)
    # the Hessian is no approximation of the GGN: another matrix, and no worse an inverse for it
    if residual is not None and residual >= 1 and _flag(name) != "Hessian":
        reasons.append(
            f"its inverse is no better than nothing (relative residual {_shown(residual)})"
        )
    told = found.agreement
    if told is not None and not _nearer(found, r, k):
        ends = (("helpful", int(told.top[k])), ("harmful", int(told.bottom[k])))
        few = [f"{n} of its {told.k} most {end}" for end, n in ends if 2 * n < told.k]
        reasons += [f"{_name(found, 1 - r)} names only {listed(few)}"] if few else []
    if not reasons:
        return ""
    return f"These lists of {name} are doubtful: {'; '.join(reasons)}. {_remedy(found, r, k)}"


def _remedy(found: Answers, r: int, k: int) -> str:
    """The rung to ask for: the other one where its inverse is good for something, else the GGN."""
    better = [
        _name(found, other)
        for other in range(len(found.answers))
        if other != r and (residual := _residual(found, other, k)) is not None and residual < 1
    ]
    asked = _flag(better[0]) if better else EXACT
    if asked == _flag(_name(found, r)):
        return "Ask for a larger --damping."
    return f"Ask for --rung {asked}."


def _nearer(found: Answers, r: int, k: int) -> bool:
    """Whether a rung's inverse is known to be nearer to the exact one than that of the other."""
    own, other = (_residual(found, one, k) for one in (r, 1 - r))
    return own is not None and own < (1.0 if other is None else other)


def _of_inverse(name: str, residual: float) -> Measure:
    said = ((1e-3, "as good as exact"), (0.1, "close"), (1.0, "rough"))
    words = next((text for below, text in said if residual < below), "no better than nothing")
    return Measure(
        f"Inverse of {name}", f"residual {_shown(residual)}", max(0.0, 1 - residual), words
    )


def _of_bounds(found: Answers, r: int, k: int) -> Measure | None:
    """How many of the scores that are listed are proven to have their sign."""
    answer = found.answers[r]
    bounds = None if answer.certificate is None else answer.certificate.bounds
    if bounds is None:
        return None
    row = answer.scores[k]
    listed = torch.cat([row.top(found.top).indices[0], row.bottom(found.top).indices[0]]).unique()
    proven = int(bounds.of([k]).signs(row.values)[0, listed].sum())
    value = f"off by at most {short(float(bounds.worst[k]))} {bounds.unit}"
    words = f"the sign of {proven} of the {len(listed)} listed is proven"
    return Measure(f"Scores of {_name(found, r)}", value, proven / len(listed), words)


def _of_ranks(both: str, correlation: float) -> Measure:
    if isnan(correlation):
        return Measure(f"Ranks by {both}", NONE, 0.0, "scores of one are all the same")
    said = ((0.5, "another order"), (0.9, "a similar order"))
    words = next((text for below, text in said if correlation < below), "nearly the same order")
    value = f"correlation {number(correlation, 2)}"
    return Measure(f"Ranks by {both}", value, max(0.0, correlation), words)


def _of_lists(end: str, both: str, count: int, k: int) -> Measure:
    words = "fewer than half" if 2 * count < k else "half or more" if count < k else "all"
    return Measure(f"The {k} most {end} by {both}", f"{count} in both", count / k, words)


def _residual(found: Answers, r: int, k: int) -> float | None:
    certificate = found.answers[r].certificate
    if certificate is None:
        return None
    residual = certificate.residuals[k]
    return inf if isnan(residual) else residual


def _shown(residual: float) -> str:
    return short(residual) if isfinite(residual) else "∞"


def _name(found: Answers, r: int) -> str:
    return found.answers[r].scores.rung


def _flag(name: str) -> str:
    """What --rung takes, of the name that a result has for it."""
    start = re.match(r"[\w-]+", name)
    return start[0] if start else name
