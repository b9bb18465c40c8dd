"""True on predicted change: are predictions of the right size?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator

from curvfluence.report.axes import Point, reference, rows, rows_height, tick
from curvfluence.report.figure import Figure
from curvfluence.report.style import INK, MUTED, looks
from curvfluence.study.finished import Finished
from curvfluence.study.words import number, percent, short

_BINS = 16


def calibration(study: Finished) -> Figure | None:
    """The slope of true on predicted change for each rung that has units."""
    rungs = [rung for rung in study.rungs if rung.get("calibration")]
    if not rungs:
        return None
    look, alpha = looks([rung["name"] for rung in study.rungs]), study.results["truth"]["alpha"]
    shown = [rung for rung in rungs if rung["name"] != "Identity"] or rungs
    slopes = {rung["full_name"]: rung["calibration"]["slope"] for rung in shown}
    low, high = min(slopes, key=lambda n: slopes[n]), max(slopes, key=lambda n: slopes[n])
    reading = (
        f"True changes are {short(slopes[low])} ({low}) to {short(slopes[high])} ({high}) times "
        f"the predicted ones; with subsets that keep {percent(alpha)}, expect about "
        f"{short(1 / alpha)} or more."
    )

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        points = [[Point(r["calibration"]["slope"], None, look[r["name"]])] for r in shown]
        labels = [f"{r['full_name']}" for r in shown]
        rows(axes, labels, points)
        for row, rung in enumerate(shown):
            axes.annotate(
                f"r {number(rung['calibration']['r'], 2)}",
                (1.02, row),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6.5,
            )
        top = max(0.0, 1 / alpha, *slopes.values())
        bottom = min(0.0, *slopes.values())
        axes.set_xlim(bottom - 0.03 * (top - bottom), top + 0.08 * (top - bottom))
        reference(axes, 1.0, "1")
        reference(axes, 1 / alpha, "1/α")
        axes.set_xlabel("slope of true on predicted change")

    return Figure(
        name="calibration",
        title="Slope of true on predicted change",
        reading=reading,
        description=(
            "The slope of the true on the predicted change for each rung, with dashed lines at 1 "
            "and at 1/α, and the correlation r beside it. " + reading
        ),
        columns=("Rung", "slope", "intercept", "r", "pairs"),
        rows=tuple(
            (
                rung["full_name"] + (" (no units)" if rung["name"] == "Identity" else ""),
                short(rung["calibration"]["slope"]),
                short(rung["calibration"]["intercept"]),
                number(rung["calibration"]["r"]),
                f"{rung['calibration']['n']:,}",
            )
            for rung in rungs
        ),
        draw=draw,
        height=rows_height([rung["full_name"] for rung in shown]),
    )


def calibration_curve(study: Finished, name: str) -> Figure | None:
    """Mean true change in bins of equal count of the predicted change, for one rung.

    Needs the array `base` [J, Q], each query's measurement with all the data, without which
    a truth is no change.
    """
    rung = next(rung for rung in study.rungs if rung["name"] == name)
    base, truth, subsets, scores = (
        study.array(key) for key in ("base", "truth", "subsets", f"scores.{name}")
    )
    if base is None or truth is None or subsets is None or scores is None:
        return None
    predicted = np.einsum("jqn,mn->jmq", scores.astype(float), 1.0 - subsets).ravel()
    changed = (truth.mean(1) - base[:, None, :]).ravel()
    order = np.array_split(np.argsort(predicted, kind="stable"), min(_BINS, len(predicted)))
    x = [float(predicted[i].mean()) for i in order]
    y = [float(changed[i].mean()) for i in order]
    spread = [np.quantile(changed[i], (0.25, 0.75)) for i in order]
    look, unit = looks([name])[name], study.results["truth"]["unit"]
    alpha = study.results["truth"]["alpha"]
    reading = (
        f"Where {rung['full_name']} predicts most ({short(x[-1])} {unit}), the truth is "
        f"{short(y[-1])} on average, and {short(float(spread[-1][0]))} to "
        f"{short(float(spread[-1][1]))} for the middle half."
    )

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        reach = np.array([x[0], x[-1]])
        axes.plot(reach, reach, color=MUTED, lw=0.9, ls=(0, (4, 2)), label="slope 1")
        axes.plot(reach, reach / alpha, color=MUTED, lw=0.9, ls=(0, (1, 1.5)), label="slope 1/α")
        axes.fill_between(
            x,
            [s[0] for s in spread],
            [s[1] for s in spread],
            color=look.colour,
            alpha=0.25,
            lw=0,
            label="middle half",
        )
        axes.plot(
            x, y, color=look.colour, marker=look.marker, ms=3.4, mec=INK, mew=0.4, label="mean"
        )
        # Most predictions are near 0 and a few are large: linear inside ±small, decades outside.
        small = 10.0 ** np.floor(np.log10(np.median(np.abs(x)) or 1.0))
        axes.set_xscale("symlog", linthresh=small)
        axes.set_yscale("symlog", linthresh=small)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(_decades(small, axis.get_data_interval())))
            axis.set_major_formatter(tick)
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"predicted change, {unit}")
        axes.set_ylabel(f"true change, {unit}")
        canvas.legend(loc="outside lower center", ncols=4, handlelength=1.6, columnspacing=1)

    return Figure(
        name="calibration-curve",
        title=f"True on predicted change, {rung['full_name']}",
        reading=reading,
        description=(
            "The mean true change, with the middle half of the true changes as a band, over the "
            "predicted change in bins of equal count; dashed lines at slopes 1 and 1/α. " + reading
        ),
        columns=("predicted", "true, mean", "lower quartile", "upper quartile"),
        rows=tuple(
            (short(a), short(b), short(float(s[0])), short(float(s[1])))
            for a, b, s in zip(x, y, spread, strict=True)
        ),
        draw=draw,
    )


def _decades(small: float, reach: Sequence[float]) -> list[float]:
    """0 and powers of ten from `small` outwards, at most three on either side."""
    ticks = [0.0]
    for sign, far in ((-1.0, -reach[0]), (1.0, reach[1])):
        count = int(np.floor(np.log10(max(far, small) / small) + 1e-9)) + 1
        step = -(-count // 3)
        ticks += [sign * small * 10.0**k for k in range(count - 1, -1, -step)]
    return sorted(ticks)
