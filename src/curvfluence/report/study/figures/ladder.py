"""LDS by rung, under each question, what is lost from rung to rung, and LDS over the damping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.axes import Point, Rows, log, mark
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.labels import end_labels
from curvfluence.report.parts.style import looks
from curvfluence.report.parts.table import Columns, Table, tabulate
from curvfluence.study.results import Results, RungResult, Step
from curvfluence.study.words import interval, listed, number, short

LDS = "LDS, with 95% interval"
NOT_RESOLVED = "not resolved"
_NO_SHARES: Mapping[tuple[str, str], str] = MappingProxyType({})


def ladder(study: Results) -> Figure:
    """Each rung's LDS with its interval, below the ceiling that the noise of the truth sets."""
    rungs, top, best = study.ladder, study.best, study.truth.best_lds.matched
    look = looks([rung.name for rung in rungs])
    reading = (
        "One row for each rung, from the most exact curvature at the top down to none at all. "
        f"{top.full_name} stands highest at {number(top.lds)}"
    )
    reading += f", of about {number(best, 2)} that noise allows." if best is not None else "."
    points = [[Point(r.lds, r.interval, look[r.name])] for r in rungs]
    for row, rung in zip(points, rungs, strict=True):
        if rung.lds_independent is not None:
            row.append(Point(rung.lds_independent, None, look[rung.name], True, 0.24))
    others = any(len(row) > 1 for row in points)
    plot = Rows(
        [rung.full_name for rung in rungs],
        points,
        LDS,
        lds_limits(rungs),
        lines=() if best is None else [(best, "noise ceiling")],
        hollow=("same initial weights", "other initial weights") if others else None,
    )
    columns: Columns[RungResult] = {
        "Rung": lambda r: r.full_name,
        "LDS": lambda r: number(r.lds),
        "95% interval": lambda r: interval(r.interval),
        "over subsets": lambda r: interval(r.interval_subsets),
        "over queries": lambda r: interval(r.interval_queries),
        "independent": lambda r: number(r.lds_independent),
    }
    data = tabulate("LDS by rung", columns, rungs)
    return Figure("ladder", data.caption, reading, data, plot, plot.height)


def lds_limits(rungs: Sequence[RungResult]) -> tuple[float, float]:
    """From 0, or the lowest end of an interval, to 1."""
    return min(0.0, *(rung.interval.low for rung in rungs)), 1.02


def steps(study: Results) -> Figure | None:
    """LDS lost between neighbours, with paired intervals."""
    taken = study.steps
    if not taken:
        return None
    unresolved = [step.name for step in taken if not step.resolved]
    most = max(taken, key=lambda step: step.lds_lost)
    reading = f"Most is lost at {most.name} ({number(most.lds_lost, signed=True)})."
    if unresolved:
        reading += f" Not resolved: {listed(unresolved)}."
    look = looks([step.below for step in taken])
    plot = Rows(
        [step.name for step in taken],
        [[Point(s.lds_lost, s.interval, look[s.below], not s.resolved)] for s in taken],
        "LDS lost, with 95% interval (paired)",
        lines=[(0.0, "")],
        hollow=("resolved", NOT_RESOLVED) if unresolved else None,
    )
    data = step_table("LDS lost at each step", taken)
    return Figure("steps", data.caption, reading, data, plot, plot.height)


def step_table(
    caption: str, steps: Sequence[Step], shares: Mapping[tuple[str, str], str] = _NO_SHARES
) -> Table:
    """What each step loses, whether that is resolved, and its share of the distance if given."""
    return tabulate(
        caption,
        {
            "Step": lambda s: s.name,
            "LDS lost": lambda s: number(s.lds_lost, signed=True),
            "‖·‖² share": lambda s: shares.get(s.pair, ""),
            "95% interval, paired": lambda s: interval(s.interval, signed=True),
            "": lambda s: "" if s.resolved else NOT_RESOLVED,
        },
        steps,
    )


