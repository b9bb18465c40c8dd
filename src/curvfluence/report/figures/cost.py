"""What a rung costs against what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure as Canvas

from curvfluence.report.axes import Named, log, mark, point_labels, short_range
from curvfluence.report.figure import Figure
from curvfluence.report.style import MUTED, looks
from curvfluence.study.finished import Finished
from curvfluence.study.words import flops, interval, listed, number, seconds


def total_seconds(rung: dict[str, Any]) -> float | None:
    """Fit and score together; None for a hybrid, which is never computed for its own sake."""
    if rung.get("fit_seconds") is None or rung.get("score_seconds") is None:
        return None
    return rung["fit_seconds"] + rung["score_seconds"]


def front(rungs: list[dict[str, Any]], cost: Callable[[dict[str, Any]], float | None]) -> list[str]:
    """Names of the rungs that no other beats at once in cost and in LDS, from the cheapest up."""
    priced = sorted(
        (rung for rung in rungs if cost(rung) is not None),
        key=lambda rung: (cost(rung), -rung["lds"]),
    )
    names: list[str] = []
    best = float("-inf")
    for rung in priced:
        if rung["lds"] > best:
            names.append(rung["name"])
            best = rung["lds"]
    return names


def pareto(study: Finished) -> Figure | None:
    """LDS against seconds for one model and one damping."""
    return _against(
        study,
        total_seconds,
        name="pareto",
        title="What accuracy costs in time",
        label="seconds to fit and score one model",
        shown=seconds,
    )


def operations(study: Finished) -> Figure | None:
    """LDS against floating-point operations, which do not depend on the machine."""

    def cost(rung: dict[str, Any]) -> float | None:
        found = rung.get("flops")
        parts = None if found is None else (found.get("fit"), found.get("score"))
        return None if parts is None or None in parts else float(sum(p for p in parts if p))

    return _against(
        study,
        cost,
        name="operations",
        title="What accuracy costs in operations",
        label="floating-point operations to fit and score one model",
        shown=flops,
    )


def _against(
    study: Finished,
    cost: Callable[[dict[str, Any]], float | None],
    *,
    name: str,
    title: str,
    label: str,
    shown: Callable[[float | None], str],
) -> Figure | None:
    rungs = [rung for rung in study.ladder if cost(rung)]
    if len(rungs) < 2:
        return None
    look, on_front = looks([rung["name"] for rung in study.rungs]), front(rungs, cost)
    if cost is total_seconds and all("pareto" in rung for rung in rungs):
        on_front = [rung["name"] for rung in rungs if rung["pareto"]]
    beaten = [rung["full_name"] for rung in rungs if rung["name"] not in on_front]
    reading = f"On the front: {listed(on_front)}."
    if beaten:
        reading += f" Another rung is both cheaper and better than {listed(beaten)}."

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        log(axes, "x")
        stairs = [rung for rung in rungs if rung["name"] in on_front]
        stairs.sort(key=lambda rung: cost(rung) or 0.0)
        axes.step(
            [cost(rung) or 0.0 for rung in stairs],
            [rung["lds"] for rung in stairs],
            where="post",
            color=MUTED,
            lw=0.9,
            ls=(0, (4, 2)),
            zorder=1,
        )
        for rung in rungs:
            mine, x = look[rung["name"]], cost(rung) or 0.0
            axes.plot([x, x], rung["interval"], color=mine.colour, lw=1.6, zorder=3)
            mark(axes, x, rung["lds"], mine)
        axes.margins(x=0.16, y=0.1)
        short_range(axes)
        axes.set_xlabel(label)
        axes.set_ylabel("LDS, with 95% interval")
        at = [(cost(rung) or 0.0, rung["lds"]) for rung in stairs]
        corners = [line for a, b in pairwise(at) for line in (a, (b[0], a[1]))]
        names = [Named(cost(r) or 0.0, r["lds"], r["interval"], r["full_name"]) for r in rungs]
        point_labels(axes, names, [[*corners, at[-1]]])

    return Figure(
        name=name,
        title=title,
        reading=reading,
        description=(
            "A scatter of LDS over cost on a logarithmic axis, one point with an interval for "
            "each rung; a dashed staircase joins those that no other rung beats. " + reading
        ),
        columns=("Rung", "cost", "LDS", "95% interval", "front"),
        rows=tuple(
            (
                rung["full_name"],
                shown(cost(rung)),
                number(rung["lds"]),
                interval(rung["interval"]),
                "yes" if rung["name"] in on_front else "",
            )
            for rung in rungs
        ),
        draw=draw,
    )
