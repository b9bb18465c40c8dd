"""The paper's own cells as a page, as Markdown and in a terminal: every word from the numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import asdict
from rich.console import Console

from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.line import show_named
from curvfluence.report.parts.page import PAGE, Page, Report, Section, Verdict, write_page
from curvfluence.report.parts.signs import MEANING, SIGNS, counts
from curvfluence.report.parts.style import looks, variable
from curvfluence.report.parts.table import Table
from curvfluence.report.parts.text import Text
from curvfluence.report.table1.cells import BELOW, LADDER, middle, net_label
from curvfluence.report.table1.figures import errors, lds, sampled, steps
from curvfluence.study.claims.claim import FAILS, HOLDS, OPEN
from curvfluence.study.claims.table1_claims import SHARED
from curvfluence.study.claims.table1_run import CellResult, PartAsked, Table1, Table1Run
from curvfluence.study.results import ClaimRow
from curvfluence.study.words import NONE, interval, number, short

MARKDOWN, FIGURES = "table1.md", "figures"
ORDER = "Better Hessians give better scores at every step: GGN > block > EK-FAC > K-FAC"
MAJORITY = "The eigenvalue step is the majority of the influence loss"
TERMS = (
    "LDS is the rank correlation, over random subsets of the training data, of the change that "
    "influence predicts and the change after real retraining: 1 is perfect, 0 is chance. A cell is "
    "one net, trained for one length, with subsets that keep a fraction α. A claim holds in a cell "
    "where its 95% interval says so, and does not hold where the interval rules it out."
)


def write_table1(run: Table1Run, *, figures: bool = True) -> Report:
    """Write `report.html`, `figures/` and `table1.md` into the run's folder."""
    start = time.perf_counter()
    text(run.table).write(run.path / MARKDOWN, FIGURES)
    return write_page(_page(run), run.path / PAGE, start=start, figures=figures)


def headline(table: Table1) -> str:
    """In how many cells the paper's order and its majority hold."""
    parts: list[str] = []
    for statement, said in (
        (ORDER, "the paper's order, GGN > block > EK-FAC > K-FAC, holds at every step"),
        (MAJORITY, "the eigenvalue step is the majority of the influence loss"),
    ):
        seen = Counter(row.verdict for row in rows_of(table, statement))
        parts.append(
            f"{said} in {seen[HOLDS]} of {sum(seen.values())} cells, is ruled out in "
            f"{seen[FAILS]} and not resolved in {seen[OPEN]}"
        )
    text = f"{parts[0]}; {parts[1]}."
    if table.quick:
        return f"Provisional (a quick run): {text}"
    if table.parts:
        return f"A part of the cells: {text}"
    return text[0].upper() + text[1:]


def rows_of(table: Table1, statement: str, epochs: int | None = None) -> list[ClaimRow]:
    """A claim in every cell, or in those of a training length."""
    cells = [cell for cell in table.cells if epochs in (None, cell.epochs)]
    return [row for cell in cells for row in cell.claims if row.claim == statement]


SHARE = "The eigenvalue step is the majority of the approximation error"
RISES = "The paper's error of the inverse grows at every step"
MEASURED = (
    (
        "Each step of GGN > block > EK-FAC > K-FAC costs accuracy",
        (
            ("LDS", ORDER),
            ("the paper's error of the inverse, mean", f"{RISES} (mean)"),
            ("the paper's error of the inverse, median", f"{RISES} (median)"),
            (
                f"the error of the inverse damped by {SHARED:g}, mean",
                f"The error of the inverse damped by {SHARED:g} grows at every step (mean)",
            ),
        ),
    ),
    (
        "The eigenvalue step is most of what is lost",
        (
            ("LDS", MAJORITY),
            (
                "LDS, K-FAC's eigenvalues on the block's eigenvectors",
                "Wrong eigenvalues on the block's own eigenvectors lose the majority of what K-FAC "
                "loses to the block",
            ),
            ("squared distances to the GGN", f"{SHARE}, squared norms"),
            ("distances to the GGN", f"{SHARE}, norms"),
            (
                "the paper's error of the inverse, mean (the largest step)",
                "In the paper's error of the inverse, the eigenvalue step is the largest (mean)",
            ),
        ),
    ),
)
MAIN = 6  # claims at the head of the list that the paper is about; its majority is another


def summary(table: Table1) -> Table:
    """The paper's own claims: in how many cells of each training length each holds."""
    lengths = sorted({cell.epochs for cell in table.cells})
    main = [s for k, s in enumerate(table.statements) if k < MAIN or s == MAJORITY]
    lines = (
        (
            statement,
            *(counts(rows_of(table, statement, length)) for length in lengths),
        )
        for statement in main
    )
    columns = ("Claim", *(f"{length:,} epochs" for length in lengths))
    return Table(f"In how many cells: {MEANING}", columns, tuple(lines), open=True)


def measures(table: Table1) -> Table:
    """The paper's two findings by what they are measured in: in how many cells each holds."""
    lengths = sorted({cell.epochs for cell in table.cells})
    lines = (
        (
            finding,
            measure,
            *(counts(rows_of(table, statement, length)) for length in lengths),
        )
        for finding, measured in MEASURED
        for measure, statement in measured
    )
    columns = ("Finding", "measured by", *(f"{length:,} epochs" for length in lengths))
    caption = f"Which measure makes which finding true, in how many cells: {MEANING}"
    return Table(caption, columns, tuple(lines), open=True, words=("measured by",))


