"""Spectra: eigenvalues side by side, effective dimension, overlap of leading eigenspaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas

from curvfluence.report.parts.axes import log
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.labels import end_labels
from curvfluence.report.parts.style import Look, looks
from curvfluence.report.parts.table import Table
from curvfluence.study.results import OverlapSummary, Results, RungResult
from curvfluence.study.results.rung import SpectrumSummary
from curvfluence.study.words import NONE, counted, listed, number, percent, short

Spectra = list[tuple[RungResult, SpectrumSummary]]


def spectra(study: Results) -> Spectra:
    """The rungs that kept their eigenvalues, without those that have none but 0."""
    every = ((rung, rung.spectrum) for rung in study.ladder)
    return [(rung, spectrum) for rung, spectrum in every if spectrum and any(spectrum.eigenvalues)]


def eigenvalues(study: Results) -> Figure | None:
    """Eigenvalues by rank, both axes logarithmic; what is within rounding of 0 does not show."""
    rungs, rounding = spectra(study), study.spec.rounding
    if not rungs:
        return None
    low, high = (end(rungs, key=lambda pair: pair[1].eigenvalues[0]) for end in (min, max))
    curves = [
        (
            rung,
            [
                (rank, value)
                for rank, value in zip(s.ranks, s.eigenvalues, strict=True)
                if value > s.floor(rounding)
            ],
        )
        for rung, s in rungs
    ]
    ranks = sorted({rank for _, s in rungs for rank in s.ranks})
    ranks = [ranks[i] for i in np.unique(np.linspace(0, len(ranks) - 1, 24).round().astype(int))]
    told = [
        {k: _told(v, s, rounding) for k, v in zip(s.ranks, s.eigenvalues, strict=True)}
        for _, s in rungs
    ]
    reading = (
        f"The largest eigenvalue runs from {short(low[1].eigenvalues[0])} ({low[0].full_name}) to "
        f"{short(high[1].eigenvalues[0])} ({high[0].full_name}). What is within rounding of 0 does "
        "not show."
    )
    rows = ((str(k), *(column.get(k, NONE) for column in told)) for k in ranks)
    columns = ("rank", *(rung.full_name for rung, _ in rungs))
    data = Table("Eigenvalues side by side", columns, tuple(rows))
    draw = _curves(study, curves, ("rank", "eigenvalue"))
    return Figure("eigenvalues", data.caption, reading, data, draw)


def _told(value: float, spectrum: SpectrumSummary, rounding: float) -> str:
    """An eigenvalue; one within rounding of 0 is 0."""
    return short(value) if abs(value) > spectrum.floor(rounding) else "0"


def effective_dimension(study: Results) -> Figure | None:
    """Σ μ/(μ + λ) over the damping: how many directions the data still decides."""
    rungs = [(rung, s.effective_dimension) for rung, s in spectra(study) if s.effective_dimension]
    if not rungs:
        return None
    top, points = max(rungs, key=lambda pair: pair[1][0].value)
    grid = sorted({point.damping for _, points in rungs for point in points})
    told = [{point.damping: short(point.value) for point in points} for _, points in rungs]
    curves = [(rung, [(p.damping, p.value) for p in ps if p.value > 0]) for rung, ps in rungs]
    reading = (
        f"At λ = {short(points[0].damping)}, {top.full_name} counts the most directions "
        f"({short(points[0].value)})."
    )
    rows = ((short(at), *(column.get(at, NONE) for column in told)) for at in grid)
    columns = ("λ", *(rung.full_name for rung, _ in rungs))
    data = Table("Effective dimension", columns, tuple(rows))
    draw = _curves(study, curves, ("damping λ", "effective dimension"))
    return Figure("effective-dimension", data.caption, reading, data, draw)


def _curves(
    study: Results,
    curves: Sequence[tuple[RungResult, Sequence[tuple[float, float]]]],
    axis_labels: tuple[str, str],
) -> Callable[[Canvas], None]:
    """Draws one named curve for each rung, both axes logarithmic."""
    look = looks([rung.name for rung in study.rungs])

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        ends: list[tuple[float, str, Look]] = []
        for rung, points in curves:
            if points:
                axes.plot(*zip(*points, strict=True), color=look[rung.name].colour)
                ends.append((points[-1][1], rung.full_name, look[rung.name]))
        log(axes, "x", "y")
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        end_labels(axes, ends)

    return draw


def overlaps(study: Results) -> Figure | None:
    """How much of one rung's leading eigenspace lies in another's, by its size."""
    measured = study.overlap
    if measured is None or not measured.pairs:
        return None
    ranks, pairs = measured.ranks, measured.pairs
    at = int(np.argmin([abs(np.log(rank / 10)) for rank in ranks]))
    least = min(pairs, key=lambda pair: pair.overlap[min(at, len(pair.overlap) - 1)])
    last = min(at, len(least.overlap) - 1)
    look = [looks([pair.b])[pair.b] for pair in pairs]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for pair, mine in zip(pairs, look, strict=True):
            shown = ranks[: len(pair.overlap)]
            axes.plot(shown, pair.overlap, color=mine.colour, marker=mine.marker, ms=3)
        log(axes, "x")
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("leading directions compared")
        axes.set_ylabel("share in common")
        end_labels(axes, [(p.overlap[-1], p.name, m) for p, m in zip(pairs, look, strict=True)])

    reading = (
        f"{least.name} differ most: of the leading {ranks[last]} directions they share "
        f"{percent(least.overlap[last])}."
    )
    rows = (
        (str(rank), *(number(dict(enumerate(pair.overlap)).get(k)) for pair in pairs))
        for k, rank in enumerate(ranks)
    )
    columns = ("directions", *(pair.name for pair in pairs))
    data = Table("Overlap of leading eigenspaces", columns, tuple(rows))
    return Figure("overlap", data.caption, reading, data, draw)


def negative_part(study: Results) -> str:
    """What negative eigenvalues amount to, in a sentence; "" where they are rounding."""
    rounding = study.spec.rounding
    told = [
        f"{rung.full_name} has {counted(s.negative.count, 'negative eigenvalue')}, the lowest "
        f"{short(s.negative.lowest)}, with {percent(s.negative.share)} of its absolute trace"
        for rung, s in spectra(study)
        if s.indefinite(rounding)
    ]
    return f"{listed(told)}." if told else ""


def spectrum_tables(study: Results) -> tuple[Table, ...]:
    """Condition numbers, eigenvalues by block, and overlaps by layer."""
    rungs, rounding = spectra(study), study.spec.rounding
    conditions = tuple(
        (rung.full_name, short(s.condition), short(s.condition_damping))
        for rung, s in rungs
        if s.condition is not None
    )
    blocks = tuple(
        (
            rung.full_name,
            block.name,
            *(_told(block.eigenvalues[k], s, rounding) for k in (0, len(block.ranks) // 2, -1)),
        )
        for rung, s in rungs
        for block in s.blocks
        if block.eigenvalues
    )
    tables = (
        Table("Condition numbers", ("Rung", "largest over smallest", "at λ"), conditions),
        Table(
            "Eigenvalues by block",
            ("Rung", "block", "largest", "middle", "lowest"),
            blocks,
            words=("block",),
        ),
        _layer_overlaps(study),
    )
    return tuple(table for table in tables if table.rows)


def _layer_overlaps(study: Results) -> Table:
    measured = study.overlap or OverlapSummary((), ())
    ranks = measured.ranks
    rows = (
        (pair.name, block.name, *(map(number, block.overlap)), *[NONE] * (len(ranks) - k))
        for pair in measured.pairs
        for block in pair.blocks
        if (k := len(block.overlap))
    )
    columns = ("Rungs", "layer", *map(str, ranks))
    caption = "Overlap of leading eigenspaces by layer, by directions compared"
    return Table(caption, columns, tuple(rows), words=("layer",))
