"""LDS by rung, under each question, and what is lost from rung to rung."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from curvfluence.report.axes import Point, reference, rows, rows_height
from curvfluence.report.figure import Figure
from curvfluence.report.style import INK, looks
from curvfluence.study.finished import Finished
from curvfluence.study.words import interval, listed, number, resolved


def ladder(study: Finished) -> Figure:
    """Each rung's LDS with its interval, below the ceiling that the noise of the truth sets."""
    rungs, look = study.rungs, looks([rung["name"] for rung in study.rungs])
    best = study.results["truth"].get("best_lds", {}).get("matched")
    top = max(study.ladder, key=lambda rung: rung["lds"])
    reading = f"{top['full_name']} stands highest at {number(top['lds'])}"
    reading += f", of about {number(best, 2)} that noise allows." if best is not None else "."

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        points = [
            [Point(rung["lds"], rung["interval"], look[rung["name"]])]
            + (
                [Point(rung["lds_independent"], None, look[rung["name"]], hollow=True, shift=0.24)]
                if rung.get("lds_independent") is not None
                else []
            )
            for rung in rungs
        ]
        rows(axes, [rung["full_name"] for rung in rungs], points)
        if best is not None:
            reference(axes, best, "noise ceiling")
        low = min(0.0, *(rung["interval"][0] for rung in rungs))
        axes.set_xlim(low, 1.02)
        axes.set_xlabel("LDS, with 95% interval")
        if any(len(row) > 1 for row in points):
            _legend(canvas, ("same initial weights", "other initial weights"))

    return Figure(
        name="ladder",
        title="LDS by rung",
        reading=reading,
        description=(
            "Points with 95% intervals, one row for each curvature from the top of the ladder "
            "down. Hollow points: models from other initial weights. " + reading
        ),
        columns=("Rung", "LDS", "95% interval", "over subsets", "over queries", "independent"),
        rows=tuple(
            (
                rung["full_name"],
                number(rung["lds"]),
                interval(rung["interval"]),
                interval(rung.get("interval_subsets")),
                interval(rung.get("interval_queries")),
                number(rung.get("lds_independent")),
            )
            for rung in rungs
        ),
        draw=draw,
        height=rows_height([rung["full_name"] for rung in rungs]),
    )


def steps(study: Finished) -> Figure | None:
    """LDS lost between neighbours, with paired intervals."""
    found: list[dict[str, Any]] = study.results["steps"]
    if not found:
        return None
    open_ones = [_name(step) for step in found if not resolved(step["interval"])]
    most = max(found, key=lambda step: step["lds_lost"])
    reading = f"Most is lost at {_name(most)} ({number(most['lds_lost'], signed=True)})."
    if open_ones:
        reading += f" Not resolved: {listed(open_ones)}."
    look = looks([step["to"] for step in found])

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        points = [
            [
                Point(
                    step["lds_lost"],
                    step["interval"],
                    look[step["to"]],
                    hollow=not resolved(step["interval"]),
                )
            ]
            for step in found
        ]
        rows(axes, [_name(step) for step in found], points)
        axes.axvline(0, color=INK, lw=0.8, zorder=1)
        axes.set_xlabel("LDS lost, with 95% interval (paired)")
        if open_ones:
            _legend(canvas, ("resolved", "not resolved"))

    return Figure(
        name="steps",
        title="LDS lost at each step",
        reading=reading,
        description=(
            "Points with paired 95% intervals, one row for each step down the ladder; hollow "
            "where the interval holds 0. " + reading
        ),
        columns=("Step", "LDS lost", "95% interval", ""),
        rows=tuple(
            (
                _name(step),
                number(step["lds_lost"], signed=True),
                interval(step["interval"], signed=True),
                "" if resolved(step["interval"]) else "not resolved",
            )
            for step in found
        ),
        draw=draw,
        height=rows_height([_name(step) for step in found]),
    )


def bregman(study: Finished) -> Figure | None:
    """LDS against retraining beside LDS against the proximal Bregman response."""
    rungs = [rung for rung in study.rungs if rung.get("lds_bregman") is not None]
    if not rungs:
        return None
    look = looks([rung["name"] for rung in study.rungs])
    gap = max(rungs, key=lambda rung: rung["lds_bregman"] - rung["lds"])
    reading = (
        f"{gap['full_name']}: {number(gap['lds_bregman'])} against the proximal Bregman response, "
        f"{number(gap['lds'])} against retraining."
    )

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        points = [
            [
                Point(
                    rung["lds_bregman"],
                    rung.get("interval_bregman"),
                    look[rung["name"]],
                    shift=-0.14,
                ),
                Point(rung["lds"], rung["interval"], look[rung["name"]], hollow=True, shift=0.18),
            ]
            for rung in rungs
        ]
        rows(axes, [rung["full_name"] for rung in rungs], points)
        axes.set_xlim(min(0.0, *(rung["interval"][0] for rung in rungs)), 1.02)
        axes.set_xlabel("LDS, with 95% interval")
        _legend(canvas, ("proximal Bregman response", "retraining"))

    return Figure(
        name="bregman",
        title="Against the proximal Bregman response",
        reading=reading,
        description="Two points for each rung: LDS against each of the two truths. " + reading,
        columns=("Rung", "Bregman", "95% interval", "retraining", "95% interval"),
        rows=tuple(
            (
                rung["full_name"],
                number(rung["lds_bregman"]),
                interval(rung.get("interval_bregman")),
                number(rung["lds"]),
                interval(rung["interval"]),
            )
            for rung in rungs
        ),
        draw=draw,
        height=rows_height([rung["full_name"] for rung in rungs]),
    )


def _name(step: dict[str, Any]) -> str:
    return f"{step['from']} → {step['to']}"


def _legend(canvas: Canvas, names: tuple[str, str]) -> None:
    """A filled and a hollow marker in ink, below the axes."""
    handles = [
        Line2D([], [], ls="", marker="o", ms=4.6, mfc=fill, mec=INK, label=name)
        for fill, name in zip((INK, "none"), names, strict=True)
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.2)
