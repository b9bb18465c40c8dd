"""LDS over the damping, for every rung."""

from __future__ import annotations

from matplotlib.figure import Figure as Canvas

from curvfluence.report.axes import end_labels, log, mark
from curvfluence.report.figure import Figure
from curvfluence.report.style import looks
from curvfluence.study.finished import Finished
from curvfluence.study.words import listed, number, short


def sweep(study: Finished) -> Figure | None:
    """LDS at each λ of the shared grid; the marker is the best λ of each rung."""
    rungs = [rung for rung in study.ladder if len(rung["sweep"]) > 1]
    if not rungs:
        return None
    look = looks([rung["name"] for rung in study.rungs])
    best = {r["name"]: max(r["sweep"], key=lambda at: at["lds"])["damping"] for r in rungs}
    edge = [rung["full_name"] for rung in rungs if rung.get("damping_on_edge")]
    low, high = short(min(best.values())), short(max(best.values()))
    reading = f"The best λ is {low}" if low == high else f"The best λ lies between {low} and {high}"
    reading += f"; on the edge of the grid for {listed(edge)}." if edge else ", inside the grid."

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        log(axes, "x")
        for rung in rungs:
            mine = look[rung["name"]]
            at = [row["damping"] for row in rung["sweep"]]
            lds = [row["lds"] for row in rung["sweep"]]
            axes.plot(at, lds, color=mine.colour)
            mark(axes, best[rung["name"]], max(lds), mine)
        axes.margins(x=0.02)
        axes.set_xlabel("damping λ, in the units of the curvature")
        axes.set_ylabel("LDS")
        end_labels(axes, [(r["sweep"][-1]["lds"], r["full_name"], look[r["name"]]) for r in rungs])

    grid = sorted({row["damping"] for rung in rungs for row in rung["sweep"]})
    values = {r["name"]: {row["damping"]: row["lds"] for row in r["sweep"]} for r in rungs}
    return Figure(
        name="sweep",
        title="LDS over the damping",
        reading=reading,
        description=(
            "One curve for each rung over the damping, which runs on a logarithmic axis; a marker "
            "stands at each rung's best. " + reading
        ),
        columns=("λ", *(rung["full_name"] for rung in rungs)),
        rows=tuple(
            (short(at), *(number(values[rung["name"]].get(at)) for rung in rungs)) for at in grid
        ),
        draw=draw,
    )
