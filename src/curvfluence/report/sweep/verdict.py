"""What a sweep says, in sentences made from its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeVar

from curvfluence.report.parts.cautions import ENOUGH, cautions
from curvfluence.report.parts.page import Verdict
from curvfluence.report.sweep.grid import Grid, worded
from curvfluence.study.results import DecompositionStep
from curvfluence.study.sweep import SweptStudy
from curvfluence.study.words import listed, number, percent, setting

SHOWN = 4  # values of an axis that a sentence lists; with more, the first and the last
T = TypeVar("T")

_TERMS = (
    "Influence functions predict how a model changes when training examples are left out. They "
    "need the curvature of the training loss; each rung of the ladder is one approximation of it, "
    "from the exact Hessian down to none at all (Identity), each at its best damping λ, a constant "
    "added to the curvature before it is inverted. LDS is the rank correlation, over random "
    "subsets of the data, of the predicted change of a query and the change after real retraining: "
    "1 is perfect, 0 is chance."
)


def verdict(grid: Grid) -> Verdict:
    """Everything counted from the studies of the grid."""
    findings = (
        ("Majority", _majority(grid)),
        ("By axis", _shares(grid)),
        ("Cost of the step", _loses(grid)),
        ("Highest", _top(grid)),
        ("What moves LDS", _moves(grid)),
    )
    told = tuple((about, text) for about, text in findings if text)
    return Verdict(_headline(grid), _terms(grid), told, _cautions(grid))


def _headline(grid: Grid) -> str:
    shares = _values(grid.studies, lambda step: step.share)
    parts = [f"{_between(shares(fisher))} under {fisher}" for fisher in grid.fishers]
    if parts:
        return (
            "Of the distance from the GGN to K-FAC, the step that changes eigenvalues alone holds "
            f"{listed(parts)}."
        )
    best, means = _means(grid)
    return f"{best} has the highest mean LDS over the grid: {number(means[best], 2)}."


def _terms(grid: Grid) -> str:
    if not grid.fishers:
        return _TERMS
    return (
        f"{_TERMS} K-FAC has the eigenvectors of EK-FAC and eigenvalues of its own, so from one to "
        "the other only eigenvalues change; distances are squared Frobenius norms, ‖GGN − KFAC‖². "
        "A Fisher type says which labels the factors are made from: type2 takes all, each with its "
        "probability, mc(1) one drawn label an example."
    )


def _values(
    studies: Sequence[SweptStudy], pick: Callable[[DecompositionStep], T | None]
) -> Callable[[str], list[T]]:
    """Of a Fisher type: what its eigenvalue step has in each study."""

    def of(fisher: str) -> list[T]:
        steps = (study.results.eigenvalue_step(fisher) for study in studies)
        picked = (pick(step) for step in steps if step is not None)
        return [value for value in picked if value is not None]

    return of


def _lds(studies: Sequence[SweptStudy], name: str) -> list[float]:
    rungs = (study.results.rung(name) for study in studies)
    return [rung.lds for rung in rungs if rung is not None]


def _means(grid: Grid) -> tuple[str, dict[str, float]]:
    """The rung of the highest mean LDS over the grid, and the mean of each."""
    means = {name: fmean(_lds(grid.studies, name)) for name in grid.ladder}
    return max(means, key=lambda name: means[name]), means


def _between(values: Sequence[float]) -> str:
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low} to {high}"


def _majority(grid: Grid) -> str:
    squared = _values(grid.studies, lambda step: step.share)
    plain = _values(grid.studies, lambda step: step.norm_share)
    parts: list[str] = []
    for fisher in grid.fishers:
        shares, norms = squared(fisher), plain(fisher)
        text = f"in {sum(v > 0.5 for v in shares)} of {len(shares)} studies under {fisher}"
        parts.append(f"{text} ({sum(v > 0.5 for v in norms)} by plain norms)")
    return f"That eigenvalue step is the majority of the distance {listed(parts)}." if parts else ""


def _shares(grid: Grid) -> str:
    if not grid.fishers or not grid.axes:
        return ""
    axis, values = next(iter(grid.axes.items()))
    parts: list[str] = []
    for at in values if len(values) <= SHOWN else (values[0], values[-1]):
        shares = _values(grid.at(axis, at), lambda step: step.share)
        every = [f"{_between(shares(fisher))} under {fisher}" for fisher in grid.fishers]
        parts.append(f"at {setting(at)}, {listed(every)}")
    return f"Its share by {worded(axis)}: {'; '.join(parts)}."


def _loses(grid: Grid) -> str:
    steps = _values(grid.studies, lambda step: step)
    parts: list[str] = []
    for fisher in grid.fishers:
        taken = steps(fisher)
        lost = [step.lds_lost for step in taken]
        more = sum(step.interval.low > 0 for step in taken)
        less = sum(step.interval.high < 0 for step in taken)
        parts.append(
            f"{number(min(lost), signed=True)} to {number(max(lost), signed=True)} under {fisher} "
            f"(a resolved loss in {more} of {len(taken)} studies, a resolved gain in {less})"
        )
    return f"The LDS lost at that step is {listed(parts)}." if parts else ""


def _top(grid: Grid) -> str:
    tops = Counter(results.best.name for results in grid.results)
    parts = [f"{name} in {count}" for name, count in tops.most_common()]
    studies = "the one study" if len(grid.studies) == 1 else f"{len(grid.studies)} studies"
    return f"The highest LDS of {studies}: {listed(parts)}."


def _moves(grid: Grid) -> str:
    """What moves LDS: the rung, or the settings."""
    high, means = _means(grid)
    low = min(means, key=lambda name: means[name])
    text = (
        f"Averaged over the grid, LDS runs from {number(means[low], 2)} ({low}) to "
        f"{number(means[high], 2)} ({high})"
    )
    parts: list[str] = []
    for axis, values in grid.axes.items():
        by = [fmean(_lds(grid.at(axis, at), high)) for at in values]
        parts.append(
            f"{number(min(by), 2)} to {number(max(by), 2)} between values of {worded(axis)}"
        )
    return f"{text}; that of {high} from {listed(parts)}." if parts else f"{text}."


def _cautions(grid: Grid) -> tuple[str, ...]:
    doubts: list[str] = []
    if grid.seeds < 2:
        doubts.append(
            "One seed: each interval is one study’s own and says nothing of other seeds, which "
            "also draw other subsets. Take several."
        )
    elif grid.seeds < ENOUGH:
        doubts.append(
            f"{grid.seeds} seeds: a t-interval over so few is rough. Take {ENOUGH} or more."
        )
    doubts += [
        f"The figures over {worded(axis)} average over {grid.combinations(axis)} settings of "
        f"{listed([worded(name) for name in grid.others(axis)])}, too many for frames of their own."
        for axis in grid.axes
        if grid.averaged(axis)
    ]
    return (*doubts, *cautions(grid.results))
