"""`report.html` and the figures of a sweep, from the results of its studies alone."""

from __future__ import annotations

import time
from dataclasses import replace

from curvfluence.errors import InputError
from curvfluence.report.figure import Figure, render
from curvfluence.report.html import MARK, render_page, write_figures, write_page
from curvfluence.report.page import FIGURES, PAGE, Report
from curvfluence.report.sections import Section
from curvfluence.report.style import looks, variable
from curvfluence.report.sweep.figures import eigenvalue_step, ladder, lds, lost
from curvfluence.report.sweep.grid import Grid
from curvfluence.report.sweep.measured import command, library_call, measured
from curvfluence.report.sweep.tables import heat, notes, order_table, ordered
from curvfluence.report.sweep.verdict import said
from curvfluence.study.sweep import Sweep


def write_sweep_report(sweep: Sweep) -> Report:
    """Write `report.html`, `figures/*.svg` and `figures/*.pdf` into the sweep's folder.

    Errors: `InputError`, with nothing written, for a sweep of no studies, or where the folder holds
    a `report.html` of somebody else.
    """
    start = time.perf_counter()
    if not sweep.cells:
        raise InputError("a sweep of no studies has no report")
    path = sweep.path / PAGE
    if path.exists() and MARK not in path.read_text(errors="replace")[:200]:
        raise InputError(f"{path} is no page of curvfluence: move it, or name another folder")
    grid = Grid(sweep)
    order = ordered(grid)
    parts = _sections(grid)
    drawn = {figure.name: render(figure) for part in parts for figure in part.figures}
    every = [results for _, results in sweep.cells]
    look = looks(ladder(grid))
    page = render_page(
        "sweep.html",
        f"{every[0]['problem']}: a sweep of {len(every)} studies",
        results=every[0],
        grid=grid,
        studies=len(every),
        retrainings=sum(results["truth"]["retrainings"] for results in every),
        minutes=sum(results.get("study_seconds") or 0.0 for results in every) / 60,
        verdict=said(grid, order),
        order=order_table(order, grid.seeds) if order else None,
        sections=parts,
        drawn=drawn,
        heat=heat(grid),
        notes=notes(grid),
        measured=measured(grid),
        command=command(grid),
        call=library_call(grid),
        chips={name: variable(look[name].colour) for name in look},
    )
    sweep.path.mkdir(parents=True, exist_ok=True)
    write_figures(drawn.values(), sweep.path / FIGURES)
    write_page(path, page)
    return Report(path, time.perf_counter() - start, path.stat().st_size)


def _sections(grid: Grid) -> tuple[Section, ...]:
    of_eigenvalues, of_steps = eigenvalue_step(grid), lost(grid)
    spaced = "" if not grid.axes else " The values of an axis stand evenly spaced."
    found = (
        Section(
            id="rungs",
            title="LDS by rung",
            lead=(
                "LDS is the rank correlation, over subsets, of the predicted and the true change "
                "of a query: 1 is perfect, 0 is chance. " + _bars(grid) + spaced
            ),
            figures=lds(grid),
        ),
        Section(
            id="eigenvalues",
            title="The eigenvalue step",
            lead=(
                "From EK-FAC to K-FAC only the eigenvalues change. Its share of ‖GGN − KFAC‖² and "
                "of plain norms tells how much of the distance they hold, for each Fisher type of "
                "the factors (under a sampled type EK-FAC has exact eigenvalues in the sampled "
                "basis); beside it, what the step costs in LDS. The line at 50% marks a majority."
            ),
            figures=of_eigenvalues,
            missing="" if of_eigenvalues else "The studies hold no decomposition.",
        ),
        Section(
            id="lost",
            title="What each step loses",
            lead=(
                "LDS of the upper rung less that of the lower, on the same truth: above 0 the "
                "better curvature gives the better scores. A hollow point is one whose bar holds 0."
            ),
            figures=of_steps,
            missing="" if of_steps else "A ladder of one rung has no steps.",
        ),
    )
    return tuple(replace(part, figures=_level(part.figures)) for part in found)


def _bars(grid: Grid) -> str:
    """What the bars of LDS are."""
    if grid.seeds > 1:
        return (
            f"Every setting was studied with {grid.seeds} seeds (other initial weights, orders and "
            "subsets): points are means over the seeds, bars 95% t-intervals over them."
        )
    return (
        "One seed was run: bars are each study’s own 95% bootstrap interval, and where a figure "
        "averages over settings, from their lowest to their highest."
    )


def _level(figures: tuple[Figure, ...]) -> tuple[Figure, ...]:
    """All figures of a section as high as the highest, so that they stand on one line."""
    height = max((figure.height for figure in figures), default=0.0)
    return tuple(replace(figure, height=height) for figure in figures)