def hybrids(study: Results) -> Figure | None:
    """Hybrids between the block GGN and K-FAC: which of K-FAC's two mismatches costs."""
    if not study.hybrids:
        return None
    ends = study.rung("BlockGGN"), study.rung("KFAC")
    rungs = [rung for rung in (ends[0], *study.hybrids, ends[1]) if rung is not None]
    low, high = (end(study.hybrids, key=lambda rung: rung.lds) for end in (min, max))
    reading = f"Highest: {high.full_name}, {number(high.lds)}"
    reading += f"; lowest: {low.full_name}, {number(low.lds)}." if low is not high else "."
    look = looks([rung.name for rung in study.every_rung])
    points = [[Point(rung.lds, rung.interval, look[rung.name])] for rung in rungs]
    plot = Rows([rung.full_name for rung in rungs], points, LDS, lds_limits(rungs))
    columns: Columns[RungResult] = {
        "Rung or hybrid": lambda r: r.full_name,
        "LDS": lambda r: number(r.lds),
        "95% interval": lambda r: interval(r.interval),
    }
    data = tabulate("Eigenvalues or eigenvectors?", columns, rungs)
    return Figure("hybrids", data.caption, reading, data, plot, plot.height)


def bregman(study: Results) -> Figure | None:
    """LDS against retraining beside LDS against the proximal Bregman response."""
    rungs = [(rung, rung.lds_bregman) for rung in study.ladder if rung.lds_bregman is not None]
    if not rungs:
        return None
    look = looks([rung.name for rung in study.rungs])
    gap, against = max(rungs, key=lambda pair: pair[1] - pair[0].lds)
    plot = Rows(
        [rung.full_name for rung, _ in rungs],
        [
            [
                Point(value, r.interval_bregman, look[r.name], shift=-0.14),
                Point(r.lds, r.interval, look[r.name], hollow=True, shift=0.18),
            ]
            for r, value in rungs
        ],
        LDS,
        lds_limits([rung for rung, _ in rungs]),
        hollow=("proximal Bregman response", "retraining"),
    )
    reading = (
        f"{gap.full_name}: {number(against)} against the proximal Bregman response, "
        f"{number(gap.lds)} against retraining."
    )
    columns: Columns[tuple[RungResult, float]] = {
        "Rung": lambda p: p[0].full_name,
        "Bregman": lambda p: number(p[1]),
        "its 95% interval": lambda p: interval(p[0].interval_bregman),
        "retraining": lambda p: number(p[0].lds),
        "95% interval": lambda p: interval(p[0].interval),
    }
    data = tabulate("Against the proximal Bregman response", columns, rungs)
    return Figure("bregman", data.caption, reading, data, plot, plot.height)


def sweep(study: Results) -> Figure | None:
    """LDS at each λ of the shared grid; the marker is the best λ of each rung."""
    rungs = [rung for rung in study.ladder if len(rung.sweep) > 1]
    if not rungs:
        return None
    look = looks([rung.name for rung in study.rungs])
    edge = [rung.full_name for rung in rungs if rung.damping_on_edge]
    best = [rung.best.damping or 0.0 for rung in rungs]
    low, high = short(min(best)), short(max(best))
    reading = f"The best λ is {low}" if low == high else f"The best λ lies between {low} and {high}"
    reading += f"; on the edge of the grid for {listed(edge)}." if edge else ", inside the grid."

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for rung in rungs:
            at = [point.damping or 0.0 for point in rung.sweep]
            axes.plot(at, [point.lds for point in rung.sweep], color=look[rung.name].colour)
            mark(axes, rung.best.damping or 0.0, rung.best.lds, look[rung.name])
        log(axes, "x")
        axes.margins(x=0.02)
        axes.set_xlabel("damping λ, in the units of the curvature")
        axes.set_ylabel("LDS")
        end_labels(axes, [(r.sweep[-1].lds, r.full_name, look[r.name]) for r in rungs])

    grid = sorted({point.damping or 0.0 for rung in rungs for point in rung.sweep})
    values = {rung.name: {p.damping: p.lds for p in rung.sweep} for rung in rungs}
    rows = ((short(at), *(number(values[r.name].get(at)) for r in rungs)) for at in grid)
    columns = ("λ", *(rung.full_name for rung in rungs))
    data = Table("LDS over the damping", columns, tuple(rows))
    return Figure("sweep", data.caption, reading, data, draw)
