"""True on predicted change: are predictions of the right size?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator

from curvfluence.fidelity import Calibration
from curvfluence.report.parts.axes import Point, Rows, Ticks
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.style import INK, MUTED, looks
from curvfluence.report.parts.table import Columns, tabulate
from curvfluence.study.results import Results, RungResult
from curvfluence.study.study import Study
from curvfluence.study.words import clipped, number, percent, short

_BINS = 16


def calibration(study: Results) -> Figure | None:
    """The slope of true on predicted change for each rung that has units."""
    every = [(rung, rung.calibration) for rung in study.ladder if rung.calibration is not None]
    shown = [(rung, line) for rung, line in every if rung.has_units] or every
    if not every:
        return None
    look, alpha = looks([rung.name for rung in study.rungs]), study.truth.alpha
    low, high = (end(shown, key=lambda pair: pair[1].slope) for end in (min, max))
    top, bottom = max(0.0, 1 / alpha, high[1].slope), min(0.0, low[1].slope)
    reach = top - bottom
    plot = Rows(
        [rung.full_name for rung, _ in shown],
        [[Point(line.slope, None, look[rung.name])] for rung, line in shown],
        "slope of true on predicted change",
        (bottom - 0.03 * reach, top + 0.08 * reach),
        lines=[(1.0, "1"), (1 / alpha, "1/α")],
    )

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        plot.fill(axes)
        for row, (_, line) in enumerate(shown):
            text, at = f"r {number(line.r, 2)}", ("axes fraction", "data")
            axes.annotate(text, (1.02, row), xycoords=at, va="center", fontsize=6.5)

    reading = (
        f"True changes are {short(low[1].slope)} ({low[0].full_name}) to {short(high[1].slope)} "
        f"({high[0].full_name}) times the predicted ones; with subsets that keep {percent(alpha)}, "
        f"expect about {short(1 / alpha)} or more."
    )
    columns: Columns[tuple[RungResult, Calibration]] = {
        "Rung": lambda p: p[0].full_name + ("" if p[0].has_units else " (no units)"),
        "slope": lambda p: short(p[1].slope),
        "intercept": lambda p: short(p[1].intercept),
        "r": lambda p: number(p[1].r),
        "pairs": lambda p: f"{p[1].n:,}",
    }
    data = tabulate("Slope of true on predicted change", columns, every)
    return Figure("calibration", data.caption, reading, data, draw, plot.height)


def calibration_curve(study: Study, name: str) -> Figure | None:
    """Mean true change in bins of equal count of the predicted change, for one rung.

    Needs the array `base` [J, Q], each query's measurement with all the data, without which
    a truth is no change.
    """
    rung, bins = study.results.rung(name), _bins(study, name)
    if rung is None or bins is None:
        return None
    look, truth = looks([name])[name], study.results.truth
    x, y, low, high = bins

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        # Each point is the mean of a bin, and the first and last bins are long tails: no line
        # joins what lies between them.
        axes.vlines(x, low, high, color=look.colour, lw=1.6, label="middle half")
        colour, marker = look.colour, look.marker
        axes.plot(x, y, marker, color=colour, ms=4, mec=INK, mew=0.5, ls="", label="mean")
        _both_symlog(axes, x)
        _slopes(axes, x, 1 / truth.alpha)
        axes.set_xlabel(f"predicted change, {clipped(truth.unit, 36)}")
        axes.set_ylabel(f"true change, {clipped(truth.unit, 24)}")
        canvas.legend(loc="outside lower center", ncols=4, handlelength=1.6, columnspacing=1)

    reading = (
        f"Where {rung.full_name} predicts most ({short(x[-1])} {truth.unit}), the truth is "
        f"{short(y[-1])} on average, and {short(low[-1])} to {short(high[-1])} for the middle half."
    )
    columns: Columns[int] = {
        "predicted": lambda k: short(x[k]),
        "true, mean": lambda k: short(y[k]),
        "lower quartile": lambda k: short(low[k]),
        "upper quartile": lambda k: short(high[k]),
    }
    title = f"True on predicted change, {rung.full_name}"
    data = tabulate(title, columns, range(len(x)))
    return Figure("calibration-curve", title, reading, data, draw)


def _bins(study: Study, name: str) -> tuple[list[float], ...] | None:
    """Of each bin the mean predicted and true change, and the quartiles of the true one."""
    base, truth, subsets = (study.array(key) for key in ("base", "truth", "subsets"))
    scores = study.scores(name)
    if base is None or truth is None or subsets is None or scores is None:
        return None
    predicted = np.einsum("jqn,mn->jmq", scores.astype(float), 1.0 - subsets).ravel()
    changed = (truth.mean(1) - base[:, None, :]).ravel()
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(_BINS, len(predicted)))
    columns = [
        (predicted[i].mean(), changed[i].mean(), *np.quantile(changed[i], (0.25, 0.75)))
        for i in bins
    ]
    return tuple([float(value) for value in column] for column in zip(*columns, strict=True))


def _both_symlog(axes: Axes, x: Sequence[float]) -> None:
    """Most predictions are near 0 and a few are large: linear inside ±small, decades outside."""
    small = 10.0 ** np.floor(np.log10(np.median(np.abs(x)) or 1.0))
    axes.set_xscale("symlog", linthresh=small)
    axes.set_yscale("symlog", linthresh=small)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(_decades(small, axis.get_data_interval())))
        axis.set_major_formatter(Ticks())
        axis.set_minor_locator(NullLocator())


def _slopes(axes: Axes, x: Sequence[float], steep: float) -> None:
    """Lines through 0, which are bent on these scales: drawn at many points."""
    sizes = np.geomspace(1e-4, 1.0, 120) * max(map(abs, x))
    reach = np.concatenate([-sizes[::-1], [0.0], sizes])
    reach = reach[(reach >= min(x)) & (reach <= max(x))]
    for slope, style, label in ((1.0, (0, (4, 2)), "slope 1"), (steep, (0, (1, 1.5)), "slope 1/α")):
        axes.plot(reach, slope * reach, color=MUTED, lw=0.9, ls=style, zorder=1, label=label)


def _decades(small: float, reach: Sequence[float]) -> list[float]:
    """0 and powers of ten from `small` outwards, at most three on either side."""
    ticks = [0.0]
    for sign, far in ((-1.0, -reach[0]), (1.0, reach[1])):
        count = int(np.floor(np.log10(max(far, small) / small) + 1e-9)) + 1
        step = -(-count // 3)
        ticks += [sign * small * 10.0**k for k in range(count - 1, -1, -step)]
    return sorted(ticks)
