"""`report.html` and the figures of a sweep, from the results of its studies alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from curvfluence.errors import InputError
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.page import PAGE, Page, Report, Section, chips, write_page
from curvfluence.report.parts.repeat import sweep_call, sweep_command
from curvfluence.report.parts.settings import pairs, settings_tables
from curvfluence.report.sweep.effects import effects
from curvfluence.report.sweep.figures import eigenvalue_step, lds, lost
from curvfluence.report.sweep.grid import Grid, worded
from curvfluence.report.sweep.tables import heat, notes, step_count_table, step_counts
from curvfluence.report.sweep.verdict import verdict
from curvfluence.study.sweep import Sweep
from curvfluence.study.words import number


def write_sweep_report(sweep: Sweep, *, figures: bool = True) -> Report:
    """Write `report.html`, and unless `figures` is False `figures/*.svg` and `figures/*.pdf`, into
    the sweep's folder.

    Errors: `InputError`, with nothing written, for a sweep of no studies, or where the folder holds
    a `report.html` of somebody else.
    """
    start = time.perf_counter()
    if not sweep.studies:
        raise InputError("a sweep of no studies has no report")
    return write_page(_page(Grid(sweep)), sweep.path / PAGE, start=start, figures=figures)


def _page(grid: Grid) -> Page:
    first, counts = grid.first, step_counts(grid)
    of_eigenvalues, of_lds = eigenvalue_step(grid), lds(grid)
    leading = of_eigenvalues or of_lds
    return Page(
        template="sweep.html",
        title=f"{first.problem}: a sweep of {len(grid.studies)} studies",
        verdict=verdict(grid),
        picture=leading[0],
        kind="Sweep of studies",
        subject=first.heading,
        description=first.description,
        details=f"protocol {first.protocol}",
        beside=(step_count_table(counts, grid.seeds),) if counts else (),
        facts=_facts(grid),
        sections=_sections(grid, [f for f in of_eigenvalues + of_lds if f is not leading[0]]),
        measured=(
            pairs("Axes", [{worded(k): values for k, values in grid.given.items()}]),
            *settings_tables(grid.results),
        ),
        missing=() if of_eigenvalues else ("the decomposition",),
        command=sweep_command(first.spec, grid.given),
        call=sweep_call(first.spec, grid.given),
        chips=chips(first),
        more={"heat": heat(grid), "notes": notes(grid)},
    )


def _facts(grid: Grid) -> tuple[tuple[str, str], ...]:
    truth = grid.first.truth
    spent = sum(results.study_seconds or 0.0 for results in grid.results) / 60
    return (
        ("Studies", f"{len(grid.studies):,}"),
        ("Seeds", f"{grid.seeds}"),
        ("Influence models each", f"{truth.models}"),
        ("Subsets each", f"{truth.subsets}"),
        ("Retrainings in all", f"{sum(r.truth.retrainings for r in grid.results):,}"),
        ("Minutes over all studies", number(spent, 1)),
    )


def _sections(grid: Grid, figures: Sequence[Figure]) -> tuple[Section, ...]:
    """`figures` are those of LDS and of the eigenvalue step that the verdict leaves."""
    spaced = " The values of an axis stand evenly spaced." if grid.axes else ""
    of_lds = tuple(figure for figure in figures if _of_lds(figure))
    signs = effects(grid)
    two = len(of_lds) == 2  # a row for LDS, and one for what is lost
    return (
        Section(
            id="eigenvalues",
            title="The eigenvalue step",
            lead=(
                "From EK-FAC to K-FAC only the eigenvalues change. Its share of ‖GGN − KFAC‖² and "
                "of plain norms tells how much of the distance they hold, for each Fisher type of "
                "the factors (under a sampled type EK-FAC has exact eigenvalues in the sampled "
                "basis); beside it, what the step costs in LDS. The line at 50% marks a majority."
            ),
            figures=tuple(f for f in figures if not _of_lds(f)),
        ),
        Section(
            id="effects",
            title="What decides the sign",
            lead=(
                "One row for each value of each axis, averaged over all other settings: right of 0 "
                "EK-FAC has the better scores, left of it K-FAC."
            ),
            figures=() if signs is None else (signs,),
        ),
        Section(
            id="rungs",
            title="LDS by rung, and what each step loses",
            lead=_bars(grid) + spaced + ("" if two else f" {_LOST}"),
            second=_LOST if two else "",
            figures=(*of_lds, *lost(grid)),
        ),
    )


_LOST = (
    "What a step loses is the LDS of the upper rung less that of the lower, on the same truth: "
    "above 0 the better curvature gives the better scores. A hollow point is one whose bar holds 0."
)


def _of_lds(figure: Figure) -> bool:
    return figure.name.partition("-")[0] == "lds"


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
