"""The claims as Markdown and in a terminal, and the pages of the studies that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from curvfluence.report import table1
from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.line import show_named
from curvfluence.report.parts.signs import MEANING, SIGNS
from curvfluence.report.parts.table import Table
from curvfluence.report.parts.text import Text
from curvfluence.report.study.page import with_report
from curvfluence.report.study.tables import claim_table
from curvfluence.report.table1.cells import middle
from curvfluence.study.claims import AXES, Claims
from curvfluence.study.claims.claim import MARGIN
from curvfluence.study.claims.plan import PROTOCOL_NAMES
from curvfluence.study.claims.table1_run import Table1
from curvfluence.study.progress import Watcher, silent
from curvfluence.study.results import ClaimRow
from curvfluence.study.study import read_study

PAGE, FIGURES = "claims.md", "figures"


def write_claims(claims: Claims, *, figures: bool = True, watch: Watcher = silent) -> Path:
    """Write `claims.md`, and the page of every base study that has none of these results; with
    `figures`, each page's figures as files too."""
    folders = [
        claims.path / f"{name}-{protocol}"
        for name in claims.table.problems
        for protocol in PROTOCOL_NAMES
    ]
    with watch("write the reports", len(folders)) as done:
        for k, folder in enumerate(folders):
            with_report(read_study(folder), figures=figures)
            done(k + 1)
    page = claims.path / PAGE
    text(claims).write(page, FIGURES)
    return page


def overview(claims: Claims) -> Table:
    """The verdicts of each claim and protocol by problem, for the problem as it is and then across
    each axis."""
    problems = list(claims.table.problems)
    keys = dict.fromkeys((r.statement, r.protocol) for name in problems for r in claims.rows(name))
    lines = (
        (statement, protocol, *(_signs(claims.rows(n), statement, protocol) for n in problems))
        for statement, protocol in keys
    )
    axes = listed_axes(claims)
    caption = f"{MEANING}: first for the problem as it is, then across {axes}."
    return Table(caption, ("Claim", "protocol", *problems), tuple(lines))


def listed_axes(claims: Claims) -> str:
    return ", ".join(AXES.get(axis, axis) for axis in claims.table.settings.axes)


def _signs(rows: Sequence[ClaimRow], statement: str, protocol: str) -> str:
    signs = [SIGNS[r.verdict] for r in rows if (r.statement, r.protocol) == (statement, protocol)]
    return f"{signs[0]} {''.join(signs[1:])}".strip() if signs else "–"


def show_claims(claims: Claims, console: Console) -> None:
    """The overview, and where the rest is."""
    table = overview(claims)
    table.show(console)
    console.print(table.caption, highlight=False, markup=False)
    for name, files in (
        ("Tables", f"{claims.path}/{PAGE}, {claims.path}/claims.json"),
        ("Reports", f"{claims.path}/<problem>-<protocol>/report.html"),
    ):
        show_named(console, name, files, 7)


def text(claims: Claims, paper: Table1 | None = None) -> Text:
    """The whole page: the paper's own setting first, where it is given, then these problems, an
    overview, how it was made, and each problem's table."""
    table = overview(claims)
    own = (
        "# Claims",
        "What “Better Hessians Matter” (arXiv 2509.23437) says of influence functions, and what "
        "was measured here. [study.md](study.md#claims) says how each claim becomes a number and "
        "an interval; the interval alone makes the verdict.",
        *_in_its_setting(paper),
        "## Problems of this project's own",
        table.markdown,
        table.caption,
        _made(claims),
    )
    problems = (claim_table(n, claims.rows(n), open=True) for n in claims.table.problems)
    return Text((*own, *problems))


def _in_its_setting(paper: Table1 | None) -> tuple[str | Table | Figure, ...]:
    if paper is None:
        return ("The paper's own setting stands in [table1.md](table1.md).",)
    shown = (
        table1.summary(paper),
        table1.measures(paper),
        table1.lds_table(paper, middle(paper)),
    )
    return (
        "## In the paper's own setting",
        f"{table1.headline(paper)} {table1.TERMS} [table1.md](table1.md) has every cell.",
        table1.lds(paper),
        *(part for one in shown for part in (one.markdown, f"{one.caption}.")),
    )


def _made(claims: Claims) -> str:
    settings, made = claims.table.settings, claims.table.environment
    shown = ("curvfluence", "python", "torch", "numpy", "scipy")
    versions = ", ".join(f"{name} {made.versions[name]}" for name in shown)
    subsets = (
        "each problem's own number of subsets"
        if settings.subsets is None
        else f"{settings.subsets} subsets"
    )
    return (
        f"Made by `{made.command or 'the library'}` with {versions}; seed {settings.seed}. "
        f"{settings.models} influence models in every study; {subsets} in {settings.orders} "
        f"minibatch orders for the problem as it is, {settings.variant_subsets} in one order for "
        f"the variants; at most {settings.queries or 'all'} queries; λ from "
        f"{min(settings.dampings):g} to {max(settings.dampings):g}; {settings.replicates} "
        f"bootstrap replicates. A rung counts as no worse "
        f"within {MARGIN:g} of LDS."
    )