def verdicts(table: Table1) -> Table:
    """Every claim: in how many cells it holds, and in each that keeps half."""
    shown = middle(table)
    lines = (
        (
            statement,
            counts(rows_of(table, statement)),
            *(_sign(cell, statement) for cell in shown),
        )
        for statement in table.statements
    )
    caption = (
        f"{MEANING}: in how many of all cells, then at α = 0.5 in each net (depth × width, b with "
        "biases) and training length"
    )
    columns = ("Claim", "all cells", *map(net_label, shown))
    return Table(caption, columns, tuple(lines), open=True)


def _sign(cell: CellResult, statement: str) -> str:
    return next((SIGNS[r.verdict] for r in cell.claims if r.claim == statement), NONE)


def lds_table(table: Table1, cells: Sequence[CellResult]) -> Table:
    """LDS of the ladder in these cells."""
    names = [n for n in (*LADDER, *BELOW) if any(cell.rung(n) for cell in table.cells)]
    lines = (
        (
            cell.label,
            *(_lds(cell, n) for n in names),
            f"{cell.models}",
            number(cell.best_lds),
            short(cell.training_loss),
        )
        for cell in cells
    )
    caption = (
        "LDS of every cell over so many models, its half-interval behind ±; noise allows about the "
        "last but one column (other initial weights, which a single model does not tell); ¹ of the "
        "first model alone, * best λ at the end of the grid"
    )
    return Table(caption, ("Cell", *names, "models", "noise allows", "training loss"), tuple(lines))


def _lds(cell: CellResult, name: str) -> str:
    rung = cell.rung(name)
    if rung is None:
        return NONE
    half = (rung.interval.high - rung.interval.low) / 2
    first = "¹" if rung.models < cell.models else ""
    return f"{number(rung.lds)} ±{number(half)}{first}{'*' if rung.on_edge else ''}"


def claim_tables(table: Table1) -> tuple[Table, ...]:
    """Number, interval and verdict of every claim in every cell."""
    return tuple(
        Table(
            statement,
            ("Cell", "measured", "95% interval", "verdict", "what it is"),
            tuple(
                (cell.label, *_told(row))
                for cell in table.cells
                for row in cell.claims
                if row.claim == statement
            ),
            words=("verdict", "what it is"),
        )
        for statement in table.statements
    )


def _told(row: ClaimRow) -> tuple[str, ...]:
    signed = not row.share
    value = number(row.measured, signed=signed)
    return value, interval(row.interval, signed=signed), row.verdict, row.detail


def _figures(table: Table1) -> tuple[Figure, ...]:
    found = (steps(table), sampled(table), errors(table))
    return tuple(figure for figure in found if figure is not None)


def _page(run: Table1Run) -> Page:
    table = run.table
    look = looks([*LADDER, *BELOW])
    return Page(
        template="page.html",
        title=f"{table.problem}: the paper's own cells",
        verdict=Verdict(headline(table), TERMS),
        picture=lds(table),
        kind="Claims",
        subject="Better Hessians Matter, in its own setting",
        description=(
            f"Tanh nets without biases on {table.problem}, plain SGD at .03 with a cosine "
            "schedule, batches of 32, no weight decay: depth 1, 4 and 8 at width 16, width 32, 64 "
            "and 128 at depth 1."
        ),
        beside=(summary(table),),
        facts=(
            ("Cells", f"{len(table.cells)}"),
            ("Retrainings", f"{sum(c.models * c.subsets for c in table.cells):,}"),
            ("Hours", number(table.seconds / 3600, 1)),
        ),
        sections=(
            Section(
                "why",
                "Where accuracy is lost",
                "Each step down the chain in every cell; the last one by Fisher type; and the "
                "error of the inverse that the paper reports.",
                figures=_figures(table),
            ),
            Section(
                "verdicts",
                "Every claim in every cell",
                "A claim is judged by its 95% interval in each cell by itself.",
                tables=(verdicts(table),),
            ),
            Section(
                "cells",
                "The numbers",
                "The numbers that the verdicts come from.",
                tables=(measures(table), lds_table(table, table.cells), *claim_tables(table)),
            ),
        ),
        command=command(table),
        chips={name: variable(one.colour) for name, one in look.items()},
    )


def command(table: Table1) -> str:
    """What makes the table again: one line for each part that it was put together from."""
    words = ["curvfluence claims", table.problem, "--protocol table1"]
    words += ["--quick"] * table.quick + [f"--seed {table.seed}"] * bool(table.seed)
    return "\n".join(" ".join([*words, *_options(part)]) for part in table.parts or (PartAsked(),))


def _options(part: PartAsked) -> list[str]:
    return [f"--{key} {value}" for key, value in asdict(part).items() if value is not None]


def text(table: Table1) -> Text:
    """The whole of it as text, with the picture of LDS by rung."""
    found = errors(table)
    return Text(
        (
            "# The paper's own cells",
            f"{headline(table)} {TERMS}",
            lds(table),
            f"Made by:\n\n```sh\n{command(table)}\n```",
            summary(table),
            measures(table),
            verdicts(table),
            lds_table(table, table.cells),
            *([found.data] if found else []),
            *claim_tables(table),
        )
    )


def show_table1(run: Table1Run, console: Console) -> None:
    """The sentence, LDS by cell, and where the rest is."""
    table = run.table
    console.print(headline(table), highlight=False, markup=False)
    console.print()
    names = [n for n in (*LADDER, *BELOW) if any(cell.rung(n) for cell in table.cells)]
    rows = tuple(
        (
            f"{net_label(cell)}, α {cell.alpha:g}",
            *(NONE if (rung := cell.rung(n)) is None else number(rung.lds) for n in names),
        )
        for cell in table.cells
    )
    Table("LDS of every cell", ("Cell", *names), rows).show(console)
    for name, files in (("Tables", MARKDOWN), ("Report", PAGE), ("Banks", "banks/")):
        place: Path = run.path / files
        show_named(console, name, place, 7)
